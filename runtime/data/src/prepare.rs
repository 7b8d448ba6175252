//! A data file and a model folder in, token ids and labels out.

use std::num::NonZero;
use std::path::Path;
use std::thread;

use crate::dataset::{IGNORED, TokenizedDataset, supervised};
use crate::error::{DataError, Fault};
use crate::mask;
use crate::message::{Conversation, Message};
use crate::model_files;
use crate::report::{DataReport, RowKind, Segment};
use crate::rows::{Row, RowReader};
use crate::template::{ChatTemplate, TemplateSource};
use crate::tokenizer::Tokenizer;

/// Rows that are read before they are shared out to the threads.
const CHUNK: usize = 2048;

/// What to prepare, and how.
#[derive(Debug, Clone, Copy)]
pub struct Prepare<'a> {
    /// The Hugging Face folder with the tokenizer and the chat template.
    pub model_directory: &'a Path,
    /// The JSONL file.
    pub dataset: &'a Path,
    /// Longest row, in tokens; what is beyond is cut off at the end.
    pub max_length: u32,
    /// Learn from the assistant's tokens only. Rows of `input_ids` have labels of their own instead.
    pub assistant_only_loss: bool,
    /// The text of the chat template; without one, that of the model folder.
    pub chat_template: Option<&'a str>,
    /// The token that ends a turn; without one, the tokenizer's.
    pub eos_token: Option<&'a str>,
}

/// A data set ready for training, and what to tell about it.
#[derive(Debug)]
pub struct Prepared {
    /// The rows.
    pub dataset: TokenizedDataset,
    /// The counts.
    pub report: DataReport,
}

/// Reads, renders, encodes, masks and cuts all rows of a file, on all cores; the result depends on neither their number
/// nor their speed.
///
/// # Errors
/// The first faulty row with its file and line; a data set in which nothing is supervised; a model folder without a
/// usable tokenizer or template.
pub fn prepare(options: &Prepare<'_>) -> Result<Prepared, DataError> {
    if options.max_length < 2 {
        return Err(DataError::Plan {
            message: format!("max_length is {}", options.max_length),
            hint: "a row needs at least 2 tokens: one to read, one to predict".into(),
        });
    }
    let mut reader = RowReader::open(options.dataset)?;
    let mut encoder: Option<Encoder<'_>> = None;
    let mut result = Collected::default();
    let mut ended = false;
    while !ended {
        let mut rows = Vec::with_capacity(CHUNK);
        let mut fault = None;
        while !ended && rows.len() < CHUNK {
            match reader.next() {
                Some(Ok(row)) => rows.push(row),
                Some(Err(error)) => (fault, ended) = (Some(error), true),
                None => ended = true,
            }
        }
        if let Some((_, first)) = rows.first() {
            let encoder = match &encoder {
                Some(encoder) => encoder,
                None => encoder.insert(Encoder::new(options, first)?),
            };
            encoder.encode_all(&rows)?.into_iter().for_each(|row| result.add(row));
        }
        // Only now, so that of several faults the first in the file is told.
        if let Some(error) = fault {
            return Err(error);
        }
    }
    match encoder {
        Some(encoder) => finish(options, &encoder, &reader, result),
        None => Err(DataError::dataset(options.dataset, "there is no row in this file", "give at least one row")),
    }
}

/// One row, encoded and cut.
struct EncodedRow {
    line: u64,
    ids: Vec<u32>,
    labels: Vec<i32>,
    truncated: bool,
    /// Whether each answer ends with a special token that is learned.
    ended: bool,
}

#[derive(Default)]
struct Collected {
    dataset: TokenizedDataset,
    /// Rows with an answer that does not end, and the first one's line.
    unended: (usize, Option<u64>),
    dropped: usize,
    truncated: usize,
    longest: usize,
}

impl Collected {
    fn add(&mut self, row: EncodedRow) {
        if supervised(&row.labels) == 0 {
            self.dropped += 1;
            return;
        }
        if self.dataset.offsets.is_empty() {
            self.dataset = TokenizedDataset::new();
        }
        self.dataset.push(row.line, &row.ids, &row.labels);
        if !row.ended {
            self.unended = (self.unended.0 + 1, self.unended.1.or(Some(row.line)));
        }
        self.truncated += usize::from(row.truncated);
        self.longest = self.longest.max(row.ids.len());
    }
}

