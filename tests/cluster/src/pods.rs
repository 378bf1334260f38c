//! Pods that many tests have, as YAML that begins with a document's mark: a shell, an echo of bytes and its service.

/// A pod that waits, with a shell and karst-echo for what a test runs in it.
pub fn shell(name: &str, node: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers: [{{name: shell, image: karst.test/shell:1, command: [sleep, infinity]}}]
"
    )
}

/// A pod that echoes bytes at port 9000. Its label `app` is its name.
pub fn byte_echo(name: &str, node: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers:
    - name: echo
      image: karst.test/echo:1
      command: [karst-echo, server, '--mode=echo:9000']
      readinessProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1}}
"
    )
}

/// The service of that name for such pods; `labels` and `more` of its specification as YAML writes a mapping.
pub fn byte_service(name: &str, labels: &str, more: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, labels: {{{labels}}}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: tcp, port: 9000}}], {more}}}
"
    )
}
