//! Which of several lists of matches take a request: what a rate limit counts. The comparisons are those of a DENY
//! policy, so that a value with several readings is counted by all of them and nobody goes around a limit by an escape.

use karst_model::waypoint_policy::{RequestAction, RequestMatch};

use super::{Asked, matcher::Compiled, view::View};

/// Lists of matches, compiled.
#[derive(Debug)]
pub struct Selection {
    /// OR each; an empty one takes every request.
    lists: Vec<Vec<Compiled>>,
}

impl Selection {
    pub fn compile<'a>(lists: impl IntoIterator<Item = &'a [RequestMatch]>) -> Self {
        let compiled = |matches: &[RequestMatch]| {
            let matches = matches.iter();
            matches
                .map(|m| Compiled::new(m, RequestAction::Deny))
                .collect()
        };
        Self {
            lists: lists.into_iter().map(compiled).collect(),
        }
    }

    /// Hands the numbers of the lists that take the request to `visit`, in their order.
    pub fn each(&self, asked: &Asked<'_>, mut visit: impl FnMut(usize)) {
        let mut view = None;
        for (number, list) in self.lists.iter().enumerate() {
            let takes = list.is_empty() || {
                let view = view.get_or_insert_with(|| View::new(asked));
                list.iter().any(|one| one.holds(view))
            };
            if takes {
                visit(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use karst_model::{policy::StringMatch, waypoint_policy::PathPattern};
    use karst_routing::request::{Request, Scheme, Seen};

    use super::*;
    use crate::connection::Connection;

    fn taken(selection: &Selection, method: &str, path: &str) -> Vec<usize> {
        let head = http::Request::builder().method(method).uri(path);
        let (parts, ()) = head.header("host", "a").body(()).unwrap().into_parts();
        let seen = Seen {
            scheme: Scheme::Http,
            port: 80,
        };
        let request = Request::new(parts, seen).unwrap();
        let connection = Connection {
            source: None,
            source_ip: IpAddr::from([10, 0, 0, 1]),
            destination: "10.0.0.2:80".parse().unwrap(),
        };
        let asked = Asked {
            request: &request,
            connection: &connection,
            remote_ip: connection.source_ip,
            sni: None,
        };
        let mut taken = Vec::new();
        selection.each(&asked, |number| taken.push(number));
        taken
    }

    #[test]
    fn lists_take_what_any_of_their_matches_takes() {
        let method = |method: &str| RequestMatch {
            methods: vec![StringMatch::Exact(method.into())],
            ..RequestMatch::default()
        };
        let path = |path: &str| RequestMatch {
            paths: vec![PathPattern::Text(StringMatch::Prefix(path.into()))],
            ..RequestMatch::default()
        };
        let lists = [
            vec![method("POST"), method("PUT")],
            Vec::new(),
            vec![path("/admin")],
        ];
        let selection = Selection::compile(lists.iter().map(Vec::as_slice));
        assert_eq!(taken(&selection, "PUT", "/"), [0, 1]);
        assert_eq!(taken(&selection, "GET", "/admin/a"), [1, 2]);
        assert_eq!(
            taken(&selection, "GET", "/%61dmin/a"),
            [1, 2],
            "an escape goes around nothing"
        );
        assert_eq!(taken(&selection, "GET", "/other"), [1]);
    }
}
