//! `tojson`: Python's `json.dumps`.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::values;

/// Deepest nesting that is written; rows are read to a depth of 128.
const DEEPEST: usize = 200;

/// How JSON is written.
pub(super) struct Dump {
    pub(super) indent: Option<usize>,
    pub(super) between_items: String,
    pub(super) after_key: String,
    pub(super) ascii: bool,
    pub(super) sorted: bool,
}

impl Dump {
    /// The JSON text of a value.
    pub(super) fn text(&self, value: &Value) -> Result<String, Error> {
        let mut output = String::new();
        self.value(&mut output, value, 1)?;
        Ok(output)
    }

    fn value(&self, output: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::Undefined => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: value is undefined")),
            ValueKind::None => output.push_str("null"),
            ValueKind::Bool => output.push_str(if value.is_true() { "true" } else { "false" }),
            // Writing to a string cannot fail.
            ValueKind::Number => _ = values::write_number(output, value, "NaN", "Infinity"),
            ValueKind::String => self.string(output, value.as_str().unwrap_or_default()),
            ValueKind::Map => self.map(output, value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                output.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.separate(output, index, depth);
                    self.value(output, item, depth + 1)?;
                }
                self.close(output, items.len(), depth);
                output.push(']');
            }
            kind => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: cannot write a {kind}")));
            }
        }
        Ok(())
    }

    fn map(&self, output: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sorted {
            keys.sort();
        }
        output.push('{');
        for (index, key) in keys.iter().enumerate() {
            self.separate(output, index, depth);
            match key.as_str() {
                Some(text) => self.string(output, text),
                None => self.string(output, &key.to_string()),
            }
            output.push_str(&self.after_key);
            self.value(output, &value.get_item(key)?, depth + 1)?;
        }
        self.close(output, keys.len(), depth);
        output.push('}');
        Ok(())
    }

    fn separate(&self, output: &mut String, index: usize, depth: usize) {
        if index > 0 {
            output.push_str(&self.between_items);
        }
        self.new_line(output, depth);
    }

    fn close(&self, output: &mut String, items: usize, depth: usize) {
        if items > 0 {
            self.new_line(output, depth - 1);
        }
    }

    fn new_line(&self, output: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            output.push('\n');
            output.push_str(&" ".repeat(indent * depth));
        }
    }

    fn string(&self, output: &mut String, text: &str) {
        output.push('"');
        for character in text.chars() {
            match character {
                '"' => output.push_str("\\\""),
                '\\' => output.push_str("\\\\"),
                '\n' => output.push_str("\\n"),
                '\r' => output.push_str("\\r"),
                '\t' => output.push_str("\\t"),
                '\u{8}' => output.push_str("\\b"),
                '\u{c}' => output.push_str("\\f"),
                _ if character < ' ' || (self.ascii && character > '~') => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(output, "\\u{unit:04x}");
                    }
                }
                _ => output.push(character),
            }
        }
        output.push('"');
    }
}
