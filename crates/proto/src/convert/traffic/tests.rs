//! A resource with everything in it comes back as it was, and what is not understood is refused by field.

use std::time::Duration;

use karst_model::traffic::*;
use prost::Message as _;

use super::{decode_service_traffic, service_traffic_to};
use crate::{
    convert::{ConvertError, Interner},
    karst as wire,
};

fn decode(message: &wire::ServiceTraffic, further: &[u8]) -> Result<ServiceTraffic, ConvertError> {
    let bytes = [message.encode_to_vec().as_slice(), further].concat();
    decode_service_traffic(&bytes, &mut Interner::default())
}

fn pattern(region: &str, zone: Option<&str>) -> LocalityPattern {
    LocalityPattern {
        region: Some(region.into()),
        zone: zone.map(Into::into),
        subzone: None,
    }
}

fn balance() -> Balance {
    Balance {
        algorithm: BalanceAlgorithm::ConsistentHash(ConsistentHash {
            key: HashKey::Cookie(HashCookie {
                name: "user".into(),
                path: Some("/".into()),
                ttl: Some(Duration::ZERO),
                attributes: vec![
                    ("Secure".into(), None),
                    ("SameSite".into(), Some("Lax".into())),
                ],
            }),
            table: HashTable::Maglev { size: 65_537 },
        }),
        warm_up: Some(WarmUp {
            duration: Duration::from_secs(60),
            aggression_milli: 1000,
            min_percent: 10,
        }),
        locality: Some(LocalityBalance {
            distribute: vec![Distribution {
                from: pattern("eu", Some("a")),
                to: vec![LocalityWeight {
                    place: pattern("eu", None),
                    weight: 80,
                }],
            }],
            priority: vec![LabelPriority {
                label: "version".into(),
                value: Some("v1".into()),
            }],
            failover: vec![RegionFailover {
                from: "eu".into(),
                to: "us".into(),
            }],
        }),
    }
}

fn connections() -> Connections {
    let second = Some(Duration::from_secs(1));
    Connections {
        max: Some(1),
        connect_timeout: second,
        keepalive: Some(TcpKeepalive {
            time: second,
            interval: None,
            probes: Some(3),
        }),
        tcp_idle_timeout: second,
        max_age: second,
        max_pending: Some(0),
        max_requests: Some(7),
        max_requests_per_connection: Some(8),
        max_retries: Some(9),
        idle_timeout: second,
        upgrade: Http2Upgrade::Never,
        max_streams: Some(10),
    }
}

fn full() -> ServiceTraffic {
    let tls = UpstreamTls {
        sni: Some("a.example".into()),
        sans: vec![San::Any("x".into()), San::Uri("spiffe://y".into())],
        anchors: TrustAnchors::Pem("PEM".into()),
        crl: Some("CRL".into()),
        credential: Some(ClientCredential {
            name: "shop/cert".into(),
            chain: "CHAIN".into(),
            key: Secret::new("KEY"),
        }),
        insecure: true,
        broken: Some("no".into()),
        ..UpstreamTls::new(TlsMode::Mutual)
    };
    let check = HealthCheck {
        probe: HealthProbe::Http {
            path: "/ready".into(),
            host: None,
            expected: vec![Expected {
                first: 200,
                last: 204,
            }],
        },
        interval: Duration::from_secs(5),
        timeout: Duration::from_millis(10),
        unhealthy_threshold: 2,
        healthy_threshold: 3,
        port: Some(8080),
    };
    let session = SessionPersistence {
        name: "s".into(),
        kind: SessionKind::Cookie { permanent: false },
        absolute_timeout: Some(Duration::from_secs(9)),
        idle_timeout: None,
    };
    ServiceTraffic {
        service: "shop/a.shop.svc".parse().unwrap(),
        scopes: vec![
            Scope::default(),
            Scope {
                port: Some(80),
                subset: Some("v1".into()),
                policy: TrafficPolicy {
                    balance: balance(),
                    connections: connections(),
                    outlier: Some(Outlier {
                        statuses: vec![429],
                        split_local: true,
                        ..Outlier::default()
                    }),
                    retry_budget: Some(RetryBudget::default()),
                    tls: Some(tls),
                    health_check: Some(check),
                    session: Some(session),
                },
            },
        ],
        subsets: vec![Subset {
            name: "v1".into(),
            labels: vec![("version".into(), "v1".into())],
        }],
        sources: vec!["DestinationRule/shop/a".into()],
    }
}

#[test]
fn everything_comes_back_as_it_was() {
    let decoded = decode(&service_traffic_to(&full()), &[]).unwrap();
    assert_eq!(decoded, full());
}

#[test]
fn what_is_not_understood_is_refused_by_field() {
    let refused = |edit: fn(&mut wire::ServiceTraffic)| {
        let mut message = service_traffic_to(&full());
        edit(&mut message);
        decode(&message, &[]).unwrap_err().to_string()
    };
    assert_eq!(
        refused(|m| m.service = "a".into()),
        r#"service: "a" is not of the form <namespace>/<name>"#
    );
    assert_eq!(refused(|m| m.scopes[0].policy = None), "scopes[0]: missing");
    assert_eq!(
        refused(|m| m.scopes[1].port = 70_000),
        "scopes[1]: 70000 is not a port"
    );
    let unknown = decode(&service_traffic_to(&full()), &[0x78, 1]).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "traffic: holds a field that this version does not know"
    );
}
