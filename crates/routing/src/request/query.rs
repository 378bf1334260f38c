//! The parameters of a query: names and values percent-decoded. A plus is a plus, and only `&` separates.

use std::borrow::Cow;

/// Parameters in the order in which they were sent.
pub(super) struct Params<'a>(Option<&'a str>);

impl<'a> Params<'a> {
    pub(super) fn new(query: Option<&'a str>) -> Self {
        Self(query)
    }
}

impl<'a> Iterator for Params<'a> {
    type Item = (Cow<'a, [u8]>, Cow<'a, [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = self.0?;
            let (param, rest) = match rest.split_once('&') {
                Some((param, rest)) => (param, Some(rest)),
                None => (rest, None),
            };
            self.0 = rest;
            if param.is_empty() {
                continue;
            }
            let (name, value) = param.split_once('=').unwrap_or((param, ""));
            return Some((decoded(name), decoded(value)));
        }
    }
}

/// A `%` without two digits stands for itself.
pub(super) fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let digits = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten();
        let value = digits.and_then(|digits| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            Some((digit(digits[0])? << 4 | digit(digits[1])?) as u8)
        });
        decoded.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 3 } else { 1 };
    }
    Cow::Owned(decoded)
}
