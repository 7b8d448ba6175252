//! Reads JSONL, one row a line, and says of every fault in which file and line it stands.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::dataset::IGNORED;
use crate::error::{DataError, Fault};
use crate::message::{Conversation, parse_conversation};

/// Longest line that is read, in bytes.
const LINE_LIMIT: u64 = 64 << 20;

/// Columns that change what a row means and that this reader does not carry out: better refused than overlooked.
const UNSUPPORTED: [&str; 4] = ["completion_mask", "assistant_masks", "position_ids", "seq_lengths"];

pub(crate) const SHAPES: &str =
    "a row is {\"messages\": [{\"role\": …, \"content\": …}, …]} or {\"input_ids\": […], \"labels\": […]}";

/// One row of a data file.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A conversation of at least one message.
    Conversation(Conversation),
    /// Token ids and, for each, its label: the id itself or another, or −100 where nothing is learned.
    Tokens {
        /// At least one id.
        input_ids: Vec<u32>,
        /// As many labels, unshifted.
        labels: Vec<i32>,
    },
}

/// The rows of a JSONL file, each with its line number (from 1). All rows of a file are of one kind; empty lines are
/// passed over. The first error ends the iteration.
pub struct RowReader {
    path: PathBuf,
    reader: BufReader<File>,
    line: u64,
    first: Option<(u64, &'static str)>,
    ignored: BTreeSet<String>,
    ended: bool,
}

impl RowReader {
    /// Opens the file.
    ///
    /// # Errors
    /// [`DataError::Io`] when it cannot be opened, [`DataError::Dataset`] when it is a folder or of another format.
    pub fn open(path: &Path) -> Result<RowReader, DataError> {
        let file = File::open(path).map_err(DataError::io("open the data set", path))?;
        if file.metadata().map_err(DataError::io("open the data set", path))?.is_dir() {
            return Err(DataError::dataset(path, "is a folder", "name the JSONL file itself"));
        }
        if path.extension().is_some_and(|extension| extension == "parquet" || extension == "arrow") {
            let hint = "write it as JSONL, one JSON object a line (datasets: `dataset.to_json(path)`)";
            return Err(DataError::dataset(path, "only JSONL is read", hint));
        }
        let reader = BufReader::with_capacity(1 << 18, file);
        let ignored = BTreeSet::new();
        Ok(RowReader { path: path.to_path_buf(), reader, line: 0, first: None, ignored, ended: false })
    }

    /// Names of the columns seen so far that hold neither the conversation nor the tokens, and were passed over.
    pub fn ignored_columns(&self) -> &BTreeSet<String> {
        &self.ignored
    }

    fn next_row(&mut self) -> Result<Option<(u64, Row)>, DataError> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = self.reader.by_ref().take(LINE_LIMIT + 1).read_until(b'\n', &mut bytes);
            if read.map_err(DataError::io("read the data set", &self.path))? == 0 {
                return if self.first.is_some() { Ok(None) } else { Err(self.empty()) };
            }
            self.line += 1;
            if bytes.len() as u64 > LINE_LIMIT {
                let message = format!("the line is longer than {} MiB", LINE_LIMIT >> 20);
                return Err(self.fault(Fault::new(message, "a JSONL file has one row a line")));
            }
            let mut text = bytes.as_slice();
            if self.line == 1 {
                text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            }
            if !text.trim_ascii().is_empty() {
                let row = self.parse(text).map_err(|fault| self.fault(fault))?;
                return Ok(Some((self.line, row)));
            }
        }
    }

    fn parse(&mut self, line: &[u8]) -> Result<Row, Fault> {
        let value: Value = serde_json::from_slice(line.trim_ascii_end()).map_err(broken_json)?;
        let Value::Object(columns) = value else {
            let hint = match value {
                Value::Array(_) => "a JSONL file has one object a line; it is not one JSON array",
                _ => SHAPES,
            };
            return Err(Fault::new(format!("expected an object, found {}", kind(&value)), hint));
        };
        let (name, row) = parse_columns(&columns)?;
        match self.first {
            Some((line, first)) if first != name => {
                let message = format!("this row has `{name}`, but line {line} has `{first}`");
                return Err(Fault::new(message, "keep rows of the two kinds in two files"));
            }
            _ => self.first = self.first.or(Some((self.line, name))),
        }
        let known: &[&str] = match name {
            "messages" => &["messages", "tools", "chat_template_kwargs", "labels"],
            _ => &["input_ids", "labels", "attention_mask", "messages"],
        };
        self.ignored.extend(columns.keys().filter(|key| !known.contains(&key.as_str())).cloned());
        Ok(row)
    }

    fn fault(&self, fault: Fault) -> DataError {
        DataError::row(&self.path, self.line, fault)
    }

    fn empty(&self) -> DataError {
        DataError::dataset(&self.path, "there is no row in this file", SHAPES)
    }
}

