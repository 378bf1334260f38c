//! How many agents and waypoints of the other replicas have what an object asks for. Pure.
//!
//! Only one replica writes statuses, and each knows only who follows it. So the others say, in few words, what their
//! followers have not acknowledged yet, and how far they have read each kind: what is older than that and is not named
//! has arrived everywhere.

use std::collections::BTreeMap;

use karst_k8s_api::ObjectKey;
use serde::{Deserialize, Serialize};

use super::Reach;

/// Most objects that one replica names; with more, those that are not named count as not arrived.
const BEHIND_MAX: usize = 500;

/// What a replica says of those who follow it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Agents and waypoints that follow it.
    pub peers: usize,
    /// Greatest resource version that it has published, by kind.
    pub through: BTreeMap<String, u64>,
    /// Objects that not all of them have.
    pub behind: BTreeMap<String, Behind>,
    /// There were more than could be named.
    pub more: bool,
    /// Collectors that do not take what its followers send: by provider who says so, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub collectors: BTreeMap<String, (String, String)>,
}

/// An object that not all followers of a replica have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// The generation that the replica has published; 0 where there is none.
    pub generation: i64,
    /// How many have it.
    pub have: usize,
}

/// One form of an object, by what all replicas know of it.
#[derive(Clone, Copy, Debug)]
pub struct Form<'a> {
    pub key: &'a ObjectKey,
    pub generation: Option<i64>,
    /// Resource version by which this generation was there; `None` where the API server gives no numbers.
    pub version: Option<u64>,
}

impl Summary {
    /// How many of its followers have this form.
    pub fn reach(&self, form: Form<'_>) -> Reach {
        let reach = |have| Reach {
            have,
            of: self.peers,
        };
        if let Some(behind) = self.behind.get(&name_of(form.key)) {
            let older = behind.generation < form.generation.unwrap_or_default();
            return reach(if older {
                0
            } else {
                behind.have.min(self.peers)
            });
        }
        let read = self.through.get(form.key.kind.name());
        let has_read = match (form.version, read) {
            (Some(version), Some(read)) => version <= *read,
            (Some(_), None) => false,
            (None, _) => true,
        };
        reach(if has_read && !self.more {
            self.peers
        } else {
            0
        })
    }

    /// Names an object, if there is room.
    pub fn name(&mut self, form: Form<'_>, have: usize) {
        if self.behind.len() >= BEHIND_MAX {
            self.more = true;
            return;
        }
        let generation = form.generation.unwrap_or_default();
        let behind = Behind { generation, have };
        self.behind.insert(name_of(form.key), behind);
    }

    /// An object of this kind was read at this version.
    pub fn read(&mut self, form: Form<'_>) {
        if let Some(version) = form.version {
            let read = self.through.entry(form.key.kind.name().to_owned());
            let read = read.or_default();
            *read = version.max(*read);
        }
    }
}

impl std::ops::Add for Reach {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            have: self.have + other.have,
            of: self.of + other.of,
        }
    }
}

fn name_of(key: &ObjectKey) -> String {
    format!("{}/{}/{}", key.kind.name(), key.namespace, key.name)
}

#[cfg(test)]
mod tests {
    use karst_k8s_api::Kind;

    use super::*;

    fn form(key: &ObjectKey, generation: i64, version: u64) -> Form<'_> {
        Form {
            key,
            generation: Some(generation),
            version: Some(version),
        }
    }

    #[test]
    fn what_is_read_and_not_named_has_arrived() {
        let key = ObjectKey::new(Kind::AuthorizationPolicy, "shop", "p");
        let mut said = Summary {
            peers: 3,
            ..Summary::default()
        };
        let of_three = |have| Reach { have, of: 3 };
        assert_eq!(said.reach(form(&key, 1, 10)), of_three(0), "not read");
        said.read(form(&key, 1, 10));
        assert_eq!(said.reach(form(&key, 1, 10)), of_three(3));
        assert_eq!(said.reach(form(&key, 2, 11)), of_three(0), "a newer form");
        said.name(form(&key, 2, 11), 2);
        said.read(form(&key, 2, 11));
        assert_eq!(said.reach(form(&key, 2, 11)), of_three(2));
        assert_eq!(said.reach(form(&key, 3, 12)), of_three(0));
    }

    #[test]
    fn what_cannot_be_named_is_not_claimed() {
        let mut said = Summary {
            peers: 2,
            ..Summary::default()
        };
        let key = |number| ObjectKey::new(Kind::AuthorizationPolicy, "shop", &format!("p{number}"));
        for number in 0..BEHIND_MAX + 1 {
            let key = key(number);
            said.read(form(&key, 1, 10));
            said.name(form(&key, 1, 10), 1);
        }
        assert!(said.more && said.behind.len() == BEHIND_MAX);
        let last = key(BEHIND_MAX);
        assert_eq!(said.reach(form(&last, 1, 10)), Reach { have: 0, of: 2 });
        assert!(
            serde_json::to_string(&said).unwrap().len() < 100_000,
            "fits a ConfigMap"
        );
    }
}
