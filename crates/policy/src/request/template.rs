//! Paths of policies: texts with a star at one end, and templates with `{*}` and `{**}`.
//!
//! `{*}` takes one whole segment that is not empty; `{**}` any characters, slashes too, and is the last operator of its
//! template; literal segments may follow it. No other star and no other brace may be in a template.

use karst_model::{policy::StringMatch, waypoint_policy::PathPattern};
use karst_routing::request::{normalise_path, normalise_pattern};

use super::view::decoded;

/// Why a path of a policy can never be compared as its author means. The fault is the author's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("path template {0:?} does not begin with a slash")]
    NotRooted(String),
    #[error(
        "path template {0:?} has a star or brace outside of {{*}} and {{**}}, or one with other characters in its segment"
    )]
    Stray(String),
    #[error("path template {0:?} has an operator after {{**}}")]
    AfterRest(String),
    #[error("path {0:?} has a query or fragment, which paths are compared without")]
    Query(String),
}

/// Whether a path of a policy can be compared; for the controller, which refuses those that cannot.
pub fn check_path(pattern: &PathPattern) -> Result<(), PathError> {
    let text = match pattern {
        PathPattern::Template(text) => {
            Template::new(text)?;
            text
        }
        PathPattern::Text(StringMatch::Presence) => return Ok(()),
        PathPattern::Text(
            StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text),
        ) => text,
    };
    if text.contains(['?', '#']) {
        return Err(PathError::Query(text.to_string()));
    }
    Ok(())
}

/// One path of a policy in both readings.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) plain: Shape,
    /// With every escape decoded.
    pub(super) decoded: Shape,
}

/// How a path must look.
#[derive(Debug)]
pub(super) enum Shape {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Presence,
    Template(Template),
}

impl Path {
    pub(super) fn new(pattern: &PathPattern) -> Result<Self, PathError> {
        let text = |text: &str, shape: fn(Box<[u8]>) -> Shape| Self {
            plain: shape(text.as_bytes().into()),
            decoded: shape(decoded(text).as_ref().into()),
        };
        Ok(match pattern {
            PathPattern::Text(StringMatch::Presence) => Self {
                plain: Shape::Presence,
                decoded: Shape::Presence,
            },
            PathPattern::Text(StringMatch::Exact(exact)) => {
                let whole = exact.starts_with('/').then(|| normalise_path(exact).ok());
                match whole.flatten() {
                    Some(normal) => text(&normal, Shape::Exact),
                    None => text(&normalise_pattern(exact), Shape::Exact),
                }
            }
            PathPattern::Text(StringMatch::Prefix(prefix)) => {
                text(&normalise_pattern(prefix), Shape::Prefix)
            }
            PathPattern::Text(StringMatch::Suffix(suffix)) => {
                text(&normalise_pattern(suffix), Shape::Suffix)
            }
            PathPattern::Template(text) => {
                let template = Template::new(text)?;
                Self {
                    decoded: Shape::Template(template.decoded()),
                    plain: Shape::Template(template),
                }
            }
        })
    }
}

/// A path template, compiled.
#[derive(Debug)]
pub(super) struct Template {
    segments: Vec<Segment>,
    /// Set if `{**}` follows the segments: what the path ends with.
    tail: Option<Box<[u8]>>,
}

#[derive(Debug)]
enum Segment {
    Literal(Box<[u8]>),
    One,
}

impl Template {
    fn new(text: &str) -> Result<Self, PathError> {
        let rest = text
            .strip_prefix('/')
            .ok_or_else(|| PathError::NotRooted(text.to_owned()))?;
        let mut segments = Vec::new();
        let mut tail: Option<Vec<u8>> = None;
        for segment in rest.split('/') {
            match (segment, &mut tail) {
                ("{*}" | "{**}", Some(_)) => return Err(PathError::AfterRest(text.to_owned())),
                ("{*}", None) => segments.push(Segment::One),
                ("{**}", None) => tail = Some(Vec::new()),
                (stray, _) if stray.contains(['*', '{', '}']) => {
                    return Err(PathError::Stray(text.to_owned()));
                }
                (literal, None) => {
                    segments.push(Segment::Literal(
                        normalise_pattern(literal).into_bytes().into(),
                    ));
                }
                (literal, Some(tail)) => {
                    tail.push(b'/');
                    tail.extend_from_slice(normalise_pattern(literal).as_bytes());
                }
            }
        }
        Ok(Self {
            segments,
            tail: tail.map(Vec::into_boxed_slice),
        })
    }

    fn decoded(&self) -> Self {
        let of = |bytes: &[u8]| -> Box<[u8]> {
            std::str::from_utf8(bytes)
                .map_or_else(|_| bytes.into(), |text| decoded(text).as_ref().into())
        };
        Self {
            segments: self
                .segments
                .iter()
                .map(|segment| match segment {
                    Segment::Literal(literal) => Segment::Literal(of(literal)),
                    Segment::One => Segment::One,
                })
                .collect(),
            tail: self.tail.as_deref().map(of),
        }
    }

    pub(super) fn matches(&self, path: &[u8]) -> bool {
        let Some(mut rest) = path.strip_prefix(b"/") else {
            return false;
        };
        let last = self.segments.len().checked_sub(1);
        for (index, wanted) in self.segments.iter().enumerate() {
            let end = rest.iter().position(|byte| *byte == b'/');
            let segment = &rest[..end.unwrap_or(rest.len())];
            let taken = match wanted {
                Segment::Literal(literal) => **literal == *segment,
                Segment::One => !segment.is_empty(),
            };
            let ends_here = Some(index) == last && self.tail.is_none();
            // Another segment follows in the path exactly where one follows in the template.
            if !taken || end.is_none() != ends_here {
                return false;
            }
            rest = end.map_or(&[], |end| &rest[end + 1..]);
        }
        self.tail.as_ref().is_none_or(|tail| rest.ends_with(tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_take_what_their_documentation_says() {
        for (template, path, expected) in [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/bar/baz", false),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{*}", "/foo", false),
            ("/foo/{**}/", "/foo/bar/", true),
            ("/foo/{**}/", "/foo/bar/baz/", true),
            ("/foo/{**}/", "/foo/bar", false),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar", false),
            ("/{**}", "/", true),
            ("/{**}", "", false),
            ("/{**}/end", "/a/end", true),
            ("/{**}/end", "/aend", false),
            ("/a/{*}/", "/a/b/", true),
            ("/a/{*}/", "/a/b", false),
        ] {
            let compiled = Template::new(template).unwrap();
            assert_eq!(
                compiled.matches(path.as_bytes()),
                expected,
                "{template} {path}"
            );
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for bad in [
            "/*/baz/{*}",
            "/**/baz/{*}",
            "/{**}/foo/{*}",
            "/foo/{*}.txt",
            "foo/{*}",
            "/{a}",
            "/{**}/{**}",
        ] {
            assert!(
                check_path(&PathPattern::Template(bad.into())).is_err(),
                "{bad}"
            );
        }
        let queried = PathPattern::Text(StringMatch::Exact("/a?b".into()));
        assert!(check_path(&queried).is_err());
    }
}
