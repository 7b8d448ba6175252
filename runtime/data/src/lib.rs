//! Rows, chat templates, masks, sampling. Free of tensors.
//!
//! The way of a row, from the file to the model:
//!
//! ```text
//! JSONL ─ rows ─▶ Row ─ template ─▶ text + spans ─ tokenizer, mask ─▶ ids + labels ─▶ TokenizedDataset (one file)
//!                                                                                          │
//!                                        StepPlan: which rows, when, on which rank ────────┤
//!                                                                                          ▼
//!                                                                                        Batch
//! ```
//!
//! [`prepare`] does the first line once, before any rank waits; the workers then load the [`TokenizedDataset`] and cut
//! it by a [`StepPlan`], which gives the same global order of rows for every number of ranks.

mod batch;
mod dataset;
mod error;
mod mask;
mod message;
mod model_files;
mod prepare;
mod report;
mod rows;
mod sampling;
mod stream;
mod template;
mod tokenizer;

#[cfg(test)]
mod testing;

pub use batch::Batch;
pub use dataset::{IGNORED, TokenizedDataset};
pub use error::DataError;
pub use message::{Conversation, Message, Role};
pub use model_files::SpecialTokens;
pub use prepare::{Prepare, Prepared, prepare};
pub use report::{DataReport, RowKind, Segment};
pub use rows::{Row, RowReader};
pub use sampling::{Cursor, Sampling, StepPlan, StepPlanOptions};
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, Rendered, TemplateSource, trained_template_digest};
pub use tokenizer::{Encoded, Tokenizer};
