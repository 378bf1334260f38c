//! Pages that running programs wrote, as the input of `promtool test rules`: each look is one minute of the rules' time, and
//! what is held stays as it was for as long as an alert waits. So hours of a mesh's life are tested within seconds, on series
//! that nobody has written by hand.

use std::{collections::BTreeMap, path::Path, process::Command, time::SystemTime};

use serde_json::{Value, json};

use crate::lab::repository;

/// Where the rules lie in the repository.
const RULES: &str = "manifests/prometheus";
/// What starts the names of our metrics.
const OURS: [&str; 3] = ["istio_", "karst_", "workload_manager_"];

/// Series by their name and labels, with what they said in each minute; `None`: nobody was there to say anything.
pub struct Recording {
    /// Names that the rules ask for.
    asked: Vec<String>,
    series: BTreeMap<String, Vec<Option<f64>>>,
    minutes: usize,
    /// When minute 0 was: the rules' time begins at 0.
    began: f64,
    /// What each rule says, alerts by their names.
    rules: Vec<Rule>,
    questions: Vec<Value>,
}

/// A rule as its file has it.
pub struct Rule {
    /// Of the alert, or of the series that is recorded.
    pub name: String,
    pub alerts: bool,
    pub expression: String,
}

/// The rules of one file, in their order. Its lines are plain enough to be read as lines.
fn rules_of(file: &str) -> Vec<Rule> {
    let path = repository().join(RULES).join(file);
    let text = std::fs::read_to_string(path).expect("the rules are there");
    let mut rules = Vec::new();
    for line in text.lines().map(str::trim) {
        let name = ["- alert: ", "- record: "]
            .iter()
            .find_map(|start| Some((line.strip_prefix(start)?, start.contains("alert"))));
        if let Some((name, alerts)) = name {
            rules.push(Rule {
                name: name.to_owned(),
                alerts,
                expression: String::new(),
            });
        } else if let (Some(expression), Some(rule)) =
            (line.strip_prefix("expr: "), rules.last_mut())
        {
            expression.clone_into(&mut rule.expression);
        }
    }
    rules
}

/// Selectors of our metrics in an expression, with their braces.
pub fn selectors(expression: &str) -> Vec<&str> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || "_:".contains(letter);
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let end = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        let name = &rest[..end];
        let braces = match rest[end..].starts_with('{') {
            true => rest[end..].find('}').map_or(0, |at| at + 1),
            false => 0,
        };
        if OURS.iter().any(|start| name.starts_with(start)) {
            found.push(&rest[..end + braces]);
        }
        rest = &rest[end + braces..];
    }
    found
}

impl Default for Recording {
    fn default() -> Self {
        Self::new()
    }
}

