//! Data files: which there are, and what stands in them, row by row.
//!
//! ```text
//! paths, globs, folders ─ files ─▶ Sources ─ open (decompression) ─┬ lines    JSONL
//!                                                                  ├ json     one array
//!                                                                  └ table    Parquet
//!                                                                       ╰─▶ RawRow, read on by `columns`
//! ```
//!
//! Everything is read as a stream: a row is in memory, and of Parquet a page of each column, never a file.

mod files;
mod json;
mod lines;
mod open;
mod table;

use serde_json::Value;

use crate::error::{DataError, Fault};

pub(crate) use files::Compression;
pub use files::{DataFile, Format, Sources};

/// Longest row that is read, in bytes, decompressed.
pub(crate) const ROW_LIMIT: usize = 64 << 20;

/// Bytes of rows that are read before they are shared out to threads; with what becomes of them, all that is in memory of a
/// data set at a time.
const CHUNK: usize = 8 << 20;
/// Rows of these at most: of a row of a few bytes some hundreds are in memory.
const CHUNK_ROWS: usize = 1 << 16;

/// A row as it stands in its file.
#[derive(Debug)]
pub(crate) struct RawRow {
    /// Which of the sources' files.
    pub(crate) file: usize,
    /// Which row of it: a line from 1, an element of an array or a row of a table from 0.
    pub(crate) number: u64,
    pub(crate) content: RawContent,
}

/// Text still to be parsed (which threads do side by side), or a value.
#[derive(Debug, Clone)]
pub(crate) enum RawContent {
    Json(Vec<u8>),
    Value(Value),
}

impl RawContent {
    /// Bytes that it takes, about.
    pub(crate) fn size(&self) -> usize {
        match self {
            RawContent::Json(text) => text.len(),
            RawContent::Value(value) => size_of_value(value),
        }
    }
}

fn size_of_value(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 32,
        Value::Array(entries) => entries.iter().map(size_of_value).sum::<usize>() + 32,
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + 64 + size_of_value(value)).sum(),
        _ => 32,
    }
}

/// What reads one file.
trait ReadRows {
    /// The next row and its number; a fault has the number of the row that it stands at.
    fn next_row(&mut self) -> Result<Option<(u64, RawContent)>, (u64, Fault)>;

    /// How its rows are counted.
    fn unit(&self) -> Unit;

    /// The row group that a row lies in, where the file has such.
    fn group_of(&self, _number: u64) -> Option<usize> {
        None
    }
}

/// How the rows of a file are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// Lines, from 1.
    Line,
    /// Elements of an array, from 0.
    Element,
    /// Rows of a table, from 0.
    Row,
}

impl Unit {
    /// The place of a row, to stand before a message.
    pub(crate) fn place(self, path: &str, number: u64) -> String {
        match self {
            Unit::Line => format!("{path}:{number}"),
            Unit::Element => format!("{path}[{number}]"),
            Unit::Row => format!("{path}: row {number}"),
        }
    }

    /// The place of a row, to stand within a sentence.
    pub(crate) fn words(self, path: &str, number: u64) -> String {
        match self {
            Unit::Line => format!("line {number} of {path}"),
            Unit::Element => format!("element {number} of {path}"),
            Unit::Row => format!("row {number} of {path}"),
        }
    }
}

/// Some rows in their order.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) rows: Vec<RawRow>,
    /// What stands behind them, where that cannot be read. To be told after what is wrong with them, so that of several
    /// faults the first in the files is told.
    pub(crate) error: Option<DataError>,
    /// Nothing follows.
    pub(crate) ended: bool,
}

/// All rows of all files, one after another. The first error ends the iteration.
pub(crate) struct RawRows<'a> {
    sources: &'a Sources,
    file: usize,
    reader: Option<Box<dyn ReadRows>>,
    /// How each file that was opened so far counts its rows.
    units: Vec<Unit>,
    ended: bool,
}

impl<'a> RawRows<'a> {
    pub(crate) fn new(sources: &'a Sources) -> RawRows<'a> {
        RawRows { sources, file: 0, reader: None, units: Vec::new(), ended: false }
    }

    /// How each file that was opened so far counts its rows.
    pub(crate) fn units(&self) -> &[Unit] {
        &self.units
    }

    /// A fault in a row that was read, with its place.
    pub(crate) fn fault(&self, file: usize, number: u64, fault: Fault) -> DataError {
        let unit = self.units.get(file).copied().unwrap_or(Unit::Line);
        let path = self.sources.files()[file].shown();
        let mut place = unit.place(&path, number);
        if let (Unit::Line, Some(column)) = (unit, fault.column) {
            place = format!("{place}:{column}");
        }
        let group = self.reader.as_ref().filter(|_| file == self.file).and_then(|reader| reader.group_of(number));
        if let Some(group) = group {
            place = format!("{place} (row group {group})");
        }
        DataError::row(place, fault)
    }

    /// The next rows, to be worked on side by side.
    pub(crate) fn chunk(&mut self) -> Chunk {
        let (mut chunk, mut size) = (Chunk::default(), 0);
        while !chunk.ended && size < CHUNK && chunk.rows.len() < CHUNK_ROWS {
            match self.next() {
                Some(Ok(row)) => {
                    size += row.content.size();
                    chunk.rows.push(row);
                }
                Some(Err(error)) => (chunk.error, chunk.ended) = (Some(error), true),
                None => chunk.ended = true,
            }
        }
        chunk
    }

    /// Goes on after an error, with the next file.
    pub(crate) fn skip_file(&mut self) {
        self.reader = None;
        self.file += 1;
        self.ended = false;
        // One that could not be opened does not tell.
        self.units.resize(self.file.max(self.units.len()), Unit::Line);
    }

    fn advance(&mut self) -> Result<Option<RawRow>, DataError> {
        loop {
            let Some(file) = self.sources.files().get(self.file) else {
                return Ok(None);
            };
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => {
                    let reader = open::open(file)?;
                    self.units.push(reader.unit());
                    self.reader.insert(reader)
                }
            };
            match reader.next_row() {
                Ok(Some((number, content))) => return Ok(Some(RawRow { file: self.file, number, content })),
                Ok(None) => {
                    self.reader = None;
                    self.file += 1;
                }
                Err((number, fault)) => return Err(self.fault(self.file, number, fault)),
            }
        }
    }
}

impl Iterator for RawRows<'_> {
    type Item = Result<RawRow, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.advance().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
