//! SPIFFE certificates for Envoy from the lab's own authority, as any workload outside Karst would get them.

use std::{fs, path::Path, time::Duration, time::SystemTime};

use karst_ca::{Authority, AuthorityConfig};
use karst_model::identity::SpiffeId;
use rcgen::{CertificateParams, KeyPair};

/// Life of a certificate; longer than the test.
const TTL: Duration = Duration::from_secs(3600);

/// The authority that the lab's controller has made.
pub(crate) fn authority(lab: &str) -> Authority {
    let state = format!("/run/karst/lab/{lab}/controller");
    assert!(Path::new(&state).is_dir(), "{state} is the controller's");
    let trust_domain = identity("foreign", "any").trust_domain;
    Authority::load_or_create(AuthorityConfig::new(state, trust_domain), SystemTime::now())
        .expect("the controller's authority")
}

pub(crate) fn identity(namespace: &str, account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
        .parse()
        .expect("a SPIFFE identity")
}

/// Writes `NAME.crt`, `NAME.key` and `roots.crt` for an identity.
pub(crate) fn issue(authority: &Authority, id: &SpiffeId, folder: &Path, name: &str) {
    let key = KeyPair::generate().expect("a key");
    let request = CertificateParams::default()
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .expect("a request");
    let signed = authority
        .sign_workload(&request, id, TTL, SystemTime::now())
        .expect("a certificate");
    let write = |file: String, text: String| {
        fs::write(folder.join(file), text).expect("the folder is writable");
    };
    write(format!("{name}.crt"), signed.chain_pem[0].clone());
    write(format!("{name}.key"), key.serialize_pem());
    write("roots.crt".to_owned(), authority.root_pem());
}
