//! Rows, chat templates, masks, packing, sampling. Free of tensors.
//!
//! The way of a row, from the file to the model:
//!
//! ```text
//! files ─ source ─▶ RawRow ─ columns ─▶ Row ─ template ─▶ text + spans ─ tokenizer, mask ─▶ ids + labels
//!                                                                                              │ writer
//!                                                                                              ▼
//!                                                              cache ◀─▶ TokenizedDataset (one file, mapped)
//!                                                                                              │
//!                                            Collator: rows, or packs of rows ─────────────────┤
//!                                            StepPlan: which of them, when, on which rank ─────┤
//!                                                                                              ▼
//!                                                                                            Batch
//! ```
//!
//! [`prepare`] does all but the last once, before any rank waits, or finds it done in its cache; the workers then map the [`TokenizedDataset`] and cut
//! it by a [`StepPlan`], which gives the same global order of rows (or packs) for every number of ranks. [`fn@audit`] goes the same way up to
//! the labels, and tells what is wrong with the rows.

mod allocator;
mod audit;
mod batch;
mod cache;
mod classes;
mod collator;
mod columns;
mod configured;
mod dataset;
mod encode;
mod error;
mod first_row;
mod join;
mod mapped;
mod mask;
mod message;
mod mixing;
mod model_files;
mod packing;
mod prepare;
mod report;
mod rows;
mod sampling;
mod source;
mod stream;
mod template;
mod tidy;
mod tokenizer;
mod tokens;
mod writer;

#[cfg(test)]
mod testing;

pub use allocator::Allocator;
pub use audit::{
    Audit, AuditReport, Audited, Copied, DataAudit, Dropped, Example, Finding, FindingKind, LengthBar, LengthUnit,
    Lengths, NEARLY_THE_SAME, SHINGLE_WORDS, SHORT_WORDS, Truncation, audit, check_copy,
};
pub use batch::Batch;
pub use classes::{Classes, FoundLabels, LabelPlaces};
pub use collator::{Batching, Collator};
pub use columns::Columns;
pub use dataset::{IGNORED, Places, TokenizedDataset};
pub use error::DataError;
pub use first_row::first_row;
pub use join::join;
pub use mapped::Words;
pub use message::{Conversation, Message, Role};
pub use mixing::{Mixing, Mixture, Shares, Stopping};
pub use model_files::SpecialTokens;
pub use packing::{Packing, PackingStrategy, Packs, Piece};
pub use prepare::{Prepare, Prepared, prepare};
pub use report::{DataReport, Loss, RowKind, Segment};
pub use rows::{Row, RowReader};
pub use sampling::{Cursor, Items, Sampling, StepPlan, StepPlanOptions};
pub use source::{DataFile, Format, Sources};
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, Rendered, TemplateSource, today, trained_template_digest};
pub use tidy::Tidied;
pub use tokenizer::{Encoded, Tokenizer};
