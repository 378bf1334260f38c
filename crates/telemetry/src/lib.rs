//! Logging, metrics registry and access log.
