//! Rows one after another, each with its place; all rows of a data set are of one shape.

use std::fmt;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::map::Entry;
use serde_json::{Map, Value};

use crate::columns::{Columns, SHAPES, Shape};
use crate::error::{DataError, Fault};
use crate::message::{Conversation, Message, Role};
use crate::source::{RawContent, RawRow, RawRows, Sources};

/// One row of a data set.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A conversation of at least one message.
    Conversation(Conversation),
    /// A conversation in two parts, of which the second is to be learned.
    Exchange {
        /// What is given, with the tools of both parts.
        prompt: Conversation,
        /// What follows.
        completion: Vec<Message>,
    },
    /// A text in two parts, of which the second is to be learned.
    Completion {
        /// What is given.
        prompt: String,
        /// What follows, to the letter.
        completion: String,
    },
    /// An instruction and the response to it: a conversation for a model with a chat template, else a text in two parts.
    Instruction {
        /// What stands above it all.
        system: Option<String>,
        /// What is to be done.
        instruction: String,
        /// What it is to be done with.
        input: Option<String>,
        /// What was done.
        response: String,
    },
    /// A text.
    Text(String),
    /// Token ids and, for each, its label: the id itself or another, or −100 where nothing is learned.
    Tokens {
        /// At least one id.
        input_ids: Vec<u32>,
        /// As many labels, unshifted.
        labels: Vec<i32>,
    },
    /// A text, or two, of which a classifier tells something.
    Classified {
        /// The text, or the first of two.
        text: String,
        /// The second.
        pair: Option<String>,
        /// What is told, as it was written.
        label: Value,
    },
}

impl Row {
    /// The row as a conversation, where it is one: both parts of an exchange, an instruction with its response.
    pub fn into_conversation(self) -> Option<Conversation> {
        match self {
            Row::Conversation(conversation) => Some(conversation),
            Row::Exchange { mut prompt, completion } => {
                prompt.messages.extend(completion);
                Some(prompt)
            }
            Row::Instruction { system, instruction, input, response } => {
                let question = match input {
                    Some(input) => format!("{instruction}\n\n{input}"),
                    None => instruction,
                };
                let mut messages: Vec<Message> =
                    system.into_iter().map(|text| Message::new(Role::System, text)).collect();
                messages.push(Message::new(Role::User, question));
                messages.push(Message::new(Role::Assistant, response));
                Some(messages.into())
            }
            Row::Completion { .. } | Row::Text(_) | Row::Tokens { .. } | Row::Classified { .. } => None,
        }
    }
}

/// The rows of a data set, each with its place in words. The first error ends the iteration, and a data set without rows is
/// one.
pub struct RowReader<'a> {
    rows: RawRows<'a>,
    sources: &'a Sources,
    columns: &'a Columns,
    expected: Option<Expected>,
    ended: bool,
}

impl<'a> RowReader<'a> {
    /// Reads the files of `sources`, whose columns are called as `columns` says.
    pub fn new(sources: &'a Sources, columns: &'a Columns) -> RowReader<'a> {
        RowReader { rows: RawRows::new(sources), sources, columns, expected: None, ended: false }
    }

    fn read(&mut self, row: RawRow) -> Result<(String, Row), DataError> {
        let RawRow { file, number, content } = row;
        let parsed = parse_object(content).and_then(|mut object| {
            let shape = self.columns.shape(&object)?;
            match &self.expected {
                Some(expected) => expected.check(shape)?,
                None => self.expected = Some(Expected { shape, place: self.place(file, number) }),
            }
            self.columns.parse(shape, &mut object)
        });
        match parsed {
            Ok(row) => Ok((self.place(file, number), row)),
            Err(fault) => Err(self.rows.fault(file, number, fault)),
        }
    }

    fn place(&self, file: usize, number: u64) -> String {
        self.rows.units()[file].words(&self.sources.files()[file].shown(), number)
    }
}

impl Iterator for RowReader<'_> {
    type Item = Result<(String, Row), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = match self.rows.next() {
            Some(row) => Some(row.and_then(|row| self.read(row))),
            None if self.expected.is_none() => Some(Err(no_row(self.sources))),
            None => None,
        };
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The error of a data set without rows.
pub(crate) fn no_row(sources: &Sources) -> DataError {
    let message =
        if sources.files().len() == 1 { "there is no row in this file" } else { "there is no row in these files" };
    DataError::dataset(sources.written().as_ref(), message, SHAPES)
}

/// What the first row was, which all others have to be.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) shape: Shape,
    /// Where that row stands, in words.
    pub(crate) place: String,
}

impl Expected {
    pub(crate) fn check(&self, shape: Shape) -> Result<(), Fault> {
        if shape == self.shape {
            return Ok(());
        }
        let message = format!("this row has {}, but {} has {}", shape.words(), self.place, self.shape.words());
        Err(Fault::new(message, "keep rows of the two kinds in two data sets"))
    }
}

/// The columns of a row.
pub(crate) fn parse_object(content: RawContent) -> Result<Map<String, Value>, Fault> {
    let value = match content {
        RawContent::Value(value) => value,
        RawContent::Json(text) => {
            let Unambiguous(value) = serde_json::from_slice(text.trim_ascii_end()).map_err(broken_json)?;
            value
        }
    };
    match value {
        Value::Object(columns) => Ok(columns),
        Value::Array(_) => {
            let hint = "a JSONL file has one object a line; name a file .json if it is one JSON array";
            Err(Fault::new("expected an object, found an array", hint))
        }
        other => Err(Fault::new(format!("expected an object, found {}", kind(&other)), SHAPES)),
    }
}

/// A value in which no object has a key twice: of two values one would go unread.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unambiguous, D::Error> {
        deserializer.deserialize_any(UnambiguousVisitor).map(Unambiguous)
    }
}

struct UnambiguousVisitor;

impl<'de> Visitor<'de> for UnambiguousVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Unambiguous(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Unambiguous(value) = entries.next_value()?;
            match object.entry(key) {
                Entry::Vacant(place) => _ = place.insert(value),
                Entry::Occupied(place) => {
                    return Err(A::Error::custom(format!("the key `{}` stands twice in one object", place.key())));
                }
            }
        }
        Ok(Value::Object(object))
    }
}

fn broken_json(error: serde_json::Error) -> Fault {
    let text = error.to_string();
    let message = text.split(" at line ").next().unwrap_or(&text);
    Fault {
        column: Some(error.column()),
        message: format!("broken JSON: {message}"),
        hint: "every row must be one whole JSON object".into(),
    }
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
