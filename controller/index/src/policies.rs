//! From an AuthorizationPolicy to what the L4 data plane evaluates.
//!
//! Layout: one rule per `rules[]`; in it one clause for all `from`, one for all `to`, one per `when`. An empty match
//! would never match, so a part that has nothing left at L4 leaves out its clause, which makes it true.
//!
//! Parts that L4 cannot read (HTTP attributes, and values that are no address or port) never weaken a policy: an ALLOW
//! rule with such a part is left out, a DENY rule is enforced without the part, even if nothing else remains of it.

use std::{net::IpAddr, sync::Arc};

use karst_k8s_api::{
    istio::{
        AuthorizationPolicy,
        authorization_policy::{self as source, Action as Asked},
    },
    labels,
};
use karst_model::{
    addr::canonical_ip,
    name::PolicyKey,
    policy::{
        Action, Authorization, Clause, IpBlock, Match, PolicyScope, Rule, ServiceAccountMatch,
        StringMatch,
    },
    waypoint_policy::RequestAction,
};

use crate::{
    conditions::{Condition, ConditionType},
    request_policies::RequestFacts,
    seals::{self, Standing},
    selector::Labels,
};

/// What comes of a policy. It depends on the policy alone.
#[derive(Debug, PartialEq)]
pub(crate) struct PolicyFacts {
    /// Not empty only where the policy has a selector and is enforced at L4.
    pub(crate) selector: Labels,
    pub(crate) authorization: Option<Authorization>,
    pub(crate) conditions: Vec<Condition>,
    /// What a waypoint enforces: a policy with targets.
    pub(crate) request: Option<RequestFacts>,
    pub(crate) dry_run: bool,
}

impl PolicyFacts {
    pub(crate) fn new(key: PolicyKey, policy: &AuthorizationPolicy, root_namespace: &str) -> Self {
        let spec = &policy.spec;
        let selector = spec
            .selector
            .as_ref()
            .map(|selector| selector.match_labels.clone())
            .unwrap_or_default();
        let annotations = policy.metadata.annotations.as_ref();
        let dry_run = annotations
            .and_then(|all| all.get(labels::DRY_RUN))
            .is_some_and(|value| value == "true");
        let has_target = spec.target_ref.is_some() || !spec.target_refs.is_empty();
        if has_target && selector.is_empty() && !seals::is_reserved(&key.name) {
            return Self {
                selector,
                authorization: None,
                conditions: Vec::new(),
                request: Some(RequestFacts::new(&key.namespace, spec, root_namespace)),
                dry_run,
            };
        }
        let enforced = match seals::is_reserved(&key.name) {
            true => Err(seals::reserved_name()),
            false => enforceable(spec, has_target),
        };
        let action = match enforced {
            Ok(action) => action,
            Err(condition) => {
                return Self {
                    selector: Labels::new(),
                    authorization: None,
                    conditions: vec![condition],
                    request: None,
                    dry_run,
                };
            }
        };
        let scope = match (&*key.namespace == root_namespace, selector.is_empty()) {
            (_, false) => PolicyScope::WorkloadSelector,
            (true, true) => PolicyScope::Global,
            (false, true) => PolicyScope::Namespace,
        };
        let mut compiler = Compiler {
            action,
            namespace: key.namespace.clone(),
            unread: Vec::new(),
        };
        let rules = spec
            .rules
            .iter()
            .enumerate()
            .filter_map(|(index, rule)| compiler.rule(index, rule))
            .collect();
        let conditions = vec![compiler.verdict(dry_run)];
        Self {
            selector,
            authorization: Some(Authorization {
                key,
                scope,
                action,
                dry_run,
                rules,
            }),
            conditions,
            request: None,
            dry_run,
        }
    }
}

impl PolicyFacts {
    /// Whether what it targets must not be gone around, or would once it is no dry run.
    pub(crate) fn seals(&self) -> Option<Standing> {
        let request = self.request.as_ref()?;
        let standing = match self.dry_run {
            true => Standing::OnTrial,
            false => Standing::InForce,
        };
        (request.action != RequestAction::Audit).then_some(standing)
    }

    /// Whom it has asked, with action CUSTOM.
    pub(crate) fn provider(&self) -> Option<&Arc<str>> {
        self.request.as_ref()?.provider.as_ref()
    }

    /// Whether it makes a list of peers of what had none.
    pub(crate) fn allows(&self) -> bool {
        self.authorization
            .as_ref()
            .is_some_and(|policy| policy.action == Action::Allow && !policy.dry_run)
    }

    /// The same, for all pods of its namespace.
    pub(crate) fn allows_for_all(&self) -> bool {
        self.allows() && self.selector.is_empty()
    }
}

