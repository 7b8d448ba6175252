//! What a row says: its words, and its text in a form in which equal rows are equal.

use serde_json::Value;
use twox_hash::{XxHash3_64, XxHash3_128};
use unicode_segmentation::UnicodeSegmentation;

use super::sketch::Sketch;
use crate::message::{Conversation, Message};
use crate::rows::Row;

/// The hash that stands for nothing.
pub(super) const NONE: u128 = 0;

/// A text of a row, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// What was asked or given: of users and tools, a prompt, an instruction; a plain text too.
    Given(&'a str),
    /// What is answered.
    Answer(&'a str),
    /// A tool that is called in an answer, and what with.
    Call(&'a Value),
}

impl Piece<'_> {
    /// Bytes of a text.
    fn bytes(&self) -> usize {
        match self {
            Piece::Given(text) | Piece::Answer(text) => text.len(),
            Piece::Call(_) => 0,
        }
    }
}

/// The words of a row, as hashes of their lower-case forms, in their order.
///
/// System messages and the tools that may be called are no part of it: often they are the same in all rows, and long. Nor are
/// tokens, whose beginnings may be such messages.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) all: Vec<u64>,
    pub(super) given: Vec<u64>,
    /// Of all answers.
    pub(super) answers: Vec<u64>,
}

impl Words {
    pub(super) fn of(row: &Row) -> Words {
        let (mut words, mut buffer) = (Words::default(), String::new());
        let pieces = pieces(row);
        let bytes: usize = pieces.iter().map(Piece::bytes).sum();
        // A word has about six.
        words.all.reserve(bytes / 5);
        for piece in pieces {
            let begin = words.all.len();
            let own = match piece {
                Piece::Given(text) => {
                    add_words(text, &mut buffer, &mut words.all);
                    &mut words.given
                }
                Piece::Answer(text) => {
                    add_words(text, &mut buffer, &mut words.all);
                    &mut words.answers
                }
                Piece::Call(call) => {
                    add_words_of(call, &mut buffer, &mut words.all);
                    &mut words.answers
                }
            };
            own.extend_from_slice(&words.all[begin..]);
        }
        words
    }
}

/// The texts of a row, in their order, but for system messages. None for rows of tokens.
pub(super) fn pieces(row: &Row) -> Vec<Piece<'_>> {
    match row {
        Row::Conversation(conversation) => conversation.messages.iter().flat_map(of_message).collect(),
        Row::Exchange { prompt, completion } => {
            let before = prompt.messages.iter().flat_map(of_message).map(|piece| match piece {
                Piece::Answer(text) => Piece::Given(text),
                other => other,
            });
            before.chain(completion.iter().flat_map(of_message)).collect()
        }
        Row::Completion { prompt, completion } => vec![Piece::Given(prompt), Piece::Answer(completion)],
        Row::Instruction { instruction, input, response, .. } => {
            let given = [Some(instruction), input.as_ref()].into_iter().flatten().map(|text| Piece::Given(text));
            given.chain([Piece::Answer(response)]).collect()
        }
        Row::Text(text) => vec![Piece::Given(text)],
        Row::Classified { text, pair, .. } => {
            [Some(text), pair.as_ref()].into_iter().flatten().map(|text| Piece::Given(text)).collect()
        }
        Row::Tokens { .. } => Vec::new(),
    }
}

fn of_message(message: &Message) -> Vec<Piece<'_>> {
    match message.role() {
        "assistant" => {
            let calls = calls(message).into_iter().map(Piece::Call);
            [Piece::Answer(message.content())].into_iter().chain(calls).collect()
        }
        "system" | "developer" => Vec::new(),
        _ => vec![Piece::Given(message.content())],
    }
}

/// The functions that a message calls, with their arguments. What a call is known by is not among it.
fn calls(message: &Message) -> Vec<&Value> {
    let listed = message.field("tool_calls").and_then(Value::as_array).into_iter().flatten();
    let listed = listed.map(|call| call.get("function").unwrap_or(call));
    listed.chain(message.field("function_call")).collect()
}

/// What equal rows have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// Of all that is learned from: roles, texts, calls and tools; columns that nothing is made of do not count.
    pub(super) content: u128,
    /// Of all before the last answer; [`NONE`] where nothing is asked or answered.
    pub(super) instruction: u128,
    /// Of the last answer: its texts and calls, without the case of letters, white space and a full stop at the end.
    pub(super) answer: u64,
    /// Of all words.
    pub(super) sketch: Sketch,
}

