//! Text of others on a terminal: no line is forged, no escape sequence gets through, no letters run backwards.

use std::{borrow::Cow, fmt::Write as _};

/// The text with everything that is not a visible character or a space spelled out.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_plain(letter) {
            safe.push(letter);
        } else {
            // Writing to a string does not fail.
            let _written = write!(safe, "\\u{{{:x}}}", u32::from(letter));
        }
    }
    Cow::Owned(safe)
}

/// JSON text whose strings hold no character that a terminal would act on: what serde leaves as it is beyond ASCII's
/// control characters is escaped as JSON has it.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let is_harmless = |letter: char| is_plain(letter) || letter == '\n';
    if json.chars().all(is_harmless) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        if is_harmless(letter) {
            safe.push(letter);
        } else {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                let _written = write!(safe, "\\u{unit:04x}");
            }
        }
    }
    Cow::Owned(safe)
}

fn is_plain(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter,
            // Marks that change the direction of what follows, and what cannot be seen.
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_spelled_out() {
        assert_eq!(printable("/a b/ä"), "/a b/ä");
        assert_eq!(
            printable("x\n  ok\u{1b}[2J\u{9b}0m"),
            "x\\u{a}  ok\\u{1b}[2J\\u{9b}0m"
        );
        assert_eq!(printable("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        let json = serde_json::to_string(&"\u{1b}[31m\u{9b}\u{202e}\u{e0041}").unwrap();
        let safe = printable_json(&json);
        assert!(
            safe.chars().all(|letter| (' '..='~').contains(&letter)),
            "{safe}"
        );
        let back: String = serde_json::from_str(&safe).unwrap();
        assert_eq!(back, "\u{1b}[31m\u{9b}\u{202e}\u{e0041}");
    }
}
