//! How rows come together in a micro-batch: side by side, or end to end; as they are, or packed before.

use std::ops::Range;
use std::sync::Arc;

use crate::batch::Batch;
use crate::dataset::TokenizedDataset;
use crate::error::DataError;
use crate::packing::{Packing, Packs, Piece};
use crate::sampling::{Items, Sampling};

/// How micro-batches are made of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batching {
    /// Rows side by side, padded to the longest.
    Padded,
    /// Rows end to end, without padding.
    PaddingFree,
    /// Rows are packed first; packs are put end to end, without padding.
    Packed(Packing),
}

/// Makes micro-batches of a data set. What a [`crate::StepPlan`] counts and orders are *items*: rows, or packs of rows.
#[derive(Debug)]
pub struct Collator {
    batching: Batching,
    packs: Option<Packs>,
    rows: usize,
}

impl Collator {
    /// For `dataset`, whose rows are packed here if they are to be.
    ///
    /// # Errors
    /// As [`Packs::new`].
    pub fn new(dataset: &TokenizedDataset, batching: Batching) -> Result<Collator, DataError> {
        let packs = match batching {
            Batching::Packed(packing) => Some(Packs::new(dataset, packing)?),
            Batching::Padded | Batching::PaddingFree => None,
        };
        Ok(Collator { batching, packs, rows: dataset.rows() })
    }

    /// The packs, where rows are packed.
    pub fn packs(&self) -> Option<&Packs> {
        self.packs.as_ref()
    }

    /// Number of items.
    pub fn count(&self) -> usize {
        self.packs.as_ref().map_or(self.rows, Packs::count)
    }

    /// The items of `dataset`, in an order by `sampling`.
    pub fn items(&self, dataset: &TokenizedDataset, sampling: Sampling) -> Items {
        let packing = match self.batching {
            Batching::Packed(packing) => Some(packing),
            Batching::Padded | Batching::PaddingFree => None,
        };
        let lengths = (sampling == Sampling::GroupByLength).then(|| self.lengths(dataset));
        let sources = self.packs.as_ref().map_or_else(|| dataset.sources(), |packs| packs.sources().to_vec());
        Items { count: self.count(), lengths, packing, sources }
    }

    fn lengths(&self, dataset: &TokenizedDataset) -> Arc<[u32]> {
        match &self.packs {
            Some(packs) => {
                (0..packs.count()).map(|pack| packs.pieces(pack).iter().map(|piece| piece.length).sum()).collect()
            }
            None => dataset.offsets.windows(2).map(|ends| (ends[1] - ends[0]) as u32).collect(),
        }
    }

    /// The items and the tokens of each source.
    pub fn by_source(&self, dataset: &TokenizedDataset) -> Vec<(usize, u64)> {
        let counts = self.packs.as_ref().map_or_else(|| dataset.sources(), |packs| packs.sources().to_vec());
        let mut first = 0;
        let tokens = |range: Range<usize>| match &self.packs {
            Some(packs) => range.flat_map(|pack| packs.pieces(pack)).map(|piece| u64::from(piece.length)).sum(),
            None => dataset.offsets[range.end] - dataset.offsets[range.start],
        };
        let of_source = |count: usize| {
            first += count;
            (count, tokens(first - count..first))
        };
        counts.into_iter().map(of_source).collect()
    }

    /// The pieces of `items`, one after the other; a row is one.
    ///
    /// # Panics
    /// When there is no such item, as a slice does.
    pub fn pieces(&self, dataset: &TokenizedDataset, items: &[u32]) -> Vec<Piece> {
        match &self.packs {
            Some(packs) => items.iter().flat_map(|&pack| packs.pieces(pack as usize)).copied().collect(),
            None => {
                let length = |row: u32| dataset.row(row as usize).0.len() as u32;
                items.iter().map(|&row| Piece { row, first: 0, length: length(row) }).collect()
            }
        }
    }

    /// The rows that a micro-batch of these pieces has, and their length: one row, or those of the pieces padded to the
    /// longest.
    pub fn shape(&self, pieces: &[Piece]) -> (usize, usize) {
        let lengths = pieces.iter().map(|piece| piece.length as usize);
        match self.batching {
            Batching::Padded => (pieces.len(), lengths.max().unwrap_or(1)),
            Batching::PaddingFree | Batching::Packed(_) => (1, lengths.sum()),
        }
    }

    /// The micro-batch of `items`, padded with `pad_id` where it is; of no items (the short end of an epoch) one pad token with
    /// nothing supervised.
    ///
    /// # Errors
    /// An item that there is not.
    pub fn collate(&self, dataset: &TokenizedDataset, items: &[u32], pad_id: u32) -> Result<Batch, DataError> {
        if let Some(item) = items.iter().find(|&&item| item as usize >= self.count()) {
            let what = if self.packs.is_some() { "pack" } else { "row" };
            return Err(DataError::Plan {
                message: format!("{what} {item} of a data set of {} {what}s was asked for", self.count()),
                hint: "the step plan was made for another data set; prepare the data again".into(),
            });
        }
        match self.batching {
            Batching::Padded => Batch::collate(dataset, items, pad_id),
            Batching::PaddingFree | Batching::Packed(_) => {
                Ok(Batch::flatten(dataset, &self.pieces(dataset, items), pad_id))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packing::PackingStrategy;

    fn dataset() -> TokenizedDataset {
        let mut dataset = TokenizedDataset::new();
        dataset.push(1, &[5, 6, 7], &[5, 6, 7]);
        dataset.push(2, &[8, 9], &[8, 9]);
        dataset.push(3, &[1, 2, 3, 4], &[-100, 2, -100, 4]);
        dataset
    }

    #[test]
    fn items_are_rows_or_packs() {
        let dataset = dataset();
        let packing = Packing { strategy: PackingStrategy::Bfd, max_length: 6 };
        let table = [
            (Batching::Padded, vec![3, 2, 4], (3, 4)),
            (Batching::PaddingFree, vec![3, 2, 4], (1, 9)),
            // 4 and 2, then 3.
            (Batching::Packed(packing), vec![6, 3], (1, 9)),
        ];
        for (batching, lengths, shape) in table {
            let collator = Collator::new(&dataset, batching).unwrap();
            let found = collator.items(&dataset, Sampling::GroupByLength);
            assert_eq!((found.count, found.lengths.as_deref()), (lengths.len(), Some(lengths.as_slice())));
            assert_eq!(collator.items(&dataset, Sampling::Random).lengths, None);
            let items: Vec<u32> = (0..lengths.len() as u32).collect();
            assert_eq!(collator.shape(&collator.pieces(&dataset, &items)), shape, "{batching:?}");
            let batch = collator.collate(&dataset, &items, 0).unwrap();
            assert_eq!((batch.rows, batch.length), shape, "{batching:?}");
            assert_eq!((batch.tokens, batch.supervised), (9, dataset.supervised_tokens()), "{batching:?}");
            assert_eq!(collator.by_source(&dataset), [(lengths.len(), 9)]);
            let beyond = collator.collate(&dataset, &[3], 0).unwrap_err().to_string();
            assert!(beyond.contains(" 3 of a data set of "), "{beyond}");
            let empty = collator.collate(&dataset, &[], 9).unwrap();
            assert_eq!((empty.rows, empty.length, empty.tokens, empty.supervised), (1, 1, 0, 0), "{batching:?}");
        }
    }
}
