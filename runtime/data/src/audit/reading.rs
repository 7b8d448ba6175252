//! All rows of a data set, one after another: what is told of each by itself, and what is kept of it to compare it.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::filter;
use super::kind::FindingKind;
use super::lengths::{LengthUnit, Lengths, Truncation};
use super::report::{DataAudit, Tally};
use super::rows::Rows;
use super::said::{Identity, Words};
use crate::dataset::{IGNORED, supervised};
use crate::encode::Encoder;
use crate::error::{DataError, Fault};
use crate::prepare::{self, Prepare, SHARE};
use crate::report::{Loss, RowKind};
use crate::rows::{Expected, Row, no_row, parse_object};
use crate::source::{RawRow, RawRows};

/// What is known from the first row on that can be read.
struct Known<'a> {
    expected: Expected,
    /// With a model only.
    encoder: Option<Encoder<'a>>,
    /// Its rows are tokens already.
    tokens: bool,
    /// Its rows answer something.
    answers: bool,
    /// Its rows have roles.
    roles: bool,
    /// Its rows say which tokens are learned.
    labels: bool,
}

impl<'a> Known<'a> {
    /// By the first row; `labels` is whether it has some.
    fn of(
        (options, with_model): (&'a Prepare<'a>, bool),
        (row, labels): (&Row, bool),
        expected: Expected,
    ) -> Result<Known<'a>, DataError> {
        let encoder = with_model.then(|| Encoder::new(options, row)).transpose()?;
        let tokens = matches!(row, Row::Tokens { .. });
        let roles = matches!(row, Row::Conversation(_) | Row::Exchange { .. });
        Ok(Known { expected, encoder, tokens, answers: !tokens && !matches!(row, Row::Text(_)), roles, labels })
    }

    fn has_tokens(&self) -> bool {
        self.tokens || self.encoder.is_some()
    }

    fn kind(&self) -> Option<RowKind> {
        self.encoder.as_ref().map(Encoder::kind).or(self.tokens.then_some(RowKind::Tokens))
    }

    fn loss(&self) -> Option<Loss> {
        self.encoder.as_ref().map(Encoder::loss).or(self.tokens.then_some(Loss::Labels))
    }

    /// Whether rows are looked at for this.
    fn checks(&self, kind: FindingKind, held_out: bool) -> bool {
        let told = match kind {
            FindingKind::AllSupervised => match self.loss() {
                Some(Loss::All | Loss::Classes) => false,
                Some(Loss::Labels) => self.labels,
                _ => true,
            },
            // Where an answer ends is known of the spans of the assistant's messages alone.
            FindingKind::Unended => matches!(self.loss(), Some(Loss::Assistant | Loss::AssistantOfCompletion)),
            // What all rows begin with, as a system message, cannot be told from the rest of their tokens.
            FindingKind::NearDuplicates | FindingKind::NearLeaks | FindingKind::Empty => !self.tokens,
            FindingKind::RoleOrder => self.roles,
            _ => true,
        };
        told && (!kind.needs_model() || self.encoder.is_some())
            && (!kind.needs_tokens() || self.has_tokens())
            && (!kind.needs_answers() || self.answers)
            && (!kind.needs_held_out() || held_out)
    }
}

/// The tokens of a row, whole.
struct Tokens {
    ids: Vec<u32>,
    labels: Vec<i32>,
    /// Each answer ends.
    ended: bool,
    /// What a classifier tells.
    told: Option<String>,
}

/// A row that could be read.
struct Seen {
    identity: Identity,
    words: u32,
    tokens: Option<Tokens>,
    findings: Vec<(FindingKind, String)>,
}

/// What is gathered over the rows of a data set.
pub(super) struct Reading<'a> {
    options: &'a Prepare<'a>,
    with_model: bool,
    known: Option<Known<'a>>,
    /// Files whose rows have begun.
    files: usize,
    /// Rows, and faults in place of rows.
    count: u64,
    lengths: Vec<u32>,
    truncation: Truncation,
    supervised: u64,
    /// Columns that nothing is made of.
    unused: BTreeSet<String>,
    /// Ids and labels of the first row from which something is learned, and what a classifier tells of it.
    first: Option<(Vec<u32>, Vec<i32>, Option<String>)>,
    pub(super) tally: Tally,
}