/// The action, or why nothing of the policy is enforced at L4.
fn enforceable(
    spec: &source::AuthorizationPolicySpec,
    has_target: bool,
) -> Result<Action, Condition> {
    let refuse = |reason, message: &str| {
        Err(Condition::no(
            ConditionType::ZtunnelAccepted,
            reason,
            message,
        ))
    };
    if has_target {
        return refuse(
            "Invalid",
            "selector and targetRefs exclude each other: the policy is not enforced anywhere",
        );
    }
    match spec.action {
        Asked::Allow => Ok(Action::Allow),
        Asked::Deny => Ok(Action::Deny),
        Asked::Audit => refuse(
            "UnsupportedValue",
            "action AUDIT needs targetRefs, as a waypoint records: nothing is recorded",
        ),
        Asked::Custom => refuse(
            "UnsupportedValue",
            "action CUSTOM needs targetRefs, as a waypoint asks: the policy is not enforced, use DENY meanwhile",
        ),
    }
}

/// A part that could not be read; the reason is known by its place.
pub(crate) struct Unread;

struct Compiler {
    action: Action,
    namespace: Arc<str>,
    /// Paths of the parts that L4 cannot read.
    unread: Vec<String>,
}

impl Compiler {
    fn rule(&mut self, index: usize, rule: &source::Rule) -> Option<Rule> {
        let before = self.unread.len();
        let mut clauses = Vec::new();
        let path = |part: &str, number: usize| format!("rules[{index}].{part}[{number}]");
        let from = rule.from.iter().enumerate();
        let from: Vec<Match> = from
            .map(|(n, from)| self.source(&path("from", n), &from.source))
            .collect();
        clauses.extend(either(from));
        let to = rule.to.iter().enumerate();
        let to: Vec<Match> = to
            .map(|(n, to)| self.operation(&path("to", n), &to.operation))
            .collect();
        clauses.extend(either(to));
        for (number, condition) in rule.when.iter().enumerate() {
            clauses.extend(either(vec![self.when(&path("when", number), condition)]));
        }
        let unread = self.unread.len() > before;
        if unread && self.action == Action::Allow {
            return None;
        }
        Some(Rule { clauses })
    }

    fn source(&mut self, path: &str, from: &source::Source) -> Match {
        let http = [
            ("requestPrincipals", &from.request_principals),
            ("notRequestPrincipals", &from.not_request_principals),
            ("remoteIpBlocks", &from.remote_ip_blocks),
            ("notRemoteIpBlocks", &from.not_remote_ip_blocks),
            ("trustDomains", &from.trust_domains),
            ("notTrustDomains", &from.not_trust_domains),
        ];
        self.note_http(&format!("{path}.source"), &http);
        Match {
            principals: strings(&from.principals),
            not_principals: strings(&from.not_principals),
            namespaces: strings(&from.namespaces),
            not_namespaces: strings(&from.not_namespaces),
            source_ips: self.list(path, "source.ipBlocks", &from.ip_blocks, ip_block),
            not_source_ips: self.list(path, "source.notIpBlocks", &from.not_ip_blocks, ip_block),
            service_accounts: self.accounts(path, "source.serviceAccounts", &from.service_accounts),
            not_service_accounts: self.accounts(
                path,
                "source.notServiceAccounts",
                &from.not_service_accounts,
            ),
            ..Match::default()
        }
    }

    fn operation(&mut self, path: &str, to: &source::Operation) -> Match {
        let http = [
            ("hosts", &to.hosts),
            ("notHosts", &to.not_hosts),
            ("methods", &to.methods),
            ("notMethods", &to.not_methods),
            ("paths", &to.paths),
            ("notPaths", &to.not_paths),
        ];
        self.note_http(&format!("{path}.operation"), &http);
        Match {
            destination_ports: self.list(path, "operation.ports", &to.ports, port),
            not_destination_ports: self.list(path, "operation.notPorts", &to.not_ports, port),
            ..Match::default()
        }
    }

    fn when(&mut self, path: &str, condition: &source::Condition) -> Match {
        let (yes, no) = (&condition.values, &condition.not_values);
        let empty = Match::default();
        match condition.key.as_str() {
            "source.principal" => Match {
                principals: strings(yes),
                not_principals: strings(no),
                ..empty
            },
            "source.namespace" => Match {
                namespaces: strings(yes),
                not_namespaces: strings(no),
                ..empty
            },
            "source.ip" => Match {
                source_ips: self.list(path, "values", yes, ip_block),
                not_source_ips: self.list(path, "notValues", no, ip_block),
                ..empty
            },
            "destination.ip" => Match {
                destination_ips: self.list(path, "values", yes, ip_block),
                not_destination_ips: self.list(path, "notValues", no, ip_block),
                ..empty
            },
            "destination.port" => Match {
                destination_ports: self.list(path, "values", yes, port),
                not_destination_ports: self.list(path, "notValues", no, port),
                ..empty
            },
            key => {
                self.unread.push(format!("{path} ({key})"));
                empty
            }
        }
    }

