//! What to answer to a DNS query: a pure function of the query and of what the mesh knows.
//!
//! Rules: ambient contract of Istio's node proxy. A and AAAA of known names are answered; a known name without a record
//! of the asked type gives NOERROR and no record, never NXDOMAIN; all else is forwarded. Search domains that the client
//! appended are stripped, with a CNAME that tells the real name. RFC 1035, RFC 6891 (size of UDP answers).

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};

/// Seconds that clients may cache an answer.
const TTL: u32 = 30;

/// Largest UDP answer to a client that does not announce more (RFC 1035 section 4.2.1).
const MIN_UDP_PAYLOAD: usize = 512;

/// Largest UDP answer that we send to anybody: what passes a common link without fragments.
const MAX_UDP_PAYLOAD: usize = 1232;

/// What the mesh knows about names, for one client.
pub(crate) trait Names {
    /// The addresses behind a host name, of both families, or None if the mesh does not know the host. `ExternalName`
    /// services are not known: the cluster's resolver follows them.
    fn lookup(&self, host: &str) -> Option<Vec<IpAddr>>;
}

/// Where a query goes.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Answered here.
    Answer(Box<Message>),
    /// The mesh does not know: ask the cluster's resolver.
    Forward,
    /// No query that deserves an answer (a response, or no question).
    Ignore,
}

/// Search domains of the client: `<namespace>.svc.<domain>`, `svc.<domain>`, `<domain>`.
pub(crate) struct SearchDomains {
    suffixes: [String; 3],
}

impl SearchDomains {
    pub(crate) fn new(namespace: &str, cluster_domain: &str) -> Self {
        Self {
            suffixes: [
                format!(".{namespace}.svc.{cluster_domain}"),
                format!(".svc.{cluster_domain}"),
                format!(".{cluster_domain}"),
            ],
        }
    }

    /// Names that `host` may stand for: itself, and itself without a search suffix.
    fn candidates<'a>(&'a self, host: &'a str) -> impl Iterator<Item = (&'a str, bool)> {
        let stripped = self
            .suffixes
            .iter()
            .filter_map(move |suffix| host.strip_suffix(suffix.as_str()));
        std::iter::once((host, false)).chain(
            stripped
                .filter(|rest| !rest.is_empty())
                .map(|rest| (rest, true)),
        )
    }
}

/// Decides one query.
pub(crate) fn answer(query: &Message, names: &dyn Names, search: &SearchDomains) -> Outcome {
    if query.metadata.message_type != MessageType::Query {
        return Outcome::Ignore;
    }
    let [question] = &query.queries[..] else {
        return Outcome::Answer(Box::new(refusal(query, ResponseCode::FormErr)));
    };
    if query.metadata.op_code != OpCode::Query || question.query_class() != DNSClass::IN {
        return Outcome::Forward;
    }
    let asked = question.name().clone();
    let host = asked.to_lowercase().to_ascii();
    let host = host.trim_end_matches('.');
    let found = search
        .candidates(host)
        .find_map(|(name, stripped)| Some((name, stripped, lookup(names, name)?)));
    let Some((name, stripped, addresses)) = found else {
        return Outcome::Forward;
    };
    let mut response = refusal(query, ResponseCode::NoError);
    let mut owner = asked.clone();
    if stripped && let Ok(real) = Name::from_ascii(format!("{name}.")) {
        response.add_answer(Record::from_rdata(
            asked,
            TTL,
            RData::CNAME(CNAME(real.clone())),
        ));
        owner = real;
    }
    for ip in addresses {
        match (ip, question.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => {
                response.add_answer(Record::from_rdata(owner.clone(), TTL, RData::A(A(ip))));
            }
            (IpAddr::V6(ip), RecordType::AAAA) => {
                response.add_answer(Record::from_rdata(
                    owner.clone(),
                    TTL,
                    RData::AAAA(AAAA(ip)),
                ));
            }
            _ => {}
        }
    }
    Outcome::Answer(Box::new(response))
}

/// The exact host, then wildcard hosts from the most specific on.
fn lookup(names: &dyn Names, host: &str) -> Option<Vec<IpAddr>> {
    names.lookup(host).or_else(|| {
        let mut rest = host;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(known) = names.lookup(&format!("*.{parent}")) {
                return Some(known);
            }
            rest = parent;
        }
        None
    })
}