impl Identity {
    pub(super) fn of(row: &Row, words: &Words) -> Identity {
        let Canonical { bytes, answer, folded } = Canonical::of(row);
        let instruction = match answer {
            Some(begin) if !words.given.is_empty() => XxHash3_128::oneshot(&bytes[..begin]),
            _ => NONE,
        };
        let (content, answer) = (XxHash3_128::oneshot(&bytes), XxHash3_64::oneshot(&folded));
        Identity { content, instruction, answer, sketch: Sketch::of_words(&words.all) }
    }
}

/// A row in bytes: each part with its tag, its length or its count before it, so that no two rows are the same bytes.
#[derive(Default)]
struct Canonical {
    bytes: Vec<u8>,
    /// Where the last answer begins.
    answer: Option<usize>,
    /// The last answer, without what makes no other answer of it.
    folded: Vec<u8>,
}

impl Canonical {
    fn of(row: &Row) -> Canonical {
        let mut canonical = Canonical::default();
        // Texts, and about as much as stands between them.
        let bytes: usize = pieces(row).iter().map(|piece| piece.bytes() + 64).sum();
        canonical.bytes.reserve(bytes + 64);
        match row {
            Row::Conversation(conversation) => canonical.add_conversation(conversation, &[]),
            Row::Exchange { prompt, completion } => canonical.add_conversation(prompt, completion),
            Row::Completion { prompt, completion } => {
                canonical.bytes.push(b'C');
                add(&mut canonical.bytes, prompt);
                canonical.add_answer(completion);
            }
            Row::Instruction { system, instruction, input, response } => {
                canonical.bytes.push(b'I');
                for text in [system.as_ref(), Some(instruction), input.as_ref()] {
                    add(&mut canonical.bytes, text.map_or("", String::as_str));
                }
                canonical.add_answer(response);
            }
            Row::Text(text) => {
                canonical.bytes.push(b'T');
                add(&mut canonical.bytes, text);
            }
            Row::Classified { text, pair, label } => {
                canonical.bytes.push(b'L');
                for text in [Some(text), pair.as_ref()] {
                    add(&mut canonical.bytes, text.map_or("", String::as_str));
                }
                canonical.add_answer(&label.to_string());
            }
            Row::Tokens { input_ids, labels } => {
                canonical.bytes.push(b'N');
                canonical.bytes.extend_from_slice(bytemuck::cast_slice(input_ids));
                canonical.bytes.extend_from_slice(bytemuck::cast_slice(labels));
            }
        }
        canonical
    }

    fn add_answer(&mut self, text: &str) {
        self.answer = Some(self.bytes.len());
        add(&mut self.bytes, text);
        add(&mut self.folded, &folded(text));
    }

    /// A conversation whose last answer is the last message of the assistant, or the `completion` behind it.
    fn add_conversation(&mut self, conversation: &Conversation, completion: &[Message]) {
        self.bytes.push(b'M');
        add_count(&mut self.bytes, conversation.tools.len());
        conversation.tools.iter().for_each(|tool| add_value(&mut self.bytes, tool));
        add_fields(&mut self.bytes, conversation.template_variables.iter().collect());
        let prompt = &conversation.messages;
        let messages: Vec<&Message> = prompt.iter().chain(completion).collect();
        let last = messages.iter().rposition(|message| message.is_assistant());
        let answer = if completion.is_empty() { last } else { Some(prompt.len()) };
        for (index, message) in messages.iter().enumerate() {
            if answer == Some(index) {
                self.answer = Some(self.bytes.len());
                // An exchange that is divided before its last answer is the conversation that it makes.
                if answer != last {
                    self.bytes.push(b'B');
                }
            }
            self.bytes.push(b'm');
            add(&mut self.bytes, message.role());
            add(&mut self.bytes, message.content());
            let others = |(name, _): &(&String, &Value)| !["role", "content"].contains(&name.as_str());
            add_fields(&mut self.bytes, message.fields().iter().filter(others).collect());
        }
        let answer = match completion {
            [] => answer.map_or(&[][..], |index| &prompt[index..=index]),
            completion => completion,
        };
        for message in answer {
            add(&mut self.folded, message.role());
            add(&mut self.folded, &folded(message.content()));
            let calls = calls(message);
            add_count(&mut self.folded, calls.len());
            calls.into_iter().for_each(|call| add_value(&mut self.folded, call));
        }
    }
}

/// A text in lower case, with one blank for any white space, and without a full stop at its end. Signs stay: -5 is not 5.
fn folded(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut folded = String::with_capacity(lower.len());
    // Runs without white space are copied as they are; most are parted by one blank.
    for run in lower.split(char::is_whitespace).filter(|run| !run.is_empty()) {
        if !folded.is_empty() {
            folded.push(' ');
        }
        folded.push_str(run);
    }
    if folded.ends_with('.') {
        folded.pop();
    }
    folded
}

fn add_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend_from_slice(&(count as u64).to_le_bytes());
}

