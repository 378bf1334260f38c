//! The control plane: Kubernetes objects in; discovery, certificates and status out.
