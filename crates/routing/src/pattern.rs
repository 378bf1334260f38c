//! Regular expressions of routes: linear-time, bounded, and always compared with the whole value.
//!
//! The dialect is that of the crate `regex` (RE2's, with Unicode): no look-around and no back-references, so that no
//! expression and no value can make matching slow. `controller/index` calls [`check`] for each expression of a route,
//! so that a bad one is a False condition; [`crate::table`] leaves out a match whose expression cannot be compiled.

use std::borrow::Cow;

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// The largest compiled program of one expression, in bytes. A bounded repetition in a bounded repetition
/// (`(a{1000}){1000}`) would pass it by far.
const PROGRAM_BYTES_MAX: usize = 256 << 10;
/// The same for the expressions that are compared together.
pub(crate) const SET_BYTES_MAX: usize = 2 << 20;
/// Memory that one expression may use for its cache while it matches, in bytes.
const CACHE_BYTES_MAX: usize = 128 << 10;
/// Memory of the cache of expressions that are compared together, in bytes.
const SET_CACHE_BYTES_MAX: usize = 1 << 20;
/// How deep groups may be nested.
const NESTING_MAX: u32 = 64;
/// The longest expression that is looked at, in bytes; the Gateway API allows 4,096 for headers.
const TEXT_BYTES_MAX: usize = 4096;

/// Why an expression cannot be used. The fault is the route's author's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("regular expression of {len} bytes is longer than {TEXT_BYTES_MAX}")]
    TooLong { len: usize },
    /// Compiled it would take more than the limit: repetitions of repetitions, or large classes repeated.
    #[error(
        "regular expression {text:?} is too large: compiled it takes more than {PROGRAM_BYTES_MAX} bytes"
    )]
    TooLarge { text: String },
    #[error("regular expression {text:?} cannot be read: {reason}")]
    Syntax { text: String, reason: String },
}

/// An expression that is compared with whole values.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles an expression.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let anchored = anchored(text)?;
        RegexBuilder::new(&anchored)
            .size_limit(PROGRAM_BYTES_MAX)
            .dfa_size_limit(CACHE_BYTES_MAX)
            .nest_limit(NESTING_MAX)
            .build()
            .map(Self)
            .map_err(|error| refused(text, &error))
    }

    /// Whether the whole value matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.0.is_match(value)
    }
}

/// The most places of one path that an expression replaces: each search takes time of the path's length.
const REPLACED_MAX: usize = 256;

/// An expression that is looked for within a text, and what replaces what it finds.
#[derive(Clone, Debug)]
pub(crate) struct Finder {
    regex: Regex,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Group(usize),
}

impl Finder {
    /// `Ok(None)`: the substitution cannot be read.
    pub(crate) fn new(text: &str, substitution: &str) -> Result<Option<Self>, PatternError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(PatternError::TooLong { len: text.len() });
        }
        let regex = RegexBuilder::new(text)
            .size_limit(PROGRAM_BYTES_MAX)
            .dfa_size_limit(CACHE_BYTES_MAX)
            .nest_limit(NESTING_MAX)
            .build()
            .map_err(|error| refused(text, &error))?;
        let groups = regex.captures_len();
        Ok(parts(substitution, groups).map(|parts| Self { regex, parts }))
    }

    /// The text with everything replaced that is found.
    pub(crate) fn replace<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let replacement = |found: &regex::bytes::Captures<'_>| {
            let mut bytes = Vec::new();
            for part in &self.parts {
                match part {
                    Part::Text(text) => bytes.extend_from_slice(text.as_bytes()),
                    Part::Group(group) => {
                        let group = found.get(*group).map(|group| group.as_bytes());
                        bytes.extend_from_slice(group.unwrap_or_default());
                    }
                }
            }
            bytes
        };
        match self
            .regex
            .replacen(text.as_bytes(), REPLACED_MAX, replacement)
        {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Cow::Owned(text),
                Err(error) => Cow::Owned(String::from_utf8_lossy(error.as_bytes()).into_owned()),
            },
        }
    }
}

/// A substitution as RE2 writes it; `None` for a backslash before something else, or a group that is not there.
fn parts(substitution: &str, groups: usize) -> Option<Vec<Part>> {
    let (mut parts, mut text) = (Vec::new(), String::new());
    let mut rest = substitution.chars();
    while let Some(letter) = rest.next() {
        if letter != '\\' {
            text.push(letter);
            continue;
        }
        match rest.next()? {
            '\\' => text.push('\\'),
            digit => {
                let group = digit.to_digit(10)? as usize;
                if group >= groups {
                    return None;
                }
                parts.push(Part::Text(std::mem::take(&mut text)));
                parts.push(Part::Group(group));
            }
        }
    }
    parts.push(Part::Text(text));
    Some(parts)
}

