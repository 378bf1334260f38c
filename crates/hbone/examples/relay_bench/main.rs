//! Measures the relay over loopback beside direct TCP, interleaved in one run:
//! source ── relay (client) ══ TLS, HTTP/2 ══ relay (server) ── sink, one thread each.
//!
//! `cargo run --release -p karst-hbone --example relay_bench [throughput|latency|connect|streams] [rounds] [plain]`
//!
//! `plain` puts two byte-copying relays without TLS and HTTP/2 in the same place: what relaying costs at least.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program, not the product"
)]

#[path = "../../tests/peer/certs.rs"]
mod certs;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use karst_hbone::{
    Authority, Connect, ConnectError, Flow, Pool, PoolConfig, PoolKey, ServerConfig, TunnelRequest,
    copy_tcp, relay, server,
    tls::{TlsIo, tls_accept, tls_connect},
};
use karst_model::identity::{SpiffeId, TrustDomain};
use tokio::{net, runtime, task};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TIMEOUT: Duration = Duration::from_secs(10);

fn main() {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_else(|| "throughput".to_owned());
    let rounds = args.next().map_or(5, |n| n.parse().unwrap());
    let rig = Rig::start(args.next().as_deref() == Some("plain"));
    match what.as_str() {
        "throughput" => throughput(&rig, rounds, 1),
        "streams" => throughput(&rig, rounds, 16),
        "latency" => latency(&rig, rounds),
        "connect" => connect(&rig, rounds),
        other => panic!("{other} is not throughput, latency, connect or streams"),
    }
}

/// The two relays and an application behind them.
struct Rig {
    relay: SocketAddr,
    app: SocketAddr,
    threads: Vec<u64>,
}

impl Rig {
    fn start(plain: bool) -> Self {
        let app = start_app();
        if plain {
            return Self::plain(app);
        }
        let (client_tls, server_tls) = certs::configs();
        let (tx, rx) = mpsc::channel();
        let server_tx = tx.clone();
        thread::spawn(move || on_one_thread(server_relay(server_tls, server_tx)));
        let (hbone, server_thread) = rx.recv().unwrap();
        thread::spawn(move || on_one_thread(client_relay(hbone, app, client_tls, tx)));
        let (relay, client_thread) = rx.recv().unwrap();
        Self {
            relay,
            app,
            threads: vec![server_thread, client_thread],
        }
    }

    fn plain(app: SocketAddr) -> Self {
        let (tx, rx) = mpsc::channel();
        let second_tx = tx.clone();
        thread::spawn(move || on_one_thread(plain_relay(app, second_tx)));
        let (second, second_thread) = rx.recv().unwrap();
        thread::spawn(move || on_one_thread(plain_relay(second, tx)));
        let (relay, first_thread) = rx.recv().unwrap();
        Self {
            relay,
            app,
            threads: vec![first_thread, second_thread],
        }
    }

    /// CPU time of both relay threads.
    fn cpu(&self) -> Duration {
        let nanos = |thread: &u64| {
            let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        Duration::from_nanos(self.threads.iter().map(nanos).sum())
    }
}

fn on_one_thread(work: impl Future<Output = ()>) {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    task::LocalSet::new().block_on(&runtime, work);
}

fn thread_id() -> u64 {
    let link = fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

async fn plain_relay(next: SocketAddr, started: mpsc::Sender<(SocketAddr, u64)>) {
    let listener = net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    started
        .send((listener.local_addr().unwrap(), thread_id()))
        .unwrap();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        task::spawn_local(async move {
            let onward = net::TcpStream::connect(next).await.unwrap();
            onward.set_nodelay(true).unwrap();
            copy_tcp(tcp, onward, &Flow::default()).await;
        });
    }
}

async fn server_relay(tls: Arc<rustls::ServerConfig>, started: mpsc::Sender<(SocketAddr, u64)>) {
    let listener = net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    started
        .send((listener.local_addr().unwrap(), thread_id()))
        .unwrap();
    let (_drain, watch) = karst_runtime::drain::channel();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let (tls, watch) = (tls.clone(), watch.clone());
        task::spawn_local(async move {
            let io = tls_accept(tcp, tls, TIMEOUT).await.unwrap();
            let cfg = ServerConfig::default();
            let served = server::serve(io, &cfg, watch, |incoming| {
                task::spawn_local(async move {
                    let Authority::Addr(addr) = incoming.request.authority else {
                        panic!("not an address")
                    };
                    let tcp = net::TcpStream::connect(addr).await.unwrap();
                    tcp.set_nodelay(true).unwrap();
                    relay(tcp, incoming.accept(None).unwrap(), &Flow::default()).await;
                });
            });
            served.await.unwrap();
        });
    }
}

struct Loopback(Arc<rustls::ClientConfig>);

impl Connect for Loopback {
    type Io = TlsIo<net::TcpStream>;

    async fn connect(&self, key: &PoolKey) -> Result<Self::Io, ConnectError> {
        let tcp = net::TcpStream::connect(key.addr)
            .await
            .map_err(ConnectError::Tcp)?;
        tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
        tls_connect(tcp, self.0.clone(), TIMEOUT).await
    }
}

async fn client_relay(
    hbone: SocketAddr,
    app: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    started: mpsc::Sender<(SocketAddr, u64)>,
) {
    let listener = net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    started
        .send((listener.local_addr().unwrap(), thread_id()))
        .unwrap();
    let pool = Pool::new(PoolConfig::default(), Loopback(tls));
    let id = SpiffeId::new(&TrustDomain::default(), "shop", "orders");
    let key = PoolKey {
        source: "source".into(),
        source_identity: id.clone(),
        destination: "destination".into(),
        addr: hbone,
        accepted: [id].into(),
    };
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let (pool, key) = (pool.clone(), key.clone());
        task::spawn_local(async move {
            let tunnel = pool
                .open(key, TunnelRequest::new(Authority::Addr(app)))
                .await
                .unwrap();
            relay(tcp, tunnel, &Flow::default()).await;
        });
    }
}

