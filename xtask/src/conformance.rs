//! `conformance`: other people's suites, unmodified, against Karst.
//!
//! ```text
//!   mesh    the Gateway API's mesh tests, on the real cluster of `cargo xtask cluster`
//!   http2   h2spec                              ─┐ against the waypoint's HTTP path on loopback
//!   grpc    gRPC's standard interoperability    ─┘ (the example `plain_proxy` of its package)
//!   otel    OpenTelemetry's collector takes what a waypoint sends
//!   prometheus   promtool takes rules, alerts and dashboards
//! ```

mod grpc;
mod http2;
mod mesh;
mod otel;
mod prometheus;
mod proxy;
mod report;

use anyhow::Result;
use clap::Subcommand;

/// What `conformance` is asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// The Gateway API's profiles MESH-HTTP and MESH-GRPC, and every other mesh test.
    Mesh(mesh::Args),
    /// h2spec: every sentence of RFC 9113 and RFC 7541 that it can try.
    Http2,
    /// gRPC's standard interoperability cases.
    Grpc,
    /// OpenTelemetry's collector gets every span, log and count.
    Otel,
    /// promtool tests the rules and alerts, and reads the dashboards' expressions.
    Prometheus,
}

/// Runs one suite.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.suite {
        Suite::Mesh(args) => mesh::run(args),
        Suite::Http2 => http2::run(),
        Suite::Grpc => grpc::run(),
        Suite::Otel => otel::run(),
        Suite::Prometheus => prometheus::run(),
    }
}
