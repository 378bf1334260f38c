//! What a CA may not answer.

use std::sync::Arc;

use karst_identity::{
    Credential, CredentialError, PrivateKey, SignedCertificate, TrustBundle, clock::Clock,
};
use karst_model::identity::{SpiffeId, TrustDomains};

use crate::mint::{Ca, Leaf};

const ID: &str = "spiffe://cluster.local/ns/shop/sa/orders";

fn take(key: &Arc<PrivateKey>, signed: &SignedCertificate) -> Result<Credential, CredentialError> {
    let id: SpiffeId = ID.parse().unwrap();
    Credential::from_signed(
        &id,
        key.clone(),
        signed,
        Arc::new(TrustDomains::default()),
        Clock::system(),
    )
}

fn request() -> (Arc<PrivateKey>, String) {
    let key = PrivateKey::generate().unwrap();
    let csr = key.csr_pem(&ID.parse().unwrap()).unwrap();
    (Arc::new(key), csr)
}

#[test]
fn all_roots_of_the_last_element_are_trusted() {
    let (one, two) = (Ca::root("one"), Ca::root("two"));
    let (key, csr) = request();
    let credential = take(&key, &two.answer(&csr, &Leaf::of(ID), &[&one, &two])).unwrap();
    assert_eq!(credential.bundle().roots().len(), 2);
    assert_eq!(
        **credential.bundle(),
        TrustBundle::from_pem(&credential.bundle().pem()).unwrap()
    );
}

#[test]
fn intermediates_come_one_by_one_or_together() {
    let root = Ca::root("root");
    let (upper, (key, csr)) = (root.intermediate("upper"), request());
    let lower = upper.intermediate("lower");
    let leaf = lower.answer(&csr, &Leaf::of(ID), &[]).chain_pem.remove(0);
    for middle in [
        vec![lower.pem.clone(), upper.pem.clone()],
        vec![lower.pem.clone() + &upper.pem],
    ] {
        let chain_pem = [vec![leaf.clone()], middle, vec![root.pem.clone()]].concat();
        assert_eq!(
            take(&key, &SignedCertificate { chain_pem })
                .unwrap()
                .chain()
                .len(),
            3
        );
    }
}

#[test]
fn a_faulty_answer_is_refused_by_name() {
    let (ca, stranger) = (Ca::root("root"), Ca::root("stranger"));
    let (key, csr) = request();
    let other = "spiffe://cluster.local/ns/shop/sa/cart";
    let good = ca.answer(&csr, &Leaf::of(ID), &[&ca]);
    let refused = |signed: &SignedCertificate| take(&key, signed).unwrap_err();
    assert!(matches!(
        refused(&ca.answer(&csr, &Leaf::of(other), &[&ca])),
        CredentialError::OtherIdentity { .. }
    ));
    assert!(matches!(
        refused(&ca.answer(&request().1, &Leaf::of(ID), &[&ca])),
        CredentialError::OtherKey(_)
    ));
    assert!(matches!(
        refused(&stranger.answer(&csr, &Leaf::of(ID), &[&ca])),
        CredentialError::Untrusted(..)
    ));
    let parts = |parts: &[&str]| SignedCertificate {
        chain_pem: parts.iter().map(|&part| part.to_owned()).collect(),
    };
    assert!(matches!(refused(&parts(&[])), CredentialError::Parts(_, 0)));
    assert!(matches!(
        refused(&parts(&[&good.chain_pem[0]])),
        CredentialError::Parts(_, 1)
    ));
    assert!(matches!(
        refused(&parts(&["x", &ca.pem])),
        CredentialError::Pem { part: 0, .. }
    ));
    assert!(matches!(
        refused(&parts(&[&good.chain_pem[0], "no roots"])),
        CredentialError::Roots(..)
    ));
    take(&key, &good).unwrap();
}

#[test]
fn keys_are_not_shown() {
    let ca = Ca::root("root");
    let credential = ca.credential(ID, &[&ca]);
    let shown = format!("{credential:?}");
    assert!(shown.contains(ID) && !shown.contains("PRIVATE"), "{shown}");
}
