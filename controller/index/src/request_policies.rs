//! From an AuthorizationPolicy with `targetRefs` to what a waypoint evaluates.
//!
//! The layout is that of L4 ([`crate::policies`]): one rule per `rules[]`; in it a clause for all `from`, one for all `to`,
//! one per `when`. A part that cannot be read makes its match unreadable: an ALLOW rule with it allows nothing, a DENY
//! rule denies everything that its other clauses leave, and a CUSTOM rule asks about it.

use std::sync::Arc;

use karst_k8s_api::{
    gateway::route::GATEWAY_GROUP,
    istio::{
        PolicyTargetReference,
        authorization_policy::{self as source, Action as Asked, AuthorizationPolicySpec},
    },
};
use karst_model::{
    policy::{Match, StringMatch},
    waypoint_policy::{
        ClaimValues, HeaderValues, PathPattern, RequestAction, RequestClause, RequestMatch,
        RequestRule,
    },
};
use karst_policy::request::check_path;

use crate::{
    conditions::{Condition, ConditionType},
    facts::Name,
    policies::{Unread, ip_block, port, service_account, string, strings},
    references::ISTIO_NETWORKING,
};

/// What comes of a policy with targets, before these are looked up.
#[derive(Debug, PartialEq)]
pub(crate) struct RequestFacts {
    pub(crate) targets: Vec<TargetRef>,
    pub(crate) action: RequestAction,
    /// Whom a policy with action CUSTOM has asked, by name.
    pub(crate) provider: Option<Arc<str>>,
    pub(crate) rules: Vec<RequestRule>,
    /// What is wrong with the policy by itself.
    pub(crate) complaints: Vec<Condition>,
}

/// One target, as the policy names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetRef {
    Service(Name),
    Entry(Name),
    Gateway(Name),
    GatewayClass(Arc<str>),
}

impl RequestFacts {
    /// Of a policy in `namespace`.
    pub(crate) fn new(
        namespace: &Arc<str>,
        spec: &AuthorizationPolicySpec,
        root_namespace: &str,
    ) -> Self {
        let action = match spec.action {
            Asked::Allow => RequestAction::Allow,
            Asked::Deny => RequestAction::Deny,
            Asked::Audit => RequestAction::Audit,
            Asked::Custom => RequestAction::Custom,
        };
        let named = spec
            .provider
            .as_ref()
            .map(|provider| provider.name.as_str());
        let provider = (action == RequestAction::Custom).then(|| named.unwrap_or_default().into());
        let mut complaints: Vec<Condition> = Vec::new();
        let references = spec.target_ref.iter().chain(&spec.target_refs);
        let mut targets = Vec::new();
        for reference in references {
            match target(namespace, reference, root_namespace) {
                Ok(target) => targets.push(target),
                Err(message) => complaints.push(refused("Invalid", message)),
            }
        }
        let mut compiler = Compiler {
            namespace: namespace.clone(),
            unread: Vec::new(),
        };
        let rules = spec.rules.iter().enumerate();
        let rules = rules
            .map(|(index, rule)| compiler.rule(index, rule))
            .collect();
        complaints.extend(compiler.verdict(action));
        Self {
            targets,
            action,
            provider,
            rules,
            complaints,
        }
    }
}

/// A condition of a policy that does not hold as written.
pub(crate) fn refused(reason: &'static str, message: String) -> Condition {
    Condition::no(ConditionType::WaypointAccepted, reason, message)
}

/// What a reference names; a policy names only what is of its own namespace.
pub(crate) fn target(
    namespace: &Arc<str>,
    reference: &PolicyTargetReference,
    root_namespace: &str,
) -> Result<TargetRef, String> {
    let shown = format!("targetRef {} {}", reference.kind, reference.name);
    let elsewhere = reference
        .namespace
        .as_deref()
        .filter(|other| !other.is_empty());
    if elsewhere.is_some_and(|other| *other != **namespace) {
        return Err(format!(
            "{shown} is of another namespace: a policy targets only its own, and this one is not enforced there"
        ));
    }
    let name = Name {
        namespace: namespace.clone(),
        name: reference.name.as_str().into(),
    };
    match (reference.group.as_str(), reference.kind.as_str()) {
        ("" | "core", "Service") => Ok(TargetRef::Service(name)),
        (ISTIO_NETWORKING, "ServiceEntry") => Ok(TargetRef::Entry(name)),
        (GATEWAY_GROUP, "Gateway") => Ok(TargetRef::Gateway(name)),
        (GATEWAY_GROUP, "GatewayClass") if **namespace == *root_namespace => {
            Ok(TargetRef::GatewayClass(name.name))
        }
        (GATEWAY_GROUP, "GatewayClass") => Err(format!(
            "{shown}: a class is targeted only from namespace {root_namespace}, and the policy is not enforced there"
        )),
        (group, _) => Err(format!(
            "{shown} of group {group:?} is none of Service, ServiceEntry, Gateway, GatewayClass: the policy is not enforced there"
        )),
    }
}