/// An answer to `query` with this code and no records.
pub(crate) fn refusal(query: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    // With one question, as every query has. Repeating hundreds would make a small packet draw a large answer.
    if let [question] = &query.queries[..] {
        response.add_query(question.clone());
    }
    response
}

/// The bytes of `response` for a UDP client: truncated (TC bit, so that it asks again by TCP) if larger than it takes.
pub(crate) fn encode_udp(query: &Message, response: &Message) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    let accepted = query
        .edns
        .as_ref()
        .map_or(MIN_UDP_PAYLOAD, |edns| usize::from(edns.max_payload()));
    if bytes.len() <= accepted.clamp(MIN_UDP_PAYLOAD, MAX_UDP_PAYLOAD) {
        return Some(bytes);
    }
    response.truncate().to_vec().ok()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    struct Shop;

    impl Names for Shop {
        fn lookup(&self, host: &str) -> Option<Vec<IpAddr>> {
            let found = match host {
                "orders.shop.svc.cluster.local" => vec!["10.96.0.7", "fd00::7"],
                "api.example.com" => vec!["240.240.0.1"],
                "*.wild.example.com" => vec!["240.240.0.2"],
                _ => return None,
            };
            Some(found.into_iter().map(|ip| ip.parse().unwrap()).collect())
        }
    }

    fn query(name: &str, record: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), record));
        message
    }

    fn check(name: &str, record: RecordType, expected: &[&str]) {
        let search = SearchDomains::new("shop", "cluster.local");
        let Outcome::Answer(response) = answer(&query(name, record), &Shop, &search) else {
            panic!("{name} not answered")
        };
        let got: Vec<String> = response
            .answers
            .iter()
            .map(|r| r.data.to_string())
            .collect();
        assert_eq!(got, expected, "{name} {record}");
        assert_eq!(response.metadata.response_code, ResponseCode::NoError);
    }

    #[test]
    fn known_names_are_answered_in_any_case_and_type() {
        check(
            "orders.shop.svc.cluster.local.",
            RecordType::A,
            &["10.96.0.7"],
        );
        check(
            "Orders.SHOP.svc.cluster.local.",
            RecordType::AAAA,
            &["fd00::7"],
        );
        check("orders.shop.svc.cluster.local.", RecordType::MX, &[]);
        check("api.example.com.", RecordType::AAAA, &[]);
        check("a.b.wild.example.com.", RecordType::A, &["240.240.0.2"]);
    }

    #[test]
    fn a_search_suffix_is_stripped_and_told() {
        check(
            "api.example.com.shop.svc.cluster.local.",
            RecordType::A,
            &["api.example.com.", "240.240.0.1"],
        );
        check(
            "api.example.com.cluster.local.",
            RecordType::A,
            &["api.example.com.", "240.240.0.1"],
        );
    }

    #[test]
    fn the_rest_is_forwarded() {
        let search = SearchDomains::new("shop", "cluster.local");
        assert!(matches!(
            answer(&query("example.org.", RecordType::A), &Shop, &search),
            Outcome::Forward
        ));
    }

    #[test]
    fn no_question_and_responses() {
        let search = SearchDomains::new("shop", "cluster.local");
        let Outcome::Answer(response) = answer(&Message::query(), &Shop, &search) else {
            panic!()
        };
        assert_eq!(response.metadata.response_code, ResponseCode::FormErr);
        let mut many = query("x.", RecordType::A);
        many.queries = vec![many.queries[0].clone(); 300];
        let Outcome::Answer(response) = answer(&many, &Shop, &search) else {
            panic!()
        };
        assert_eq!(response.metadata.response_code, ResponseCode::FormErr);
        assert!(encode_udp(&many, &response).unwrap().len() <= MIN_UDP_PAYLOAD);
        let reply = Message::response(1, OpCode::Query);
        assert!(matches!(answer(&reply, &Shop, &search), Outcome::Ignore));
    }

    #[test]
    fn a_large_answer_is_truncated_for_udp() {
        let query = query("x.", RecordType::A);
        let mut response = refusal(&query, ResponseCode::NoError);
        for i in 0..100 {
            let name = Name::from_ascii("x.").unwrap();
            response.add_answer(Record::from_rdata(name, TTL, RData::A(A::new(10, 0, 0, i))));
        }
        let bytes = encode_udp(&query, &response).unwrap();
        assert!(bytes.len() <= MIN_UDP_PAYLOAD);
        assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
    }
}
