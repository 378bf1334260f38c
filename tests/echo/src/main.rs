//! karst-echo: the server and the client that demos, examples and tests run inside pods.
//!
//! ```text
//!   server   HTTP/1.1, h2c, TLS, gRPC, WebSocket and TCP ports that say what they received
//!   client   calls a URL and prints KEY=value lines, as the Gateway API mesh suite reads them
//!   tcp      one TCP connection with a byte-exact account of what was sent and received
//!   load     new connections per second and long-lived ones, failures counted, JSON out
//!   requests requests and streams over connections that stay open: who answered, what failed, JSON out
//!   orders   the order service of examples/shop: one HTTP request -> Redis and PostgreSQL
//! ```
//!
//! Installed under the name `server` or `client` it behaves as that subcommand (the suite's image has both names).

use std::ffi::OsString;

use clap::{Parser, Subcommand};

mod bytes_pattern;
mod client;
mod describe;
mod load;
mod orders;
mod requests;
mod server;
mod stop;
mod tcp;
mod tls;

#[derive(Parser)]
#[command(
    name = "karst-echo",
    version,
    about = "Server and client for demos, examples and tests"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP/1.1, h2c, TLS, gRPC, WebSocket and TCP on the given ports
    Server(server::ServerArgs),
    /// Call a URL (http, https, h2c, ws, grpc, tcp) and print what came back
    Client(client::ClientArgs),
    /// One TCP connection: send, half-close, receive, with checksums and the kind of end; prints JSON
    Tcp(tcp::TcpArgs),
    /// Open connections at a rate, keep some open, count failures; prints JSON
    Load(load::LoadArgs),
    /// Send requests over connections that stay open, count who answers and what fails; prints JSON
    Requests(requests::RequestsArgs),
    /// The order service of examples/shop
    Orders(orders::OrdersArgs),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse_from(by_name(std::env::args_os().collect()));
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match args.command {
            Command::Server(args) => server::run(args).await,
            Command::Client(args) => client::run(args).await,
            Command::Tcp(args) => tcp::run(args).await,
            Command::Load(args) => load::run(args).await,
            Command::Requests(args) => requests::run(args).await,
            Command::Orders(args) => orders::run(args).await,
        }
    })
}

/// Called as `/bin/server` or `/bin/client`, the program's name is the subcommand.
fn by_name(mut argv: Vec<OsString>) -> Vec<OsString> {
    let name = argv
        .first()
        .and_then(|first| std::path::Path::new(first).file_name())
        .map(OsString::from);
    if let Some(name) = name.filter(|name| name == "server" || name == "client") {
        argv.insert(1, name);
    }
    argv
}

/// The only door to standard output: results are this program's product.
#[expect(clippy::print_stdout, reason = "results go to standard output")]
pub(crate) fn say(line: impl std::fmt::Display) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(argv: &[&str], expected: &[&str]) {
        assert_eq!(
            by_name(argv.iter().map(OsString::from).collect()),
            expected.iter().map(OsString::from).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_programs_name_chooses_the_subcommand() {
        check(
            &["/bin/server", "--port=80"],
            &["/bin/server", "server", "--port=80"],
        );
        check(&["client", "http://x"], &["client", "client", "http://x"]);
        check(&["karst-echo", "client"], &["karst-echo", "client"]);
    }

    #[test]
    fn the_suites_server_arguments_parse() {
        let argv = [
            "server",
            "--tcp=9090",
            "--port=8080",
            "--grpc=7070",
            "--port=8443",
            "--tls=8443",
            "--crt=/cert.crt",
            "--key=/cert.key",
        ];
        let args =
            Args::try_parse_from(by_name(argv.iter().map(OsString::from).collect())).unwrap();
        let Command::Server(server) = args.command else {
            panic!("expected the server")
        };
        assert_eq!(server.port, [8080, 8443]);
        assert_eq!(server.tls, [8443]);
    }
}
