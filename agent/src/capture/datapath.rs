//! What capture and the proxies need from the kernel side. The real implementation is `karst_ebpf_loader::Kernel`; tests
//! bring their own.

use std::net::{IpAddr, SocketAddr};

use karst_ebpf_loader::{AttachError, AttachedPod, Kernel, LoadError, MapError, PodAttachment};
use karst_netns::NetnsCookie;

pub(crate) trait Datapath: Send + Sync {
    /// Captures a pod, or renews its capture. Idempotent per namespace.
    fn attach(&self, pod: &PodAttachment<'_>) -> Result<(), AttachError>;
    /// Makes ready for a pod to come; true when it may be called again for more.
    fn prepare(&self) -> Result<bool, LoadError>;
    /// First step of letting a pod go: what it dials is its own business again. `attach` takes it back.
    fn release_outbound(&self, cookie: NetnsCookie) -> Result<(), AttachError>;
    /// Second step: new connections to it reach the application directly.
    fn release_inbound(&self, cookie: NetnsCookie) -> Result<(), AttachError>;
    /// Releases a pod. Releasing one that is not captured is no error.
    fn detach(&self, cookie: NetnsCookie) -> Result<(), AttachError>;
    /// The pods that the kernel captures now, also those from before a restart.
    fn attached(&self) -> Vec<AttachedPod>;
    /// Returns how many destinations wait for room; while any does, everything that pods dial is captured.
    fn set_destinations(&self, add: &[IpAddr], remove: &[IpAddr]) -> Result<usize, MapError>;
    fn destinations(&self) -> Result<Vec<IpAddr>, MapError>;
    /// What a captured client dialled; each connection can be asked for once.
    fn take_orig_dst(&self, cookie: NetnsCookie, client: SocketAddr) -> Option<SocketAddr>;
    /// Forgets what captured clients dialled that had gone before the last call and that nobody accepted since; how many.
    fn forget_left(&self) -> Result<usize, MapError>;
    /// Tells the kernel which peer the application should see on the connection that this socket is about to make.
    fn announce_dial(&self, socket_cookie: u64, show_peer: SocketAddr) -> Result<(), MapError>;
    /// Replaces the cgroups whose probes may pass.
    fn set_kubelet_cgroups(&self, ids: &[u64]) -> Result<(), LoadError>;
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

impl Datapath for Kernel {
    fn attach(&self, pod: &PodAttachment<'_>) -> Result<(), AttachError> {
        self.attach_pod(pod)
    }

    fn prepare(&self) -> Result<bool, LoadError> {
        Self::prepare(self)
    }

    fn release_outbound(&self, cookie: NetnsCookie) -> Result<(), AttachError> {
        Self::release_outbound(self, cookie)
    }

    fn release_inbound(&self, cookie: NetnsCookie) -> Result<(), AttachError> {
        Self::release_inbound(self, cookie)
    }

    fn detach(&self, cookie: NetnsCookie) -> Result<(), AttachError> {
        self.detach_pod(cookie)
    }

    fn attached(&self) -> Vec<AttachedPod> {
        Self::attached(self)
    }

    fn set_destinations(&self, add: &[IpAddr], remove: &[IpAddr]) -> Result<usize, MapError> {
        Self::set_destinations(self, add, remove)
    }

    fn destinations(&self) -> Result<Vec<IpAddr>, MapError> {
        Self::destinations(self)
    }

    fn take_orig_dst(&self, cookie: NetnsCookie, client: SocketAddr) -> Option<SocketAddr> {
        Self::take_orig_dst(self, cookie, client)
    }

    fn forget_left(&self) -> Result<usize, MapError> {
        Self::forget_left(self)
    }

    fn announce_dial(&self, socket_cookie: u64, show_peer: SocketAddr) -> Result<(), MapError> {
        Self::announce_dial(self, socket_cookie, show_peer)
    }

    fn set_kubelet_cgroups(&self, ids: &[u64]) -> Result<(), LoadError> {
        Self::set_kubelet_cgroups(self, ids)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Self::counters(self)
    }
}
