//! Compares what the table picks with what the naive matcher picks.

use std::sync::Arc;

use karst_model::route::Route;
use karst_routing::{
    filter::MatchedPath,
    table::{Routes, Table},
};

use super::{
    cases::{Case, PORT, service},
    naive::{self, Expected},
};

pub(crate) fn compiled(routes: &[Route]) -> Table {
    Table::compile(&service(), PORT, routes.iter().cloned().map(Arc::new))
}

/// `Err` says where they differ.
pub(crate) fn check(table: &Table, routes: &[Route], case: &Case) -> Result<(), String> {
    let (found, expected) = (picked(table, case), naive::pick(routes, case));
    if found == expected && table.problems().is_empty() {
        return Ok(());
    }
    Err(format!(
        "{found:?}, but the naive matcher says {expected:?}; {:?}",
        table.problems()
    ))
}

fn picked(table: &Table, case: &Case) -> Expected {
    match table.routes(case.client.as_deref()) {
        Routes::None => Expected::NoRoutes,
        Routes::Http(table) => match table.pick(&case.request()) {
            None => Expected::NotFound,
            Some(picked) => Expected::Rule {
                route: picked.rule.route.key.to_string(),
                rule: picked.rule.index,
                prefix: match picked.matched {
                    MatchedPath::Prefix(prefix) => Some(prefix.to_owned()),
                    MatchedPath::Start(len) => Some(case.path[..len].to_owned()),
                    MatchedPath::Whole => None,
                },
            },
        },
        Routes::Tls(_) | Routes::Tcp(_) | Routes::OrderedTcp(_) => {
            panic!("there are only HTTP routes")
        }
    }
}