struct Compiler {
    namespace: Arc<str>,
    /// Paths of the parts that cannot be read.
    unread: Vec<String>,
}

impl Compiler {
    fn rule(&mut self, index: usize, rule: &source::Rule) -> RequestRule {
        let path = |part: &str, number: usize| format!("rules[{index}].{part}[{number}]");
        let mut clauses = Vec::new();
        let from = rule.from.iter().enumerate();
        let from = from.map(|(n, from)| {
            self.closed(&path("from", n), |read, at| read.source(at, &from.source))
        });
        clauses.extend(either(from.collect()));
        let to = rule.to.iter().enumerate();
        let to = to.map(|(n, to)| {
            self.closed(&path("to", n), |read, at| read.operation(at, &to.operation))
        });
        clauses.extend(either(to.collect()));
        for (n, condition) in rule.when.iter().enumerate() {
            let when = self.closed(&path("when", n), |read, at| read.when(at, condition));
            clauses.extend(either(vec![when]));
        }
        RequestRule { clauses }
    }

    /// A match, unreadable if a part of it is.
    fn closed(
        &mut self,
        path: &str,
        read: impl FnOnce(&mut Self, &str) -> RequestMatch,
    ) -> RequestMatch {
        let before = self.unread.len();
        let mut found = read(self, path);
        found.connection.unreadable = self.unread.len() > before;
        found
    }

    fn source(&mut self, path: &str, from: &source::Source) -> RequestMatch {
        let path = format!("{path}.source");
        let mut principals = strings(&from.principals);
        let mut not_principals = strings(&from.not_principals);
        let domains = self.list(&path, "trustDomains", &from.trust_domains, trust_domain);
        match (domains.is_empty(), principals.is_empty()) {
            (true, _) => {}
            (false, true) => principals = domains,
            // Both would have to hold, and one list can only say that either does.
            (false, false) => self
                .unread
                .push(format!("{path}.trustDomains beside principals")),
        }
        not_principals.extend(self.list(
            &path,
            "notTrustDomains",
            &from.not_trust_domains,
            trust_domain,
        ));
        let namespace = self.namespace.clone();
        let account = |text: &str| service_account(text, &namespace);
        RequestMatch {
            connection: Match {
                principals,
                not_principals,
                namespaces: strings(&from.namespaces),
                not_namespaces: strings(&from.not_namespaces),
                source_ips: self.list(&path, "ipBlocks", &from.ip_blocks, ip_block),
                not_source_ips: self.list(&path, "notIpBlocks", &from.not_ip_blocks, ip_block),
                service_accounts: self.list(
                    &path,
                    "serviceAccounts",
                    &from.service_accounts,
                    account,
                ),
                not_service_accounts: self.list(
                    &path,
                    "notServiceAccounts",
                    &from.not_service_accounts,
                    account,
                ),
                ..Match::default()
            },
            remote_ips: self.list(&path, "remoteIpBlocks", &from.remote_ip_blocks, ip_block),
            not_remote_ips: self.list(
                &path,
                "notRemoteIpBlocks",
                &from.not_remote_ip_blocks,
                ip_block,
            ),
            request_principals: strings(&from.request_principals),
            not_request_principals: strings(&from.not_request_principals),
            ..RequestMatch::default()
        }
    }

    fn operation(&mut self, path: &str, to: &source::Operation) -> RequestMatch {
        let path = format!("{path}.operation");
        RequestMatch {
            connection: Match {
                destination_ports: self.list(&path, "ports", &to.ports, port),
                not_destination_ports: self.list(&path, "notPorts", &to.not_ports, port),
                ..Match::default()
            },
            methods: strings(&to.methods),
            not_methods: strings(&to.not_methods),
            paths: self.list(&path, "paths", &to.paths, path_pattern),
            not_paths: self.list(&path, "notPaths", &to.not_paths, path_pattern),
            hosts: strings(&to.hosts),
            not_hosts: strings(&to.not_hosts),
            ..RequestMatch::default()
        }
    }