/// What all rows are encoded with.
struct Encoder<'a> {
    options: &'a Prepare<'a>,
    /// Missing only for rows of `input_ids`, which need none.
    tokenizer: Option<Tokenizer>,
    /// With conversations only.
    template: Option<ChatTemplate>,
    vocabulary: Option<u32>,
}

impl<'a> Encoder<'a> {
    fn new(options: &'a Prepare<'a>, first: &Row) -> Result<Encoder<'a>, DataError> {
        let model = options.model_directory;
        let conversations = matches!(first, Row::Conversation(_));
        let needed = conversations || model.join("tokenizer.json").exists();
        let mut tokenizer = if needed { Some(Tokenizer::load(model)?) } else { None };
        if let (Some(tokenizer), Some(token)) = (&mut tokenizer, options.eos_token) {
            tokenizer.end_with(token)?;
        }
        let template = match &tokenizer {
            Some(tokenizer) if conversations => Some(template_of(options, tokenizer)?),
            _ => None,
        };
        Ok(Encoder { options, tokenizer, template, vocabulary: model_files::vocabulary_size(model)? })
    }

    fn encode_all(&self, rows: &[(u64, Row)]) -> Result<Vec<EncodedRow>, DataError> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let share = rows.len().div_ceil(threads).max(16);
        let encode = |(line, row): &(u64, Row)| {
            self.encode(*line, row).map_err(|fault| DataError::row(self.options.dataset, *line, fault))
        };
        thread::scope(|scope| {
            let workers: Vec<_> = rows
                .chunks(share)
                .map(|rows| scope.spawn(move || rows.iter().map(encode).collect::<Result<Vec<_>, _>>()))
                .collect();
            let mut encoded = Vec::with_capacity(rows.len());
            for worker in workers {
                let rows = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                encoded.extend(rows);
            }
            Ok(encoded)
        })
    }

    fn encode(&self, line: u64, row: &Row) -> Result<EncodedRow, Fault> {
        let (mut ids, mut labels, ended) = match (row, &self.template, &self.tokenizer) {
            (Row::Tokens { input_ids, labels }, ..) => (input_ids.clone(), labels.clone(), true),
            (Row::Conversation(conversation), Some(template), Some(tokenizer)) => {
                self.encode_conversation(conversation, template, tokenizer)?
            }
            (Row::Conversation(_), ..) => {
                return Err(Fault::new("a conversation among rows of `input_ids`", "keep the two kinds in two files"));
            }
        };
        if let Some(size) = self.vocabulary {
            let beyond = |&id: &u32| id >= size;
            let label_beyond = labels.iter().filter_map(|&label| u32::try_from(label).ok()).find(beyond);
            if let Some(id) = ids.iter().copied().find(beyond).or(label_beyond) {
                let message = format!("token id {id}, but the model's vocabulary has {size} entries");
                return Err(Fault::new(message, "the rows or the tokenizer belong to another model"));
            }
        }
        let limit = self.options.max_length as usize;
        let truncated = ids.len() > limit;
        ids.truncate(limit);
        labels.truncate(limit);
        Ok(EncodedRow { line, ids, labels, truncated, ended })
    }

    fn encode_conversation(
        &self,
        conversation: &Conversation,
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<u32>, Vec<i32>, bool), Fault> {
        let full = template.render_with_spans(conversation, false).map_err(|error| {
            let hint = "a chat template takes certain roles, often in turns; change the row, or choose another template \
                        (chat_template_path)";
            mask::fault_of(error, hint)
        })?;
        let encoded =
            tokenizer.encode_with_offsets(&full.text).map_err(|error| mask::fault_of(error, "change the row"))?;
        if !self.options.assistant_only_loss {
            let labels = encoded.ids.iter().map(|&id| mask::label_of(id)).collect::<Result<_, _>>()?;
            return Ok((encoded.ids, labels, true));
        }
        if !conversation.messages.iter().any(Message::is_assistant) {
            let hint = "add the answer, remove the row, or set assistant_only_loss: false";
            return Err(Fault::new("no message of this conversation is the assistant's", hint));
        }
        let spans = mask::assistant_spans(template, tokenizer.markers(), conversation, &full)?;
        let labels = mask::labels(&encoded, &full.text, &spans, IGNORED)?;
        let ended =
            spans.iter().all(|span| mask::marker_at_end(&full.text[span.clone()], tokenizer.markers()).is_some());
        Ok((encoded.ids, labels, ended))
    }
}

