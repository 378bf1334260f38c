//! The merged HTTP or gRPC rules of one group of routes.

use std::{cmp::Reverse, sync::Arc};

use hashbrown::HashMap;
use karst_model::{
    route::{
        Backend, HttpMatch, HttpRule, PathMatch, RetryPolicy, Route, RouteKind, Timeouts,
        WeightedBackend,
    },
    traffic::SessionPersistence,
};

use super::{
    Problem,
    bucket::Rank,
    conditions::{Asked, Conditions, Patterns, Unreadable},
    hosts::ByHost,
    http_rules,
    ordered::{self, Place},
    paths::{ByPath, PathKey, Paths},
};
use crate::{
    compare::{Site, told},
    filter::{Filter, MatchedPath},
    request::Request,
    weights::Weights,
};

/// A rule that requests may take.
#[derive(Debug)]
pub struct HttpRoute {
    pub route: Arc<Route>,
    /// Index of the rule in its route.
    pub index: usize,
    /// As people read it: the route's key, then the rule's name or its index.
    pub label: Arc<str>,
    /// In the order in which they are applied.
    pub filters: Vec<Filter>,
    pub backends: Vec<RouteBackend>,
    /// Of the backends. Nothing to pick: 500, unless a filter answers.
    pub weights: Weights,
    pub timeouts: Timeouts,
    pub retry: Option<RetryPolicy>,
    pub session: Option<SessionPersistence>,
}

/// A backend of a rule.
#[derive(Debug)]
pub struct RouteBackend {
    pub backend: Backend,
    /// Applied after those of the rule.
    pub filters: Vec<Filter>,
}

/// The rule that takes a request.
#[derive(Clone, Copy, Debug)]
pub struct Picked<'a> {
    pub rule: &'a Arc<HttpRoute>,
    /// For filters that replace the matched prefix.
    pub matched: MatchedPath<'a>,
}

/// Merged rules.
#[derive(Debug, Default)]
pub struct HttpTable {
    hosts: ByHost<Paths>,
    /// Of a VirtualService: its matches, in their order, and nothing in `hosts`.
    ordered: Option<Vec<Place>>,
    /// Some match asks who sends.
    asks_sender: bool,
    /// By rank.
    conditions: Vec<Conditions>,
    targets: Vec<Target>,
    rules: Vec<Arc<HttpRoute>>,
}

/// Where a match leads.
#[derive(Debug)]
struct Target {
    /// Index of the rule.
    rule: u32,
    prefix: Option<Box<str>>,
}

impl HttpTable {
    /// Merges routes of one kind, which come in the order of precedence among routes.
    pub(super) fn new(kind: RouteKind, routes: &[Arc<Route>], problems: &mut Vec<Problem>) -> Self {
        let mut rules = Vec::new();
        let mut matches: Vec<(Order, Match<'_>)> = Vec::new();
        for (age, route) in routes.iter().enumerate() {
            for (index, rule) in http_rules(route).iter().enumerate() {
                let number = rules.len() as u32;
                rules.push(Arc::new(HttpRoute::new(route, index, rule, problems)));
                matches.extend(rule.matches.iter().map(|m| {
                    let source = Match {
                        route,
                        index,
                        rule: number,
                        m,
                    };
                    (Order::new(m, age), source)
                }));
            }
        }
        if kind == RouteKind::VirtualService {
            return Self::in_order(matches.into_iter().map(|(_, m)| m), rules, problems);
        }
        // Stable: rules and matches of one route stay in the order in which they were written.
        matches.sort_by_key(|(order, _)| *order);
        Self::merge(kind, matches.iter().map(|(_, m)| m), rules, problems)
    }

    fn merge<'a>(
        kind: RouteKind,
        matches: impl Iterator<Item = &'a Match<'a>>,
        rules: Vec<Arc<HttpRoute>>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut patterns = Patterns::default();
        let (mut conditions, mut targets, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        let mut hosts: ByHost<ByPath> = ByHost::default();
        for source in matches {
            let compiled = match &source.m.path {
                Some(PathMatch::Start(_)) => Err(Unreadable::Start),
                _ => Conditions::new(source.m, &mut patterns),
            };
            match compiled {
                Ok(compiled) => conditions.push(compiled),
                Err(unreadable) => {
                    problems.push(source.problem(unreadable.to_string()));
                    continue;
                }
            }
            let (rank, path) = (targets.len() as Rank, PathKey::new(source.m.path.as_ref()));
            let prefix = match &path {
                PathKey::Prefix(prefix) => Some(prefix.clone()),
                PathKey::Exact(_) | PathKey::Regex(_) | PathKey::Start(_) => None,
            };
            targets.push(Target {
                rule: source.rule,
                prefix,
            });
            sources.push(source);
            let mut add = |host| {
                let paths = hosts.entry(host, HashMap::new);
                paths.entry(path.clone()).or_default().push(rank);
            };
            if source.m.hosts.is_empty() {
                add(None);
            }
            source.m.hosts.iter().for_each(|host| add(Some(host)));
        }
        let hosts = hosts.map(|by_path| {
            Paths::new(kind, by_path, &conditions, |ranks, error| {
                let sources = ranks.iter().map(|rank| sources[*rank as usize]);
                problems.extend(sources.map(|source| source.problem(error.to_string())));
            })
        });
        Self {
            hosts,
            ordered: None,
            asks_sender: conditions.iter().any(Conditions::ask_source),
            conditions,
            targets,
            rules,
        }
    }

    /// Matches that are tried one after the other.
    fn in_order<'a>(
        matches: impl Iterator<Item = Match<'a>>,
        rules: Vec<Arc<HttpRoute>>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut patterns = Patterns::default();
        let (mut places, mut conditions, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for source in matches {
            let compiled = Conditions::new(source.m, &mut patterns)
                .and_then(|conditions| Ok((conditions, Place::new(source.m)?)));
            match compiled {
                Ok((compiled, place)) => {
                    conditions.push(compiled);
                    places.push(place);
                    targets.push(Target {
                        rule: source.rule,
                        prefix: None,
                    });
                }
                Err(unreadable) => problems.push(source.problem(unreadable.to_string())),
            }
        }
        Self {
            hosts: ByHost::default(),
            ordered: Some(places),
            asks_sender: conditions.iter().any(Conditions::ask_source),
            conditions,
            targets,
            rules,
        }
    }

    /// Whether [`Request::set_sender`] must come before [`Self::pick`].
    pub fn asks_sender(&self) -> bool {
        self.asks_sender
    }

    /// The rule that takes the request; `None`: there are routes, and none of them takes it (404).
    pub fn pick(&self, request: &Request) -> Option<Picked<'_>> {
        let asked = Asked::new(request);
        if let Some(places) = &self.ordered {
            let number = ordered::find(places, &self.conditions, &asked)?;
            return Some(Picked {
                rule: &self.rules[self.targets[number].rule as usize],
                matched: places[number].matched(),
            });
        }
        let mut hosts = self.hosts.taking(request.host());
        let rank = hosts.find_map(|paths| paths.find(&asked, &self.conditions))?;
        let target = &self.targets[rank as usize];
        Some(Picked {
            rule: &self.rules[target.rule as usize],
            matched: match &target.prefix {
                Some(prefix) => MatchedPath::Prefix(prefix),
                None => MatchedPath::Whole,
            },
        })
    }

