//! The reference page for Istio users, printed from the tables.

use std::fmt::Write as _;

use super::{FIELDS, KEYS, MESH_CONFIG, Place, REFUSED_KINDS, Verdict};
use crate::{Kind, crd};

const HEAD: &str = "# Istio's API in Karst

For users of Istio: what this version does with each label, annotation, resource definition and field. Printed from
`crates/k8s-api/src/honoured` by `cargo run -p karst-k8s-api --example print_reference`; a test fails on a field without
a row.

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
        for row in KEYS.iter().filter(|row| row.place == place) {
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

fn kind_section(text: &mut String, kind: Kind) {
    if crd::of(kind).is_none() {
        return;
    }
    let _ = writeln!(
        text,
        "\n## {kind}\n\n`{}`, versions {}. Fields below a row without rows of their own follow it.\n\n| field | Karst | note |\n|---|---|---|",
        kind.group(),
        kind.versions().join(", ")
    );
    for row in FIELDS.iter().filter(|row| row.kind == kind) {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} |",
            row.path,
            word(row.verdict),
            row.note
        );
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Honoured => "honoured",
        Verdict::NotYet => "not yet",
        Verdict::NoEffect => "no effect",
        Verdict::Refused => "refused",
    }
}
