//! The admin server as its clients see it: raw bytes over a real socket.

use karst_telemetry::metrics::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::readiness::Readiness;

/// Starts a server and gives its address; it ends with the guard.
async fn server(router: Router) -> (SocketAddr, tokio_util::sync::DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    spawn_connection("admin server", serve(listener, router, shutdown.clone()));
    (addr, shutdown.drop_guard())
}

/// Sends one request and reads until the server closes.
async fn ask(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(addr: SocketAddr, path: &str) -> String {
    ask(
        addr,
        &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
    )
    .await
}

#[tokio::test]
async fn routes_answer_and_the_index_lists_them() {
    let router = Router::new()
        .route(
            Method::GET,
            "/debug/*",
            "everything below",
            |request| async move { Response::text(request.path) },
        )
        .metrics(&Registry::new());
    let (addr, _guard) = server(router).await;
    assert!(get(addr, "/debug/a/b?x=1").await.ends_with("/debug/a/b"));
    assert!(get(addr, "/metrics").await.contains("openmetrics-text"));
    assert!(
        get(addr, "/")
            .await
            .contains("GET /debug/*: everything below")
    );
    assert!(get(addr, "/absent").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn readiness_names_what_is_pending() {
    let readiness = Readiness::new();
    let task = readiness.task("discovery");
    let (addr, _guard) = server(Router::new().readiness(readiness)).await;
    let answer = get(addr, "/healthz/ready").await;
    assert!(
        answer.starts_with("HTTP/1.1 500") && answer.contains("pending: discovery"),
        "{answer}"
    );
    task.done();
    assert!(
        get(addr, "/healthz/ready")
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn the_wrong_method_says_the_right_one() {
    let (addr, _guard) = server(Router::new().quit(Shutdown::new())).await;
    let answer = get(addr, "/quitquitquit").await;
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.ends_with("use POST\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_large_body_is_refused() {
    let router = Router::new().route(Method::POST, "/in", "", |_| async {
        Response::text("taken")
    });
    let (addr, _guard) = server(router).await;
    let size = BODY_BYTES_MAX + 1;
    let head = format!(
        "POST /in HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
    );
    let answer = ask(addr, &(head + &"x".repeat(size))).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn garbage_costs_only_its_own_connection() {
    let (addr, _guard) = server(Router::new().version()).await;
    assert!(
        ask(addr, "\0\x01\x02 nonsense\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 400")
    );
    assert!(get(addr, "/version").await.contains("\"version\""));
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_counted() {
    let (addr, _guard) = server(Router::new().version()).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        open.push(TcpStream::connect(addr).await.unwrap());
    }
    let before = connections_refused();
    let mut extra = TcpStream::connect(addr).await.unwrap();
    assert_eq!(extra.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(connections_refused(), before + 1);
}

#[test]
fn parameters_are_read_by_name() {
    let request = Request {
        method: Method::POST,
        path: "/logging".to_owned(),
        query: "level=a:debug&reset".to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        peer: "127.0.0.1:1".parse().unwrap(),
    };
    assert_eq!(request.parameter("level"), Some("a:debug"));
    assert_eq!(request.parameter("reset"), Some(""));
    assert_eq!(request.parameter("leve"), None);
}
