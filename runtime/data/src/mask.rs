//! Which tokens of a conversation are the assistant's.

use std::ops::Range;

use crate::error::{DataError, Fault};
use crate::message::{Conversation, Message};
use crate::template::{ChatTemplate, Context, Rendered};
use crate::tokenizer::Encoded;

/// What to do when the assistant's part of a conversation cannot be told.
const NO_SPANS: &str = "put {% generation %} and {% endgeneration %} into the chat template round what the assistant \
                        writes, or set assistant_only_loss: false to learn from all tokens";

/// The byte ranges of `full`, the rendered `conversation`, that the assistant wrote, its end-of-turn token included.
/// `markers` are the texts of special tokens.
///
/// By the template's own marks where it has them. Else by rendering what comes before each answer and what comes up to
/// its end: where the template renders a conversation's beginning as it renders the whole's (which is checked, both
/// times, and refused if not), the answer is what lies between.
///
/// Some templates take the thinking out of all answers but the last, so that an answer alone is not the one in the
/// whole. What comes before the next answer still is; and up to there, the answer goes to the first end-of-turn token.
pub(crate) fn assistant_spans(
    template: &ChatTemplate,
    markers: &[String],
    conversation: &Conversation,
    full: &Rendered,
) -> Result<Vec<Range<usize>>, Fault> {
    let messages = &conversation.messages;
    let turns: Vec<usize> = (0..messages.len()).filter(|&index| messages[index].is_assistant()).collect();
    if template.has_generation_marks() {
        if full.spans.is_empty() && !turns.is_empty() {
            let message = "the chat template marks nothing of this conversation as the assistant's";
            return Err(Fault::new(
                message,
                "the template's {% generation %} blocks must enclose what the assistant writes",
            ));
        }
        return Ok(full.spans.clone());
    }
    let context = Context::of(conversation, template).map_err(|error| fault_of(error, NO_SPANS))?;
    let beginnings = Beginnings { template, context: &context, full: &full.text };
    let starts = turns.iter().map(|&turn| beginnings.of(turn, true)).collect::<Result<Vec<_>, _>>()?;
    let mut spans = Vec::with_capacity(turns.len());
    for (index, &turn) in turns.iter().enumerate() {
        let start = starts[index];
        let end = if turn + 1 == messages.len() {
            end_of_turn(&full.text, markers)
        } else {
            match beginnings.of(turn + 1, false) {
                Ok(end) => end_of_turn(&full.text[..end], markers),
                Err(fault) => {
                    let until = starts.get(index + 1).copied().ok_or(fault)?;
                    first_end_of_turn(full, start..until, &messages[turn], markers)?
                }
            }
        };
        if start >= end || spans.last().is_some_and(|span: &Range<usize>| span.end > start) {
            let message = format!("the chat template leaves nothing of messages[{turn}] after the prompt before it");
            return Err(Fault::new(message, NO_SPANS));
        }
        spans.push(start..end);
    }
    Ok(spans)
}

/// Renders beginnings of a conversation, each of which must be one of the whole.
struct Beginnings<'a> {
    template: &'a ChatTemplate,
    context: &'a Context,
    full: &'a str,
}

impl Beginnings<'_> {
    /// The bytes of the first `count` messages in the whole text.
    fn of(&self, count: usize, add_generation_prompt: bool) -> Result<usize, Fault> {
        let what = match (count, add_generation_prompt) {
            (0, _) => "no message".to_string(),
            (1, _) => "messages[0]".to_string(),
            (count, _) => format!("messages[0..={}]", count - 1),
        };
        let rendered = self.template.render_messages(self.context, count, add_generation_prompt).map_err(|error| {
            let message = format!("which tokens are the assistant's cannot be told: on {what} alone, {error}");
            Fault::new(message, NO_SPANS)
        })?;
        let (text, full) = (rendered.text.as_str(), self.full);
        if full.starts_with(text) {
            return Ok(text.len());
        }
        let same = text.bytes().zip(full.bytes()).take_while(|(left, right)| left == right).count();
        let prompt = if add_generation_prompt { " with a prompt for the answer" } else { "" };
        let message = format!(
            "which tokens are the assistant's cannot be told: {what}{prompt} renders as …{}, but the whole conversation \
             as …{}",
            excerpt(text, same),
            excerpt(full, same)
        );
        Err(Fault::new(message, NO_SPANS))
    }
}

