//! Reading one file: what is used, and what is said about the rest.

use super::*;

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  ports:
  - port: 80
    name: http
";

/// Names of the usable objects, and problems without the file.
fn look(text: &str) -> (Vec<String>, Vec<String>) {
    let (objects, problems) = parse(Path::new("f"), text);
    let names = objects
        .iter()
        .map(|object| object.key().to_string())
        .collect();
    (
        names,
        problems.iter().map(|problem| problem.to_string()).collect(),
    )
}

/// The only problem of a text.
fn problem(text: &str) -> String {
    let (_, mut problems) = look(text);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.remove(0)
}

#[test]
fn good_documents_are_read_without_a_word() {
    let pod = "kind: Pod\napiVersion: v1\nmetadata: {name: a, creationTimestamp: null}\nspec:\n  containers:\n  - name: c\n    resources: {limits: {cpu: 1, memory: 1Gi}}\n";
    let json = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}"#;
    let (names, problems) = look(&format!(
        "# shop\n---\n{SERVICE}---\n{pod}---\n{json}\n---\n"
    ));
    assert_eq!(
        names,
        ["Service shop/web", "Pod default/a", "Namespace shop"]
    );
    assert_eq!(problems, [""; 0]);
}

#[test]
fn each_fault_is_told_with_its_place_and_what_was_expected() {
    let policy = |rules: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  rules:\n{rules}"
        )
    };
    let cases = [
        (
            SERVICE.replace("port: 80", "port: eighty"),
            "f:7:5: error: Service shop/web: spec.ports[0].port: invalid type: string \"eighty\", expected i32",
        ),
        (
            SERVICE.replace("port: 80", "port: 80000"),
            "f:7:5: error: Service shop/web: spec.ports[0].port: 80000, expected a port from 1 to 65535",
        ),
        (
            SERVICE.replace("  - port: 80\n    name: http\n", "  - name: http\n"),
            "f:7:5: error: Service shop/web: spec.ports[0].port: missing field `port`, expected a port from 1 to 65535",
        ),
        (
            SERVICE.replace("    name: http", "    nmae: http"),
            "f:8:5: warning: Service shop/web: spec.ports[0].nmae: unknown field",
        ),
        (
            SERVICE.replace("{name: web, namespace: shop}", "{name: Web}"),
            "f:3:12: error: metadata.name: \"Web\" is no name: expected lower-case letters, digits, '-' and '.'",
        ),
        (
            SERVICE.replace("{name: web, namespace: shop}", "{}"),
            "f:3:11: error: metadata.name: missing field `metadata.name`, expected the name of this Service",
        ),
        (
            SERVICE.replace("name: web", "name: n"),
            "f:3:12: error: metadata.name: is no text, expected a name; put it in quotes",
        ),
        (
            SERVICE.replace("kind: Service\n", ""),
            "f:1:1: error: missing field `kind`, expected a text",
        ),
        (
            SERVICE.replace("kind: Service", "kind: Ingress"),
            "f:2:1: warning: kind: kind \"Ingress\" of \"v1\" is not one that karst reads; the object is left out",
        ),
        (
            SERVICE.replace("v1", "v2"),
            "f:1:1: error: apiVersion: kind Service is served as v1, not as \"v2\"",
        ),
        (
            policy("  - form: []\n"),
            "f:6:5: error: AuthorizationPolicy default/p: spec.rules[0].form: unknown field",
        ),
        (
            policy("  - from:\n"),
            "f:6:5: error: AuthorizationPolicy default/p: spec.rules[0].from: has no value; expected one, or the field left out",
        ),
        (
            "- a\n- b\n".to_owned(),
            "f:1:1: error: expected an object with apiVersion, kind and metadata",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(problem(&text), expected);
    }
}

#[test]
fn faults_of_the_text_itself_have_a_place_too() {
    for (text, line, word) in [
        (
            SERVICE.replace("    name: http", "\tname: http"),
            "f:7:",
            "a tab; YAML is indented with spaces",
        ),
        (SERVICE.replace("  clusterIP", "   clusterIP"), "f:6:", ""),
        (
            SERVICE.replace("    name: http", "    port: 81"),
            "f:8:",
            "duplicate",
        ),
        ("a: [1, 2\n".to_owned(), "f:", ""),
        ("a: *nobody\n".to_owned(), "f:1:", ""),
    ] {
        let problem = problem(&text);
        assert!(
            problem.starts_with(line) && problem.contains(word),
            "{text}\n{problem}"
        );
    }
}

#[test]
fn a_broken_document_hides_no_other() {
    let (names, problems) = look(&format!("a: [\n---\n{SERVICE}---\nb: }}\n"));
    assert_eq!(names, ["Service shop/web"]);
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[1].starts_with("f:12:"), "{problems:#?}");
}

#[test]
fn lists_are_their_items() {
    let item = |name: &str| format!("  - metadata: {{name: {name}}}\n");
    let typed = format!(
        "apiVersion: v1\nkind: NamespaceList\nitems:\n{}{}",
        item("a"),
        item("b")
    );
    assert_eq!(look(&typed).0, ["Namespace a", "Namespace b"]);
    let mixed = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: node}}\n- {kind: Node}\n";
    let (names, problems) = look(mixed);
    assert_eq!(names, ["Node node"]);
    assert_eq!(
        problems,
        ["f:5:3: error: missing field `apiVersion`, expected a text"]
    );
}

#[test]
fn an_object_twice_in_a_file_is_told_with_both_lines() {
    assert_eq!(
        problem(&format!("{SERVICE}---\n{SERVICE}")),
        "f:10:1: error: Service shop/web: also defined in line 1 of this file, which is used; remove one of the two"
    );
}

#[test]
fn bombs_and_giants_are_refused_in_no_time() {
    let start = std::time::Instant::now();
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{inner}]\n");
    }
    let deep = "[".repeat(100_000);
    let giant = format!("{SERVICE}# {}", "x".repeat(10 << 20));
    for (text, word) in [(bomb, ""), (deep, ""), (giant, "split the file")] {
        let problem = problem(&text);
        assert!(problem.contains(word), "{problem}");
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".*", cut in 0usize..200, at in 0usize..200) {
        let _ = parse(Path::new("f"), &text);
        let whole = format!("{SERVICE}---\n{SERVICE}");
        let (cut, at) = (cut.min(whole.len()), at.min(whole.len()));
        let _ = parse(Path::new("f"), &whole[..cut]);
        let _ = parse(Path::new("f"), &format!("{}{text}{}", &whole[..at], &whole[at..]));
    }
}
