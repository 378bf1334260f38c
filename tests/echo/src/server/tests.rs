//! The server over loopback sockets: each TCP behaviour as a client sees it, and HTTP in both versions.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

async fn connect_to(mode: Mode) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    spawn_connection("test", async move {
        accept_tcp(listener, addr.port(), mode, 1).await.unwrap();
    });
    TcpStream::connect(addr).await.unwrap()
}

async fn exchange(mode: Mode, send: &[u8]) -> Vec<u8> {
    let mut stream = connect_to(mode).await;
    stream.write_all(send).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    received
}

#[tokio::test]
async fn tcp_modes_answer_as_they_are_called() {
    assert_eq!(exchange(Mode::Echo, b"abc").await, b"abc");
    assert_eq!(exchange(Mode::Slow, b"abc").await, b"abc");
    assert_eq!(
        exchange(Mode::Banner, b"abc").await,
        [modes::BANNER, b"abc"].concat()
    );
    assert_eq!(exchange(Mode::Fin, b"abc").await, modes::BANNER);
    assert_eq!(exchange(Mode::Source, b"100000\n").await.len(), 100_000);
    assert!(exchange(Mode::Count, b"abc").await.starts_with(b"3 "));
    assert!(
        String::from_utf8(exchange(Mode::Describe, b"").await)
            .unwrap()
            .contains("Proto=TCP\nIP=127.0.0.1\n")
    );
}

#[tokio::test]
async fn the_reset_mode_resets() {
    let mut stream = connect_to(Mode::Reset).await;
    stream.write_all(b"x").await.unwrap();
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn http_1_is_answered_with_the_description() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    spawn_connection("test", async move {
        accept_http(listener, 8080, None, Arc::default())
            .await
            .unwrap()
    });
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream
        .write_all(
            b"GET /a?status=418 HTTP/1.1\r\nHost: web\r\nX-B: c\r\nConnection: close\r\n\r\n",
        )
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 418"), "{answer}");
    for line in [
        "ServicePort=8080\n",
        "Host=web\n",
        "URL=/a?status=418\n",
        "RequestHeader=X-B:c\n",
    ] {
        assert!(answer.contains(line), "{line:?} missing in {answer}");
    }
}

async fn ask(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("{request}Host: web\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_server_does_what_it_is_told_and_says_what_it_has_seen() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    spawn_connection("test", async move {
        let told = Told::with_certificate("PEM".to_owned());
        accept_http(listener, 8080, None, Arc::new(told))
            .await
            .unwrap();
    });
    let get = async |path: &str| ask(addr, &format!("GET {path} HTTP/1.1\r\n")).await;
    assert!(get("/").await.starts_with("HTTP/1.1 200"));
    assert!(get("/told?status=503").await.starts_with("HTTP/1.1 200"));
    assert!(get("/").await.starts_with("HTTP/1.1 503"));
    assert!(get("/ready").await.starts_with("HTTP/1.1 200"), "probes");
    get("/told?status=200").await;
    assert!(get("/").await.starts_with("HTTP/1.1 200"));
    assert!(get("/seen").await.contains("Requests=3\nAtOnce=1\n"));
    assert!(get("/certificate").await.ends_with("PEM"));

    assert!(get("/kept/a").await.starts_with("HTTP/1.1 404"));
    ask(addr, "PUT /kept/a HTTP/1.1\r\nX-Keep: text\r\n").await;
    assert!(get("/kept/a").await.ends_with("text"));
    assert!(get("/authorize/x").await.starts_with("HTTP/1.1 403"));
    let allowed = ask(addr, "GET /authorize/x HTTP/1.1\r\nX-Ext-Authz: allow\r\n").await;
    assert!(allowed.starts_with("HTTP/1.1 200"), "{allowed}");

    let chain = format!(
        "GET /via/{addr}/via/{addr}/end HTTP/1.1\r\nX-Envoy-Expected-Rq-Timeout-Ms: 70\r\n"
    );
    let answer = ask(addr, &chain).await;
    assert_eq!(answer.matches("Via=").count(), 2, "{answer}");
    assert_eq!(answer.matches("Deadline=70").count(), 2, "{answer}");
    assert!(answer.contains("URL=/end"), "{answer}");
}