/// The chosen chat template, or the model's, with the special tokens of the tokenizer.
fn template_of(options: &Prepare<'_>, tokenizer: &Tokenizer) -> Result<ChatTemplate, DataError> {
    let source = match options.chat_template {
        Some(text) => TemplateSource { text: text.to_owned(), place: "chat_template_path".into() },
        None => TemplateSource::of_model(options.model_directory)?,
    };
    ChatTemplate::compile(source, tokenizer.special().clone())
}

fn finish(
    options: &Prepare<'_>,
    encoder: &Encoder<'_>,
    reader: &RowReader,
    collected: Collected,
) -> Result<Prepared, DataError> {
    let Collected { dataset, unended, dropped, truncated, longest } = collected;
    if dataset.rows() == 0 {
        let rows = if dropped == 1 { "its only row".to_owned() } else { format!("its {dropped} rows") };
        let message = format!("nothing in {rows} is supervised (with max_length {})", options.max_length);
        let hint = "raise max_length if the answers are cut off; else give labels other than -100";
        return Err(DataError::dataset(options.dataset, message, hint));
    }
    let report = DataReport {
        path: options.dataset.to_path_buf(),
        kind: if encoder.template.is_some() { RowKind::Conversations } else { RowKind::Tokens },
        assistant_only_loss: options.assistant_only_loss && encoder.template.is_some(),
        rows: dataset.rows(),
        dropped,
        truncated,
        tokens: dataset.tokens(),
        supervised_tokens: dataset.supervised_tokens(),
        longest,
        example: example(&dataset, encoder.tokenizer.as_ref())?,
        warnings: warnings(&dataset, encoder, reader, unended),
    };
    Ok(Prepared { dataset, report })
}

/// The first row in pieces that are supervised or not, as text (as numbers where there is no tokenizer). The first token
/// counts as not supervised: nothing predicts it.
fn example(dataset: &TokenizedDataset, tokenizer: Option<&Tokenizer>) -> Result<Vec<Segment>, DataError> {
    let (ids, labels) = dataset.row(0);
    let learned = |index: usize| index > 0 && labels[index] != IGNORED;
    let mut segments = Vec::new();
    let mut start = 0;
    for end in 1..=ids.len() {
        if end < ids.len() && learned(end) == learned(start) {
            continue;
        }
        let text = match tokenizer {
            Some(tokenizer) => tokenizer.decode(&ids[start..end], false)?,
            None => ids[start..end].iter().map(|id| format!("{id} ")).collect(),
        };
        segments.push(Segment { text, supervised: learned(start) });
        start = end;
    }
    Ok(segments)
}

fn warnings(
    dataset: &TokenizedDataset,
    encoder: &Encoder<'_>,
    reader: &RowReader,
    (unended, first): (usize, Option<u64>),
) -> Vec<String> {
    let mut warnings = Vec::new();
    if !reader.ignored_columns().is_empty() {
        let names: Vec<&str> = reader.ignored_columns().iter().map(String::as_str).collect();
        warnings.push(format!("columns that are not used: {}", names.join(", ")));
    }
    if let Some(tokenizer) = &encoder.tokenizer {
        let ends = |label: &i32| u32::try_from(*label).is_ok_and(|id| tokenizer.eos_ids().contains(&id));
        if !tokenizer.eos_ids().is_empty() && !dataset.labels.iter().any(ends) {
            let ids = tokenizer.eos_ids();
            warnings
                .push(format!("no supervised token ends a generation (ids {ids:?}): the model does not learn to stop"));
        }
    }
    if let Some(line) = first {
        let rows = dataset.rows();
        warnings.push(format!(
            "line {line}: an answer ends without an end-of-turn token that is learned (as in {unended} of {rows} rows): \
             the model does not learn to stop there"
        ));
    }
    warnings
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
