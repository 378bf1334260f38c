//! Which addresses the kernel captures: every virtual address of the mesh and every address of a workload in it.
//!
//! Several objects can claim one address, so claims are counted; the kernel hears only of the first and the last.
//! Pure: [`Claims`] turns "this object now claims these addresses" into what to add and remove.

use std::{collections::BTreeSet, net::IpAddr};

use hashbrown::HashMap;

/// Claims of objects on addresses.
#[derive(Default)]
pub(crate) struct Claims {
    by_object: HashMap<String, BTreeSet<IpAddr>>,
    count: HashMap<IpAddr, u32>,
}

/// What the kernel's set must gain and lose.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) add: Vec<IpAddr>,
    pub(crate) remove: Vec<IpAddr>,
}

impl Claims {
    /// `object` claims exactly `addresses` from now on.
    pub(crate) fn set(&mut self, object: &str, addresses: BTreeSet<IpAddr>) -> Difference {
        let old = self.by_object.remove(object).unwrap_or_default();
        let mut difference = Difference::default();
        for ip in addresses.difference(&old) {
            let count = self.count.entry(*ip).or_insert(0);
            *count += 1;
            if *count == 1 {
                difference.add.push(*ip);
            }
        }
        for ip in old.difference(&addresses) {
            if let Some(count) = self.count.get_mut(ip) {
                *count -= 1;
                if *count == 0 {
                    self.count.remove(ip);
                    difference.remove.push(*ip);
                }
            }
        }
        if !addresses.is_empty() {
            self.by_object.insert(object.to_owned(), addresses);
        }
        difference
    }

    /// Every address that is claimed now.
    pub(crate) fn all(&self) -> BTreeSet<IpAddr> {
        self.count.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ips: &[&str]) -> BTreeSet<IpAddr> {
        ips.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_stays_until_its_last_claim_goes() {
        let mut claims = Claims::default();
        assert_eq!(
            claims.set("old pod", set(&["10.0.0.1"])).add,
            ["10.0.0.1".parse::<IpAddr>().unwrap()]
        );
        // The address is reused by another pod before the old one is removed.
        assert_eq!(
            claims.set("new pod", set(&["10.0.0.1"])),
            Difference::default()
        );
        assert_eq!(claims.set("old pod", set(&[])), Difference::default());
        assert_eq!(
            claims.set("new pod", set(&["10.0.0.2"])).remove,
            ["10.0.0.1".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(claims.all(), set(&["10.0.0.2"]));
    }
}
