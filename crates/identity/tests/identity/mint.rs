//! A CA for tests that also issues what no CA should.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use karst_identity::{Credential, PrivateKey, SignedCertificate, TrustBundle, clock::Clock};
use karst_model::identity::{SpiffeId, TrustDomains};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A root, or an intermediate below one.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf to be issued; [`Leaf::of`] is a good one.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    pub(crate) fn of(id: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![id.to_owned()],
            not_before: now - Duration::from_secs(600),
            not_after: now + 24 * HOUR,
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        }
    }

    fn params(&self) -> CertificateParams {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from(SERIAL.fetch_add(1, Ordering::Relaxed)));
        params.subject_alt_names = self
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        params.extended_key_usages = self.usages.clone();
        params
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Ca {
    pub(crate) fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let pem = ca_params(name).self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(ca_params(name), key),
        }
    }

    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let pem = ca_params(name).signed_by(&key, &self.issuer).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(ca_params(name), key),
        }
    }

    /// A certificate and its key, good or bad.
    pub(crate) fn issue(&self, leaf: &Leaf) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (
            leaf.params().signed_by(&key, &self.issuer).unwrap().pem(),
            key,
        )
    }

    /// The certificate of a server outside of the mesh, with its serial number.
    pub(crate) fn issue_server(&self, names: &[&str], uri: &str, serial: u64) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = Leaf::of(uri).params();
        params.serial_number = Some(SerialNumber::from(serial));
        let names = names
            .iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap()));
        params.subject_alt_names.extend(names);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key)
    }

    /// A list of revoked serial numbers, PEM.
    pub(crate) fn revocations(&self, serials: &[u64]) -> String {
        let now = SystemTime::now();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: (now - HOUR).into(),
            next_update: (now + HOUR).into(),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// What a CA answers to a request; `roots` is the last element.
    pub(crate) fn answer(&self, csr_pem: &str, leaf: &Leaf, roots: &[&Self]) -> SignedCertificate {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        let pem = leaf
            .params()
            .signed_by(&csr.public_key, &self.issuer)
            .unwrap()
            .pem();
        SignedCertificate {
            chain_pem: vec![pem, roots.iter().map(|root| root.pem.as_str()).collect()],
        }
    }

    /// A credential as a store would hold it.
    pub(crate) fn credential(&self, id: &str, roots: &[&Self]) -> Credential {
        self.credential_at(id, roots, Clock::system())
    }

    pub(crate) fn credential_at(&self, id: &str, roots: &[&Self], clock: Clock) -> Credential {
        let id: SpiffeId = id.parse().unwrap();
        let key = Arc::new(PrivateKey::generate().unwrap());
        let signed = self.answer(
            &key.csr_pem(&id).unwrap(),
            &Leaf::of(&id.to_string()),
            roots,
        );
        Credential::from_signed(&id, key, &signed, Arc::new(TrustDomains::default()), clock)
            .unwrap()
    }

    pub(crate) fn bundle(roots: &[&Self]) -> TrustBundle {
        TrustBundle::from_pem(
            &roots
                .iter()
                .map(|root| root.pem.as_str())
                .collect::<String>(),
        )
        .unwrap()
    }
}

/// The system's clock, off by a number of seconds that may change.
pub(crate) fn shifted_clock(seconds: i32) -> (Clock, Arc<AtomicU32>) {
    let shift = Arc::new(AtomicU32::new(seconds.cast_unsigned()));
    let read = shift.clone();
    let clock = Clock::from_fn(move || {
        let seconds = read.load(Ordering::Relaxed).cast_signed();
        let span = Duration::from_secs(seconds.unsigned_abs().into());
        if seconds < 0 {
            SystemTime::now() - span
        } else {
            SystemTime::now() + span
        }
    });
    (clock, shift)
}
