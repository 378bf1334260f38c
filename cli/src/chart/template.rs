//! The part of Helm's template language that our chart keeps to, so that `karst install` renders the chart itself and
//! what it applies cannot differ from what `helm install` applies.
//!
//! Known: `{{ }}` with trimming (`{{-`, `-}}`), comments, `if`, `else`, `else if`, `with`, `range`, `end`; pipelines of
//! `default`, `quote`, `toYaml`, `nindent`, `indent`, `printf` (with `%s`), `not`, `and`, `or`, `eq`, `ne`;
//! parentheses, strings, integers, `.`, `.a.b`, `$.a.b`, `.Files.Get`. Anything else is an error, found by this crate's tests, which
//! render the whole chart; a cluster test compares with Helm's own output. `toYaml` writes nested values in flow style:
//! the same value in other letters.

use serde_json::{Map, Value};

/// A template that this renderer does not take. Our bug, or a chart edited beyond the part that is known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("template {template}, near `{near}`: {what}")]
pub(crate) struct TemplateError {
    pub(crate) template: String,
    near: String,
    what: String,
}

/// Ends the name of the one method: `.Files.Get "path"`.
const GET: &str = ".Get";

/// Renders one template; `data` holds `Values`, `Release`, `Chart`, and `Files`: texts by their paths in the chart.
pub(crate) fn render(name: &str, text: &str, data: &Value) -> Result<String, TemplateError> {
    let fail = |near: &str, what: String| TemplateError {
        template: name.to_owned(),
        near: near.to_owned(),
        what,
    };
    let pieces = pieces(text).map_err(|what| fail("{{", what))?;
    let mut rest = pieces.as_slice();
    let blocks = blocks(&mut rest).map_err(|(near, what)| fail(&near, what))?;
    if let Some(Piece::Action(extra)) = rest.first() {
        return Err(fail(extra, "no block is open here".to_owned()));
    }
    let mut out = String::new();
    run(&blocks, data, data, &mut out).map_err(|(near, what)| fail(&near, what))?;
    Ok(out)
}

/// Near what, and what is wrong.
type Fault = (String, String);

/// Text, or what stands between braces.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Action(String),
}

/// Cuts a template at its braces; the white space that `{{-` and `-}}` ask to drop is dropped here.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_start = false;
    loop {
        let (before, after) = match rest.split_once("{{") {
            Some((before, after)) => (before, Some(after)),
            None => (rest, None),
        };
        let before = if trim_start {
            before.trim_start()
        } else {
            before
        };
        let Some(after) = after else {
            pieces.push(Piece::Text(before.to_owned()));
            return Ok(pieces);
        };
        let (trim_end, after) = match after.strip_prefix('-') {
            Some(trimmed) => (true, trimmed),
            None => (false, after),
        };
        let before = if trim_end { before.trim_end() } else { before };
        pieces.push(Piece::Text(before.to_owned()));
        let Some((action, after)) = after.split_once("}}") else {
            return Err("no closing braces".to_owned());
        };
        let (action, trimmed) = match action.strip_suffix('-') {
            Some(action) => (action, true),
            None => (action, false),
        };
        let action = action.trim();
        if !action.starts_with("/*") {
            pieces.push(Piece::Action(action.to_owned()));
        }
        trim_start = trimmed;
        rest = after;
    }
}

