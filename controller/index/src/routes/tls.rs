//! Rules of a TLSRoute.

use karst_k8s_api::gateway::TlsRouteSpec;
use karst_model::route::{RouteRules, TlsRule};

use super::{Fault, Rules, backends::Resolver, each_rule, tcp, text, values};

pub(super) fn rules(spec: &TlsRouteSpec, resolver: &mut Resolver<'_>) -> Rules {
    let hosts = match values::hosts(&spec.hostnames) {
        Ok(hosts) if !hosts.is_empty() => Ok(hosts),
        Ok(_none) => Err(Fault::unsupported("the route names no host to go by")),
        Err(fault) => Err(fault),
    };
    let hosts = match hosts {
        Ok(hosts) => hosts,
        Err(fault) => {
            return Rules {
                rules: RouteRules::Tls(Vec::new()),
                faults: vec![(None, fault)],
                references: Vec::new(),
                idle: None,
            };
        }
    };
    let mut first = true;
    let (rules, faults) = each_rule(&spec.rules, |source| {
        Ok(TlsRule {
            name: text(source.name.as_ref()),
            hosts: hosts.clone(),
            backends: tcp::backends(source, std::mem::replace(&mut first, false), resolver)?,
            ..TlsRule::default()
        })
    });
    Rules {
        rules: RouteRules::Tls(rules),
        faults,
        references: resolver.take_faults(),
        idle: None,
    }
}
