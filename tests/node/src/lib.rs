//! Node rung: network namespaces, real kernel, root.