/// A template as a tree.
#[derive(Debug)]
enum Block {
    Text(String),
    Print(String),
    /// `if`, `with` or `range`: keyword, condition, body, and what stands after `else`.
    Branch(Keyword, String, Vec<Self>, Vec<Self>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keyword {
    If,
    With,
    Range,
}

fn opens(action: &str) -> Option<(Keyword, &str)> {
    let (word, rest) = action.split_once(char::is_whitespace)?;
    let keyword = match word {
        "if" => Keyword::If,
        "with" => Keyword::With,
        "range" => Keyword::Range,
        _ => return None,
    };
    Some((keyword, rest.trim()))
}

/// Reads blocks up to an `else` or `end`, which stays in `rest`.
fn blocks(rest: &mut &[Piece]) -> Result<Vec<Block>, Fault> {
    let mut found = Vec::new();
    while let Some((piece, after)) = rest.split_first() {
        match piece {
            Piece::Text(text) => found.push(Block::Text(text.clone())),
            Piece::Action(action) if action == "end" || action.starts_with("else") => break,
            Piece::Action(action) => match opens(action) {
                None => found.push(Block::Print(action.clone())),
                Some((keyword, condition)) => {
                    *rest = after;
                    found.push(branch(rest, keyword, condition)?);
                    continue;
                }
            },
        }
        *rest = after;
    }
    Ok(found)
}

/// Reads a branch after its opening, its `end` included.
fn branch(rest: &mut &[Piece], keyword: Keyword, condition: &str) -> Result<Block, Fault> {
    let body = blocks(rest)?;
    let unclosed = || (condition.to_owned(), "block is never closed".to_owned());
    let Some((Piece::Action(action), after)) = rest.split_first() else {
        return Err(unclosed());
    };
    *rest = after;
    let otherwise = match action.strip_prefix("else").map(str::trim) {
        None => Vec::new(),
        Some("") => {
            let otherwise = blocks(rest)?;
            let Some((_end, after)) = rest.split_first() else {
                return Err(unclosed());
            };
            *rest = after;
            otherwise
        }
        Some(next) => {
            let (keyword, condition) =
                opens(next).ok_or_else(|| (next.to_owned(), "unknown `else`".to_owned()))?;
            vec![branch(rest, keyword, condition)?]
        }
    };
    Ok(Block::Branch(
        keyword,
        condition.to_owned(),
        body,
        otherwise,
    ))
}

fn run(blocks: &[Block], dot: &Value, root: &Value, out: &mut String) -> Result<(), Fault> {
    for block in blocks {
        match block {
            Block::Text(text) => out.push_str(text),
            Block::Print(action) => out.push_str(&text_of(&evaluate(action, dot, root)?)),
            Block::Branch(keyword, condition, body, otherwise) => {
                let value = evaluate(condition, dot, root)?;
                match (keyword, truth(&value)) {
                    (_, false) => run(otherwise, dot, root, out)?,
                    (Keyword::If, true) => run(body, dot, root, out)?,
                    (Keyword::With, true) => run(body, &value, root, out)?,
                    (Keyword::Range, true) => {
                        for item in items(&value) {
                            run(body, item, root, out)?;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn items(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// Go's notion: empty, zero, false and null are not true.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn evaluate(action: &str, dot: &Value, root: &Value) -> Result<Value, Fault> {
    let fault = |what: String| (action.to_owned(), what);
    let words = words(action).map_err(fault)?;
    let mut rest = words.as_slice();
    let value = pipeline(&mut rest, dot, root).map_err(fault)?;
    match rest.first() {
        None => Ok(value),
        Some(word) => Err(fault(format!("`{word:?}` was not expected"))),
    }
}

/// A word of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Open,
    Close,
    Pipe,
    Name(String),
    Text(String),
    Number(i64),
}

fn words(action: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = action.trim_start();
    while let Some(first) = rest.chars().next() {
        let simple = match first {
            '(' => Some(Word::Open),
            ')' => Some(Word::Close),
            '|' => Some(Word::Pipe),
            _ => None,
        };
        if let Some(word) = simple {
            words.push(word);
            rest = rest[1..].trim_start();
        } else if first == '"' {
            let (text, after) = rest[1..].split_once('"').ok_or("string without end")?;
            if text.contains('\\') {
                return Err("escapes in strings are not known here".to_owned());
            }
            words.push(Word::Text(text.to_owned()));
            rest = after.trim_start();
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "()|\"".contains(c));
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            words.push(match word.parse() {
                Ok(number) => Word::Number(number),
                Err(_) => Word::Name(word.to_owned()),
            });
            rest = after.trim_start();
        }
    }
    Ok(words)
}

/// `command | command | ...`: each takes the last one's value as its last argument.
fn pipeline(rest: &mut &[Word], dot: &Value, root: &Value) -> Result<Value, String> {
    let mut value = command(rest, None, dot, root)?;
    while let Some((Word::Pipe, after)) = rest.split_first() {
        *rest = after;
        value = command(rest, Some(value), dot, root)?;
    }
    Ok(value)
}

fn command(
    rest: &mut &[Word],
    piped: Option<Value>,
    dot: &Value,
    root: &Value,
) -> Result<Value, String> {
    let is_called = |name: &str| {
        let is_value = name.starts_with(['.', '$']) || constant(name).is_some();
        !is_value || name.ends_with(GET)
    };
    let function = match rest.first() {
        Some(Word::Name(name)) if is_called(name) => {
            *rest = &rest[1..];
            Some(name.clone())
        }
        _ => None,
    };
    let mut arguments = Vec::new();
    while let Some(value) = term(rest, dot, root)? {
        arguments.push(value);
    }
    arguments.extend(piped);
    match function {
        Some(name) => match name.strip_suffix(GET) {
            Some(files) => file(&path(files, dot, root)?, &arguments),
            None => call(&name, &arguments),
        },
        None if arguments.len() == 1 => Ok(arguments.remove(0)),
        None => Err(format!("{} values where one was expected", arguments.len())),
    }
}

fn constant(name: &str) -> Option<Value> {
    match name {
        "true" => Some(Value::Bool(true)),
        "false" => Some(Value::Bool(false)),
        "nil" => Some(Value::Null),
        _ => None,
    }
}

fn term(rest: &mut &[Word], dot: &Value, root: &Value) -> Result<Option<Value>, String> {
    let Some((word, after)) = rest.split_first() else {
        return Ok(None);
    };
    let value = match word {
        Word::Pipe | Word::Close => return Ok(None),
        Word::Text(text) => Value::String(text.clone()),
        Word::Number(number) => Value::from(*number),
        Word::Name(name) => match constant(name) {
            Some(value) => value,
            None => path(name, dot, root)?,
        },
        Word::Open => {
            *rest = after;
            let value = pipeline(rest, dot, root)?;
            let Some((Word::Close, after)) = rest.split_first() else {
                return Err("parenthesis without end".to_owned());
            };
            *rest = after;
            return Ok(Some(value));
        }
    };
    *rest = after;
    Ok(Some(value))
}

/// `.a.b` from the dot, `$.a.b` from the root. What is not there is null, as with Helm.
fn path(name: &str, dot: &Value, root: &Value) -> Result<Value, String> {
    let (start, keys) = match name.strip_prefix('$') {
        Some(keys) => (root, keys),
        None => (dot, name),
    };
    let Some(keys) = keys.strip_prefix('.') else {
        return Err(format!("`{name}` is not known here"));
    };
    let mut keys = keys.split('.').filter(|key| !key.is_empty());
    let found = keys.try_fold(start, |value, key| value.get(key));
    Ok(found.cloned().unwrap_or(Value::Null))
}

/// Where Helm gives an empty text for a file that is not there, this is an error.
fn file(files: &Value, arguments: &[Value]) -> Result<Value, String> {
    let [Value::String(path)] = arguments else {
        return Err("`.Files.Get` takes one path".to_owned());
    };
    let text = files.get(path).filter(|text| text.is_string());
    text.cloned()
        .ok_or_else(|| format!("there is no file {path} in the chart"))
}

fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let text = |text: String| Ok(Value::String(text));
    match (name, arguments) {
        ("default", [fallback, value]) => Ok(if truth(value) { value } else { fallback }.clone()),
        ("quote", [Value::Null]) => text(String::new()),
        ("quote", [value]) => text(Value::String(text_of(value)).to_string()),
        ("toYaml", [value]) => text(to_yaml(value)),
        ("indent", [Value::Number(by), value]) => text(indent(by.as_u64(), value)),
        ("nindent", [Value::Number(by), value]) => {
            text(format!("\n{}", indent(by.as_u64(), value)))
        }
        ("printf", [Value::String(format), values @ ..]) => text(printf(format, values)?),
        ("not", [value]) => Ok(Value::Bool(!truth(value))),
        ("and", [_, .., last]) => Ok(arguments
            .iter()
            .find(|value| !truth(value))
            .unwrap_or(last)
            .clone()),
        ("or", [_, .., last]) => Ok(arguments
            .iter()
            .find(|value| truth(value))
            .unwrap_or(last)
            .clone()),
        ("eq", [one, other]) => Ok(Value::Bool(one == other)),
        ("ne", [one, other]) => Ok(Value::Bool(one != other)),
        _ => Err(format!(
            "function `{name}` with {} argument(s) is not known here",
            arguments.len()
        )),
    }
}

fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut parts = format.split("%s");
    let mut out = parts.next().unwrap_or_default().to_owned();
    let mut values = values.iter();
    for part in parts {
        let value = values.next().ok_or("printf has too few values")?;
        out.push_str(&text_of(value));
        out.push_str(part);
    }
    match (values.next(), out.contains('%')) {
        (None, false) => Ok(out),
        _ => Err("printf knows %s only, one for each value".to_owned()),
    }
}

fn indent(by: Option<u64>, value: &Value) -> String {
    let pad = " ".repeat(usize::try_from(by.unwrap_or(0)).unwrap_or(0));
    let lines = text_of(value);
    let lines: Vec<String> = lines
        .split('\n')
        .map(|line| format!("{pad}{line}"))
        .collect();
    lines.join("\n")
}

/// The outermost map or list in block style, what is inside in flow style, which JSON is.
fn to_yaml(value: &Value) -> String {
    let lines: Vec<String> = match value {
        Value::Object(map) if !map.is_empty() => entries(map).collect(),
        Value::Array(items) if !items.is_empty() => {
            items.iter().map(|item| format!("- {item}")).collect()
        }
        other => vec![other.to_string()],
    };
    lines.join("\n")
}

fn entries(map: &Map<String, Value>) -> impl Iterator<Item = String> {
    map.iter()
        .map(|(key, value)| format!("{}: {value}", Value::String(key.clone())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What Helm 4.3.1 writes for the same template and values, flow style aside.
    fn check(template: &str, expected: &str) {
        let data = json!({
            "Values": {"name": "a", "empty": "", "on": true, "n": 2, "list": [{"x": 1}, {"x": 2}], "map": {"k": "v", "l": [1]}},
            "Release": {"Namespace": "karst-system"},
            "Files": {"files/a.yaml": "a: {{ $labels.x }}\nb: 1\n"},
        });
        assert_eq!(render("t", template, &data).as_deref(), Ok(expected));
    }

    #[test]
    fn values_are_printed_and_piped() {
        check("{{ .Values.name }}-{{ .Values.n }}", "a-2");
        check("x: {{ .Values.name | quote }}", "x: \"a\"");
        check(
            "{{ .Values.empty | default .Release.Namespace }}",
            "karst-system",
        );
        check(
            "{{ printf \"%s/x:%s\" .Values.name (.Values.empty | default \"t\") | quote }}",
            "\"a/x:t\"",
        );
        check("{{ .Values.nothing.deeper | default 3 }}", "3");
    }

    #[test]
    fn white_space_is_trimmed_where_asked() {
        check("a\n  {{- if .Values.on }}\nb\n  {{- end }}\nc", "a\nb\nc");
        check("a {{- /* said to the reader only */ -}} b", "ab");
    }

    #[test]
    fn branches_choose() {
        check(
            "{{ if .Values.empty }}x{{ else if .Values.on }}y{{ else }}z{{ end }}",
            "y",
        );
        check(
            "{{ if .Values.empty }}x{{ else }}{{ if .Values.on }}y{{ end }}{{ end }}!",
            "y!",
        );
        check(
            "{{ with .Values.map }}{{ .k }}{{ $.Values.name }}{{ end }}",
            "va",
        );
        check("{{ with .Values.empty }}x{{ end }}", "");
        check("{{ range .Values.list }}{{ .x }},{{ end }}", "1,2,");
        check("{{ if and .Values.on (not .Values.empty) }}y{{ end }}", "y");
        check("{{ if and .Values.empty .Values.on }}y{{ end }}", "");
        check(
            "{{ if or .Values.empty (eq .Values.name \"a\") }}y{{ end }}",
            "y",
        );
    }

    #[test]
    fn yaml_is_indented_under_its_key() {
        check(
            "k:\n  {{- toYaml .Values.map | nindent 2 }}",
            "k:\n  \"k\": \"v\"\n  \"l\": [1]",
        );
        check(
            "k:\n  {{- toYaml .Values.list | nindent 2 }}",
            "k:\n  - {\"x\":1}\n  - {\"x\":2}",
        );
    }

    #[test]
    fn a_file_of_the_chart_is_put_in_as_it_is() {
        let indented = "k:\n  a: {{ $labels.x }}\n  b: 1\n  ";
        check(
            "k:\n  {{- .Files.Get \"files/a.yaml\" | nindent 2 }}",
            indented,
        );
        check(
            "{{ with .Values.map }}k:\n  {{- $.Files.Get \"files/a.yaml\" | nindent 2 }}{{ end }}",
            indented,
        );
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let fails = |template: &str| render("t", template, &json!({})).unwrap_err().to_string();
        assert!(fails("{{ include \"x\" . }}").contains("`include`"));
        assert!(fails("{{ .Files.Get \"x\" }}").contains("no file x"));
        assert!(fails("{{ .Values.Get }}").contains("one path"));
        assert!(fails("{{ if .x }}").contains("never closed"));
        assert!(fails("{{ end }}").contains("no block is open"));
        assert!(fails("{{ .x").contains("no closing braces"));
        assert!(fails("{{ printf \"%d\" 3 }}").contains("%s only"));
    }
}
