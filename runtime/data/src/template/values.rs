//! What a template is given, as values that print as Python's do.
//!
//! The engine prints a list or an object in Rust's notation, so what comes from a row is handed over as objects of our
//! own, and whatever else is printed goes through [`write_value`].

use std::fmt::{self, Write};
use std::sync::Arc;

use indexmap::IndexMap;
use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use serde_json::Value as Json;

/// A dict.
#[derive(Debug)]
struct Dict(IndexMap<String, Value>);

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().map(|key| Value::from(key.as_str())).collect())
    }

    fn render(self: &Arc<Self>, output: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_representation(output, &Value::from_dyn_object(self.clone()))
    }
}

/// A list.
#[derive(Debug)]
struct List(Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, output: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_representation(output, &Value::from_dyn_object(self.clone()))
    }
}

/// JSON as Python reads it.
pub(super) fn of_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => list(items.iter().map(of_json).collect()),
        Json::Object(fields) => dict(fields.iter()),
    }
}

/// The fields of an object.
pub(super) fn dict<'a>(fields: impl Iterator<Item = (&'a String, &'a Json)>) -> Value {
    Value::from_object(Dict(fields.map(|(name, value)| (name.clone(), of_json(value))).collect()))
}

/// A list.
pub(super) fn list(items: Vec<Value>) -> Value {
    Value::from_object(List(items))
}

/// Python's `str`.
pub(super) fn write_value(output: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::String => output.write_str(value.as_str().unwrap_or_default()),
        _ => write_representation(output, value),
    }
}

/// Python's `repr`.
fn write_representation(output: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => output.write_str("Undefined"),
        ValueKind::String => write_quoted(output, value.as_str().unwrap_or_default()),
        ValueKind::Number => write_number(output, value, "nan", "inf"),
        ValueKind::Map => {
            output.write_char('{')?;
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                if index > 0 {
                    output.write_str(", ")?;
                }
                write_representation(output, &key)?;
                output.write_str(": ")?;
                write_representation(output, &value.get_item(&key).unwrap_or_default())?;
            }
            output.write_char('}')
        }
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => {
            output.write_char('[')?;
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                if index > 0 {
                    output.write_str(", ")?;
                }
                write_representation(output, &item)?;
            }
            output.write_char(']')
        }
        _ => write!(output, "{value}"),
    }
}

/// A number as Python writes it: floats in the fewest digits that read back the same, with an exponent from 1e16 up and
/// below 1e-4.
pub(super) fn write_number(output: &mut dyn Write, value: &Value, nan: &str, infinity: &str) -> fmt::Result {
    let float = match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float,
        _ => return write!(output, "{value}"),
    };
    if float.is_nan() {
        return output.write_str(nan);
    }
    if float.is_infinite() {
        return write!(output, "{}{infinity}", if float < 0.0 { "-" } else { "" });
    }
    let size = float.abs();
    if float == 0.0 || (1e-4..1e16).contains(&size) {
        return write!(output, "{float:?}");
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |exponent| ("-", exponent));
    write!(output, "{digits}e{sign}{exponent:0>2}")
}

/// A text between quotes; double ones where it holds single ones and no double ones.
fn write_quoted(output: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    output.write_char(quote)?;
    for character in text.chars() {
        match character {
            '\\' => output.write_str("\\\\")?,
            '\n' => output.write_str("\\n")?,
            '\r' => output.write_str("\\r")?,
            '\t' => output.write_str("\\t")?,
            _ if character == quote => write!(output, "\\{character}")?,
            _ if character < ' ' || ('\u{7f}'..'\u{a1}').contains(&character) || character == '\u{ad}' => {
                write!(output, "\\x{:02x}", u32::from(character))?;
            }
            _ if is_unprintable(character) => match u32::from(character) {
                code @ 0..=0xffff => write!(output, "\\u{code:04x}")?,
                code => write!(output, "\\U{code:08x}")?,
            },
            _ => output.write_char(character)?,
        }
    }
    output.write_char(quote)
}

/// White space and marks that Python writes as escapes: what is neither letter, mark, number, sign nor the plain space.
fn is_unprintable(character: char) -> bool {
    (character.is_whitespace() && character != ' ')
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fdd0}'..='\u{fdef}' | '\u{fff0}'..='\u{fffb}'
            | '\u{fffe}'..='\u{ffff}' | '\u{e0001}'..='\u{e007f}' | '\u{f0000}'..='\u{10ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(json: &Json) -> String {
        let mut text = String::new();
        write_value(&mut text, &of_json(json)).unwrap();
        text
    }

    #[test]
    fn values_print_as_in_python() {
        // The right column is what CPython 3.11 prints for the left one.
        let cases = [
            (json!({"a": [1, 2.5, true, null], "b": {}}), "{'a': [1, 2.5, True, None], 'b': {}}"),
            (
                json!(["it's", "\"both\" it's", "\\ \n\t\u{1}\u{7f}é\u{a0}🙂\u{2028}"]),
                "[\"it's\", '\"both\" it\\'s', '\\\\ \\n\\t\\x01\\x7fé\\xa0🙂\\u2028']",
            ),
            (
                json!([1e16, 1e15, 123456789.125, 0.0001, 0.00001, 1.5e-7, -2e300, 0.0, 3.0]),
                "[1e+16, 1000000000000000.0, 123456789.125, 0.0001, 1e-05, 1.5e-07, -2e+300, 0.0, 3.0]",
            ),
            (json!([u64::MAX, i64::MIN]), "[18446744073709551615, -9223372036854775808]"),
            (json!("plain 'text'"), "plain 'text'"),
        ];
        for (json, expected) in cases {
            assert_eq!(shown(&json), expected);
        }
        assert_eq!(of_json(&json!({"a": ["b"]})).to_string(), "{'a': ['b']}");
    }

    #[test]
    fn objects_keep_their_order_and_lists_their_places() {
        let value = of_json(&json!({"z": 1, "a": [10, 20]}));
        let keys: Vec<String> = value.try_iter().unwrap().map(|key| key.to_string()).collect();
        assert_eq!(keys, ["z", "a"]);
        assert_eq!(value.get_attr("a").unwrap().get_item(&Value::from(-1)).unwrap(), Value::from(20));
        assert!(value.get_attr("missing").unwrap().is_undefined());
        assert!(!of_json(&json!({})).is_true() && !of_json(&json!([])).is_true());
    }
}