    fn when(&mut self, path: &str, condition: &source::Condition) -> RequestMatch {
        let (yes, no) = (&condition.values, &condition.not_values);
        let empty = RequestMatch::default();
        let of_connection = |connection| RequestMatch {
            connection,
            ..RequestMatch::default()
        };
        let none = Match::default();
        let namespace = self.namespace.clone();
        let account = |text: &str| service_account(text, &namespace);
        match condition.key.as_str() {
            "source.principal" => of_connection(Match {
                principals: strings(yes),
                not_principals: strings(no),
                ..none
            }),
            "source.namespace" => of_connection(Match {
                namespaces: strings(yes),
                not_namespaces: strings(no),
                ..none
            }),
            "source.serviceAccount" => of_connection(Match {
                service_accounts: self.list(path, "values", yes, account),
                not_service_accounts: self.list(path, "notValues", no, account),
                ..none
            }),
            "source.ip" => of_connection(Match {
                source_ips: self.list(path, "values", yes, ip_block),
                not_source_ips: self.list(path, "notValues", no, ip_block),
                ..none
            }),
            "destination.ip" => of_connection(Match {
                destination_ips: self.list(path, "values", yes, ip_block),
                not_destination_ips: self.list(path, "notValues", no, ip_block),
                ..none
            }),
            "destination.port" => of_connection(Match {
                destination_ports: self.list(path, "values", yes, port),
                not_destination_ports: self.list(path, "notValues", no, port),
                ..none
            }),
            "remote.ip" => RequestMatch {
                remote_ips: self.list(path, "values", yes, ip_block),
                not_remote_ips: self.list(path, "notValues", no, ip_block),
                ..empty
            },
            "connection.sni" => RequestMatch {
                sni: strings(yes),
                not_sni: strings(no),
                ..empty
            },
            "request.auth.principal" => RequestMatch {
                request_principals: strings(yes),
                not_request_principals: strings(no),
                ..empty
            },
            "request.auth.audiences" => RequestMatch {
                audiences: strings(yes),
                not_audiences: strings(no),
                ..empty
            },
            "request.auth.presenter" => RequestMatch {
                presenters: strings(yes),
                not_presenters: strings(no),
                ..empty
            },
            key if key.starts_with(CLAIMS) => match claim(key) {
                Some(path) => RequestMatch {
                    claims: vec![ClaimValues {
                        path,
                        values: strings(yes),
                        not_values: strings(no),
                    }],
                    ..empty
                },
                None => {
                    self.unread.push(format!("{path} ({key})"));
                    empty
                }
            },
            key => match header(key) {
                Some(name) => RequestMatch {
                    headers: vec![HeaderValues {
                        name,
                        values: strings(yes),
                        not_values: strings(no),
                    }],
                    ..empty
                },
                None => {
                    self.unread.push(format!("{path} ({key})"));
                    empty
                }
            },
        }
    }

    /// All values, or none with a note.
    fn list<T>(
        &mut self,
        path: &str,
        name: &str,
        values: &[String],
        read: impl Fn(&str) -> Result<T, Unread>,
    ) -> Vec<T> {
        let all: Result<Vec<T>, Unread> = values.iter().map(|value| read(value)).collect();
        all.unwrap_or_else(|Unread| {
            self.unread.push(format!("{path}.{name}"));
            Vec::new()
        })
    }

    fn verdict(self, action: RequestAction) -> Option<Condition> {
        let effect = match action {
            RequestAction::Allow => "rules with these parts allow nothing",
            RequestAction::Deny => "these parts count as fulfilled, which denies more",
            RequestAction::Audit => "these parts count as fulfilled, which records more",
            RequestAction::Custom => "these parts count as fulfilled, which asks about more",
        };
        (!self.unread.is_empty()).then(|| {
            let parts = self.unread.join(", ");
            refused(
                "UnsupportedValue",
                format!("cannot be read: {parts}; {effect}"),
            )
        })
    }
}

/// One clause, true if any of the matches is; none at all where one of them is true of everything.
fn either(matches: Vec<RequestMatch>) -> Option<RequestClause> {
    let always = matches.is_empty() || matches.contains(&RequestMatch::default());
    (!always).then_some(RequestClause { matches })
}

/// How keys of claims begin.
const CLAIMS: &str = "request.auth.claims";

/// `a` and `b` of `request.auth.claims[a][b]`.
fn claim(key: &str) -> Option<Vec<Arc<str>>> {
    let names = key
        .strip_prefix(CLAIMS)?
        .strip_prefix('[')?
        .strip_suffix(']')?;
    let names: Vec<Arc<str>> = names.split("][").map(Into::into).collect();
    let fits = |name: &Arc<str>| !name.is_empty() && !name.contains(['[', ']']);
    names.iter().all(fits).then_some(names)
}

/// `x-user` of `request.headers[X-User]`.
fn header(key: &str) -> Option<Arc<str>> {
    let name = key.strip_prefix("request.headers[")?.strip_suffix(']')?;
    (!name.is_empty()).then(|| name.to_ascii_lowercase().into())
}

/// A path, as a text with `*` at one end or as a template.
pub(crate) fn path_pattern(text: &str) -> Result<PathPattern, Unread> {
    let pattern = match text.contains('{') {
        true => PathPattern::Template(text.into()),
        false => PathPattern::Text(string(text)),
    };
    match check_path(&pattern) {
        Ok(()) => Ok(pattern),
        Err(_wrong) => Err(Unread),
    }
}

/// A trust domain as the start of an identity, which it is. The end of one cannot be told so.
fn trust_domain(text: &str) -> Result<StringMatch, Unread> {
    match string(text) {
        StringMatch::Exact(domain) => Ok(StringMatch::Prefix(format!("{domain}/").into())),
        StringMatch::Prefix(start) if !start.contains('/') => Ok(StringMatch::Prefix(start)),
        StringMatch::Presence => Ok(StringMatch::Presence),
        StringMatch::Prefix(_) | StringMatch::Suffix(_) => Err(Unread),
    }
}
