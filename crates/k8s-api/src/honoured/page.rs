//! The reference page for Istio users, printed from the tables.

use std::fmt::Write as _;

use super::{
    FieldRow, GATEWAY_FIELDS, MESH_CONFIG, Place, REFUSED_KINDS, Verdict, fields, keys, proof,
};
use crate::Kind;

const HEAD: &str = "# Istio's API in Karst: what is compatible

For users of Istio: what this version does with each label, annotation, resource definition and field, and the test that
shows it. Printed from
`crates/k8s-api/src/honoured` by `cargo run -p karst-k8s-api --example print_reference`; tests fail on a field of
Istio's definitions without a row, on an honoured one without a test, and on a test that does not exist.

| word | meaning |
|---|---|
| honoured | it does what Istio's documents say, or what the note adds |
| not yet | it does nothing in this version. `kubectl apply` answers with a warning, the object's status or an Event says so, and traffic goes as without it |
| no effect | it has no meaning without sidecars or for this controller. `kubectl apply` answers with a warning |
| refused | `kubectl apply` fails and says why, because what it asks for would silently not hold |

Nothing is accepted and ignored in silence. Where Karst is stricter than Istio stands in
[policy-deviations.md](../design/policy-deviations.md).
";

/// The page as Markdown.
pub fn page() -> String {
    let mut text = HEAD.to_owned();
    for (title, place) in [("Labels", Place::Label), ("Annotations", Place::Annotation)] {
        let _ = writeln!(
            text,
            "\n## {title}\n\n| key | on | values | Karst | note |\n|---|---|---|---|---|"
        );
        for row in keys().filter(|row| row.place == place) {
            let values: Vec<String> = row
                .values
                .iter()
                .map(|value| format!("`{value}`"))
                .collect();
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {} |",
                row.key,
                row.on,
                values.join(", "),
                word(row.verdict),
                row.note
            );
        }
    }
    Kind::all().for_each(|kind| kind_section(&mut text, kind));
    text += "\n## Kinds that are refused\n\nKarst installs no definition of them, so that `kubectl` does not know them. Where Istio left the definition, admission refuses new and changed objects.\n\n| kind | group | why, and what instead |\n|---|---|---|\n";
    for row in REFUSED_KINDS {
        let _ = writeln!(text, "| {} | {} | {} |", row.kind, row.group, row.note);
    }
    text += "\n## Mesh configuration\n\nConfigMap `istio`, key `mesh`, of the root namespace. A field that is set and not honoured is reported by an Event on the ConfigMap and by `/debug/problems`.\n\n| field | Karst | note |\n|---|---|---|\n";
    for (field, verdict, note) in MESH_CONFIG {
        let _ = writeln!(text, "| `{field}` | {} | {note} |", word(*verdict));
    }
    text
}

const GATEWAY_HEAD: &str = "# Gateway API in Karst

For users of the Gateway API (v1.6): what a waypoint makes of each kind of route. Printed from
`crates/k8s-api/src/honoured/gateway.rs` by `cargo run -p karst-k8s-api --example print_reference`. A field without a row
is honoured as the Gateway API says.

Routes are for the traffic of services: a parent is a Service or a ServiceEntry that is bound to a waypoint by the label
`istio.io/use-waypoint`. Each parent has an entry in the route's `status.parents`, of
`controllerName: karst.dev/mesh-controller` (Gateways and their class are `istio.io/mesh-controller`'s, as in Istio):

| condition | False, with its reasons |
|---|---|
| Accepted | `NoMatchingParent`: no such Service, ServiceEntry or port; `UnsupportedValue`, `IncompatibleFilters`: no rule holds, or the parent cannot have routes (headless, ExternalName); `NotAllowedByListeners`: the parent is a waypoint's Gateway |
| ResolvedRefs | `BackendNotFound`, `RefNotPermitted`, `InvalidKind`, `UnsupportedProtocol` (plain requests would go to a port of TLS), `UnsupportedValue` |
| Programmed | `NoWaypoint`: the service is bound to no waypoint, so that its traffic goes as without the route |
| PartiallyInvalid | never False; True names the rules that were dropped |
";

/// The page of the Gateway API as Markdown.
pub fn gateway_page() -> String {
    let mut text = GATEWAY_HEAD.to_owned();
    for kind in Kind::all() {
        let mut rows = GATEWAY_FIELDS
            .iter()
            .filter(|row| row.kind == kind)
            .peekable();
        if rows.peek().is_none() {
            continue;
        }
        let _ = writeln!(
            text,
            "\n## {kind}\n\n`{}`, versions {}.\n\n| field | Karst | note |\n|---|---|---|",
            kind.group(),
            kind.versions().join(", ")
        );
        for row in rows {
            let _ = writeln!(
                text,
                "| `{}` | {} | {} |",
                row.path,
                word(row.verdict),
                row.note
            );
        }
    }
    text
}

fn kind_section(text: &mut String, kind: Kind) {
    if !kind.is_istio() {
        return;
    }
    let _ = writeln!(
        text,
        "\n## {kind}\n\n`{}`, versions {}. Fields below a row without rows of their own follow it.\n\n| field | Karst | note | test |\n|---|---|---|---|",
        kind.group(),
        kind.versions().join(", ")
    );
    for row in fields(kind) {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            row.path,
            word(row.verdict),
            row.note,
            test(row)
        );
    }
}

/// The test of an honoured field.
fn test(row: &FieldRow) -> String {
    let proof = proof(row.kind, row.path).filter(|_| row.verdict == Verdict::Honoured);
    proof
        .map(|proof| format!("`{}`", proof.test))
        .unwrap_or_default()
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Honoured => "honoured",
        Verdict::NotYet => "not yet",
        Verdict::NoEffect => "no effect",
        Verdict::Refused => "refused",
    }
}
