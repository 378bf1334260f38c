//! The comparisons of a single match, shared by both evaluators: is this value hit by this entry of a list?

use std::net::IpAddr;

use karst_model::policy::{IpBlock, Match, ServiceAccountMatch, StringMatch};

use crate::{
    compare::{Needs, Range, Site, Text, holds},
    connection::View,
};

/// An entry of one of a match's lists, and what of the connection it is compared with.
pub(crate) trait Entry {
    fn hits(&self, view: &View<'_>) -> bool;
}

/// A string match on the identity's principal: without an identity nothing hits.
pub(crate) struct OfPrincipal<'a>(pub(crate) &'a StringMatch);
/// A string match on the identity's namespace, which is empty without an identity.
pub(crate) struct OfNamespace<'a>(pub(crate) &'a StringMatch);
pub(crate) struct OfServiceAccount<'a>(pub(crate) &'a ServiceAccountMatch);
pub(crate) struct OfSource(pub(crate) Block);
pub(crate) struct OfDestination(pub(crate) Block);
pub(crate) struct OfPort(pub(crate) u16);

impl Entry for OfPrincipal<'_> {
    fn hits(&self, view: &View<'_>) -> bool {
        let present = holds(Site::Identity(Needs::Principal), view.identity().is_some());
        present
            && text(
                self.0,
                view.principal().unwrap_or_default(),
                Text::Principal,
            )
    }
}

impl Entry for OfNamespace<'_> {
    fn hits(&self, view: &View<'_>) -> bool {
        text(self.0, view.namespace().as_bytes(), Text::Namespace)
    }
}

impl Entry for OfServiceAccount<'_> {
    fn hits(&self, view: &View<'_>) -> bool {
        let (namespace, name) = view
            .identity()
            .map_or(("", ""), |id| (&*id.namespace, &*id.service_account));
        holds(
            Site::Identity(Needs::ServiceAccount),
            view.identity().is_some(),
        ) && holds(
            Site::ServiceAccountNamespace,
            *self.0.namespace == *namespace,
        ) && holds(Site::ServiceAccountName, *self.0.service_account == *name)
    }
}

impl Entry for OfSource {
    fn hits(&self, view: &View<'_>) -> bool {
        let value = Block::host(view.source_ip);
        holds(Site::Source(Range::Family), self.0.v4 == value.v4)
            && holds(Site::Source(Range::Bits), self.0.covers(value.bits))
    }
}

impl Entry for OfDestination {
    fn hits(&self, view: &View<'_>) -> bool {
        let value = Block::host(view.destination_ip);
        holds(Site::Destination(Range::Family), self.0.v4 == value.v4)
            && holds(Site::Destination(Range::Bits), self.0.covers(value.bits))
    }
}

impl Entry for OfPort {
    fn hits(&self, view: &View<'_>) -> bool {
        holds(Site::Port, self.0 == view.port)
    }
}

fn text(wanted: &StringMatch, value: &[u8], of: Text) -> bool {
    match wanted {
        StringMatch::Exact(exact) => holds(Site::Exact(of), value == exact.as_bytes()),
        StringMatch::Prefix(prefix) => {
            holds(Site::Prefix(of), value.starts_with(prefix.as_bytes()))
        }
        StringMatch::Suffix(suffix) => holds(Site::Suffix(of), value.ends_with(suffix.as_bytes())),
        StringMatch::Presence => holds(Site::Presence(of), !value.is_empty()),
    }
}

/// An address range with its host bits cleared. The bits are aligned to the left, for IPv4 too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Block {
    pub(crate) v4: bool,
    pub(crate) bits: u128,
    pub(crate) len: u8,
}

impl Block {
    /// `None` where the prefix is longer than the address. A v4-mapped range is the IPv4 range that it means.
    pub(crate) fn new(block: &IpBlock) -> Option<Self> {
        let (host, len) = match (block.ip, block.prefix_len) {
            (IpAddr::V6(ip), 96..=128) if ip.to_ipv4_mapped().is_some() => {
                (Self::host(block.ip.to_canonical()), block.prefix_len - 96)
            }
            (IpAddr::V6(ip), len) => (
                Self {
                    v4: false,
                    bits: ip.to_bits(),
                    len: 128,
                },
                len,
            ),
            (ip @ IpAddr::V4(_), len) => (Self::host(ip), len),
        };
        (len <= host.len).then(|| Self {
            v4: host.v4,
            bits: host.bits & mask(len),
            len,
        })
    }

    /// The range of one canonical address.
    pub(crate) fn host(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self {
                v4: true,
                bits: u128::from(ip.to_bits()) << 96,
                len: 32,
            },
            IpAddr::V6(ip) => Self {
                v4: false,
                bits: ip.to_bits(),
                len: 128,
            },
        }
    }

    /// Whether an address of the same family lies inside.
    pub(crate) fn covers(&self, bits: u128) -> bool {
        bits & mask(self.len) == self.bits
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// Whether the match says nothing at all; such a match is skipped.
pub(crate) fn is_empty(m: &Match) -> bool {
    let Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        service_accounts,
        not_service_accounts,
        unreadable,
    } = m;
    let strings = [namespaces, not_namespaces, principals, not_principals]
        .iter()
        .all(|list| list.is_empty());
    let ranges = [
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
    ]
    .iter()
    .all(|list| list.is_empty());
    let ports = destination_ports.is_empty() && not_destination_ports.is_empty();
    let accounts = service_accounts.is_empty() && not_service_accounts.is_empty();
    holds(
        Site::MatchEmpty,
        strings && ranges && ports && accounts && !unreadable,
    )
}

/// Whether part of the match cannot be evaluated: the decoder said so, or a range is longer than its address.
pub(crate) fn is_unreadable(m: &Match) -> bool {
    let mut ranges = [
        &m.source_ips,
        &m.not_source_ips,
        &m.destination_ips,
        &m.not_destination_ips,
    ]
    .into_iter()
    .flatten();
    holds(
        Site::Unreadable,
        m.unreadable || ranges.any(|block| Block::new(block).is_none()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Option<Block> {
        let (ip, len) = text.split_once('/').unwrap();
        Block::new(&IpBlock {
            ip: ip.parse().unwrap(),
            prefix_len: len.parse().unwrap(),
        })
    }

    #[test]
    fn ranges_are_canonical() {
        assert_eq!(block("10.1.2.3/8"), block("10.0.0.0/8"));
        assert_eq!(block("::ffff:10.0.0.0/104"), block("10.0.0.0/8"));
        assert_eq!(block("::ffff:10.0.0.1/128"), block("10.0.0.1/32"));
        assert!(!block("::ffff:0:0/95").unwrap().v4);
        assert!(block("0.0.0.0/0").unwrap().covers(u128::MAX));
        assert!(block("::/0").unwrap().covers(1));
        for bad in [
            "10.0.0.0/33",
            "::/129",
            "::ffff:10.0.0.1/129",
            "1.2.3.4/255",
        ] {
            assert_eq!(block(bad), None, "{bad}");
        }
    }
}
