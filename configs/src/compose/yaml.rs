//! Scalars as YAML, read alike by YAML 1.2 and by PyYAML, which is YAML 1.1.

use serde_yaml::Value;

/// Words that one of the two dialects takes for something else than text.
const WORDS: [&str; 12] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "~", "="];

/// A value on one line.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Number(number) => with_point(&number.to_string()),
        Value::String(text) => quoted(text),
        Value::Bool(switch) => switch.to_string(),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

/// `1e-5` is text to PyYAML, `1.0e-5` is a number to both.
fn with_point(number: &str) -> String {
    match number.split_once('e') {
        Some((mantissa, exponent)) => {
            let point = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
            format!("{mantissa}{point}e{sign}{exponent}")
        }
        None => number.to_owned(),
    }
}

fn quoted(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-./:@,+=".contains(character);
    let begins = text.starts_with(|first: char| first.is_ascii_alphabetic() || "/._".contains(first));
    let is_text = matches!(serde_yaml::from_str::<Value>(text), Ok(Value::String(read)) if read == text);
    let word = WORDS.contains(&text.to_ascii_lowercase().as_str());
    if begins && text.chars().all(plain) && !text.ends_with(':') && is_text && !word {
        return text.to_owned();
    }
    match text.chars().any(char::is_control) {
        // JSON's form is YAML's with double quotes.
        true => serde_json::to_string(text).unwrap_or_default(),
        false => format!("'{}'", text.replace('\'', "''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_read_as_what_they_were() {
        for text in
            ["no", "a b: #c", "it's", "", "1e-5", "two\nlines", "tab\t", "runs/x", "é", "null", "-", "- a", "0x1"]
        {
            let value = Value::from(text);
            let line = scalar(&value);
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_yaml::from_str::<Value>(&line).unwrap(), value, "{line}");
        }
        assert_eq!(scalar(&Value::from("no")), "'no'");
        assert_eq!(scalar(&Value::from("models/SmolLM2-135M")), "models/SmolLM2-135M");
        for (number, expected) in
            [(1e-4, "0.0001"), (1e-7, "1.0e-7"), (2.5e-7, "2.5e-7"), (0.1, "0.1"), (1.0, "1.0"), (1e20, "1.0e+20")]
        {
            assert_eq!(scalar(&Value::from(number)), expected);
        }
    }
}
