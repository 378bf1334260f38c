//! Nodes and pods out of network namespaces, from Kubernetes YAML.