impl Recording {
    /// Of nothing yet.
    pub fn new() -> Self {
        let mut rules = rules_of("recording.yaml");
        rules.extend(rules_of("alerts.yaml"));
        let names = rules.iter().flat_map(|rule| selectors(&rule.expression));
        let names = names.map(|one| one.split('{').next().unwrap_or(one).to_owned());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            asked: names.collect(),
            series: BTreeMap::new(),
            minutes: 0,
            began: now.expect("the clock is past 1970").as_secs_f64(),
            rules,
            questions: Vec::new(),
        }
    }

    /// The rules of the repository.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The minute that the next look will be.
    pub fn minute(&self) -> usize {
        self.minutes
    }

    /// One minute more: what each program (named as its instance) says now.
    pub fn look(&mut self, pages: &[(&str, String)]) {
        for (instance, page) in pages {
            for line in page.lines().filter(|line| !line.starts_with('#')) {
                self.take(instance, line);
            }
        }
        self.minutes += 1;
        for values in self.series.values_mut() {
            values.resize(self.minutes, None);
        }
    }

    fn take(&mut self, instance: &str, line: &str) {
        // What follows is an exemplar.
        let line = line.split(" # {").next().unwrap_or(line);
        let end = line.find(['{', ' ']).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        if !self.asked.iter().any(|asked| asked == name) {
            return;
        }
        // The value follows the labels, in whose values a brace may stand.
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ").unwrap_or((rest, "")),
            None => ("", rest.trim_start()),
        };
        let Some(mut value) = value
            .split(' ')
            .next()
            .and_then(|text| text.parse::<f64>().ok())
        else {
            return;
        };
        if name.ends_with("_timestamp_seconds") {
            value -= self.began;
        }
        let comma = if labels.is_empty() { "" } else { "," };
        let series = format!("{name}{{{labels}{comma}instance=\"{instance}\"}}");
        let values = self.series.entry(series).or_default();
        values.resize(self.minutes, None);
        values.push(Some(value));
    }

    /// So many minutes in which everything stays as it was at the last look.
    pub fn hold(&mut self, minutes: usize) {
        self.minutes += minutes;
        for values in self.series.values_mut() {
            let last = values.last().copied().flatten();
            values.resize(self.minutes, last);
        }
    }

    /// Asks for what an expression gives at the last minute: one number without labels, or nothing.
    pub fn expect(&mut self, expression: &str, number: Option<f64>) {
        let at = self.minutes.saturating_sub(1);
        let samples: Vec<Value> = number
            .into_iter()
            .map(|number| json!({"labels": "{}", "value": number}))
            .collect();
        self.questions.push(
            json!({"expr": expression, "eval_time": format!("{at}m"), "exp_samples": samples}),
        );
    }

    /// Asks that these alerts fire at the last minute, and no others but `besides`.
    pub fn expect_firing(&mut self, alerts: &[&str], besides: &[&str]) {
        for alert in alerts {
            let firing = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}");
            self.expect(&format!("count({firing}) > bool 0"), Some(1.0));
        }
        let known = [alerts, besides].concat().join("|");
        let others = format!("ALERTS{{alertname!~\"{known}\",alertstate=\"firing\"}}");
        self.expect(&format!("count({others})"), None);
    }

    /// The whole as promtool reads it: YAML, which JSON is.
    fn file(&self) -> Value {
        let rules = repository().join(RULES);
        let series = self
            .series
            .iter()
            .map(|(series, values)| json!({"series": series, "values": shortened(values)}));
        json!({
            "rule_files": [rules.join("recording.yaml"), rules.join("alerts.yaml")],
            "evaluation_interval": "1m",
            "tests": [{
                "name": "recorded",
                "interval": "1m",
                "input_series": series.collect::<Vec<_>>(),
                "promql_expr_test": self.questions,
            }],
        })
    }

    /// Has `promtool` answer everything that was asked; panics with what it says where an answer is another.
    pub fn test(&self, promtool: &Path) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("recorded.json");
        std::fs::write(&file, self.file().to_string()).expect("a writable folder");
        let ran = Command::new(promtool)
            .args(["test", "rules"])
            .arg(&file)
            .output()
            .expect("promtool starts");
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(ran.status.success(), "{said}");
        eprintln!(
            "promtool: {} series of {} minutes, {} questions answered as expected",
            self.series.len(),
            self.minutes,
            self.questions.len()
        );
    }
}

/// In promtool's notation: `VALUExN` is a value and N more of it, `_` is none.
fn shortened(values: &[Option<f64>]) -> String {
    let mut words: Vec<String> = Vec::new();
    for run in values.chunk_by(|one, next| one == next) {
        let Some(first) = run.first() else { continue };
        words.push(match (first, run.len()) {
            (None, 1) => "_".to_owned(),
            (None, count) => format!("_x{count}"),
            (Some(value), 1) => value.to_string(),
            (Some(value), count) => format!("{value}x{}", count - 1),
        });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_a_minute_and_what_is_held_stays() {
        let mut recording = Recording::new();
        let page = |value: u64| {
            format!("# HELP x\nkarst_incidents_total{{kind=\"a}} b\"}} {value} # {{}} 1\nother 1\n")
        };
        recording.look(&[("a", page(3))]);
        recording.hold(3);
        recording.look(&[("b", page(1))]);
        recording.look(&[("a", page(5)), ("b", page(1))]);
        let said: Vec<(&str, String)> = recording
            .series
            .iter()
            .map(|(name, values)| (&**name, shortened(values)))
            .collect();
        assert_eq!(
            said,
            [
                (
                    "karst_incidents_total{kind=\"a} b\",instance=\"a\"}",
                    "3x3 _ 5".to_owned()
                ),
                (
                    "karst_incidents_total{kind=\"a} b\",instance=\"b\"}",
                    "_x4 1x1".to_owned()
                ),
            ]
        );
        assert_eq!(recording.minute(), 6);
    }

    #[test]
    fn selectors_of_an_expression_are_found() {
        let expression = "sum by (instance) (rate(karst_a_total{event=~\".*_full\"}[5m])) > 1 unless karst_b <= 3 * time()";
        assert_eq!(
            selectors(expression),
            ["karst_a_total{event=~\".*_full\"}", "karst_b"]
        );
    }
}