impl Iterator for RowReader {
    type Item = Result<(u64, Row), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_row().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

fn broken_json(error: serde_json::Error) -> Fault {
    let text = error.to_string();
    let message = text.split(" at line ").next().unwrap_or(&text);
    Fault {
        column: Some(error.column()),
        message: format!("broken JSON: {message}"),
        hint: "every line must be one whole JSON object".into(),
    }
}

fn parse_columns(columns: &Map<String, Value>) -> Result<(&'static str, Row), Fault> {
    let has = |name: &str| columns.get(name).is_some_and(|value| !value.is_null());
    if let Some(name) = UNSUPPORTED.iter().find(|name| has(name)) {
        let message = format!("the column `{name}` is not supported");
        return Err(Fault::new(message, "remove the column if the rows mean the same without it"));
    }
    match (has("messages"), has("input_ids")) {
        (true, false) if !has("labels") => Ok(("messages", Row::Conversation(parse_conversation(columns)?))),
        (false, true) => Ok(("input_ids", parse_tokens(columns)?)),
        _ => {
            let names: Vec<&str> = columns.keys().map(String::as_str).collect();
            let found = if names.is_empty() { "none".to_string() } else { names.join(", ") };
            let message =
                format!("expected either `messages` or `input_ids` (with `labels`), found the columns: {found}");
            Err(Fault::new(message, SHAPES))
        }
    }
}

fn parse_tokens(columns: &Map<String, Value>) -> Result<Row, Fault> {
    // An id must also fit a label, which is signed.
    let id = |value: i64| (0..=i64::from(i32::MAX)).contains(&value);
    let input_ids: Vec<u32> = integers(columns, "input_ids", "a token id", id)?.iter().map(|&id| id as u32).collect();
    if input_ids.is_empty() {
        return Err(Fault::new("`input_ids` is empty", "remove the row"));
    }
    let has = |name: &str| columns.get(name).is_some_and(|value| !value.is_null());
    let same_length = |name: &str, length: usize| match length == input_ids.len() {
        true => Ok(()),
        false => {
            let message = format!("{} input_ids but {length} {name}", input_ids.len());
            Err(Fault::new(message, format!("`{name}` has one entry for each token")))
        }
    };
    if has("attention_mask") {
        let mask = integers(columns, "attention_mask", "1 (rows come without padding)", |value| value == 1)?;
        same_length("attention_mask", mask.len())?;
    }
    let labels = match has("labels") {
        true => integers(columns, "labels", "a token id or -100", |value| id(value) || value == i64::from(IGNORED))?,
        false => input_ids.iter().map(|&id| i64::from(id)).collect(),
    };
    same_length("labels", labels.len())?;
    Ok(Row::Tokens { input_ids, labels: labels.into_iter().map(|label| label as i32).collect() })
}

fn integers(
    columns: &Map<String, Value>,
    name: &str,
    what: &str,
    fits: impl Fn(i64) -> bool,
) -> Result<Vec<i64>, Fault> {
    let Some(Value::Array(entries)) = columns.get(name) else {
        let found = columns.get(name).map_or("nothing", kind);
        return Err(Fault::new(format!("expected `{name}` to be an array, found {found}"), SHAPES));
    };
    let convert = |(index, entry): (usize, &Value)| {
        entry.as_i64().filter(|&value| fits(value)).ok_or_else(|| {
            let found = if entry.is_number() { entry.to_string() } else { kind(entry).to_string() };
            Fault::new(format!("{name}[{index}]: expected {what}, found {found}"), SHAPES)
        })
    };
    entries.iter().enumerate().map(convert).collect()
}

/// What a value is, for errors.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