/// Reads a data set whose rows are added to `rows`. `options` are without a limit of length, which is `max_length`.
///
/// # Errors
/// A data set without rows; a model that is asked for and cannot be used. What is wrong with rows or files is told in the
/// findings.
pub(super) fn read<'a>(
    options: &'a Prepare<'a>,
    max_length: u32,
    with_model: bool,
    rows: &mut Rows,
) -> Result<Reading<'a>, DataError> {
    let mut reading = Reading {
        options,
        with_model,
        known: None,
        files: 0,
        count: 0,
        lengths: Vec::new(),
        truncation: Truncation { max_length, rows: 0, tokens: 0, supervised_tokens: 0 },
        supervised: 0,
        unused: BTreeSet::new(),
        first: None,
        tally: Tally::default(),
    };
    let mut raw = RawRows::new(options.sources);
    loop {
        let chunk = raw.chunk();
        reading.add(chunk.rows, &raw, rows)?;
        match chunk.error {
            Some(error) => {
                reading.count += 1;
                reading.unreadable(&error);
                raw.skip_file();
            }
            None if chunk.ended => break,
            None => {}
        }
    }
    if reading.count == 0 {
        return Err(no_row(options.sources));
    }
    Ok(reading)
}

impl Reading<'_> {
    /// Examines a chunk of rows, side by side, and adds them up in order.
    fn add(&mut self, chunk: Vec<RawRow>, raw: &RawRows<'_>, rows: &mut Rows) -> Result<(), DataError> {
        if self.known.is_none() {
            self.look_at_first(&chunk, raw)?;
        }
        let (columns, known, max_length) = (self.options.columns, &self.known, self.truncation.max_length);
        let mut chunk: Vec<Option<RawRow>> = chunk.into_iter().map(Some).collect();
        let shares = chunk.par_chunks_mut(SHARE).map(|share| {
            let mut unused = BTreeSet::new();
            let examined = share.iter_mut().filter_map(Option::take).map(|row| {
                let (file, number) = (row.file, row.number);
                let seen = parse_object(row.content).and_then(|mut object| {
                    let shape = columns.shape(&object)?;
                    known.iter().try_for_each(|known| known.expected.check(shape))?;
                    let row = columns.parse(shape, &mut object)?;
                    columns.note_unused(shape, &object, &mut unused);
                    Ok((row, shape.columns()[0]))
                });
                (file, number, seen.map(|row| see(row, known.as_ref(), max_length)))
            });
            let examined = examined.collect::<Vec<_>>();
            (examined, unused)
        });
        let (examined, unused): (Vec<_>, Vec<_>) = shares.unzip();
        self.unused.extend(unused.into_iter().flatten());
        for (file, number, seen) in examined.into_iter().flatten() {
            while self.files <= file {
                let path = self.options.sources.files()[self.files].shown();
                rows.begin_file(path, raw.units()[self.files]);
                self.files += 1;
            }
            self.count += 1;
            match seen {
                Ok(seen) => self.keep(number, seen, rows)?,
                Err(fault) => {
                    rows.push(number, None)?;
                    rows.mark(rows.count() - 1, FindingKind::Unreadable);
                    self.unreadable(&raw.fault(file, number, fault));
                }
            }
        }
        Ok(())
    }

    /// Learns from the first row that can be read what all should be.
    fn look_at_first(&mut self, chunk: &[RawRow], raw: &RawRows<'_>) -> Result<(), DataError> {
        let columns = self.options.columns;
        let readable = chunk.iter().find_map(|row| Some((row, prepare::read(columns, row).ok()?)));
        if let Some((first, (shape, row))) = readable {
            let file = self.options.sources.files()[first.file].shown();
            let place = raw.units()[first.file].words(&file, first.number);
            let labels = parse_object(first.content.clone()).is_ok_and(|object| columns.has_labels(&object));
            let options = (self.options, self.with_model);
            self.known = Some(Known::of(options, (&row, labels), Expected { shape, place })?);
        }
        Ok(())
    }

    fn unreadable(&mut self, error: &DataError) {
        let (place, reason) = match error {
            DataError::Row { place, message, .. } => (place.clone(), message.clone()),
            DataError::Dataset { path, message, .. } => (path.display().to_string(), message.clone()),
            DataError::Io { path, action, source } => {
                (path.display().to_string(), format!("cannot {action}: {source}"))
            }
            other => (self.options.sources.written().to_owned(), other.to_string()),
        };
        self.tally.add(FindingKind::Unreadable, || place, || reason);
    }

    fn keep(&mut self, number: u64, seen: Seen, rows: &mut Rows) -> Result<(), DataError> {
        rows.push(number, Some(seen.identity))?;
        let row = rows.count() - 1;
        for (kind, reason) in seen.findings {
            rows.mark(row, kind);
            self.tally.add(kind, || rows.place(row), || reason);
        }
        let has_tokens = self.known.as_ref().is_some_and(Known::has_tokens);
        match seen.tokens {
            None if has_tokens => {}
            None => self.lengths.push(seen.words),
            Some(Tokens { mut ids, mut labels, told, .. }) => {
                self.lengths.push(u32::try_from(ids.len()).unwrap_or(u32::MAX));
                let (whole, limit) = (supervised(&labels), self.truncation.max_length as usize);
                if ids.len() > limit {
                    self.truncation.rows += 1;
                    self.truncation.tokens += (ids.len() - limit) as u64;
                    ids.truncate(limit);
                    labels.truncate(limit);
                }
                let learned = supervised(&labels);
                self.truncation.supervised_tokens += (whole - learned) as u64;
                self.supervised += learned as u64;
                if learned > 0 || told.is_some() {
                    self.first.get_or_insert((ids, labels, told));
                }
            }
        }
        Ok(())
    }

    /// The audit of this data set, whose rows without a finding are counted.
    pub(super) fn finish(self, held_out: bool, rows_without_finding: u64) -> Result<DataAudit, DataError> {
        let known = self.known.as_ref();
        let checks = |kind: &FindingKind| match known {
            Some(known) => known.checks(*kind, held_out),
            None => *kind == FindingKind::Unreadable,
        };
        let (checked, not_checked) = FindingKind::ALL.into_iter().partition::<Vec<_>, _>(checks);
        let tokens = known.is_some_and(Known::has_tokens);
        let tokenizer = known.and_then(|known| known.encoder.as_ref()?.tokenizer.as_ref());
        let example =
            self.first.as_ref().map(|(ids, labels, told)| prepare::example(ids, labels, told.as_deref(), tokenizer));
        let example = example.transpose()?;
        Ok(DataAudit {
            source: self.options.sources.written().to_owned(),
            files: self.options.sources.files().len(),
            rows: self.count,
            rows_without_finding,
            unused_columns: self.unused.into_iter().collect(),
            kind: known.and_then(Known::kind),
            loss: known.and_then(Known::loss),
            lengths: Lengths::of(if tokens { LengthUnit::Tokens } else { LengthUnit::Words }, self.lengths),
            truncation: tokens.then_some(self.truncation).filter(|cut| cut.max_length < u32::MAX),
            supervised_tokens: tokens.then_some(self.supervised),
            findings: self.tally.into_findings(&checked),
            not_checked,
            example: example.unwrap_or_default(),
        })
    }
}

