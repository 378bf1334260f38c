//! Keys of token issuers, fetched from real servers over real TLS: rotation, what stays when a server fails, and what is
//! never asked.

#![expect(
    clippy::unwrap_used,
    reason = "helpers stand outside of test functions"
)]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use karst_controller::{
    jwks::{FetchError, Fetcher, JwksConfig, JwksMetrics, Keeper},
    mesh::Command,
    serve::observations::Observed,
};
use karst_index::{Event, FetchedKeys, KeySource};
use karst_policy::token::Rejected;
use karst_proto::reads::{Incident, Observation};
use karst_runtime::supervise::Shutdown;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// A server that answers every request with the same bytes, which a test may change. No bytes: it stays silent.
struct Server {
    port: u16,
    root: Arc<str>,
    answer: Arc<Mutex<String>>,
}

impl Server {
    async fn start(tls: bool) -> Self {
        karst_identity::tls::install_provider();
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let root = own.cert.pem();
        let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::try_from(
            own.signing_key.serialize_der(),
        )
        .unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let acceptor = tls.then(|| TlsAcceptor::from(Arc::new(config)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer: Arc<Mutex<String>> = Arc::default();
        let said = answer.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, said) = (acceptor.clone(), said.clone());
                tokio::task::spawn_local(async move {
                    match acceptor {
                        None => serve(stream, &said).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, &said).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            port,
            root: root.into(),
            answer,
        }
    }

    fn says(&self, status: &str, headers: &str, body: &str) {
        *self.answer.lock().unwrap() = format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
    }

    fn config(&self) -> JwksConfig {
        JwksConfig {
            refresh: Duration::from_millis(50),
            allow_private: true,
            extra_roots: Some(self.root.clone()),
        }
    }
}

async fn serve<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, said: &Mutex<String>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let answer = said.lock().unwrap().clone();
    if answer.is_empty() {
        return std::future::pending().await;
    }
    let _ended_by_the_client = stream.write_all(answer.as_bytes()).await;
    let _ended_by_the_client = stream.shutdown().await;
}

/// A set of one key, told apart by its name.
fn keys(name: &str) -> String {
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{name}","x":"{x}"}}]}}"#)
}

async fn local<T>(test: impl Future<Output = T>) -> T {
    let limited = tokio::time::timeout(Duration::from_secs(60), test);
    tokio::task::LocalSet::new()
        .run_until(limited)
        .await
        .expect("the test is stuck")
}

#[tokio::test]
async fn keys_come_over_tls_rotate_and_the_last_good_ones_stay() {
    local(Box::pin(async {
        let server = Server::start(true).await;
        server.says("200 OK", "", &keys("first"));
        let source = KeySource::Uri(format!("https://localhost:{}/keys", server.port).into());
        let (wanted, follow) = watch::channel(BTreeSet::from([source.clone()]));
        let (commands, mut heard) = mpsc::channel(16);
        let shutdown = Shutdown::new();
        let follow = (follow, watch::channel(0).1);
        let keeper = Keeper::new(server.config(), JwksMetrics::default(), follow, commands);
        tokio::task::spawn_local(keeper.run(shutdown.clone()));
        let mut next = async || -> FetchedKeys {
            let Some(Command::Objects(events)) = heard.recv().await else {
                panic!("the keeper has ended")
            };
            let Some(Event::Keys {
                source: of,
                fetched,
            }) = events.into_iter().next()
            else {
                panic!("keys")
            };
            assert_eq!(of, source);
            fetched
        };
        let first = next().await;
        assert_eq!(
            (first.keys.as_deref(), first.problem),
            (Some(&*keys("first")), None)
        );
        server.says("200 OK", "", &keys("second"));
        assert_eq!(next().await.keys.as_deref(), Some(&*keys("second")));
        for (status, body, expected) in [
            ("500 Oops", "", "answered 500"),
            ("200 OK", "{}", "no keys"),
            ("200 OK", "<html>", "no keys"),
        ] {
            server.says(status, "", body);
            let failed = next().await;
            assert_eq!(
                failed.keys.as_deref(),
                Some(&*keys("second")),
                "the last good ones"
            );
            assert!(
                failed.problem.as_deref().unwrap().contains(expected),
                "{failed:?}"
            );
        }
        server.says("200 OK", "", &keys("third"));
        let mended = next().await;
        assert_eq!(
            (mended.keys.as_deref(), mended.problem),
            (Some(&*keys("third")), None)
        );
        wanted.send_replace(BTreeSet::new());
        shutdown.cancel();
    }))
    .await;
}

/// From a waypoint's report to the new keys, with the next fetch an hour away.
#[tokio::test]
async fn a_token_with_a_new_key_has_the_keys_fetched_at_once() {
    local(Box::pin(async {
        let server = Server::start(true).await;
        server.says("200 OK", "", &keys("old"));
        let source = KeySource::Uri(format!("https://localhost:{}/keys", server.port).into());
        let (_wanted, follow) = watch::channel(BTreeSet::from([source]));
        let (commands, mut heard) = mpsc::channel(16);
        let (shutdown, observed) = (Shutdown::new(), Observed::default());
        let config = JwksConfig {
            refresh: Duration::from_secs(3600),
            ..server.config()
        };
        let follow = (follow, observed.unknown_keys());
        let keeper = Keeper::new(config, JwksMetrics::default(), follow, commands);
        tokio::task::spawn_local(keeper.run(shutdown.clone()));
        let mut next = async || match heard.recv().await {
            Some(Command::Objects(events)) => format!("{events:?}"),
            _ => panic!("the keeper has ended"),
        };
        assert!(next().await.contains("old"));
        server.says("200 OK", "", &keys("new"));
        let reason = Rejected::KeyUnknown.to_string();
        let incident = Incident {
            reason,
            ..Incident::default()
        };
        let message = Observation {
            program: "p".to_owned(),
            sequence: 1,
            incidents: vec![incident],
            ..Observation::default()
        };
        observed.take("shop/waypoint", message);
        assert!(next().await.contains("new"));
        shutdown.cancel();
    }))
    .await;
}

#[tokio::test]
async fn an_issuer_says_itself_where_its_keys_are() {
    local(Box::pin(async {
        let (issuer, store) = (Server::start(true).await, Server::start(false).await);
        let address = format!("https://localhost:{}", issuer.port);
        let uri = format!("http://localhost:{}/k", store.port);
        store.says("200 OK", "", &keys("found"));
        issuer.says(
            "200 OK",
            "",
            &format!(r#"{{"issuer":"{address}","jwks_uri":"{uri}"}}"#),
        );
        let fetcher = Fetcher::new(&issuer.config());
        let source = KeySource::Issuer(address.into());
        assert_eq!(&*fetcher.fetch(&source).await.unwrap(), keys("found"));
        issuer.says(
            "200 OK",
            "",
            &format!(r#"{{"issuer":"https://other","jwks_uri":"{uri}"}}"#),
        );
        assert!(matches!(
            fetcher.fetch(&source).await,
            Err(FetchError::Configuration)
        ));
        let name = KeySource::Issuer("accounts@example.com".into());
        assert!(matches!(
            fetcher.fetch(&name).await,
            Err(FetchError::Issuer(_))
        ));
    }))
    .await;
}

#[tokio::test]
async fn what_is_private_endless_large_or_not_who_it_says_is_refused() {
    local(Box::pin(async {
        let (server, plain) = (Server::start(true).await, Server::start(false).await);
        let fetch = async |config: JwksConfig, uri: String| {
            Fetcher::new(&config)
                .fetch(&KeySource::Uri(uri.into()))
                .await
        };
        let secure = format!("https://localhost:{}/", server.port);
        let open = format!("http://localhost:{}/", plain.port);
        let private = JwksConfig {
            allow_private: false,
            ..server.config()
        };
        assert!(matches!(
            fetch(private.clone(), open.clone()).await,
            Err(FetchError::Private(_))
        ));
        let metadata = "http://169.254.169.254/latest".to_owned();
        assert!(matches!(
            fetch(private, metadata).await,
            Err(FetchError::Private(_))
        ));
        plain.says("302 Found", &format!("location: {open}\r\n"), "");
        assert!(matches!(
            fetch(server.config(), open.clone()).await,
            Err(FetchError::Redirects)
        ));
        server.says("302 Found", &format!("location: {open}\r\n"), "");
        assert!(matches!(
            fetch(server.config(), secure.clone()).await,
            Err(FetchError::Redirects)
        ));
        plain.says("200 OK", "", &"x".repeat(2 << 20));
        assert!(matches!(
            fetch(server.config(), open.clone()).await,
            Err(FetchError::TooLarge)
        ));
        let strangers = JwksConfig {
            extra_roots: None,
            ..server.config()
        };
        server.says("200 OK", "", &keys("k"));
        let untrusted = fetch(strangers, secure.clone()).await;
        assert!(
            matches!(
                untrusted,
                Err(FetchError::Handshake(_) | FetchError::Tls(_))
            ),
            "{untrusted:?}"
        );
        for address in ["ftp://a/", "http://user@localhost/", "nonsense"] {
            let refused = fetch(server.config(), address.to_owned()).await;
            assert!(
                matches!(refused, Err(FetchError::Address(_))),
                "{address}: {refused:?}"
            );
        }
        plain.answer.lock().unwrap().clear();
        assert!(matches!(
            fetch(server.config(), open).await,
            Err(FetchError::Late)
        ));
    }))
    .await;
}
