//! What a Secret holds, under the names that Istio knows, tried as TLS will use it. Pure.

use k8s_openapi::api::core::v1::Secret;
use karst_identity::tls::{Inside, Origination};
use karst_index::{Credential, Event, SecretName};
use karst_k8s_api::{Object, istio::destination_rule::TrafficPolicy};
use karst_model::traffic::{
    ClientCredential, Secret as Hidden, TlsMode, TrustAnchors, UpstreamTls,
};
use karst_telemetry::error_chain::Chain;

/// Keys of a Secret: of kind `kubernetes.io/tls`, and generic.
const CHAIN: [&str; 2] = ["tls.crt", "cert"];
const KEY: [&str; 2] = ["tls.key", "key"];
const ROOTS: [&str; 2] = ["ca.crt", "cacert"];
const REVOKED: [&str; 2] = ["ca.crl", "crl"];

/// A server that is never spoken to.
const NOBODY: &str = "nobody.invalid";

/// Whether any of these objects names a Secret.
pub(super) fn any_named(objects: &[Event]) -> bool {
    let of_policy = |policy: &TrafficPolicy| {
        let ports = policy.port_level_settings.iter();
        let all = ports.map(|port| &port.tls).chain([&policy.tls]);
        all.flatten().any(|tls| tls.credential_name.is_some())
    };
    objects.iter().any(|event| match event {
        Event::Apply(Object::DestinationRule(rule)) => {
            let subsets = rule.spec.subsets.iter();
            let policies = subsets.map(|subset| &subset.traffic_policy);
            let mut policies = policies.chain([&rule.spec.traffic_policy]).flatten();
            policies.any(of_policy)
        }
        _ => false,
    })
}

/// What of it can be used, or why none of it is.
pub(super) fn read(name: &SecretName, secret: &Secret) -> Result<Credential, String> {
    let (chain, key) = (text(secret, CHAIN)?, text(secret, KEY)?);
    let credential = Credential {
        pair: match (chain, key) {
            (Some(chain), Some(key)) => Some((chain.into(), Hidden::new(key))),
            (None, None) => None,
            (Some(_), None) => {
                return Err("it has a certificate and no key (tls.key or key)".to_owned());
            }
            (None, Some(_)) => {
                return Err("it has a key and no certificate (tls.crt or cert)".to_owned());
            }
        },
        roots: text(secret, ROOTS)?.map(Into::into),
        revoked: text(secret, REVOKED)?.map(Into::into),
    };
    if credential.pair.is_none() && credential.roots.is_none() {
        return Err(
            "it has neither tls.crt and tls.key (or cert and key) nor ca.crt (or cacert)"
                .to_owned(),
        );
    }
    tried(name, credential)
}

/// The first of two names that is there.
fn text<'a>(secret: &'a Secret, names: [&str; 2]) -> Result<Option<&'a str>, String> {
    let data = secret.data.as_ref();
    let found = names
        .into_iter()
        .find_map(|name| Some((name, data?.get(name)?)));
    let Some((name, bytes)) = found.filter(|(_, bytes)| !bytes.0.is_empty()) else {
        return Ok(None);
    };
    let read = std::str::from_utf8(&bytes.0);
    read.map(Some)
        .map_err(|_bytes| format!("{name} is no text"))
}

fn tried(name: &SecretName, credential: Credential) -> Result<Credential, String> {
    let pair = credential.pair.as_ref();
    let mut tls = UpstreamTls::new(match pair {
        Some(_) => TlsMode::Mutual,
        None => TlsMode::Simple,
    });
    tls.credential = pair.map(|(chain, key)| ClientCredential {
        name: name.to_string().into(),
        chain: chain.clone(),
        key: key.clone(),
    });
    match &credential.roots {
        Some(pem) => tls.anchors = TrustAnchors::Pem(pem.clone()),
        // Nothing to verify by is nothing to try.
        None => tls.insecure = true,
    }
    tls.crl.clone_from(&credential.revoked);
    match Origination::new(&tls, NOBODY, Inside::Bytes) {
        Ok(_) => Ok(credential),
        Err(error) => Err(Chain(&error).to_string()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;

    use super::*;

    fn name() -> SecretName {
        SecretName {
            namespace: "shop".into(),
            name: "web-client".into(),
        }
    }

    fn secret(data: &[(&str, &str)]) -> Secret {
        let entry = |(name, text): &(&str, &str)| {
            ((*name).to_owned(), ByteString(text.as_bytes().to_vec()))
        };
        let data: BTreeMap<String, ByteString> = data.iter().map(entry).collect();
        Secret {
            data: Some(data),
            ..Secret::default()
        }
    }

    /// A certificate that signs itself, and its key.
    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["client.example".to_owned()]);
        let made = made.expect("a certificate can be made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    /// One that can be used.
    pub(crate) fn mutual() -> Secret {
        let (chain, key) = pair();
        secret(&[("tls.crt", &chain), ("tls.key", &key), ("ca.crt", &chain)])
    }

    /// One whose key is another certificate's.
    pub(crate) fn torn() -> Secret {
        let ((chain, _), (_, key)) = (pair(), pair());
        secret(&[("tls.crt", &chain), ("tls.key", &key)])
    }

    #[test]
    fn both_sets_of_names_are_read() {
        let (chain, key) = pair();
        for [cert, own, roots] in [["tls.crt", "tls.key", "ca.crt"], ["cert", "key", "cacert"]] {
            let made = secret(&[(cert, &chain), (own, &key), (roots, &chain)]);
            let read = read(&name(), &made).unwrap();
            let (of, hidden) = read.pair.unwrap();
            assert_eq!((&*of, hidden.expose()), (&*chain, &*key));
            assert_eq!(read.roots.as_deref(), Some(&*chain));
        }
        let alone = read(&name(), &secret(&[("cacert", &chain)])).unwrap();
        assert!(alone.pair.is_none() && alone.roots.is_some());
    }

    #[test]
    fn what_cannot_be_used_is_named_and_no_key_is_shown() {
        let (chain, key) = pair();
        for (made, expected) in [
            (secret(&[]), "neither tls.crt and tls.key"),
            (secret(&[("tls.crt", &chain)]), "no key"),
            (secret(&[("key", &key)]), "no certificate"),
            (torn(), "cannot be used with its key"),
            (
                secret(&[("tls.crt", "x"), ("tls.key", &key)]),
                "shop/web-client",
            ),
            (secret(&[("tls.crt", &chain), ("tls.key", "x")]), "not PEM"),
            (
                secret(&[("ca.crt", "x")]),
                "no certificate that can be used",
            ),
            (
                secret(&[("ca.crt", &chain), ("ca.crl", "x")]),
                "revoked certificates",
            ),
        ] {
            let why = read(&name(), &made).unwrap_err();
            assert!(why.contains(expected), "{expected}: {why}");
            assert!(!why.contains("PRIVATE"), "{why}");
        }
        let mut bytes = secret(&[]);
        let data = bytes.data.get_or_insert_default();
        data.insert("ca.crt".to_owned(), ByteString(vec![0xff, 0xfe]));
        assert_eq!(read(&name(), &bytes).unwrap_err(), "ca.crt is no text");
    }
}
