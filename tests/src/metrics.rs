//! `metrics.jsonl` as a reader of it sees it, and numbers to compare with.

use std::path::Path;

use serde_json::Value;

/// Reads a JSON file.
#[track_caller]
pub fn json(path: &Path) -> Value {
    let content = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&content).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Asserts that two numbers differ by at most `tolerance`, relative to the expected one.
#[track_caller]
pub fn assert_close(what: &str, found: &Value, expected: &Value, tolerance: f64) {
    let (Some(found), Some(expected)) = (found.as_f64(), expected.as_f64()) else {
        panic!("{what}: {found} and {expected} are not both numbers");
    };
    let difference = ((found - expected) / expected).abs();
    assert!(difference <= tolerance, "{what}: {found}, expected {expected}: relative difference {difference:e}");
}

/// The steps and evaluations of a run.
#[derive(Clone, Debug)]
pub struct Metrics {
    steps: Vec<String>,
    evaluations: Vec<String>,
}

impl Metrics {
    /// Reads a run folder's `metrics.jsonl`; a file that does not exist yet is empty.
    pub fn of(run: &Path) -> Metrics {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        let with = |key: &str| text.lines().filter(|line| line.contains(key)).map(str::to_owned).collect();
        Metrics { steps: with("\"loss\":"), evaluations: with("\"eval_loss\":") }
    }

    /// How many steps are finished.
    pub fn count(&self) -> usize {
        self.steps.len()
    }

    /// The steps' objects.
    pub fn steps(&self) -> Vec<Value> {
        parse(&self.steps)
    }

    /// The evaluations' objects.
    pub fn evaluations(&self) -> Vec<Value> {
        parse(&self.evaluations)
    }

    /// What must be the same, bit for bit, in runs that do the same: of each step its number, loss, gradient norm, learning
    /// rate and tokens, as written. (A number is written with as many digits as tell it from every other one.)
    pub fn exact(&self) -> Vec<String> {
        let keys = ["step", "loss", "grad_norm", "learning_rate", "tokens", "supervised_tokens"];
        let line = |line: &String| keys.map(|key| format!("{key} {}", written(line, key))).join(", ");
        self.steps.iter().map(line).collect()
    }
}

fn parse(lines: &[String]) -> Vec<Value> {
    lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// A value of a flat object, as written.
fn written<'a>(line: &'a str, key: &str) -> &'a str {
    let from = line.find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key} in {line}"));
    let value = &line[from + key.len() + 3..];
    &value[..value.find([',', '}']).expect("an object ends")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_compared_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let line = r#"{"step":1,"loss":6.106896193522327,"grad_norm":5.5,"learning_rate":0.00002,"tokens":154,"supervised_tokens":53}"#;
        std::fs::write(folder.path().join("metrics.jsonl"), format!("{line}\n{{\"step\":1,\"eval_loss\":2.0}}\n"))
            .unwrap();
        let metrics = Metrics::of(folder.path());
        let expected =
            "step 1, loss 6.106896193522327, grad_norm 5.5, learning_rate 0.00002, tokens 154, supervised_tokens 53";
        assert_eq!(metrics.exact(), [expected]);
        assert_eq!(metrics.evaluations()[0]["eval_loss"], json!(2.0));
        assert_eq!(Metrics::of(&folder.path().join("none")).count(), 0);
    }

    #[test]
    #[should_panic(expected = "relative difference")]
    fn numbers_that_differ_are_not_close() {
        assert_close("loss", &json!(1.00002), &json!(1.0), 1e-5);
    }
}
