//! A directory of Kubernetes YAML as objects and events: pure parsing, errors with file, line and field.