fn add(bytes: &mut Vec<u8>, text: &str) {
    add_count(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

/// Fields by their names: their order means nothing.
fn add_fields(bytes: &mut Vec<u8>, mut fields: Vec<(&String, &Value)>) {
    fields.sort_unstable_by_key(|(name, _)| *name);
    add_count(bytes, fields.len());
    for (name, value) in fields {
        add(bytes, name);
        add_value(bytes, value);
    }
}

fn add_value(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::String(text) => {
            bytes.push(b's');
            add(bytes, text);
        }
        Value::Array(items) => {
            bytes.push(b'a');
            add_count(bytes, items.len());
            items.iter().for_each(|item| add_value(bytes, item));
        }
        Value::Object(fields) => {
            bytes.push(b'o');
            add_fields(bytes, fields.iter().collect());
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            bytes.push(b'v');
            add(bytes, &value.to_string());
        }
    }
}

/// Adds the hashes of the words of a call: its names, texts and numbers, fields by their names.
fn add_words_of(value: &Value, buffer: &mut String, words: &mut Vec<u64>) {
    match value {
        Value::Null => {}
        Value::String(text) => add_words(text, buffer, words),
        Value::Bool(_) | Value::Number(_) => add_words(&value.to_string(), buffer, words),
        Value::Array(items) => items.iter().for_each(|item| add_words_of(item, buffer, words)),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            for (name, value) in fields {
                add_words(name, buffer, words);
                add_words_of(value, buffer, words);
            }
        }
    }
}

