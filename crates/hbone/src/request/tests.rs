//! Forms of requests, good and bad.

use super::*;

fn parts(request: http::request::Builder) -> Parts {
    request.body(()).unwrap().into_parts().0
}

fn connect(authority: &str) -> http::request::Builder {
    Request::builder().method(Method::CONNECT).uri(authority)
}

#[test]
fn authority_forms() {
    let check = |text: &str, expected: Authority| {
        assert_eq!(text.parse::<Authority>().unwrap(), expected, "{text}");
    };
    check(
        "10.0.0.1:80",
        Authority::Addr("10.0.0.1:80".parse().unwrap()),
    );
    check(
        "[fd00::1]:65535",
        Authority::Addr("[fd00::1]:65535".parse().unwrap()),
    );
    check(
        "[::ffff:10.0.0.1]:80",
        Authority::Addr("10.0.0.1:80".parse().unwrap()),
    );
    check(
        "Orders.shop.svc.cluster.local:8080",
        Authority::Host("orders.shop.svc.cluster.local".into(), 8080),
    );
    check("db_1:1", Authority::Host("db_1".into(), 1));
    check(
        "1password.example:443",
        Authority::Host("1password.example".into(), 443),
    );
}

#[test]
fn bad_authorities() {
    let long = format!("{}:80", "a".repeat(64));
    for bad in [
        "",
        ":",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:+80",
        "10.0.0.1:-1",
        "10.0.0.1:80:80",
        "10.0.0:80",
        "10.0.0.1.2:80",
        "010.0.0.1:80",
        "fd00::1:80",
        "[fd00::1]",
        "[fd00::1:80",
        "[10.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "a..b:80",
        ".a:80",
        "a.:80",
        "user@a:80",
        "*.a:80",
        "a b:80",
        "ü:80",
        &long,
    ] {
        assert!(bad.parse::<Authority>().is_err(), "{bad}");
    }
}

#[test]
fn an_authority_round_trips() {
    for text in ["10.0.0.1:80", "[fd00::1]:80", "orders.shop:80"] {
        let authority: Authority = text.parse().unwrap();
        assert_eq!(authority.to_string(), text);
        let request = TunnelRequest::new(authority.clone()).to_http().unwrap();
        assert_eq!(parse(&request.into_parts().0).unwrap().authority, authority);
    }
}

#[test]
fn only_plain_connect_is_served() {
    let get = parts(
        Request::builder()
            .method(Method::GET)
            .uri("http://10.0.0.1:80/"),
    );
    assert_eq!(parse(&get), Err(RequestError::Method("GET".to_owned())));
    let mut udp = parts(connect("10.0.0.1:80"));
    udp.extensions
        .insert(h2::ext::Protocol::from_static("connect-udp"));
    assert_eq!(
        parse(&udp),
        Err(RequestError::Protocol("connect-udp".to_owned()))
    );
    let path = parts(
        Request::builder()
            .method(Method::CONNECT)
            .uri("/no/authority"),
    );
    assert_eq!(parse(&path), Err(RequestError::NoAuthority));
    assert_eq!(
        parse(&parts(connect("orders.shop"))),
        Err(RequestError::Port("orders.shop".to_owned()))
    );
}

