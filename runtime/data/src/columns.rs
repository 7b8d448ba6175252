//! Which columns of a row mean what: the shapes that data sets come in, and a row of each.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::error::{DataError, Fault};
use crate::message::{Conversation, Message, Role, parse_messages, parse_tools, parse_variables};
use crate::rows::{Row, kind};
use crate::tokens::parse_tokens;

/// Columns of what a model of text cannot see.
const PICTURES: [&str; 2] = ["image", "images"];

/// Columns that change what a row means and that are not carried out: better refused than overlooked.
const UNSUPPORTED: [&str; 5] = ["completion_mask", "assistant_masks", "loss_mask", "position_ids", "seq_lengths"];

/// Every column that is known, by its name here.
const NAMES: [&str; 18] = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "response",
    "output",
    "system",
    "history",
    "text",
    "text_pair",
    "label",
    "input_ids",
    "labels",
    "attention_mask",
    "tools",
    "chat_template_kwargs",
];

pub(crate) const SHAPES: &str = "a row has `messages` ([{\"role\": …, \"content\": …}, …]), `conversations` ([{\"from\": …, \
                                 \"value\": …}, …]), `prompt` and `completion`, `instruction` and `response`, `text`, or \
                                 `input_ids` (with `labels`); column_mapping names columns that are called otherwise";

const CLASSIFIED: &str = "a row of a classifier has `text`, often a `text_pair`, and `label`; column_mapping names columns that are called \
                          otherwise, such as text=sentence,label=labels";

/// What the rows of a data set are, by their columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Messages,
    Conversations,
    Completion,
    Instruction,
    Text,
    Tokens,
    /// A text or two, and what a classifier tells of them.
    Classified,
}

impl Shape {
    const ALL: [Shape; 6] =
        [Shape::Messages, Shape::Conversations, Shape::Completion, Shape::Instruction, Shape::Text, Shape::Tokens];

    /// The columns that make a row of this shape, all but the optional ones.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Shape::Messages => "`messages`",
            Shape::Conversations => "`conversations`",
            Shape::Completion => "`prompt` and `completion`",
            Shape::Instruction => "`instruction` and `response`",
            Shape::Text => "`text`",
            Shape::Tokens => "`input_ids`",
            Shape::Classified => "`text` and `label`",
        }
    }

    /// All columns that a row of this shape may have.
    pub(crate) fn columns(self) -> &'static [&'static str] {
        match self {
            Shape::Messages => &["messages", "system", "tools", "chat_template_kwargs"],
            Shape::Conversations => &["conversations", "system", "tools", "chat_template_kwargs"],
            Shape::Completion => &["prompt", "completion", "system", "tools", "chat_template_kwargs"],
            Shape::Instruction => &["instruction", "input", "response", "output", "system", "history"],
            Shape::Text => &["text"],
            Shape::Tokens => &["input_ids", "labels", "attention_mask"],
            Shape::Classified => &["text", "text_pair", "label"],
        }
    }
}

/// How the columns of a data set are called.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Columns {
    /// Name here to name there. With entries, columns that are not named count for nothing.
    mapping: BTreeMap<String, String>,
    /// The column that is `text` here.
    text_field: Option<String>,
    /// Rows are those of a classifier.
    classified: bool,
}

impl Columns {
    /// `mapping` has the names here and, for each, the name in the data set, and leaves all other columns out of account;
    /// empty, every column is called as it is. `text_field` is another name of the column `text` alone.
    ///
    /// # Errors
    /// [`DataError::Plan`] for a name that is no column here.
    pub fn new(mapping: BTreeMap<String, String>, text_field: Option<&str>) -> Result<Columns, DataError> {
        if let Some(name) = mapping.keys().find(|name| !NAMES.contains(&name.as_str())) {
            return Err(DataError::Plan {
                message: format!("column_mapping names `{name}`, which is no column that rows have"),
                hint: format!(
                    "before each `=` stands one of {}, after it the column of the data set",
                    NAMES.join(", ")
                ),
            });
        }
        let text_field = text_field.filter(|name| *name != "text").map(str::to_owned);
        Ok(Columns { mapping, text_field, classified: false })
    }

    /// The same of the rows of a classifier: `text`, often a `text_pair`, and `label`.
    #[must_use]
    pub fn of_classifier(self) -> Columns {
        Columns { classified: true, ..self }
    }

