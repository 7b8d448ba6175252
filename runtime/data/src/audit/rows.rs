//! What is kept of each row: hashes, never texts.

use super::kind::{FindingKind, Kinds};
use super::said::{Identity, NONE};
use super::sketch::Sketch;
use crate::error::DataError;
use crate::source::Unit;

/// The rows of the training data and, behind them, those of the held-out data; each has an index.
#[derive(Default)]
pub(super) struct Rows {
    /// Which row of its file each is.
    numbers: Vec<u64>,
    /// [`NONE`] for a row that could not be read, and so with what follows.
    contents: Vec<u128>,
    instructions: Vec<u128>,
    answers: Vec<u64>,
    sketches: Vec<Sketch>,
    marks: Vec<Kinds>,
    /// The files, each with the index of its first row.
    files: Vec<(u32, String, Unit)>,
    held_out_from: Option<u32>,
}

impl Rows {
    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.numbers.len() as u32
    }

    /// The rows that follow are of this file.
    pub(super) fn begin_file(&mut self, path: String, unit: Unit) {
        self.files.push((self.count(), path, unit));
    }

    /// The rows that follow are held out.
    pub(super) fn begin_held_out(&mut self) {
        self.held_out_from = Some(self.count());
    }

    /// The index of the first row that is held out.
    pub(super) fn held_out_from(&self) -> u32 {
        self.held_out_from.unwrap_or(self.count())
    }

    /// Adds a row; none for one that cannot be read.
    ///
    /// # Errors
    /// There are more rows than are counted here.
    pub(super) fn push(&mut self, number: u64, identity: Option<Identity>) -> Result<(), DataError> {
        if self.numbers.len() >= u32::MAX as usize {
            let message = format!("there are more than {} rows", u32::MAX);
            return Err(DataError::Plan { message, hint: "check the files one by one".into() });
        }
        let nothing = Identity { content: NONE, instruction: NONE, answer: 0, sketch: Sketch::NONE };
        let identity = identity.unwrap_or(nothing);
        self.numbers.push(number);
        self.contents.push(identity.content);
        self.instructions.push(identity.instruction);
        self.answers.push(identity.answer);
        self.sketches.push(identity.sketch);
        self.marks.push(Kinds::default());
        Ok(())
    }

    pub(super) fn contents(&self) -> &[u128] {
        &self.contents
    }

    pub(super) fn instructions(&self) -> &[u128] {
        &self.instructions
    }

    pub(super) fn answer(&self, row: u32) -> u64 {
        self.answers[row as usize]
    }

    pub(super) fn sketch(&self, row: u32) -> &Sketch {
        &self.sketches[row as usize]
    }

    pub(super) fn mark(&mut self, row: u32, kind: FindingKind) {
        self.marks[row as usize].add(kind);
    }

    pub(super) fn marks(&self, row: u32) -> Kinds {
        self.marks[row as usize]
    }

    /// Of the training rows; all else is let go.
    pub(super) fn into_training_marks(mut self) -> Vec<Kinds> {
        self.marks.truncate(self.held_out_from() as usize);
        self.marks
    }

    /// Where a row stands, as it is named before a message.
    pub(super) fn place(&self, row: u32) -> String {
        let after = self.files.partition_point(|(first, ..)| *first <= row);
        match after.checked_sub(1).map(|file| &self.files[file]) {
            Some((_, path, unit)) => unit.place(path, self.numbers[row as usize]),
            None => format!("row {row}"),
        }
    }
}
