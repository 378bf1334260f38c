//! `conformance grpc`: gRPC's interoperability client and server, the waypoint between them.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use super::proxy;
use crate::{cluster, shell};

/// The cases that need neither a cloud's credentials nor a load balancer of gRPC's own
/// (grpc/grpc, doc/interop-test-descriptions.md).
const CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
];

pub(super) fn run() -> Result<()> {
    let (client, server) = cluster::build::grpc_interop()?;
    let server = proxy::listening(&server, |at| {
        vec!["-port".to_owned(), at.port().to_string()]
    })?;
    let proxy = proxy::in_front_of(server.at)?;
    let failed: Vec<&str> = CASES
        .into_iter()
        .filter(|case| !passes(&client, proxy.at.port(), case))
        .collect();
    println!(
        "conformance: grpc {}/{}",
        CASES.len() - failed.len(),
        CASES.len()
    );
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn passes(client: &Path, port: u16, case: &str) -> bool {
    let ran = shell::capture(
        Command::new("timeout")
            .arg("30")
            .arg(client)
            .args(["-server_host", "127.0.0.1", "-server_port"])
            .arg(port.to_string())
            .args(["-test_case", case]),
    );
    match ran {
        Ok(_) => println!("ok    {case}"),
        Err(ref why) => println!("FAIL  {case}: {why:#}"),
    }
    ran.is_ok()
}