    /// Whether another name of the column `text` is given.
    pub(crate) fn names_text(&self) -> bool {
        self.text_field.is_some()
    }

    /// What the column `name` is called in the data set; none where it counts for nothing.
    fn called<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        match (self.mapping.get(name), &self.text_field) {
            (Some(there), _) => Some(there),
            (None, _) if !self.mapping.is_empty() => None,
            (None, Some(there)) if name == "text" => Some(there),
            (None, _) => Some(name),
        }
    }

    fn get<'v>(&self, row: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
        row.get(self.called(name)?).filter(|value| !value.is_null())
    }

    /// Takes a column out of a row, where no other name stands for it.
    fn take(&self, row: &mut Map<String, Value>, name: &str) -> Option<Value> {
        let there = self.called(name)?;
        let shared = self.mapping.values().filter(|other| *other == there).count() > 1;
        let value = row.get_mut(there).filter(|value| !value.is_null())?;
        Some(if shared { value.clone() } else { std::mem::take(value) })
    }

    /// Whether a row says what is learned of its tokens.
    pub(crate) fn has_labels(&self, row: &Map<String, Value>) -> bool {
        self.get(row, "labels").is_some()
    }

    /// What a row is.
    pub(crate) fn shape(&self, row: &Map<String, Value>) -> Result<Shape, Fault> {
        let has = |name: &str| self.get(row, name).is_some();
        if let Some(name) = UNSUPPORTED.iter().find(|name| has(name)) {
            let message = format!("the column `{name}` is not supported");
            return Err(Fault::new(message, "remove the column if the rows mean the same without it"));
        }
        let shows =
            |name: &&&str| self.get(row, name).is_some_and(|value| value.as_array().is_none_or(|all| !all.is_empty()));
        if let Some(name) = PICTURES.iter().find(shows) {
            let hint = "take such rows out; where the texts mean the same without, take the column out, or name the others in \
                        column_mapping";
            return Err(Fault::new(
                format!("the column `{name}` holds pictures, and only models of text are trained"),
                hint,
            ));
        }
        if self.classified {
            return self.classified(row).map(|_| Shape::Classified);
        }
        let is = |shape: &Shape| match shape {
            Shape::Messages => has("messages"),
            Shape::Conversations => has("conversations"),
            Shape::Completion => has("prompt") && has("completion"),
            Shape::Instruction => has("instruction") && (has("response") || has("output")),
            Shape::Text => has("text"),
            Shape::Tokens => has("input_ids"),
            Shape::Classified => false,
        };
        let shapes: Vec<Shape> = Shape::ALL.into_iter().filter(is).collect();
        if let [shape] = shapes.as_slice() {
            self.check_unmapped(*shape, row)?;
        }
        match shapes.as_slice() {
            [Shape::Text] if has("label") => {
                let hint = "set problem_type to train a classifier (docs/classification.md); to learn the texts themselves take the \
                            column `label` out, or set column_mapping to text=text";
                Err(Fault::new(
                    "the row has `text` and `label`, as those of a classifier, and the job trains a language model",
                    hint,
                ))
            }
            [shape] if *shape == Shape::Tokens || !has("labels") => Ok(*shape),
            [_] => Err(Fault::new(
                "`labels` without `input_ids`",
                "labels belong to tokens: remove the column, or give both",
            )),
            [] => Err(self.nothing_to_learn_from(row)),
            several => {
                let named: Vec<&str> = several.iter().map(|shape| shape.words()).collect();
                let message = format!("the row has {}: which is to be learned?", named.join(" and "));
                let there = several[0].columns().iter().filter(|name| has(name));
                let mapping = there.map(|name| format!("{name}={name}")).collect::<Vec<_>>().join(",");
                let hint = format!("column_mapping takes the columns that it names alone, such as {mapping}");
                Err(Fault::new(message, hint))
            }
        }
    }

    /// What is wrong with a row of no shape: a column that the mapping misspells, or what there is instead.
    fn nothing_to_learn_from(&self, row: &Map<String, Value>) -> Fault {
        let named =
            |(name, value): (&String, &Value)| if value.is_null() { format!("{name} (null)") } else { name.clone() };
        let found = row.iter().map(named).collect::<Vec<_>>().join(", ");
        let found = if found.is_empty() { "none" } else { &found };
        match self.mapping.iter().find(|(_, there)| !row.contains_key(there.as_str())) {
            Some((here, there)) => Fault::new(
                format!("no column `{there}`, which column_mapping takes as `{here}`; found: {found}"),
                "after each `=` of column_mapping stands a column of the data set",
            ),
            None => Fault::new(format!("no columns to learn from; found: {found}"), SHAPES),
        }
    }

    /// Refuses a column that the mapping does not name, and that would change what rows of this shape mean.
    fn check_unmapped(&self, shape: Shape, row: &Map<String, Value>) -> Result<(), Fault> {
        if self.mapping.is_empty() {
            return Ok(());
        }
        let matters = |name: &&&str| {
            let there = row.get(**name).is_some_and(|value| !value.is_null());
            there && !self.mapping.contains_key(**name) && !self.mapping.values().any(|other| other == **name)
        };
        match shape.columns().iter().chain(&UNSUPPORTED).find(matters) {
            None => Ok(()),
            Some(name) => Err(Fault::new(
                format!("the column `{name}` is not in column_mapping, and would change what the rows mean"),
                format!("add {name}={name} to column_mapping, or take the column out of the data"),
            )),
        }
    }

    /// A row of a known shape. What it is made of is taken out of the columns, whose names stay.
    pub(crate) fn parse(&self, shape: Shape, row: &mut Map<String, Value>) -> Result<Row, Fault> {
        match shape {
            Shape::Messages | Shape::Conversations => {
                let name = shape.columns()[0];
                let messages = self.take(row, name).unwrap_or_default();
                Ok(Row::Conversation(self.conversation(row, name, messages)?))
            }
            Shape::Completion => {
                let parts = ["prompt", "completion"].map(|name| self.take(row, name).unwrap_or_default());
                match parts {
                    [Value::String(prompt), Value::String(completion)] => match self.text(row, "system")? {
                        None => Ok(Row::Completion { prompt, completion }),
                        Some(_) => Err(Fault::new(
                            "`system` beside a `prompt` and a `completion` of text",
                            "write it into the prompt, or write both as messages",
                        )),
                    },
                    [prompt @ Value::Array(_), completion @ Value::Array(_)] => Ok(Row::Exchange {
                        prompt: self.conversation(row, "prompt", prompt)?,
                        completion: messages(completion, "completion")?,
                    }),
                    [prompt, completion] => {
                        let message =
                            format!("`prompt` is {} and `completion` is {}", kind(&prompt), kind(&completion));
                        Err(Fault::new(message, "both are texts, or both are arrays of messages"))
                    }
                }
            }
            Shape::Instruction => self.instruction(row),
            Shape::Text => Ok(Row::Text(self.text(row, "text")?.unwrap_or_default())),
            Shape::Tokens => {
                let get = |name: &str| self.get(row, name);
                parse_tokens(get("input_ids").unwrap_or(&Value::Null), get("labels"), get("attention_mask"))
            }
            Shape::Classified => {
                let label = self.label(row)?;
                let text = self.text(row, "text")?.unwrap_or_default();
                Ok(Row::Classified { text, pair: self.text(row, "text_pair")?, label })
            }
        }
    }

    /// What a classifier tells of a row.
    pub(crate) fn label(&self, row: &Map<String, Value>) -> Result<Value, Fault> {
        self.classified(row).cloned()
    }

    fn classified<'v>(&self, row: &'v Map<String, Value>) -> Result<&'v Value, Fault> {
        self.check_unmapped(Shape::Classified, row)?;
        match (self.get(row, "text"), self.get(row, "label")) {
            (Some(_), Some(label)) => Ok(label),
            (text, _) => {
                let missing = if text.is_none() { "text" } else { "label" };
                let called = self.called(missing).unwrap_or(missing);
                let message = match row.contains_key(called) {
                    true => format!("`{called}` is null"),
                    false => {
                        let names: Vec<&str> = row.keys().map(String::as_str).collect();
                        format!(
                            "no `{called}`; found: {}",
                            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
                        )
                    }
                };
                Err(Fault::new(message, CLASSIFIED))
            }
        }
    }

    /// A column of text; none where it is missing or empty.
    fn text(&self, row: &mut Map<String, Value>, name: &str) -> Result<Option<String>, Fault> {
        match self.take(row, name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(other) => Err(Fault::new(format!("expected `{name}` to be a text, found {}", kind(&other)), SHAPES)),
        }
    }

    fn instruction(&self, row: &mut Map<String, Value>) -> Result<Row, Fault> {
        let has = |name: &str| self.get(row, name).is_some();
        if has("response") && has("output") {
            return Err(Fault::new("the row has both `response` and `output`", "keep the one that is to be learned"));
        }
        if let Some(history) = self.get(row, "history")
            && history.as_array().is_none_or(|turns| !turns.is_empty())
        {
            return Err(Fault::new("the column `history` is not supported", "write the turns as `messages`"));
        }
        let response = if has("response") { "response" } else { "output" };
        let response = self.text(row, response)?;
        Ok(Row::Instruction {
            system: self.text(row, "system")?,
            instruction: self.text(row, "instruction")?.unwrap_or_default(),
            input: self.text(row, "input")?,
            response: response.unwrap_or_default(),
        })
    }

    /// The messages of a column, with the system message, tools and variables beside them.
    fn conversation(&self, row: &mut Map<String, Value>, name: &str, value: Value) -> Result<Conversation, Fault> {
        let mut messages = messages(value, name)?;
        if let Some(system) = self.text(row, "system")? {
            if messages.first().is_some_and(|first| ["system", "developer"].contains(&first.role())) {
                let message = format!("the row has `system`, and `{name}` begins with a system message");
                return Err(Fault::new(message, "keep the one that is meant"));
            }
            messages.insert(0, Message::new(Role::System, system));
        }
        let column = |name: &str| self.get(row, name).unwrap_or(&Value::Null);
        Ok(Conversation {
            messages,
            tools: parse_tools(column("tools"))?,
            template_variables: parse_variables(column("chat_template_kwargs"))?,
        })
    }

    /// Adds to `unused` the names of the columns that a row of this shape does not use.
    pub(crate) fn note_unused(&self, shape: Shape, row: &Map<String, Value>, unused: &mut BTreeSet<String>) {
        let used = |name: &String| shape.columns().iter().any(|column| self.called(column) == Some(name.as_str()));
        for name in row.keys() {
            if !used(name) && !unused.contains(name) {
                unused.insert(name.clone());
            }
        }
    }
}