/// What is told of a row by itself, which begins in this column.
fn see((row, column): (Row, &str), known: Option<&Known<'_>>, max_length: u32) -> Seen {
    let words = Words::of(&row);
    let identity = Identity::of(&row, &words);
    let mut findings = filter::findings(&row, &words, column);
    let words = u32::try_from(words.all.len()).unwrap_or(u32::MAX);
    let tokens = match (known.and_then(|known| known.encoder.as_ref()), row) {
        (Some(encoder), row) => match encoder.encode(row) {
            Ok(mut row) => {
                let told = encoder.told(&row);
                if row.classified.is_some() {
                    // What is told is never cut off, wherever it stands, and is no token.
                    row.labels.fill(IGNORED);
                }
                Some(Tokens { ids: row.ids, labels: row.labels, ended: row.ended, told })
            }
            Err(Fault { message, .. }) => {
                findings.push((FindingKind::Refused, message));
                None
            }
        },
        (None, Row::Tokens { input_ids, labels }) => Some(Tokens { ids: input_ids, labels, ended: true, told: None }),
        (None, _) => None,
    };
    if let Some(tokens) = &tokens {
        let all_is_wrong = known.is_some_and(|known| known.checks(FindingKind::AllSupervised, false));
        findings.extend(of_tokens(tokens, max_length, all_is_wrong));
    }
    Seen { identity, words, tokens, findings }
}

fn of_tokens(tokens: &Tokens, max_length: u32, all_is_wrong: bool) -> Vec<(FindingKind, String)> {
    let mut findings = Vec::new();
    let length = tokens.ids.len();
    let kept = &tokens.labels[..length.min(max_length as usize)];
    let learned = supervised(kept);
    if !tokens.ended {
        let reason = "an answer ends without an end-of-turn token that is learned".to_owned();
        findings.push((FindingKind::Unended, reason));
    }
    if learned == 0 && tokens.told.is_none() {
        let reason = match supervised(&tokens.labels) {
            0 => "no token is supervised".to_owned(),
            all => format!("all {all} supervised tokens are behind max_length"),
        };
        findings.push((FindingKind::Unsupervised, reason));
    } else if all_is_wrong && kept.len() > 1 && kept.iter().all(|label| *label != IGNORED) {
        findings.push((FindingKind::AllSupervised, format!("all {} tokens are supervised", kept.len())));
    }
    if length > kept.len() {
        findings.push((FindingKind::Truncated, format!("{length} tokens")));
    }
    findings
}
