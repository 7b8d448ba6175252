//! What is told about a prepared data set.

use serde::{Deserialize, Serialize};

/// What the rows of a data set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// `messages`, `conversations` or instructions, by the model's chat template.
    Conversations,
    /// `prompt` and `completion` of messages, by the model's chat template.
    Exchanges,
    /// `prompt` and `completion` of text, or instructions for a model without a chat template.
    Completions,
    /// `text`.
    Texts,
    /// `input_ids` as they stand.
    Tokens,
    /// `text`, often `text_pair`, and `label`.
    Classified,
}

impl RowKind {
    /// In words, to follow "rows of".
    pub fn words(self) -> &'static str {
        match self {
            RowKind::Conversations => "conversations",
            RowKind::Exchanges => "prompts and completions of messages",
            RowKind::Completions => "prompts and completions",
            RowKind::Texts => "texts",
            RowKind::Tokens => "tokens",
            RowKind::Classified => "texts and labels",
        }
    }
}

/// What the loss is taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// What the assistant writes.
    Assistant,
    /// What the assistant writes in the completion.
    AssistantOfCompletion,
    /// The completion.
    Completion,
    /// Every token.
    All,
    /// What the labels of the files say.
    Labels,
    /// What a classifier tells of each row.
    Classes,
}

/// A piece of the first example, as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Decoded text, special tokens included.
    pub text: String,
    /// Whether a loss is taken on it.
    pub supervised: bool,
}

/// Counts of a prepared data set, its first example, and what deserves a second look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// The data set, as it was written.
    pub source: String,
    /// How many files it has.
    pub files: usize,
    /// What its rows are.
    pub kind: RowKind,
    /// What the loss is taken on.
    pub loss: Loss,
    /// Rows kept.
    pub rows: usize,
    /// Rows left out, because nothing in them is supervised (after truncation).
    pub dropped: usize,
    /// Rows kept that were cut to `max_length`.
    pub truncated: usize,
    /// Tokens kept.
    pub tokens: usize,
    /// Tokens that a loss is taken on.
    pub supervised_tokens: usize,
    /// Tokens of the longest row kept.
    pub longest: usize,
    /// Of a classifier that tells classes, each with its rows, in their order.
    #[serde(default)]
    pub classes: Vec<(String, u64)>,
    /// The first row kept, decoded, cut where supervision begins and ends.
    pub example: Vec<Segment>,
    /// Sentences about what is allowed but often a mistake.
    pub warnings: Vec<String>,
    /// The same of what a model learns from the rows: of no account where they are held out.
    pub lessons: Vec<String>,
}

impl DataReport {
    /// Supervised tokens as a share of all, between 0 and 1.
    pub fn supervised_share(&self) -> f64 {
        self.supervised_tokens as f64 / self.tokens.max(1) as f64
    }
}
