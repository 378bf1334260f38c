//! Ways to write a path so that a policy does not see what the backend does: every form is refused, denied, or another
//! path for every reader.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test, in its helpers too"
)]

use std::{collections::BTreeSet, sync::Arc};

use http::{Uri, Version, header};
use karst_model::{
    policy::StringMatch,
    waypoint_policy::{
        PathPattern, RequestAction, RequestClause, RequestMatch, RequestRule, WaypointPolicy,
    },
};
use karst_policy::{
    Connection,
    request::{Asked, RequestPolicies},
};
use karst_routing::request::{Request, Scheme, Seen};

/// What a request should not reach.
const SECRET: &str = "/admin/keys";

/// Ways to write a letter, a slash, and what can be put between segments, before the path and after it.
const LETTERS: [&str; 5] = ["a", "%61", "%2561", "%u0061", "%C1%A1"];
const SLASHES: [&str; 16] = [
    "/",
    "//",
    "///",
    "/./",
    "/x/../",
    "%2f",
    "%2F",
    "%5c",
    "\\",
    "/%2e/",
    "/x/%2e%2E/",
    "/;/",
    "/;x/",
    "/.;/",
    "/x/..;/",
    "%c0%af",
];
const STARTS: [&str; 12] = [
    "",
    "/.",
    "/..",
    "/%2e%2e",
    "/public/..",
    "/public/%2e%2e",
    "/public;x/..",
    "/;",
    "/.;",
    "/x%00/..",
    "/x/../..",
    "/%20/..",
];
const ENDS: [&str; 14] = [
    "", ";", ";x=1", "/.", "?x", "%00", "%0a", "%3f", "/x/..", "/../keys", "%20", "/%2e", "#x",
    ";/",
];

/// Backends differ; each of these is how some of them find a handler for what they receive.
fn readings(path: &str) -> Vec<String> {
    let decode = |path: &str| {
        let (bytes, mut out, mut at) = (path.as_bytes(), Vec::new(), 0);
        while at < bytes.len() {
            let value = (bytes[at] == b'%')
                .then(|| path.get(at + 1..at + 3))
                .flatten()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok());
            out.push(value.unwrap_or(bytes[at]));
            at += if value.is_some() { 3 } else { 1 };
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let bare = |path: &str| {
        let segments = path
            .split('/')
            .map(|segment| segment.split(';').next().unwrap());
        segments.collect::<Vec<_>>().join("/")
    };
    let resolve = |path: &str| {
        let path = path.replace('\\', "/");
        let mut segments: Vec<&str> = Vec::new();
        for segment in path.split('/') {
            match segment {
                "" | "." => {}
                ".." => drop(segments.pop()),
                other => segments.push(other),
            }
        }
        // A path with a slash at its end is another one: Istio says so, and authors write both.
        let end = if path.ends_with(['/']) || path.ends_with("/.") || path.ends_with("/..") {
            "/"
        } else {
            ""
        };
        format!("/{}{end}", segments.join("/"))
    };
    // A null byte or a line break ends the text for some.
    let cut = |path: &str| {
        path.split(['\0', '\r', '\n', '\t'])
            .next()
            .unwrap()
            .to_owned()
    };
    vec![
        path.to_owned(),
        resolve(path),
        resolve(&decode(path)),
        resolve(&bare(path)),
        resolve(&decode(&bare(path))),
        resolve(&bare(&decode(path))),
        resolve(&cut(&decode(path))),
    ]
}

fn forms() -> BTreeSet<String> {
    let mut forms = BTreeSet::new();
    for start in STARTS {
        for end in ENDS {
            for between in SLASHES {
                for letter in LETTERS {
                    for first in ["/", "//", "/./"] {
                        forms.insert(format!("{start}{first}{letter}dmin{between}keys{end}"));
                    }
                }
            }
        }
    }
    forms
}

fn policies(action: RequestAction, m: RequestMatch) -> RequestPolicies {
    let policy = WaypointPolicy {
        key: "shop/p".parse().unwrap(),
        targets: vec![],
        action,
        provider: None,
        dry_run: false,
        rules: vec![RequestRule {
            clauses: vec![RequestClause { matches: vec![m] }],
        }],
    };
    RequestPolicies::compile([Arc::new(policy)], &[])
}

#[test]
fn no_form_of_a_path_is_a_bypass() {
    let path = |pattern| vec![PathPattern::Text(pattern)];
    let exact = RequestMatch {
        paths: path(StringMatch::Exact(SECRET.into())),
        ..RequestMatch::default()
    };
    let all_but = RequestMatch {
        not_paths: path(StringMatch::Exact(SECRET.into())),
        ..RequestMatch::default()
    };
    let template = RequestMatch {
        paths: vec![PathPattern::Template("/{*}/keys".into())],
        ..RequestMatch::default()
    };
    let sets = [
        policies(RequestAction::Deny, exact),
        policies(RequestAction::Allow, all_but),
        policies(RequestAction::Deny, template),
    ];
    let connection = Connection {
        source: None,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let (mut refused, mut denied, mut elsewhere, mut bypasses) = (0, 0, 0, Vec::new());
    let forms = forms();
    for form in &forms {
        let Some(request) = request(form) else {
            refused += 1;
            continue;
        };
        let reached = readings(request.path()).iter().any(|read| read == SECRET);
        for policies in &sets {
            let asked = Asked {
                request: &request,
                connection: &connection,
                remote_ip: connection.source_ip,
                sni: None,
            };
            match (policies.decide(&asked).is_allowed(), reached) {
                (false, _) => denied += 1,
                (true, false) => elsewhere += 1,
                (true, true) => bypasses.push((form, request.path().to_owned())),
            }
        }
    }
    println!(
        "{} forms: {refused} refused, {denied} denied, {elsewhere} elsewhere",
        forms.len()
    );
    assert!(forms.len() >= 5_000 && denied > 1_000 && refused > 1_000 && elsewhere > 1_000);
    assert!(
        bypasses.is_empty(),
        "{} bypasses: {:?}",
        bypasses.len(),
        &bypasses[..bypasses.len().min(10)]
    );
}

/// `None`: refused before any policy is asked.
fn request(target: &str) -> Option<Request> {
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.uri = target.parse::<Uri>().ok()?;
    parts.version = Version::HTTP_11;
    parts
        .headers
        .insert(header::HOST, header::HeaderValue::from_static("orders"));
    let seen = Seen {
        scheme: Scheme::Http,
        port: 80,
    };
    Request::new(parts, seen).ok()
}