    /// All rules, whether a match of theirs could be compiled or not.
    pub fn rules(&self) -> &[Arc<HttpRoute>] {
        &self.rules
    }
}

/// A match and where it was written.
struct Match<'a> {
    route: &'a Arc<Route>,
    index: usize,
    rule: u32,
    m: &'a HttpMatch,
}

impl Match<'_> {
    fn problem(&self, what: String) -> Problem {
        Problem {
            route: self.route.key.clone(),
            rule: self.index,
            what,
        }
    }
}

/// Precedence among matches whose paths are alike: the lower comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    /// Length of a regular expression, in characters; 0 for other paths, whose length decides elsewhere.
    expression: Reverse<usize>,
    without_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    /// Place of the route by age, then by name.
    age: usize,
}

impl Order {
    fn new(m: &HttpMatch, age: usize) -> Self {
        let mut headers: Vec<_> = m
            .headers
            .iter()
            .map(|h| h.name.to_ascii_lowercase())
            .collect();
        let mut query: Vec<_> = m.query.iter().map(|q| &q.name).collect();
        headers.sort_unstable();
        headers.dedup();
        query.sort_unstable();
        query.dedup();
        let expression = match &m.path {
            Some(PathMatch::Regex(text)) => text.chars().count(),
            _ => 0,
        };
        Self {
            expression: Reverse(told(Site::OrderExpression, expression)),
            without_method: told(Site::OrderMethod, m.method.is_none()),
            headers: Reverse(told(Site::OrderHeaders, headers.len())),
            query: Reverse(told(Site::OrderQuery, query.len())),
            age,
        }
    }
}

impl HttpRoute {
    fn new(route: &Arc<Route>, index: usize, rule: &HttpRule, problems: &mut Vec<Problem>) -> Self {
        let mut compile = |filters: &[karst_model::route::HttpFilter]| -> Vec<Filter> {
            let compiled = filters.iter().map(|filter| {
                Filter::compile(filter).unwrap_or_else(|reason| {
                    problems.push(Problem {
                        route: route.key.clone(),
                        rule: index,
                        what: reason.to_string(),
                    });
                    Filter::refusing(&reason)
                })
            });
            compiled.collect()
        };
        let backend = |backend: &WeightedBackend, filters| RouteBackend {
            backend: backend.backend.clone(),
            filters,
        };
        Self {
            route: route.clone(),
            index,
            label: match &rule.name {
                Some(name) => format!("{}/{name}", route.key).into(),
                None => format!("{}/{index}", route.key).into(),
            },
            filters: compile(&rule.filters),
            backends: rule
                .backends
                .iter()
                .map(|written| backend(written, compile(&written.filters)))
                .collect(),
            weights: Weights::new(rule.backends.iter().map(|backend| backend.weight)),
            timeouts: rule.timeouts,
            retry: rule.retry.clone(),
            session: rule.session.clone(),
        }
    }
}