/// Whether an expression can be used.
pub fn check(text: &str) -> Result<(), PatternError> {
    Pattern::new(text).map(drop)
}

/// Many expressions that are compared in one pass.
pub(crate) fn set(anchored: &[String]) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(anchored)
        .size_limit(SET_BYTES_MAX)
        .dfa_size_limit(SET_CACHE_BYTES_MAX)
        .nest_limit(NESTING_MAX)
        .build()
}

/// The expression with anchors around it. The text is read by itself first: `a)|(b` must not become an expression by
/// the parentheses that are put around it.
pub(crate) fn anchored(text: &str) -> Result<String, PatternError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(PatternError::TooLong { len: text.len() });
    }
    parse(text)?;
    let anchored = format!(r"\A(?:{text})\z");
    // With (?x) the text may end in a comment, which would swallow the anchor.
    match parse(&anchored) {
        Ok(_) => Ok(anchored),
        Err(_in_a_comment) => Ok(format!("\\A(?:{text}\n)\\z")),
    }
}

/// Every whole value that the expression matches begins with this text; often empty.
pub(crate) fn literal_prefix(text: &str) -> String {
    let Ok(hir) = parse(text) else {
        return String::new();
    };
    let mut prefix = Vec::new();
    push_literals(&hir, &mut prefix);
    // A literal may end within a character.
    match String::from_utf8(prefix) {
        Ok(prefix) => prefix,
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let mut bytes = error.into_bytes();
            bytes.truncate(valid);
            String::from_utf8(bytes).unwrap_or_default()
        }
    }
}

fn parse(text: &str) -> Result<regex_syntax::hir::Hir, PatternError> {
    regex_syntax::ParserBuilder::new()
        .utf8(false)
        .nest_limit(NESTING_MAX)
        .build()
        .parse(text)
        .map_err(|error| PatternError::Syntax {
            text: text.to_owned(),
            reason: one_line(&error.to_string()),
        })
}

/// Collects what the expression begins with; says whether what follows it may be collected too.
fn push_literals(hir: &regex_syntax::hir::Hir, prefix: &mut Vec<u8>) -> bool {
    use regex_syntax::hir::HirKind;
    match hir.kind() {
        HirKind::Literal(literal) => {
            prefix.extend_from_slice(&literal.0);
            true
        }
        HirKind::Capture(capture) => push_literals(&capture.sub, prefix),
        HirKind::Concat(parts) => parts.iter().all(|part| push_literals(part, prefix)),
        // `^` and `$` take no characters: a value that they refuse is refused by the expression.
        HirKind::Look(_) | HirKind::Empty => true,
        HirKind::Class(_) | HirKind::Repetition(_) | HirKind::Alternation(_) => false,
    }
}

fn refused(text: &str, error: &regex::Error) -> PatternError {
    match error {
        regex::Error::CompiledTooBig(_) => PatternError::TooLarge {
            text: text.to_owned(),
        },
        other => PatternError::Syntax {
            text: text.to_owned(),
            reason: one_line(&other.to_string()),
        },
    }
}

/// The last line of a message that draws the expression with a caret below it.
fn one_line(message: &str) -> String {
    message
        .lines()
        .last()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_whole_values_only() {
        let pattern = Pattern::new("a|bc").unwrap();
        for (value, expected) in [
            ("a", true),
            ("bc", true),
            ("ab", false),
            ("xbc", false),
            ("a\n", false),
        ] {
            assert_eq!(pattern.matches(value.as_bytes()), expected, "{value:?}");
        }
        let commented = Pattern::new("(?x) a b # and no more").unwrap();
        assert!(commented.matches(b"ab") && !commented.matches(b"abc"));
    }

    #[test]
    fn what_would_be_slow_or_large_is_refused() {
        for bad in [
            "a)|(b",
            "(",
            "[",
            r"(a)\1",
            "(?=a)",
            "(a{1000}){1000}",
            r"\pL{1000}{10}",
            &"(".repeat(100),
            &"a".repeat(5000),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        let error = check("a(b").unwrap_err().to_string();
        assert_eq!(
            error,
            "regular expression \"a(b\" cannot be read: unclosed group"
        );
    }

    #[test]
    fn the_literal_prefix_is_what_every_match_begins_with() {
        for (text, expected) in [
            ("/users/[0-9]+", "/users/"),
            ("/users(/new)?", "/users"),
            ("(/a)(b)c.*", "/abc"),
            ("^/a$", "/a"),
            ("/a|/b", ""),
            ("(?i)/a", "/"),
            ("", ""),
            ("/[ab]", "/"),
        ] {
            assert_eq!(literal_prefix(text), expected, "{text}");
        }
    }
}