/// Adds the hashes of a text's words, as Unicode's annex 29 finds them (each ideograph is a word), in lower case.
fn add_words(text: &str, buffer: &mut String, words: &mut Vec<u64>) {
    for word in text.unicode_words() {
        if word.is_ascii() {
            buffer.clear();
            buffer.push_str(word);
            buffer.make_ascii_lowercase();
            words.push(XxHash3_64::oneshot(buffer.as_bytes()));
        } else {
            words.push(XxHash3_64::oneshot(word.to_lowercase().as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::message::{parse_messages, parse_tools, parse_variables};

    fn conversation(messages: Value) -> Conversation {
        parse_messages(messages).unwrap().into()
    }

    fn identity(row: &Row) -> Identity {
        Identity::of(row, &Words::of(row))
    }

    #[test]
    fn rows_that_say_the_same_are_the_same() {
        let user = json!({"role": "user", "content": "Hi, you."});
        let answer = json!({"role": "assistant", "content": "Hello!", "name": "x", "thinking": "hm"});
        let turned =
            json!({"thinking": "hm", "name": "x", "content": "Hello!", "role": "assistant", "tool_calls": null});
        let one = identity(&Row::Conversation(conversation(json!([user, answer]))));
        let exchange =
            Row::Exchange { prompt: conversation(json!([user])), completion: conversation(json!([turned])).messages };
        assert_eq!(identity(&exchange), one);
        let other = json!({"role": "assistant", "content": "hello!"});
        let other = identity(&Row::Conversation(conversation(json!([user, other]))));
        assert_ne!(other.content, one.content);
        let same = (other.instruction, other.answer, other.sketch);
        assert_eq!(same, (one.instruction, one.answer, one.sketch), "case makes no other answer");
        let mut with_tools = conversation(json!([user, answer]));
        with_tools.tools = parse_tools(&json!([{"type": "function"}])).unwrap();
        let with_tools = identity(&Row::Conversation(with_tools));
        assert!(with_tools.content != one.content && with_tools.instruction != one.instruction);
    }

    #[test]
    fn what_is_asked_is_all_before_the_last_answer() {
        let message = |role: &str, text: &str| json!({"role": role, "content": text});
        let of = |texts: &[(&str, &str)]| {
            let messages: Vec<Value> = texts.iter().map(|(role, text)| message(role, text)).collect();
            identity(&Row::Conversation(conversation(Value::Array(messages))))
        };
        let (ask, again) = (("user", "Hi."), ("user", "And?"));
        let long = of(&[ask, ("assistant", "Yes."), again, ("assistant", "No.")]);
        let otherwise = of(&[ask, ("assistant", "Yes."), again, ("assistant", "Perhaps.")]);
        assert_eq!(long.instruction, otherwise.instruction);
        assert_ne!(long.answer, otherwise.answer);
        assert_ne!(of(&[ask, ("assistant", "Oh."), again, ("assistant", "No.")]).instruction, long.instruction);
        assert_ne!(
            of(&[("system", "Be kind."), ask, ("assistant", "A.")]).instruction,
            of(&[ask, ("assistant", "A.")]).instruction
        );
        assert_eq!(
            of(&[("system", "Be kind."), ask, ("assistant", "A.")]).sketch,
            of(&[ask, ("assistant", "A.")]).sketch
        );
        assert_eq!(of(&[ask]).instruction, NONE, "nothing is answered");
        assert_eq!(identity(&Row::Completion { prompt: " ".into(), completion: "A.".into() }).instruction, NONE);
        assert_eq!(identity(&Row::Text("A.".into())).instruction, NONE);
    }

    fn call(arguments: Value) -> Identity {
        let call = json!({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}});
        identity(&Row::Conversation(conversation(json!([
            {"role": "user", "content": "Will it rain in the town?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]))))
    }

    #[test]
    fn calls_are_said() {
        let (oslo, paris) = (call(json!({"city": "Oslo", "days": 2})), call(json!({"city": "Paris", "days": 2})));
        assert_eq!(oslo.instruction, paris.instruction);
        assert!(oslo.answer != paris.answer && oslo.sketch != paris.sketch);
        assert_eq!(call(json!({"days": 2, "city": "Oslo"})), oslo, "the order of fields does not count");
    }

    #[test]
    fn signs_make_another_answer() {
        let of = |completion: &str| {
            identity(&Row::Completion { prompt: "Which?".into(), completion: completion.into() }).answer
        };
        assert_eq!(of(" X  is it.\n"), of("x is it"));
        for (left, right) in [("-5", "5"), ("x > 5", "x < 5"), ("1.5", "15")] {
            assert_ne!(of(left), of(right), "{left} {right}");
        }
    }

    /// The whole completion is the answer, not only its last turn.
    #[test]
    fn an_exchange_is_answered_by_its_completion() {
        let message = |role: &str, text: &str| json!({"role": role, "content": text});
        let of = |prompt: &[Value], completion: &[Value]| {
            let messages = |messages: &[Value]| conversation(Value::Array(messages.to_vec()));
            identity(&Row::Exchange { prompt: messages(prompt), completion: messages(completion).messages })
        };
        let (ask, again) = (message("user", "Hi."), message("user", "And?"));
        let (yes, no, end) = (message("assistant", "Yes."), message("assistant", "No."), message("assistant", "End."));
        let one = of(std::slice::from_ref(&ask), &[yes.clone(), again.clone(), end.clone()]);
        let other = of(std::slice::from_ref(&ask), &[no, again.clone(), end.clone()]);
        assert!(one.instruction == other.instruction && one.answer != other.answer);
        let divided_later = of(&[ask, yes, again], &[end]);
        assert_ne!(divided_later.content, one.content, "another part of it is learned");
    }

    #[test]
    fn names_and_counts_of_what_is_beside_the_messages_count() {
        let of = |tools: Value, variables: Value| {
            let mut conversation = conversation(json!([{"role": "user", "content": "Hi."}]));
            conversation.tools = parse_tools(&tools).unwrap();
            conversation.template_variables = parse_variables(&variables).unwrap();
            identity(&Row::Conversation(conversation)).content
        };
        assert_ne!(of(json!([]), json!({"enable_thinking": true})), of(json!([]), json!({"documents_first": true})));
        assert_ne!(of(json!([{"a": 1}]), json!({})), of(json!([]), json!({"a": 1})));
        assert_ne!(of(json!([{"a": 1}, {"a": 1}]), json!({})), of(json!([{"a": 1}]), json!({"x": {"a": 1}})));
        let nested = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let one = nested(r#"[{"function": {"name": "f", "parameters": {"a": 1, "b": "1"}}}]"#);
        let turned = nested(r#"[{"function": {"parameters": {"b": "1", "a": 1}, "name": "f"}}]"#);
        let other = nested(r#"[{"function": {"parameters": {"b": 1, "a": 1}, "name": "f"}}]"#);
        assert_eq!(of(one.clone(), json!({})), of(turned, json!({})));
        assert_ne!(of(one, json!({})), of(other, json!({})));
    }

    /// No two rows have the same bytes because a border between texts is somewhere else.
    #[test]
    fn borders_between_texts_count() {
        let row = |prompt: &str, completion: &str| {
            identity(&Row::Completion { prompt: prompt.into(), completion: completion.into() }).content
        };
        assert_ne!(row("ab", "c"), row("a", "bc"));
        let tokens = |input_ids: &[u32], labels: &[i32]| {
            identity(&Row::Tokens { input_ids: input_ids.to_vec(), labels: labels.to_vec() }).content
        };
        assert_ne!(tokens(&[1, 2], &[1, 2]), tokens(&[1, 2], &[-100, 2]));
        let row = Row::Tokens { input_ids: (0..50).collect(), labels: (0..50).collect() };
        assert_eq!(identity(&row).sketch, Sketch::NONE, "rows of tokens are not nearly the same");
    }
}
