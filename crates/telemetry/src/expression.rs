//! CEL expressions of the Telemetry API: which connections and requests are logged, and the values of further labels.
//! Compiled when configured; evaluated on what is known of a connection or request.

use std::{cell::RefCell, collections::HashMap, fmt, sync::Arc};

use cel::{Context, Program, Value};
use serde_json::{Map, Value as Json};

/// Longest expression, in bytes.
const BYTES_MAX: usize = 4096;

/// A compiled expression.
pub struct Expression {
    program: Program,
    text: Arc<str>,
}

/// Why an expression cannot be used: a mistake of whoever wrote it.
#[derive(Debug, thiserror::Error)]
pub enum ExpressionError {
    #[error("an expression of {0} bytes, at most {BYTES_MAX} are read")]
    TooLong(usize),
    #[error("{text:?} is no CEL expression: {why}")]
    Syntax { text: String, why: String },
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

thread_local! {
    /// Making one takes longer than most evaluations.
    static BASE: RefCell<Context<'static, 'static>> = RefCell::new(Context::default());
}

impl Expression {
    /// Compiles `text`.
    ///
    /// # Errors
    /// When it is too long or no CEL.
    pub fn compile(text: &str) -> Result<Self, ExpressionError> {
        if text.len() > BYTES_MAX {
            return Err(ExpressionError::TooLong(text.len()));
        }
        let program = Program::compile(text).map_err(|error| ExpressionError::Syntax {
            text: text.to_owned(),
            why: error.to_string(),
        })?;
        Ok(Self {
            program,
            text: text.into(),
        })
    }

    /// As it was written.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Whether it is true of `attributes`. What cannot be evaluated is not.
    pub fn is_true(&self, attributes: &Map<String, Json>) -> bool {
        matches!(self.evaluate(attributes), Some(Value::Bool(true)))
    }

    /// Its value as text; `None`: it cannot be evaluated.
    pub fn text_of(&self, attributes: &Map<String, Json>) -> Option<String> {
        Some(match self.evaluate(attributes)? {
            Value::String(text) => text.to_string(),
            Value::Int(number) => number.to_string(),
            Value::UInt(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            _ => return None,
        })
    }

    fn evaluate(&self, attributes: &Map<String, Json>) -> Option<Value> {
        BASE.with_borrow(|base| {
            let mut context = base.new_inner_scope();
            for (name, value) in attributes {
                context.add_variable_from_value(name.as_str(), known(value));
            }
            self.program.execute(&context).ok()
        })
    }
}

/// Every whole number is a signed one, so that it compares with those in expressions.
fn known(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(*truth),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::Int(whole),
            (None, Some(float)) => Value::Float(float),
            (None, None) => Value::Null,
        },
        Json::String(text) => Value::String(Arc::new(text.clone())),
        Json::Array(list) => Value::List(Arc::new(list.iter().map(known).collect())),
        Json::Object(map) => {
            let map: HashMap<String, Value> = map
                .iter()
                .map(|(key, value)| (key.clone(), known(value)))
                .collect();
            map.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn attributes() -> Map<String, Json> {
        let all = json!({
            "request": {"method": "GET", "path": "/a", "headers": {"x-user": "ann"}},
            "response": {"code": 503},
            "connection": {"mtls": true},
        });
        all.as_object().unwrap().clone()
    }

    #[test]
    fn istios_filters_are_evaluated() {
        for (text, expected) in [
            ("response.code >= 400", true),
            ("response.code >= 400 && request.method == 'POST'", false),
            ("request.headers['x-user'] == 'ann'", true),
            ("has(request.nothing)", false),
            ("request.headers['none'] == 'x'", false),
            ("connection.mtls", true),
            ("nonsense.code > 1", false),
        ] {
            let expression = Expression::compile(text).unwrap();
            assert_eq!(expression.is_true(&attributes()), expected, "{text}");
        }
    }

    #[test]
    fn a_value_is_a_text() {
        let text = |text| Expression::compile(text).unwrap().text_of(&attributes());
        assert_eq!(text("request.method"), Some("GET".to_owned()));
        assert_eq!(text("string(response.code)"), Some("503".to_owned()));
        assert_eq!(text("'fixed'"), Some("fixed".to_owned()));
        assert_eq!(text("request"), None);
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        assert!(Expression::compile("response.code >=").is_err());
        assert!(Expression::compile(&"a".repeat(5000)).is_err());
    }
}