    fn note_http(&mut self, path: &str, parts: &[(&str, &Vec<String>)]) {
        let present = parts.iter().filter(|(_, values)| !values.is_empty());
        self.unread
            .extend(present.map(|(name, _)| format!("{path}.{name}")));
    }

    fn accounts(&mut self, path: &str, name: &str, values: &[String]) -> Vec<ServiceAccountMatch> {
        let namespace = self.namespace.clone();
        self.list(path, name, values, |text| service_account(text, &namespace))
    }

    /// All values, or none with a note: half a list could mean less than its author did.
    fn list<T>(
        &mut self,
        path: &str,
        name: &str,
        values: &[String],
        read: impl Fn(&str) -> Result<T, Unread>,
    ) -> Vec<T> {
        values
            .iter()
            .map(|value| read(value))
            .collect::<Result<_, _>>()
            .unwrap_or_else(|Unread| {
                self.unread.push(format!("{path}.{name}"));
                Vec::new()
            })
    }

    fn verdict(self, dry_run: bool) -> Condition {
        let unread = self.unread.join(", ");
        let (no, kind) = (Condition::no, ConditionType::ZtunnelAccepted);
        match self.action {
            _ if self.unread.is_empty() && dry_run => {
                Condition::yes(kind, "Accepted", "only logged: dry run")
            }
            _ if self.unread.is_empty() => Condition::yes(kind, "Accepted", "enforced at L4"),
            Action::Allow => no(
                kind,
                "UnsupportedValue",
                format!("cannot be read at L4: {unread}; rules with these parts allow nothing"),
            ),
            Action::Deny => no(
                kind,
                "UnsupportedValue",
                format!(
                    "cannot be read at L4: {unread}; rules with these parts deny without them, which is more"
                ),
            ),
        }
    }
}

/// One clause, true if any of the matches is; none at all where one of them is true of everything.
fn either(matches: Vec<Match>) -> Option<Clause> {
    let always = matches.is_empty() || matches.contains(&Match::default());
    (!always).then_some(Clause { matches })
}

pub(crate) fn strings(values: &[String]) -> Vec<StringMatch> {
    values.iter().map(|value| string(value)).collect()
}

/// `*` any value, `*x` its end, `x*` its start, else the whole.
pub(crate) fn string(text: &str) -> StringMatch {
    if text == "*" {
        StringMatch::Presence
    } else if let Some(end) = text.strip_prefix('*') {
        StringMatch::Suffix(end.into())
    } else if let Some(start) = text.strip_suffix('*') {
        StringMatch::Prefix(start.into())
    } else {
        StringMatch::Exact(text.into())
    }
}

pub(crate) fn ip_block(text: &str) -> Result<IpBlock, Unread> {
    let (ip, prefix) = text
        .split_once('/')
        .map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
    let given: IpAddr = ip.parse().map_err(|_error| Unread)?;
    let bits = if given.is_ipv4() { 32 } else { 128 };
    let prefix_len: u8 = match prefix {
        None => bits,
        Some(prefix) => prefix
            .parse()
            .ok()
            .filter(|len| *len <= bits)
            .ok_or(Unread)?,
    };
    let canonical = canonical_ip(given);
    match (
        given.is_ipv6() && canonical.is_ipv4(),
        prefix_len.checked_sub(96),
    ) {
        (true, Some(prefix_len)) => Ok(IpBlock {
            ip: canonical,
            prefix_len,
        }),
        (true, None) => Ok(IpBlock {
            ip: given,
            prefix_len,
        }),
        (false, _) => Ok(IpBlock {
            ip: given,
            prefix_len,
        }),
    }
}

pub(crate) fn port(text: &str) -> Result<u16, Unread> {
    text.parse().ok().filter(|port| *port > 0).ok_or(Unread)
}

/// `<service account>` of the policy's namespace, or `<namespace>/<service account>`.
pub(crate) fn service_account(
    text: &str,
    namespace: &Arc<str>,
) -> Result<ServiceAccountMatch, Unread> {
    let (namespace, account) = text
        .split_once('/')
        .map_or_else(|| (namespace.clone(), text), |(ns, sa)| (ns.into(), sa));
    let readable = !namespace.is_empty() && !account.is_empty() && !account.contains('/');
    readable
        .then(|| ServiceAccountMatch {
            namespace,
            service_account: account.into(),
        })
        .ok_or(Unread)
}
