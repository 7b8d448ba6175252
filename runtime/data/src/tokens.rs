//! Rows that are tokens already.

use serde_json::Value;

use crate::columns::SHAPES;
use crate::dataset::IGNORED;
use crate::error::Fault;
use crate::rows::{Row, kind};

/// A row of token ids, with labels or without (then every token is its own label). `attention_mask`, where there is one,
/// must be ones: padding is added later, and only where it is needed.
pub(crate) fn parse_tokens(ids: &Value, labels: Option<&Value>, mask: Option<&Value>) -> Result<Row, Fault> {
    // An id must also fit a label, which is signed.
    let id = |value: i64| (0..=i64::from(i32::MAX)).contains(&value);
    let input_ids: Vec<u32> = integers(ids, "input_ids", "a token id", id)?.iter().map(|&id| id as u32).collect();
    if input_ids.is_empty() {
        return Err(Fault::new("`input_ids` is empty", "remove the row"));
    }
    let same_length = |name: &str, length: usize| match length == input_ids.len() {
        true => Ok(()),
        false => {
            let message = format!("{} input_ids but {length} {name}", input_ids.len());
            Err(Fault::new(message, format!("`{name}` has one entry for each token")))
        }
    };
    if let Some(mask) = mask {
        let mask = integers(mask, "attention_mask", "1 (rows come without padding)", |value| value == 1)?;
        same_length("attention_mask", mask.len())?;
    }
    let labels = match labels {
        Some(labels) => {
            integers(labels, "labels", "a token id or -100", |value| id(value) || value == i64::from(IGNORED))?
        }
        None => input_ids.iter().map(|&id| i64::from(id)).collect(),
    };
    same_length("labels", labels.len())?;
    Ok(Row::Tokens { input_ids, labels: labels.into_iter().map(|label| label as i32).collect() })
}

fn integers(value: &Value, name: &str, what: &str, fits: impl Fn(i64) -> bool) -> Result<Vec<i64>, Fault> {
    let Value::Array(entries) = value else {
        return Err(Fault::new(format!("expected `{name}` to be an array, found {}", kind(value)), SHAPES));
    };
    let convert = |(index, entry): (usize, &Value)| {
        entry.as_i64().filter(|&value| fits(value)).ok_or_else(|| {
            let found = if entry.is_number() { entry.to_string() } else { kind(entry).to_string() };
            Fault::new(format!("{name}[{index}]: expected {what}, found {found}"), SHAPES)
        })
    };
    entries.iter().enumerate().map(convert).collect()
}
