//! Kubernetes and Istio objects that Karst reads, their labels and annotations.
