//! The naive normalisation: one rule after the other over the whole text, as `docs/design/0012` lists them.

/// `None`: refused.
pub(crate) fn normalise(path: &str) -> Option<String> {
    let lower = path.to_lowercase();
    let percent_signs = path.matches('%').count();
    let escapes = (0..path.len())
        .filter(|at| escape(path.as_bytes(), *at).is_some())
        .count();
    let refused = !path.is_ascii()
        || percent_signs != escapes
        || path.contains('\\')
        || ["%2f", "%5c", "%7f", "%c0%", "%c1%", "%e0%8", "%e0%9"]
            .iter()
            .any(|bad| lower.contains(bad))
        || (0..32).any(|control| lower.contains(&format!("%{control:02x}")));
    if refused {
        return None;
    }
    let mut text = String::new();
    let mut at = 0;
    while at < path.len() {
        match escape(path.as_bytes(), at) {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                text.push(char::from(byte));
                at += 3;
            }
            Some(byte) => {
                text.push_str(&format!("%{byte:02X}"));
                at += 3;
            }
            None => {
                text.push_str(&path[at..at + 1]);
                at += 1;
            }
        }
    }
    let text = text.replace('{', "%7B");
    if text
        .split('/')
        .any(|segment| segment.starts_with(".;") || segment.starts_with("..;"))
    {
        return None;
    }
    let mut text = remove_dot_segments(&text);
    while text.contains("//") {
        text = text.replace("//", "/");
    }
    Some(text)
}

fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    let text = std::str::from_utf8(bytes.get(at..at + 3)?).ok()?;
    let digits = text.strip_prefix('%')?;
    digits
        .chars()
        .all(|digit| digit.is_ascii_hexdigit())
        .then(|| u8::from_str_radix(digits, 16).unwrap())
}

/// RFC 3986 section 5.2.4, letter by letter.
fn remove_dot_segments(path: &str) -> String {
    let (mut input, mut output) = (path.to_owned(), String::new());
    while !input.is_empty() {
        if let Some(rest) = input
            .strip_prefix("../")
            .or_else(|| input.strip_prefix("./"))
        {
            input = rest.to_owned();
        } else if input.starts_with("/./") || input == "/." {
            input = format!("/{}", input.get(3..).unwrap_or_default());
        } else if input.starts_with("/../") || input == "/.." {
            input = format!("/{}", input.get(4..).unwrap_or_default());
            output.truncate(output.rfind('/').unwrap_or(0));
        } else if input == "." || input == ".." {
            input.clear();
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input = input[end..].to_owned();
        }
    }
    output
}