#[test]
fn headers_round_trip() {
    let mut workload = Workload::new("Kubernetes//Pod/shop/orders-0");
    workload.cluster_id = "c1".into();
    workload.namespace = "shop".into();
    workload.workload_name = "orders".into();
    workload.workload_type = WorkloadType::Deployment;
    workload.canonical_name = "orders".into();
    workload.canonical_revision = "v1".into();
    workload.locality.region = "r1".into();
    workload.locality.zone = "z1".into();
    let baggage = Baggage::of(&workload);
    let encoded = baggage.encode().unwrap();
    assert_eq!(
        encoded,
        "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=orders,service.name=orders,\
         service.version=v1,cloud.region=r1,cloud.availability_zone=z1"
    );
    let forwarded = Forwarded {
        source: "[fd00::9]:4000".parse().unwrap(),
        host: Some("orders.shop".into()),
    };
    assert_eq!(
        forwarded.to_string(),
        "for=\"[fd00::9]:4000\";host=orders.shop"
    );
    let traceparent = TraceParent::fresh();
    let request = TunnelRequest {
        authority: "10.0.0.1:80".parse().unwrap(),
        baggage: Some(encoded),
        forwarded: Some(forwarded),
        traceparent: Some(traceparent),
        forwarded_network: Some(HeaderValue::from_static("n1")),
        client: Some(HeaderValue::from_static(
            "spiffe://td/ns/a/sa/b;10.0.0.4:51234",
        )),
    };
    let inbound = parse(&request.to_http().unwrap().into_parts().0).unwrap();
    assert_eq!(
        inbound,
        InboundRequest {
            authority: request.authority,
            baggage,
            forwarded_for: Some("[fd00::9]:4000".parse().unwrap()),
            forwarded_host: Some("orders.shop".into()),
            traceparent: Some(traceparent),
            forwarded_network: Some("n1".into()),
            client: Some(Client {
                identity: Some("spiffe://td/ns/a/sa/b".parse().unwrap()),
                addr: Some("10.0.0.4:51234".parse().unwrap()),
            }),
        }
    );
}

#[test]
fn a_client_is_named_whole_or_not_at_all() {
    let client = |text: &str| {
        let request = connect("10.0.0.1:80").header("karst-client", text);
        parse(&parts(request)).unwrap().client
    };
    let id = "spiffe://td/ns/a/sa/b";
    assert_eq!(
        client(&format!("{id};")),
        Some(Client {
            identity: Some(id.parse().unwrap()),
            addr: None
        })
    );
    assert!(client(";[fd00::9]:4000").is_some_and(|one| one.identity.is_none()));
    for bad in ["", id, "a;b", "spiffe://td/x;10.0.0.4:1", ";10.0.0.4"] {
        assert_eq!(client(bad), None, "{bad}");
    }
}

#[test]
fn baggage_as_peers_write_it() {
    let request = connect("10.0.0.1:80")
        .header("baggage", "k8s.pod.name=a,unknown=1,service.name=")
        .header("baggage", "k8s.namespace.name=b=c, cloud.region=x,junk,,=")
        .header(
            "baggage",
            HeaderValue::from_bytes(b"k8s.cluster.name=\xff").unwrap(),
        );
    let baggage = parse(&parts(request)).unwrap().baggage;
    assert_eq!(
        baggage,
        Baggage {
            workload: Some((WorkloadType::Pod, "a".into())),
            namespace: Some("b=c".into()),
            ..Baggage::default()
        }
    );
    assert_eq!(Baggage::default().encode(), None);
}

#[test]
fn forwarded_as_peers_write_it() {
    let check = |value: &str, expected: Option<&str>| {
        let inbound = parse(&parts(connect("10.0.0.1:80").header("forwarded", value))).unwrap();
        assert_eq!(inbound.forwarded_host.as_deref(), expected, "{value}");
        assert_eq!(
            inbound.forwarded_for.is_some(),
            value.contains(":4000"),
            "{value}"
        );
    };
    check("for=\"10.0.0.1:4000\";host=a.b", Some("a.b"));
    check("for=\"10.0.0.1:4000\"; Host=\"a.b\"", Some("a.b"));
    check("host=a.b, host=c.d", Some("a.b"));
    check("for=10.0.0.1", None);
    check("host=", None);
    check("host", None);
}

#[test]
fn traceparents() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(
        good.parse::<TraceParent>().unwrap().span,
        0xb7ad_6b71_6920_3331
    );
    for bad in [
        "",
        "00",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
    ] {
        assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn no_authority_panics_and_what_parses_round_trips(text in "\\PC{0,40}|[0-9a-f.:\\[\\]]{0,30}") {
        if let Ok(authority) = text.parse::<Authority>() {
            proptest::prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
        }
    }
}
