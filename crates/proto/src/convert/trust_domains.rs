//! `karst.v1.TrustDomains`.

use karst_model::identity::{TrustDomain, TrustDomains};

use super::{ConvertError, Problem, error::decode};
use crate::karst as wire;

/// Name of the one resource.
pub const TRUST_DOMAINS_NAME: &str = "mesh";
/// Most aliases that are taken.
const ALIASES_MAX: usize = 100;

/// Reads a resource of type TrustDomains.
pub fn decode_trust_domains(bytes: &[u8]) -> Result<TrustDomains, ConvertError> {
    trust_domains_from(decode("karst.v1.TrustDomains", bytes)?)
}

/// The message in the model's words.
pub fn trust_domains_from(message: wire::TrustDomains) -> Result<TrustDomains, ConvertError> {
    if message.aliases.len() > ALIASES_MAX {
        return Err(Problem::Unsupported("more than a hundred aliases").at("aliases"));
    }
    if message.aliases.iter().any(String::is_empty) {
        return Err(Problem::Missing.at("aliases"));
    }
    if message.own.is_empty() {
        return Err(Problem::Missing.at("own"));
    }
    let domain = |text: String| TrustDomain(text.into());
    Ok(TrustDomains {
        own: domain(message.own),
        aliases: message.aliases.into_iter().map(domain).collect(),
    })
}

/// The message of a resource of type TrustDomains.
pub fn trust_domains_to(domains: &TrustDomains) -> wire::TrustDomains {
    wire::TrustDomains {
        own: domains.own.to_string(),
        aliases: domains.aliases.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nameless_ones_are_refused() {
        let domain = |name: &str| TrustDomain(name.into());
        let both = TrustDomains {
            own: domain("new.example"),
            aliases: vec![domain("cluster.local")],
        };
        assert_eq!(trust_domains_from(trust_domains_to(&both)).unwrap(), both);
        assert!(trust_domains_from(wire::TrustDomains::default()).is_err());
        let nameless = TrustDomains {
            aliases: vec![domain("")],
            ..both
        };
        assert!(trust_domains_from(trust_domains_to(&nameless)).is_err());
    }
}
