//! What Karst's own policies must have: RateLimit and HealthCheck.

use karst_k8s_api::istio::duration::Duration;

use super::place::Place;

pub(super) fn rate_limit(root: &mut Place<'_>) {
    let mut spec = root.field("spec");
    spec.require("targetRefs", "at least one target");
    spec.require("rules", "at least one rule");
    spec.each("rules", |rule| {
        rule.require("requests", "requests per period");
        positive(rule, "requests");
        if rule.has("burst") {
            positive(rule, "burst");
        }
        span(rule, "per", "a duration of 1ms to 24h");
        rule.each("key", |key| {
            let named = matches!(key.text("by"), Some("Header" | "Claim"));
            let is_named = key.text("name").is_some_and(|name| !name.is_empty());
            match (named, is_named) {
                (true, false) => key.report("the name of the header or claim is needed".to_owned()),
                (false, true) => key
                    .field("name")
                    .report("is for Header and Claim only".to_owned()),
                _ => {}
            }
        });
    });
}

pub(super) fn health_check(root: &mut Place<'_>) {
    let mut spec = root.field("spec");
    spec.require("targetRefs", "at least one target");
    let probes = ["http", "tcp", "grpc"];
    let given = probes.iter().filter(|probe| spec.has(probe)).count();
    if given != 1 {
        spec.report("one of http, tcp and grpc is needed".to_owned());
    }
    span(&mut spec, "interval", "a duration of 100ms to 1h");
    span(&mut spec, "timeout", "a duration up to the interval");
}

fn positive(place: &mut Place<'_>, field: &str) {
    let mut place = place.field(field);
    if place.value.as_u64() == Some(0) {
        place.report(
            "0, expected at least 1: to refuse everything write an AuthorizationPolicy".to_owned(),
        );
    }
}

fn span(place: &mut Place<'_>, field: &str, expected: &str) {
    let mut place = place.field(field);
    let Some(text) = place.value.as_str() else {
        return;
    };
    let read = Duration(text.to_owned()).read();
    if read.is_none_or(|span| span.is_zero()) {
        let message = format!("{text:?}, expected {expected}");
        place.report(message);
    }
}
