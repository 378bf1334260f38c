//! DNS for captured pods: names of the mesh are answered here, everything else is forwarded to the cluster's resolver.
//!
//! Each captured pod has a UDP and a TCP socket in its own namespace, to which the kernel side steers its queries. When
//! they are gone (agent away) the kernel leaves queries alone and they reach the cluster's resolver directly.
//!
//! The UDP socket stays for the pod's life ([`pod::PodDns`]): a client that connected its own to it goes on asking there.

pub(crate) mod answer;
pub(crate) mod forward;
pub(crate) mod kept;
pub(crate) mod pod;
pub(crate) mod server;