/// Where in `region` of the whole text the answer ends that it begins with: after the first of the tokens that the whole
/// conversation ends with. What the answer itself says must not hold it, in its calls of tools neither.
fn first_end_of_turn(
    full: &Rendered,
    region: Range<usize>,
    answer: &Message,
    markers: &[String],
) -> Result<usize, Fault> {
    let marker = marker_at_end(full.text.trim_end(), markers);
    let found = marker.filter(|marker| !answer.says(marker)).and_then(|marker| {
        let text = full.text.get(region.clone())?;
        Some(region.start + text.find(marker)? + marker.len())
    });
    found.ok_or_else(|| {
        let message = "which tokens are the assistant's cannot be told: the chat template renders earlier answers \
                       otherwise than the last, and no end-of-turn token tells where they end";
        Fault::new(message, NO_SPANS)
    })
}

/// A little of `text` before and after the byte `at`, quoted.
fn excerpt(text: &str, at: usize) -> String {
    let near = |index: usize| (index.saturating_sub(20)..index + 20).contains(&at);
    format!(
        "{:?}",
        text.char_indices().filter(|&(index, _)| near(index)).map(|(_, character)| character).collect::<String>()
    )
}

/// The special token that `text` ends with; of several the longest.
pub(crate) fn marker_at_end<'a>(text: &str, markers: &'a [String]) -> Option<&'a str> {
    let ending = markers.iter().filter(|marker| !marker.is_empty() && text.ends_with(marker.as_str()));
    ending.max_by_key(|marker| marker.len()).map(String::as_str)
}

/// The end of the turn that `text` ends with: without the white space after an end-of-turn token.
fn end_of_turn(text: &str, markers: &[String]) -> usize {
    let trimmed = text.trim_end();
    if marker_at_end(trimmed, markers).is_some() { trimmed.len() } else { text.len() }
}

/// A label for each token: its id where it lies in one of the `spans`, −100 elsewhere. A token that reaches into a span or out of it by
/// white space alone is the span's where the template itself has `marked` it, as transformers counts; else it is refused.
pub(crate) fn labels(
    encoded: &Encoded,
    text: &str,
    (spans, marked): (&[Range<usize>], bool),
    ignored: i32,
) -> Result<Vec<i32>, Fault> {
    let blank = |range: Range<usize>| range.is_empty() || text.get(range).is_some_and(|text| text.trim().is_empty());
    let mut remaining = spans.iter().peekable();
    let mut labels = Vec::with_capacity(encoded.ids.len());
    for (&id, &(first, after)) in encoded.ids.iter().zip(&encoded.offsets) {
        while remaining.next_if(|span| span.end <= first).is_some() {}
        let label = match remaining.peek() {
            Some(span) if span.start <= first && after <= span.end => label_of(id)?,
            Some(span) if marked && span.start < after && blank(first..span.start) && blank(span.end..after) => {
                label_of(id)?
            }
            Some(span) if span.start < after => {
                let token = text.get(first..after).unwrap_or_default();
                let message = format!("the token {token:?} stands half in and half outside the assistant's answer");
                let hint = "often white space at the start of an answer that melts with what the template writes before \
                            it: remove it, mark what is to be learned by {% generation %} in the template, or set \
                            assistant_only_loss: false";
                return Err(Fault::new(message, hint));
            }
            _ => ignored,
        };
        labels.push(label);
    }
    Ok(labels)
}

/// An id as a label, which is signed.
pub(crate) fn label_of(id: u32) -> Result<i32, Fault> {
    i32::try_from(id)
        .map_err(|_| Fault::new(format!("the token id {id} is too large"), "no tokenizer has so many tokens"))
}

/// An error met while a row was rendered or encoded, to be given its place.
pub(crate) fn fault_of(error: DataError, hint: &str) -> Fault {
    Fault::new(error.to_string(), hint)
}
