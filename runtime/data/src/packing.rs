//! Documents end to end: which rows, or pieces of rows, share a pack. Pure: what packs are depends on the data set alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::dataset::{IGNORED, TokenizedDataset};
use crate::error::DataError;

/// How rows are put into packs; the names are TRL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackingStrategy {
    /// Best fit decreasing: the longest rows first, each into the fullest pack that has room for it. Rows stay whole.
    Bfd,
    /// The same, once rows longer than a pack are cut into pieces.
    BfdSplit,
    /// All rows one after the other, cut wherever a pack is full.
    Wrapped,
}

impl PackingStrategy {
    /// TRL's name.
    pub fn name(self) -> &'static str {
        match self {
            PackingStrategy::Bfd => "bfd",
            PackingStrategy::BfdSplit => "bfd_split",
            PackingStrategy::Wrapped => "wrapped",
        }
    }

    /// Whether rows may be longer than a pack, because they are cut into pieces here.
    pub fn cuts_rows(self) -> bool {
        self != PackingStrategy::Bfd
    }
}

/// What packs are made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packing {
    /// How.
    pub strategy: PackingStrategy,
    /// Tokens of a pack at most.
    pub max_length: u32,
}

/// Tokens `first..first + length` of a row: a document of its own to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The row of the data set.
    pub row: u32,
    /// Its first token in the row.
    pub first: u32,
    /// How many tokens, at least 1.
    pub length: u32,
}

impl Piece {
    /// Ids and labels.
    ///
    /// # Panics
    /// When the data set has no such row, as a slice does.
    pub fn of(self, dataset: &TokenizedDataset) -> (&[u32], &[i32]) {
        let (ids, labels) = dataset.row(self.row as usize);
        let range = self.first as usize..(self.first + self.length) as usize;
        (&ids[range.clone()], &labels[range])
    }
}

/// The packs of a data set, in the order in which they were begun.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packs {
    /// All packs' pieces end to end.
    pieces: Vec<Piece>,
    /// Pack `i` is `ends[i - 1]..ends[i]`, the first one from 0 on.
    ends: Vec<usize>,
    /// How many packs are of each source, one source after the other.
    sources: Vec<usize>,
    /// Packs that were left out, because nothing in them is supervised.
    left_out: usize,
}

impl Packs {
    /// Packs the rows of `dataset`, each of which has supervised tokens; a pack has rows of one source. A pack in which none is
    /// supervised, as the middle of a long prompt may be, is left out.
    ///
    /// # Errors
    /// [`DataError::Plan`] for packs of no tokens, when nothing in any pack is supervised, and for rows or tokens of a row
    /// beyond 2³² − 1.
    pub fn new(dataset: &TokenizedDataset, packing: Packing) -> Result<Packs, DataError> {
        let max_length = packing.max_length;
        if max_length == 0 {
            let hint = "give a positive max_length".to_owned();
            return Err(DataError::Plan { message: "packs of 0 tokens".to_owned(), hint });
        }
        let mut rows = Vec::with_capacity(dataset.rows());
        for (row, ends) in dataset.offsets.windows(2).enumerate() {
            let (Ok(row), Ok(length)) = (u32::try_from(row), u32::try_from(ends[1] - ends[0])) else {
                let message = format!("row {row} of {} tokens cannot be packed", ends[1] - ends[0]);
                let hint = "there may be 4294967295 rows of as many tokens".to_owned();
                return Err(DataError::Plan { message, hint });
            };
            rows.push(Piece { row, first: 0, length });
        }
        let mut packs = Packs::default();
        for count in dataset.sources() {
            let later = rows.split_off(count.min(rows.len()));
            let mut of_source = pack(std::mem::replace(&mut rows, later), packing);
            of_source.keep(|pieces| pieces.iter().any(|&piece| is_supervised(dataset, piece)));
            packs.append(of_source);
        }
        if packs.count() == 0 {
            let message = format!("nothing in {} packs of {max_length} tokens is supervised", packs.left_out);
            let hint = "each answer is cut right behind its prompt: raise max_length".to_owned();
            return Err(DataError::Plan { message, hint });
        }
        Ok(packs)
    }

    /// Number of packs.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// How many packs are of each source, one source after the other.
    pub fn sources(&self) -> &[usize] {
        &self.sources
    }

    /// Packs that were left out, because nothing in them is supervised.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The pieces of pack `index`.
    ///
    /// # Panics
    /// When there is no such pack, as a slice does.
    pub fn pieces(&self, index: usize) -> &[Piece] {
        let begin = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.pieces[begin..self.ends[index]]
    }

    /// Documents of all packs.
    pub fn documents(&self) -> usize {
        self.pieces.len()
    }

