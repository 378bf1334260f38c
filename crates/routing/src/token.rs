//! A token that was verified: what routes and policies ask of the user of a request.
//!
//! Verifying is `karst-policy`; whoever makes a [`Token`] says with it that its signature, issuer, audience and times
//! hold.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Map, Value};

/// Claims whose text is a list with spaces between, whatever the rule says.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// The claims of a verified token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    claims: Map<String, Value>,
    principal: Option<Box<str>>,
    space_delimited: Vec<Arc<str>>,
}

impl Token {
    /// `space_delimited`: claims that hold lists as text, besides the well-known ones.
    pub fn new(claims: Map<String, Value>, space_delimited: &[Arc<str>]) -> Self {
        let text = |name| claims.get(name).and_then(Value::as_str);
        let present = |text: &&str| !text.is_empty();
        let principal = text("iss")
            .filter(present)
            .zip(text("sub").filter(present))
            .map(|(issuer, subject)| format!("{issuer}/{subject}").into());
        Self {
            claims,
            principal,
            space_delimited: space_delimited.to_vec(),
        }
    }

    /// `<issuer>/<subject>`; `None` where the token lacks either.
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// Whom it is meant for.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        texts(self.claims.get("aud"))
    }

    /// To whom it was issued.
    pub fn presenter(&self) -> Option<&str> {
        self.claims.get("azp")?.as_str()
    }

    /// The claim at a path of names, from the outermost to the innermost.
    pub fn claim<S: AsRef<str>>(&self, path: &[S]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let top = self.claims.get(first.as_ref())?;
        rest.iter()
            .try_fold(top, |value, name| value.as_object()?.get(name.as_ref()))
    }

    /// The values of a claim that are texts: it, the elements of its list, or the words of one that lists with spaces.
    pub fn claim_texts<S: AsRef<str>>(&self, path: &[S]) -> impl Iterator<Item = &str> {
        let delimited = matches!(path, [name] if self.is_space_delimited(name.as_ref()));
        texts(self.claim(path)).flat_map(move |text| {
            let words = delimited.then(|| text.split(' ').filter(|word| !word.is_empty()));
            let whole = (!delimited).then_some(text);
            whole.into_iter().chain(words.into_iter().flatten())
        })
    }

    /// Everything that a claim may be taken for by who reads loosely: its texts, the undivided text of a list with
    /// spaces, numbers and truth values as text.
    pub fn claim_readings<S: AsRef<str>>(&self, path: &[S]) -> Vec<Cow<'_, str>> {
        let value = self.claim(path);
        let elements: &[Value] = match value {
            Some(Value::Array(elements)) => elements,
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        let loose = elements.iter().filter_map(|element| match element {
            Value::String(text) => Some(Cow::Borrowed(text.as_str())),
            Value::Number(number) => Some(Cow::Owned(number.to_string())),
            Value::Bool(truth) => Some(Cow::Borrowed(if *truth { "true" } else { "false" })),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        });
        let strict = self.claim_texts(path).map(Cow::Borrowed);
        loose.chain(strict).collect()
    }

    fn is_space_delimited(&self, name: &str) -> bool {
        SPACE_DELIMITED.contains(&name) || self.space_delimited.iter().any(|one| **one == *name)
    }
}

/// A text, or the texts among the elements of a list.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let elements: &[Value] = match value {
        Some(Value::Array(elements)) => elements,
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    elements.iter().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> Token {
        Token::new(serde_json::from_str(claims).unwrap(), &["roles".into()])
    }

    #[test]
    fn claims_are_found_by_path_and_lists_by_their_elements() {
        let token = token(
            r#"{"iss":"i","sub":"s","aud":"one","scope":"read write","roles":"a b","plain":"a b",
                "realm":{"groups":["x",3,"y"]},"level":7,"admin":true}"#,
        );
        let texts = |path: &[&str]| token.claim_texts(path).collect::<Vec<_>>();
        assert_eq!(token.principal(), Some("i/s"));
        assert_eq!(token.audiences().collect::<Vec<_>>(), ["one"]);
        assert_eq!(texts(&["realm", "groups"]), ["x", "y"]);
        assert_eq!(texts(&["scope"]), ["read", "write"]);
        assert_eq!(texts(&["roles"]), ["a", "b"]);
        assert_eq!(texts(&["plain"]), ["a b"]);
        assert!(texts(&["level"]).is_empty() && texts(&["plain", "deeper"]).is_empty());
        assert!(texts(&[]).is_empty());
        assert_eq!(token.claim_readings(&["level"]), ["7"]);
        assert_eq!(token.claim_readings(&["admin"]), ["true"]);
        assert_eq!(
            token.claim_readings(&["scope"]),
            ["read write", "read", "write"]
        );
        assert_eq!(
            token.claim_readings(&["realm", "groups"]),
            ["x", "3", "y", "x", "y"]
        );
    }

    #[test]
    fn without_a_subject_there_is_no_principal() {
        for claims in [
            r#"{"iss":"i"}"#,
            r#"{"iss":"i","sub":""}"#,
            r#"{"iss":"i","sub":4}"#,
        ] {
            assert_eq!(token(claims).principal(), None, "{claims}");
        }
    }
}
