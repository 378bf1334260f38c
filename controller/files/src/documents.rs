//! Cuts a file into its YAML documents, so that a broken one does not hide the others.
//!
//! A line that starts with `---` begins a document (YAML 1.2.2 section 9.1.2; the marker is not allowed inside a
//! scalar, so looking at lines is enough).

/// One document's text and where it starts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    pub(crate) text: &'a str,
    /// Lines of the file before this text.
    pub(crate) lines_before: u64,
}

/// The documents of a file that hold anything but comments.
pub(crate) fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut lines_before, mut offset) = (0, 0, 0);
    for (line_number, line) in (0u64..).zip(text.split_inclusive('\n')) {
        let so_far = &text[start..offset];
        if starts_document(line) && !is_only_directives(so_far) {
            documents.push(Document {
                text: so_far,
                lines_before,
            });
            (start, lines_before) = (offset, line_number);
        }
        offset += line.len();
    }
    documents.push(Document {
        text: &text[start..],
        lines_before,
    });
    documents.retain(|document| document.text.lines().any(holds_content));
    documents
}

fn starts_document(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// `%YAML` and `%TAG` lines belong to the document that follows them.
fn is_only_directives(text: &str) -> bool {
    text.lines().any(|line| line.starts_with('%'))
        && text
            .lines()
            .all(|line| line.starts_with('%') || !holds_content(line))
}

fn holds_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !line.is_empty() && !line.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(text: &str) -> Vec<(u64, &str)> {
        split(text)
            .into_iter()
            .map(|d| (d.lines_before, d.text))
            .collect()
    }

    #[test]
    fn documents_keep_their_place_in_the_file() {
        assert_eq!(
            starts("a: 1\n---\nb: 2\n"),
            [(0, "a: 1\n"), (1, "---\nb: 2\n")]
        );
        assert_eq!(
            starts("---\na: 1\n--- # two\r\nb: 2"),
            [(0, "---\na: 1\n"), (2, "--- # two\r\nb: 2")]
        );
        assert_eq!(starts("# only\n---\n\n--- \n"), []);
        assert_eq!(starts("\u{feff}a: 1\n----\n"), [(0, "a: 1\n----\n")]);
    }

    #[test]
    fn directives_stay_with_their_document() {
        assert_eq!(
            starts("%YAML 1.2\n---\na: 1\n"),
            [(0, "%YAML 1.2\n---\na: 1\n")]
        );
    }
}
