//! Python's methods of texts and dicts, as far as chat templates use them: those whose meaning in the engine's own
//! collection is another, and those that it lacks.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::values;

/// Called for every method that a value does not have of itself.
pub(super) fn call(state: &State<'_, '_>, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let own = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => of_text(text, method, arguments)?,
        (ValueKind::Map, _) if method == "copy" => Some(value.clone()),
        (ValueKind::Seq | ValueKind::Iterable, _) => of_list(value, method, arguments)?,
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

fn of_text(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let all = |is: fn(char) -> bool| from_args::<()>(arguments).map(|()| !text.is_empty() && text.chars().all(is));
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            separator_given(method, separator)?;
            let first = method == "partition";
            let found = if first { text.split_once(separator) } else { text.rsplit_once(separator) };
            let (before, middle, after) = match (found, first) {
                (Some((before, after)), _) => (before, separator, after),
                (None, true) => (text, "", ""),
                (None, false) => ("", "", text),
            };
            list(&[before, middle, after])
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(arguments)?;
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX - 1);
            match separator {
                Some(separator) => {
                    separator_given(method, separator)?;
                    let mut pieces: Vec<&str> = text.rsplitn(most + 1, separator).collect();
                    pieces.reverse();
                    list(&pieces)
                }
                None => list(&split_from_the_right(text, most)),
            }
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (wanted, start): (&str, Option<i64>) = from_args(arguments)?;
            let skipped = from_start(text, start);
            let rest = text.get(skipped..).unwrap_or_default();
            let found = if method.starts_with('r') { rest.rfind(wanted) } else { rest.find(wanted) };
            match found {
                Some(at) => Value::from(text[..skipped + at].chars().count()),
                None if method.ends_with("index") => return Err(invalid("substring not found")),
                None => Value::from(-1),
            }
        }
        "count" => {
            let (wanted,): (&str,) = from_args(arguments)?;
            Value::from(match wanted {
                "" => text.chars().count() + 1,
                wanted => text.matches(wanted).count(),
            })
        }
        "isdigit" | "isnumeric" | "isdecimal" => Value::from(all(char::is_numeric)?),
        "isalpha" => Value::from(all(char::is_alphabetic)?),
        "isalnum" => Value::from(all(char::is_alphanumeric)?),
        "isspace" => Value::from(all(char::is_whitespace)?),
        "isupper" | "islower" => {
            from_args::<()>(arguments)?;
            let wrong = if method == "isupper" { char::is_lowercase } else { char::is_uppercase };
            let right = if method == "isupper" { char::is_uppercase } else { char::is_lowercase };
            Value::from(text.chars().any(right) && !text.chars().any(wrong))
        }
        "ljust" | "rjust" | "zfill" => {
            let (width, filler): (usize, Option<&str>) = from_args(arguments)?;
            let missing = width.min(MOST_FILLED).saturating_sub(text.chars().count());
            let filling = filler.unwrap_or(if method == "zfill" { "0" } else { " " }).repeat(missing);
            Value::from(match (method, text.strip_prefix(['-', '+'])) {
                ("ljust", _) => format!("{text}{filling}"),
                ("zfill", Some(digits)) => format!("{}{filling}{digits}", &text[..1]),
                _ => format!("{filling}{text}"),
            })
        }
        _ => return Ok(None),
    }))
}

/// Widest text that is made by filling.
const MOST_FILLED: usize = 10_000;

fn of_list(value: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "index" => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            match value.try_iter()?.position(|item| item == *wanted) {
                Some(index) => Ok(Some(Value::from(index))),
                None => Err(invalid("the list does not hold this value")),
            }
        }
        "count" => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            Ok(Some(Value::from(value.try_iter()?.filter(|item| item == wanted).count())))
        }
        "copy" => Ok(Some(value.clone())),
        "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "sort" | "reverse" => {
            Err(invalid(&format!("a chat template must not change a list (`{method}`)")))
        }
        _ => Ok(None),
    }
}

fn list(texts: &[&str]) -> Value {
    values::list(texts.iter().map(|text| Value::from(*text)).collect())
}

/// White space is the separator, at most so often, from the end.
fn split_from_the_right(text: &str, most: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() && pieces.len() < most {
        let Some(at) = rest.rfind(char::is_whitespace) else { break };
        pieces.push(rest[at..].trim_start());
        rest = rest[..at].trim_end();
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces.reverse();
    pieces
}

/// The byte at which the character `start` stands; from the end where it is negative.
fn from_start(text: &str, start: Option<i64>) -> usize {
    let start = start.unwrap_or(0);
    let count = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let start = if start < 0 { (count() + start).max(0) } else { start };
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    text.char_indices().nth(start).map_or(text.len(), |(byte, _)| byte)
}

fn separator_given(method: &str, separator: &str) -> Result<(), Error> {
    if separator.is_empty() { Err(invalid(&format!("{method}: the separator is empty"))) } else { Ok(()) }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_string())
}