    /// Tokens of all packs.
    pub fn tokens(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.length)).sum()
    }

    /// Adds the packs of another source.
    fn append(&mut self, of_source: Packs) {
        let before = self.pieces.len();
        self.pieces.extend(of_source.pieces);
        self.ends.extend(of_source.ends.iter().map(|end| before + end));
        self.sources.push(of_source.ends.len());
        self.left_out += of_source.left_out;
    }

    /// Leaves out the packs that are not `wanted`.
    fn keep(&mut self, wanted: impl Fn(&[Piece]) -> bool) {
        let kept: Vec<bool> = (0..self.count()).map(|pack| wanted(self.pieces(pack))).collect();
        self.left_out = kept.iter().filter(|kept| !**kept).count();
        if self.left_out == 0 {
            return;
        }
        let (mut pieces, mut ends) = (Vec::new(), Vec::new());
        for pack in (0..self.count()).filter(|&pack| kept[pack]) {
            pieces.extend_from_slice(self.pieces(pack));
            ends.push(pieces.len());
        }
        (self.pieces, self.ends) = (pieces, ends);
    }
}

/// The packs of rows of one source.
fn pack(mut rows: Vec<Piece>, Packing { strategy, max_length }: Packing) -> Packs {
    match strategy {
        PackingStrategy::Bfd => {
            rows.iter_mut().for_each(|row| row.length = row.length.min(max_length));
            best_fit_decreasing(rows, max_length)
        }
        PackingStrategy::BfdSplit => {
            best_fit_decreasing(rows.into_iter().flat_map(|row| split(row, max_length)).collect(), max_length)
        }
        PackingStrategy::Wrapped => wrapped(&rows, max_length),
    }
}

/// Whether something of a piece is learned: of a whole row always; of a part, whose first token nothing predicts, if a label
/// says so.
fn is_supervised(dataset: &TokenizedDataset, piece: Piece) -> bool {
    let whole = dataset.row(piece.row as usize).0.len() == piece.length as usize;
    whole || piece.of(dataset).1.iter().skip(1).any(|&label| label != IGNORED)
}

/// A row in pieces of at most `most` tokens, all but the last of so many.
fn split(row: Piece, most: u32) -> impl Iterator<Item = Piece> {
    let starts = (0..row.length).step_by(most as usize);
    starts.map(move |first| Piece { first, length: most.min(row.length - first), ..row })
}

/// The longest first, of equally long ones the first; each into the pack with the least room that is enough, of equally full
/// ones into the first that became so. As TRL's, which packs 1000 rows at a time.
fn best_fit_decreasing(mut pieces: Vec<Piece>, room: u32) -> Packs {
    pieces.sort_by_key(|piece| Reverse(piece.length));
    // Packs by the room that is left in them.
    let mut open: BTreeMap<u32, VecDeque<usize>> = BTreeMap::new();
    let mut counts: Vec<usize> = Vec::new();
    let mut pack_of = Vec::with_capacity(pieces.len());
    for piece in &pieces {
        let best = open.range(piece.length..).next().map(|(&left, _)| left);
        let (pack, left) = match best.and_then(|left| Some((open.get_mut(&left)?.pop_front()?, left))) {
            Some((pack, left)) => {
                if open.get(&left).is_some_and(VecDeque::is_empty) {
                    open.remove(&left);
                }
                (pack, left)
            }
            None => {
                counts.push(0);
                (counts.len() - 1, room)
            }
        };
        counts[pack] += 1;
        pack_of.push(pack);
        if left > piece.length {
            open.entry(left - piece.length).or_default().push_back(pack);
        }
    }
    gathered(&pieces, &pack_of, &counts)
}

/// Pieces sorted by the packs that they belong to, in each pack in the order given.
fn gathered(pieces: &[Piece], pack_of: &[usize], counts: &[usize]) -> Packs {
    let mut next: Vec<usize> = Vec::with_capacity(counts.len());
    let mut ends = Vec::with_capacity(counts.len());
    let mut end = 0;
    for count in counts {
        next.push(end);
        end += count;
        ends.push(end);
    }
    let mut sorted = vec![Piece { row: 0, first: 0, length: 0 }; pieces.len()];
    for (&piece, &pack) in pieces.iter().zip(pack_of) {
        sorted[next[pack]] = piece;
        next[pack] += 1;
    }
    Packs { pieces: sorted, ends, ..Packs::default() }
}

/// All rows end to end, cut after every `room` tokens; the last pack may be short.
fn wrapped(rows: &[Piece], room: u32) -> Packs {
    let mut packs = Packs { pieces: Vec::with_capacity(rows.len()), ..Packs::default() };
    let mut left = room;
    for row in rows {
        let mut first = 0;
        while first < row.length {
            let length = left.min(row.length - first);
            packs.pieces.push(Piece { first, length, ..*row });
            first += length;
            left -= length;
            if left == 0 {
                packs.ends.push(packs.pieces.len());
                left = room;
            }
        }
    }
    if left < room {
        packs.ends.push(packs.pieces.len());
    }
    packs
}

#[cfg(test)]
#[path = "packing_tests.rs"]
mod tests;
