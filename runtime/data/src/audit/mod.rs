//! What is wrong with data, before they are trained on: each row by itself, rows against each other, and training rows against
//! held-out ones.
//!
//! ```text
//! files ─ source ─▶ RawRow ─ reading ─┬ filter    what its text tells: empty, short, unrelated, order of roles
//!          (chunks, on all cores)     ├ encode    what template, tokenizer and mask tell; lengths
//!                                     └ said      hashes and a sketch ─▶ Rows ─┬ duplicates       the same, asked before, in conflict
//!                                                                             └ near_duplicates  bands of sketches
//!                                                        ╰─▶ AuditReport, marks of each row ─ copy ─▶ a filtered copy
//! ```
//!
//! A row's text is in memory only while it is looked at. 182 bytes of it stay: its place, its length, hashes of what it says,
//! asks and answers, a sketch of its words, and what was found.

mod copy;
mod duplicates;
mod filter;
mod kind;
mod lengths;
mod near_duplicates;
mod reading;
mod report;
mod rows;
mod said;
mod sketch;

use crate::cache;
use crate::columns::Columns;
use crate::error::DataError;
use crate::prepare::Prepare;
use crate::source::Sources;

use duplicates::Link;
use kind::Kinds;
use reading::read;
use rows::Rows;

pub use copy::{Copied, Dropped, check_copy};
pub use kind::FindingKind;
pub use lengths::{LengthBar, LengthUnit, Lengths, Truncation};
pub use report::{AuditReport, DataAudit, Example, Finding};
pub use sketch::SHINGLE_WORDS;

/// Answers of fewer words are short.
pub const SHORT_WORDS: usize = 20;

/// Rows whose estimated Jaccard similarity is at least this are nearly the same.
pub const NEARLY_THE_SAME: f64 = 0.8;

/// What to audit.
#[derive(Debug, Clone, Copy)]
pub struct Audit<'a> {
    /// The training data, and how their rows become tokens.
    pub prepare: &'a Prepare<'a>,
    /// Data that are held out, and how their columns are called; else read in the same way.
    pub held_out: Option<(&'a Sources, &'a Columns)>,
    /// Whether there is a model. Without one, neither `model_directory` nor `chat_template` are looked at, and only rows of
    /// `input_ids` have tokens.
    pub with_model: bool,
}

/// What an audit found, and in which rows.
#[derive(Debug)]
pub struct Audited<'a> {
    /// What is told.
    pub report: AuditReport,
    training: &'a Sources,
    /// Of each training row.
    marks: Vec<Kinds>,
    /// Of the training files, when they were read.
    identities: Vec<String>,
}

/// Reads all rows and tells what is wrong with them. What is found does not depend on the number of threads.
///
/// # Errors
/// A data set without rows, or whose files change meanwhile; a model folder without a usable tokenizer or template; a loss that
/// such rows cannot have. What is wrong with rows and files is no error: it is what is found.
pub fn audit<'a>(asked: &Audit<'a>) -> Result<Audited<'a>, DataError> {
    // Packing that cuts rows into pieces has no limit.
    let max_length = asked.prepare.max_length.unwrap_or(u32::MAX);
    // Rows are encoded whole, to tell what is cut off.
    let whole = Prepare { max_length: None, ..*asked.prepare };
    let of_held_out = asked.held_out.map(|(sources, columns)| Prepare { sources, columns, ..whole });
    let identities = cache::identities(whole.sources)?;
    let held_out_identities = asked.held_out.map(|(sources, _)| cache::identities(sources)).transpose()?;

    let mut rows = Rows::default();
    let mut training = read(&whole, max_length, asked.with_model, &mut rows)?;
    rows.begin_held_out();
    let held_out = of_held_out.as_ref().map(|options| read(options, max_length, asked.with_model, &mut rows));
    let mut held_out = held_out.transpose()?;
    cache::check_unchanged(whole.sources, &identities)?;
    if let Some(((sources, _), before)) = asked.held_out.zip(held_out_identities) {
        cache::check_unchanged(sources, &before)?;
    }

    let from = rows.held_out_from();
    for link in duplicates::compare(&mut rows) {
        let of_training = link.row < from;
        let reading = if of_training { Some(&mut training) } else { held_out.as_mut() };
        if let Some(reading) = reading {
            reading.tally.add(link.kind, || rows.place(link.row), || reason(&link, &rows));
        }
    }
    let without_finding =
        |rows: &Rows, range: std::ops::Range<u32>| range.filter(|&row| rows.marks(row).is_empty()).count() as u64;
    let mut report = AuditReport {
        training: training.finish(held_out.is_some(), without_finding(&rows, 0..from))?,
        held_out: match held_out {
            Some(reading) => Some(reading.finish(false, without_finding(&rows, from..rows.count()))?),
            None => None,
        },
    };
    // They are told of the training rows, which can be left out.
    report.held_out.iter_mut().for_each(|audit| audit.not_checked.retain(|kind| !kind.needs_held_out()));
    Ok(Audited { report, training: asked.prepare.sources, marks: rows.into_training_marks(), identities })
}

/// Why a row is told of that was compared with another.
fn reason(link: &Link, rows: &Rows) -> String {
    let other = rows.place(link.other);
    let similarity = || rows.sketch(link.row).similarity(rows.sketch(link.other));
    match link.kind {
        FindingKind::Leaks => format!("held out too, as {other}"),
        FindingKind::NearLeaks => format!("similarity about {:.2} with {other}, which is held out", similarity()),
        FindingKind::NearDuplicates => format!("similarity about {:.2} with {other}", similarity()),
        FindingKind::DuplicateInstructions => format!("asked in {other} too"),
        FindingKind::Conflicts => format!("answered otherwise in {other}"),
        _ => format!("the same as {other}"),
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
