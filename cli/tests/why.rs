//! `karst why --from DIR`, as a user runs it: the scenarios of `tests/fixtures/why`, each with its question and what must
//! come out, in under a second; and what it says to questions that cannot be answered.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Longest that an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/why")
}

/// A scenario as its first lines tell it.
struct Scenario {
    name: String,
    text: String,
}

impl Scenario {
    fn all() -> Vec<Self> {
        let mut files: Vec<PathBuf> = fs::read_dir(fixtures())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                name.starts_with(|first: char| first.is_ascii_digit())
            })
            .collect();
        files.sort();
        let read = |path: PathBuf| Self {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            text: fs::read_to_string(&path).unwrap(),
        };
        files.into_iter().map(read).collect()
    }

    fn comment(&self, name: &str) -> Option<&str> {
        let start = format!("# {name}: ");
        self.text.lines().find_map(|line| line.strip_prefix(&start))
    }

    /// The words of the question; single quotes keep spaces together.
    fn question(&self) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for letter in self.comment("ask").unwrap().chars() {
            match letter {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                other => words.last_mut().unwrap().push(other),
            }
        }
        words
    }

    fn directory(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let copy = |name: &str| {
            fs::copy(fixtures().join(name), dir.path().join(name)).unwrap();
        };
        copy("base.yaml");
        if let Some(more) = self.comment("with") {
            copy(&format!("{more}.yaml"));
        }
        fs::write(dir.path().join("own.yaml"), &self.text).unwrap();
        dir
    }

    /// What came out wrong.
    fn wrong(&self) -> Vec<String> {
        let dir = self.directory();
        let before = Instant::now();
        let output = why(dir.path(), &self.question(), &["-o", "json"]);
        let took = before.elapsed();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = why(dir.path(), &self.question(), &[]).stdout;
        let text = String::from_utf8_lossy(&text);
        let by = decider(&answer["decidedBy"]);
        let says = self.comment("says").unwrap_or_default();
        let code = match self.comment("verdict") {
            Some("denied") => 3,
            Some("fails") => 4,
            Some("depends") => 5,
            _ => 0,
        };
        let checks = [
            (
                "verdict",
                answer["verdict"].as_str() == self.comment("verdict"),
            ),
            ("by", by.as_deref() == self.comment("by")),
            ("at", answer["decidedAt"].as_str() == self.comment("at")),
            ("says", says.split('|').all(|one| text.contains(one))),
            ("time", took < PATIENCE),
            ("exit code", output.status.code() == Some(code)),
            ("warnings", output.stderr.is_empty()),
        ];
        let failed = checks.iter().filter(|(_, holds)| !holds);
        let errors = String::from_utf8_lossy(&output.stderr);
        failed
            .map(|(what, _)| format!("{}: {what} ({by:?}, {took:?})\n{text}{errors}", self.name))
            .collect()
    }
}

fn decider(decider: &Value) -> Option<String> {
    let text = |key: &str| decider[key].as_str().unwrap_or_default();
    let rule = decider["rule"].as_u64();
    let rule = rule.map(|rule| format!(" {rule}")).unwrap_or_default();
    decider["kind"].as_str()?;
    Some(format!(
        "{} {}/{}{rule}",
        text("kind"),
        text("namespace"),
        text("name")
    ))
}

fn karst(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karst"))
        .args(args)
        .output()
        .unwrap()
}

fn why(dir: &Path, question: &[String], more: &[&str]) -> Output {
    let from = dir.to_string_lossy().into_owned();
    let mut args = vec!["why"];
    args.extend(question.iter().map(String::as_str));
    args.extend(["--from", &from]);
    args.extend(more);
    karst(&args)
}