/// First byte of a connection: `s` counts bytes and answers with the count at the end, `e` echoes.
fn start_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for tcp in listener.incoming() {
            let mut tcp = tcp.unwrap();
            tcp.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let mut mode = [0];
                match tcp.read(&mut mode).unwrap() {
                    1 if mode == *b"s" => sink(tcp),
                    1 => echo(tcp),
                    _ => {}
                }
            });
        }
    });
    addr
}

fn sink(mut tcp: TcpStream) {
    let mut buf = vec![0; 1 << 20];
    let mut total = 0_u64;
    loop {
        match tcp.read(&mut buf).unwrap() {
            0 => break,
            n => total += n as u64,
        }
    }
    tcp.write_all(&total.to_be_bytes()).unwrap();
}

fn echo(mut tcp: TcpStream) {
    let mut buf = [0; 64];
    while let Ok(n @ 1..) = tcp.read(&mut buf) {
        tcp.write_all(&buf[..n]).unwrap();
    }
}

fn connect_to(addr: SocketAddr, mode: u8) -> TcpStream {
    let mut tcp = TcpStream::connect(addr).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.write_all(&[mode]).unwrap();
    tcp
}

/// Gbit/s and CPU seconds of the relays per GB, `streams` connections at once.
fn blast(rig: &Rig, addr: SocketAddr, streams: u64) -> (f64, f64) {
    const TOTAL: u64 = 6 << 30;
    let each = TOTAL / streams;
    let (start, cpu) = (Instant::now(), rig.cpu());
    thread::scope(|scope| {
        for _stream in 0..streams {
            scope.spawn(|| {
                let mut tcp = connect_to(addr, b's');
                let chunk = vec![7; 1 << 20];
                for _chunk in 0..each >> 20 {
                    tcp.write_all(&chunk).unwrap();
                }
                tcp.shutdown(std::net::Shutdown::Write).unwrap();
                let mut total = [0; 8];
                tcp.read_exact(&mut total).unwrap();
                assert_eq!(u64::from_be_bytes(total), each >> 20 << 20);
            });
        }
    });
    let bytes = TOTAL as f64;
    (
        bytes * 8.0 / start.elapsed().as_secs_f64() / 1e9,
        (rig.cpu() - cpu).as_secs_f64() / bytes * 1e9,
    )
}

fn throughput(rig: &Rig, rounds: usize, streams: u64) {
    let mut ratios = Vec::new();
    for _round in 0..rounds {
        let (direct, _) = blast(rig, rig.app, streams);
        let (tunnel, cpu) = blast(rig, rig.relay, streams);
        ratios.push(tunnel / direct);
        println!(
            "direct {direct:.1} Gbit/s, tunnel {tunnel:.1} Gbit/s = {:.3}x, relays {cpu:.2} CPU-s/GB",
            tunnel / direct
        );
    }
    println!("median {:.3}x with {streams} streams", median(&mut ratios));
}

/// p50 of 64 byte request-response in microseconds, and CPU microseconds of the relays per exchange.
fn ping(rig: &Rig, addr: SocketAddr) -> (f64, f64) {
    const EXCHANGES: usize = 20_000;
    let mut tcp = connect_to(addr, b'e');
    let mut buf = [7; 64];
    let mut times = Vec::with_capacity(EXCHANGES);
    let cpu = rig.cpu();
    for _exchange in 0..EXCHANGES {
        let start = Instant::now();
        tcp.write_all(&buf).unwrap();
        tcp.read_exact(&mut buf).unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    (
        median(&mut times),
        (rig.cpu() - cpu).as_secs_f64() * 1e6 / EXCHANGES as f64,
    )
}

fn latency(rig: &Rig, rounds: usize) {
    let mut ratios = Vec::new();
    for _round in 0..rounds {
        let (direct, _) = ping(rig, rig.app);
        let (tunnel, cpu) = ping(rig, rig.relay);
        ratios.push(tunnel / direct);
        println!(
            "direct p50 {direct:.1} us, tunnel p50 {tunnel:.1} us = {:.2}x, relays {cpu:.1} us CPU",
            tunnel / direct
        );
    }
    println!("median {:.2}x", median(&mut ratios));
}

/// Connections per second, one after another, each with one exchange.
fn churn(rig: &Rig, addr: SocketAddr) -> (f64, f64) {
    const CONNECTIONS: u32 = 4000;
    let (start, cpu) = (Instant::now(), rig.cpu());
    for _connection in 0..CONNECTIONS {
        let mut tcp = connect_to(addr, b'e');
        let mut buf = [7; 64];
        tcp.write_all(&buf).unwrap();
        tcp.read_exact(&mut buf).unwrap();
    }
    (
        f64::from(CONNECTIONS) / start.elapsed().as_secs_f64(),
        (rig.cpu() - cpu).as_secs_f64() * 1e6 / f64::from(CONNECTIONS),
    )
}

fn connect(rig: &Rig, rounds: usize) {
    let mut ratios = Vec::new();
    for _round in 0..rounds {
        let (direct, _) = churn(rig, rig.app);
        let (tunnel, cpu) = churn(rig, rig.relay);
        ratios.push(tunnel / direct);
        println!(
            "direct {direct:.0}/s, tunnel {tunnel:.0}/s = {:.2}x, relays {cpu:.0} us CPU each",
            tunnel / direct
        );
    }
    println!("median {:.2}x", median(&mut ratios));
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
