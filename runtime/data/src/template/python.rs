//! What a chat template may expect of Python and of transformers.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::clock;

/// An environment with the settings and functions that transformers gives a template.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| clock::format(format, clock::now()));
    environment
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps`, with transformers' default of leaving what is not ASCII as it is.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (between_items, after_key) = match separators.as_deref() {
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
        Some([between_items, after_key]) => (between_items.clone(), after_key.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: `separators` must be two strings"));
        }
    };
    let dump = Dump {
        indent,
        between_items,
        after_key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut output = String::new();
    dump.value(&mut output, value, 1)?;
    Ok(output)
}

struct Dump {
    indent: Option<usize>,
    between_items: String,
    after_key: String,
    ascii: bool,
    sorted: bool,
}

impl Dump {
    fn value(&self, output: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Undefined => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: value is undefined")),
            ValueKind::None => output.push_str("null"),
            ValueKind::Bool => output.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => output.push_str(&value.to_string()),
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