#[test]
fn every_scenario_names_the_right_policy_and_rule_in_time() {
    let all = Scenario::all();
    assert!(all.len() >= 30, "{}", all.len());
    let wrong: Vec<String> = all.iter().flat_map(Scenario::wrong).collect();
    assert!(
        wrong.is_empty(),
        "{} wrong\n\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

fn base(with: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["base.yaml"].iter().chain(with) {
        fs::copy(fixtures().join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_question_that_is_not_clear_is_told_so() {
    let dir = base(&[]);
    for (question, expected) in [
        (
            "shop/nobody shop/orders",
            "there is no pod or workload nobody in namespace shop",
        ),
        (
            "shop/front shop/nothing:80",
            "there is no service or pod nothing in namespace shop",
        ),
        ("bank/front shop/orders", "there is one in shop"),
        ("shop/front bank/ledger", "it has ports [9000, 9001]"),
        ("shop/front shop/orders:http", "\"http\" is no port"),
        ("shop/front shop/orders:0", "\"0\" is no port"),
        ("shop/front shop/orders GET x y", "unexpected argument"),
        ("shop/front shop/orders GET", "<PATH>"),
        ("shop/front shop/orders G@T /", "is no method"),
        ("shop/front shop/orders GET /%zz", "400"),
    ] {
        let output = why(dir.path(), &words(question), &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(expected), "{question}: {said}");
        assert_eq!(output.status.code(), Some(2), "{question}: {said}");
        assert!(output.stdout.is_empty(), "{question}");
    }
    let gone = why(Path::new("/nonexistent"), &words("a b"), &[]);
    assert_eq!(gone.status.code(), Some(1));
}

#[test]
fn a_name_in_two_namespaces_is_ambiguous() {
    let dir = base(&[]);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: front-0, namespace: bank}\nspec: {containers: [{name: c}]}\n";
    fs::write(dir.path().join("more.yaml"), pod).unwrap();
    let output = why(dir.path(), &words("front-0 shop/orders"), &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("more than one workload") && said.contains("bank/front-0"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(2));
    let clear = why(dir.path(), &words("front-0 shop/orders"), &["--in", "shop"]);
    assert_eq!(clear.status.code(), Some(0));
}

#[test]
fn what_others_wrote_forges_no_line_and_no_escape() {
    let dir = base(&["waypoint.yaml"]);
    let hostile = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: evil, namespace: shop}\nspec:\n  targetRefs: [{group: '', kind: Service, name: shop}]\n  rules: [{when: [{key: 'request.headers[x-a]', values: [\"\\u001b[2J\\nALLOWED by nobody\\u202e\"]}]}]\n";
    fs::write(dir.path().join("evil.yaml"), hostile).unwrap();
    let question = [
        "shop/front",
        "shop/shop:80",
        "GET",
        "/a",
        "--header",
        "x-a: \u{9b}2J",
    ];
    let question = question.map(str::to_owned);
    for more in [&[][..], &["-o", "json"]] {
        let output = why(dir.path(), &question, more);
        let said = String::from_utf8(output.stdout).unwrap();
        let bad = |letter: char| (letter.is_control() && letter != '\n') || letter == '\u{202e}';
        assert!(said.contains("evil"), "{said}");
        assert!(!said.contains(bad), "{said:?}");
        // What the policy wants is told, and stays within the line that tells it.
        let forged: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("ALLOWED"))
            .collect();
        assert!(!forged.is_empty(), "{said}");
        assert!(
            forged.iter().all(|line| line.contains("wants header x-a")),
            "{said}"
        );
    }
}

#[test]
fn an_object_is_described_with_what_touches_it() {
    let dir = base(&["waypoint.yaml"]);
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {targetRefs: [{group: '', kind: Service, name: shop}], rules: [{to: [{operation: {methods: [GET]}}]}]}\n";
    fs::write(dir.path().join("policy.yaml"), policy).unwrap();
    let from = dir.path().to_string_lossy().into_owned();
    for (object, expected) in [
        (
            "pod/shop/orders-0",
            &[
                "spiffe://cluster.local/ns/shop/sa/orders",
                "sealed ports",
                "shop/karst-seal-shop",
            ][..],
        ),
        (
            "service/shop/shop",
            &[
                "waypoint: shop/waypoint",
                "request policies: shop/p",
                "shop/orders-1 (in the mesh)",
            ],
        ),
        (
            "gateway/shop/waypoint",
            &[
                "replicas: shop/waypoint-0",
                "shop/shop-v2.shop.svc.cluster.local",
            ],
        ),
        (
            "authorizationpolicy/shop/p",
            &[
                "enforced by waypoint shop/waypoint",
                "requests for shop/shop.shop.svc.cluster.local",
            ],
        ),
        ("namespace/out", &["out/legacy-0 (not in the mesh)"]),
    ] {
        let output = karst(&["describe", object, "--from", &from]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        for one in expected {
            assert!(said.contains(one), "{object}: {one}\n{said}{errors}");
        }
    }
    for wrong in ["pod/nobody", "pod", "sock/x"] {
        let output = karst(&["describe", wrong, "--from", &from]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}
