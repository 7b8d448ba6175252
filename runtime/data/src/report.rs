//! What is told about a prepared data set.

use std::path::PathBuf;

/// What the rows of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// `messages`, by the model's chat template.
    Conversations,
    /// `input_ids` as they stand.
    Tokens,
}

/// A piece of the first example, as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Segment {
    /// Decoded text, special tokens included.
    pub text: String,
    /// Whether a loss is taken on it.
    pub supervised: bool,
}

/// Counts of a prepared data set, its first example, and what deserves a second look.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DataReport {
    /// The data file.
    pub path: PathBuf,
    /// What its rows are.
    pub kind: RowKind,
    /// Whether only the assistant's tokens are learned from (conversations only).
    pub assistant_only_loss: bool,
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
    /// The first row kept, decoded, cut where supervision begins and ends.
    pub example: Vec<Segment>,
    /// Sentences about what is allowed but often a mistake.
    pub warnings: Vec<String>,
}

impl DataReport {
    /// Supervised tokens as a share of all, between 0 and 1.
    pub fn supervised_share(&self) -> f64 {
        self.supervised_tokens as f64 / self.tokens.max(1) as f64
    }
}