/// The messages of the column `name`, in either of the two forms that there are.
fn messages(value: Value, name: &str) -> Result<Vec<Message>, Fault> {
    let from_value = |entry: &Value| entry.get("from").is_some_and(|from| !from.is_null());
    let messages = match value {
        Value::Array(entries) if entries.iter().any(from_value) => {
            let converted = entries.iter().enumerate().map(|(index, entry)| of_from_value(index, entry));
            converted.collect::<Result<_, _>>().and_then(|entries| parse_messages(Value::Array(entries)))
        }
        value => parse_messages(value),
    };
    messages.map_err(|fault| renamed(fault, name))
}

/// What [`parse_messages`] says of `messages`, of the column it was.
fn renamed(mut fault: Fault, name: &str) -> Fault {
    if name != "messages" {
        fault.message = fault.message.replacen("messages[", &format!("{name}["), 1);
        fault.message = fault.message.replacen("`messages`", &format!("`{name}`"), 1);
    }
    fault
}

/// A message of the form {"from": …, "value": …} in the form {"role": …, "content": …}.
fn of_from_value(index: usize, entry: &Value) -> Result<Value, Fault> {
    let hint = "a message is {\"from\": \"system\", \"human\", \"gpt\" or \"tool\", \"value\": \"text\"}";
    let fault = |message: String| Fault::new(format!("messages[{index}]: {message}"), hint);
    let Value::Object(fields) = entry else {
        return Err(fault(format!("expected an object, found {}", kind(entry))));
    };
    let Some(from) = fields.get("from").and_then(Value::as_str) else {
        return Err(fault("expected `from` to say who speaks".into()));
    };
    let role = match from {
        "system" => "system",
        "human" | "user" => "user",
        "gpt" | "assistant" | "model" | "chatgpt" | "bot" | "chatbot" => "assistant",
        "tool" | "function" | "function_response" | "observation" | "ipython" => "tool",
        other => return Err(fault(format!("unknown speaker \"{other}\""))),
    };
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), fields.get("value").cloned().unwrap_or(Value::Null));
    let others = fields.iter().filter(|(name, _)| !["from", "value"].contains(&name.as_str()));
    message.extend(others.map(|(name, value)| (name.clone(), value.clone())));
    Ok(Value::Object(message))
}

#[cfg(test)]
#[path = "columns_tests.rs"]
mod tests;
