//! What a chat template may expect of Python and of transformers.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value};

use super::json::Dump;
use super::{bounds, clock, methods, values};

/// An environment with the settings and functions that transformers gives a template.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(write);
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| text_of(value));
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    // In Python a text, a dict and what is undefined can be counted and indexed too.
    environment.add_test("sequence", is_iterable);
    environment.add_test("iterable", is_iterable);
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| clock::format(format, clock::now()));
    environment
}

/// Prints a value as Python does.
fn write(output: &mut Output<'_>, _state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => {
            bounds::count(text.len())?;
            output.write_str(text)?;
        }
        None => {
            let text = text_of(value);
            bounds::count(text.len())?;
            output.write_str(&text)?;
        }
    }
    Ok(())
}

fn text_of(value: &Value) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = values::write_value(&mut text, value);
    text
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    let unsized_value = || {
        let message = format!("a value of type {} has no length", value.kind());
        Error::new(ErrorKind::InvalidOperation, message)
    };
    match value.len() {
        Some(length) => Ok(length),
        None if value.kind() == ValueKind::Iterable => Ok(value.try_iter()?.count()),
        None => Err(unsized_value()),
    }
}

fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), String | Map | Seq | Iterable | Undefined)
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
    if indent.is_some_and(|indent| indent > MOST_INDENT) {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: `indent` is more than {MOST_INDENT}")));
    }
    let dump = Dump {
        indent,
        between_items,
        after_key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    dump.text(value)
}

/// Widest step of an indentation.
const MOST_INDENT: usize = 100;
