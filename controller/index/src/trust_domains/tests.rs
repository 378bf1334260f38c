//! Against a naive reading: a principal matches if the text matches by any name of the mesh.

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::*;
use crate::policies::string;

fn domain(name: &str) -> TrustDomain {
    TrustDomain(name.into())
}

fn mesh(own: &str, aliases: &[&str]) -> TrustDomains {
    TrustDomains {
        own: domain(own),
        aliases: aliases.iter().map(|name| domain(name)).collect(),
    }
}

fn written_out(domains: &TrustDomains, values: &[&str]) -> Vec<StringMatch> {
    let values: Vec<StringMatch> = values.iter().map(|value| string(value)).collect();
    all_names(domains, &values)
}

#[test]
fn principals_are_written_out_as_in_istio() {
    let both = mesh("new.example", &["old.example"]);
    let all = |values: &[&str]| values.iter().map(|one| string(one)).collect::<Vec<_>>();
    for (values, expected) in [
        (
            &["old.example/ns/a/sa/b"][..],
            &["new.example/ns/a/sa/b", "old.example/ns/a/sa/b"][..],
        ),
        (
            &["cluster.local/ns/a/sa/b"],
            &["new.example/ns/a/sa/b", "old.example/ns/a/sa/b"],
        ),
        (&["other.org/ns/a/sa/b"], &["other.org/ns/a/sa/b"]),
        (
            &["*ld.example/ns/a/sa/b"],
            &["*ld.example/ns/a/sa/b", "new.example/ns/a/sa/b"],
        ),
        (&["*.example/ns/a/sa/b"], &["*.example/ns/a/sa/b"]),
        (&["*/ns/a/sa/b"], &["*/ns/a/sa/b"]),
        (&["*"], &["*"]),
        (
            &["old.example/ns/a/*"],
            &["new.example/ns/a/*", "old.example/ns/a/*"],
        ),
        (&["old*"], &["old*", "new.example/*"]),
        (
            &["old.example/ns/a/sa/b", "new.example/ns/a/sa/b"],
            &["new.example/ns/a/sa/b", "old.example/ns/a/sa/b"],
        ),
    ] {
        assert_eq!(written_out(&both, values), all(expected), "{values:?}");
    }
}

#[test]
fn former_names_stay_until_the_end_and_bad_text_changes_nothing() {
    let home = domain("cluster.local");
    let mut names = Names::new(&home);
    let configure = |names: &mut Names, text: &str| {
        names.configure(&home, &MeshConfig::read(text));
        names.now().clone()
    };
    assert_eq!(configure(&mut names, ""), mesh("cluster.local", &[]));
    assert_eq!(
        configure(&mut names, "trustDomain: one\ntrustDomainAliases: [two]"),
        mesh("one", &["two", "cluster.local"])
    );
    assert_eq!(
        configure(&mut names, "trustDomain: three"),
        mesh("three", &["cluster.local", "one"])
    );
    assert_eq!(configure(&mut names, "trustDomain: [").own, domain("three"));
    assert_eq!(
        configure(&mut names, "trustDomain: A/B").own,
        domain("three")
    );
    assert_eq!(
        configure(&mut names, ""),
        mesh("cluster.local", &["one", "three"])
    );
    for number in 0..100 {
        configure(&mut names, &format!("trustDomain: d{number}"));
    }
    assert!(names.now().aliases.len() <= FORMER_MAX + 1);
}

fn matches(one: &StringMatch, text: &str) -> bool {
    match one {
        StringMatch::Exact(whole) => **whole == *text,
        StringMatch::Prefix(start) => text.starts_with(&**start),
        StringMatch::Suffix(end) => text.ends_with(&**end),
        StringMatch::Presence => !text.is_empty(),
    }
}

/// By every name of the mesh, if the identity is of the mesh.
fn naive(domains: &TrustDomains, written: &[StringMatch], domain: &str, rest: &str) -> bool {
    let names: Vec<&str> = match domains.iter().any(|one| *one.0 == *domain) {
        // In a policy `cluster.local` is a name of every mesh.
        true => domains
            .iter()
            .map(|one| &*one.0)
            .chain(["cluster.local"])
            .collect(),
        false => vec![domain],
    };
    let texts: Vec<String> = names.iter().map(|name| format!("{name}/{rest}")).collect();
    written
        .iter()
        .any(|one| texts.iter().any(|text| matches(one, text)))
}

#[test]
fn random_policies_mean_the_same_by_every_name() {
    const DOMAINS: [&str; 5] = [
        "cluster.local",
        "new.example",
        "old.example",
        "far.org",
        "n",
    ];
    const PATTERNS: [&str; 12] = [
        "*",
        "n*",
        "new*",
        "old.example/*",
        "cluster.local/ns/a/*",
        "*/ns/a/sa/b",
        "*example/ns/a/sa/b",
        "*/sa/b",
        "old.example/ns/a/sa/b",
        "far.org/ns/a/sa/b",
        "cluster.local/ns/a/sa/c",
        "new.example/ns/a/sa/c",
    ];
    let mut rng = SmallRng::seed_from_u64(7);
    for _ in 0..100_000 {
        let count = rng.random_range(1..=3);
        let mut names: Vec<&str> = DOMAINS.sample(&mut rng, count).copied().collect();
        let own = names.remove(0);
        let domains = mesh(own, &names);
        let count = rng.random_range(1..=3);
        let values: Vec<&str> = PATTERNS.sample(&mut rng, count).copied().collect();
        let written: Vec<StringMatch> = values.iter().map(|value| string(value)).collect();
        let domain = *DOMAINS.choose(&mut rng).unwrap();
        let rest = *["ns/a/sa/b", "ns/a/sa/c", "ns/z/sa/b"]
            .choose(&mut rng)
            .unwrap();
        // A name that only a policy has is nobody's.
        if domain == DEFAULT_TRUST_DOMAIN && !names.contains(&domain) && own != domain {
            continue;
        }
        let text = format!("{domain}/{rest}");
        let found = all_names(&domains, &written)
            .iter()
            .any(|one| matches(one, &text));
        let expected = naive(&domains, &written, domain, rest);
        assert_eq!(found, expected, "{values:?} in {domains:?}: {text}");
    }
}
