//! Rows put side by side, padded to the longest, or end to end in one row.

use std::ops::Range;

use crate::dataset::{IGNORED, TokenizedDataset};
use crate::error::DataError;
use crate::packing::Piece;

/// One micro-batch of one rank, as plain vectors in row-major order `[rows, length]`.
///
/// Causal attention and padding on the right: what stands after a row's last token never reaches its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Token ids, `rows * length` of them.
    pub input_ids: Vec<i64>,
    /// `labels[t]` is the token that position `t` must predict (already shifted), −100 where nothing is learned; of a classifier the
    /// class that position `t` must tell, or 0 where it tells [`Batch::values`].
    pub labels: Vec<i64>,
    /// The type of each token, as many as ids: 1 in the second of two texts, else 0. Empty where no row has a second text.
    pub token_types: Vec<i64>,
    /// Of a classifier that tells more than a class: equally many numbers for each of the labels, in their order.
    pub values: Vec<f32>,
    /// Number of rows, at least 1.
    pub rows: usize,
    /// Length of every padded row, at least 1.
    pub length: usize,
    /// Tokens that are not padding.
    pub tokens: usize,
    /// Positions with a label.
    pub supervised: usize,
    /// The lengths of the documents that lie end to end in the one row, which all together have its length: positions begin
    /// anew in each, and attention does not leave it. Empty where rows are documents, side by side.
    pub documents: Vec<i64>,
    /// Which row of the data set each row or document is of; empty for a rank without work.
    pub of_dataset: Vec<u32>,
    /// How many sources the data set has.
    pub sources: usize,
    /// Which of them each row or document is of.
    pub of_source: Vec<usize>,
}

impl Batch {
    /// Puts the rows `rows` of `dataset` side by side, padded on the right with `pad_id`.
    ///
    /// With no rows (the short end of an epoch) the batch is one row of one pad token with nothing supervised, so that
    /// a rank without work still takes part in every collective call.
    ///
    /// # Errors
    /// A row index that the data set does not have.
    pub fn collate(dataset: &TokenizedDataset, rows: &[u32], pad_id: u32) -> Result<Batch, DataError> {
        let mut longest = 1;
        for &row in rows {
            if row as usize >= dataset.rows() {
                return Err(DataError::Plan {
                    message: format!("row {row} of a data set of {} rows was asked for", dataset.rows()),
                    hint: "the step plan was made for another data set; prepare the data again".into(),
                });
            }
            longest = longest.max(dataset.row(row as usize).0.len());
        }
        let mut batch = Batch::unlearned(rows.len().max(1), longest, pad_id).of(dataset, rows.to_vec());
        for (index, &row) in rows.iter().enumerate() {
            batch.put(index * longest, dataset.row(row as usize), dataset.is_classified());
        }
        if dataset.is_classified() {
            batch.classify(dataset, longest);
        }
        Ok(batch)
    }

    /// Puts `pieces` of rows end to end, without padding; with none of them the batch is as in [`Batch::collate`]. The first
    /// label of a piece is not learned, since nothing of its own comes before.
    ///
    /// # Panics
    /// When the data set does not have such rows, as a slice does.
    pub fn flatten(dataset: &TokenizedDataset, pieces: &[Piece], pad_id: u32) -> Batch {
        let length: usize = pieces.iter().map(|piece| piece.length as usize).sum();
        let mut batch =
            Batch::unlearned(1, length.max(1), pad_id).of(dataset, pieces.iter().map(|piece| piece.row).collect());
        batch.documents = pieces.iter().map(|piece| i64::from(piece.length)).collect();
        let mut start = 0;
        for piece in pieces {
            batch.put(start, piece.of(dataset), dataset.is_classified());
            start += piece.length as usize;
        }
        if dataset.is_classified() {
            batch.classify(dataset, 0);
        }
        batch
    }

    /// Nothing but padding.
    fn unlearned(rows: usize, length: usize, pad_id: u32) -> Batch {
        Batch {
            input_ids: vec![i64::from(pad_id); rows * length],
            labels: vec![i64::from(IGNORED); rows * length],
            token_types: Vec::new(),
            values: Vec::new(),
            rows,
            length,
            tokens: 0,
            supervised: 0,
            documents: Vec::new(),
            of_dataset: Vec::new(),
            sources: 1,
            of_source: Vec::new(),
        }
    }

    /// Notes which rows of `dataset` it has.
    fn of(mut self, dataset: &TokenizedDataset, rows: Vec<u32>) -> Batch {
        let ends: Vec<usize> = dataset
            .sources()
            .iter()
            .scan(0, |end, rows| {
                *end += rows;
                Some(*end)
            })
            .collect();
        self.sources = ends.len();
        self.of_source = rows.iter().map(|&row| ends.partition_point(|&end| end <= row as usize)).collect();
        self.of_dataset = rows;
        self
    }

    /// Where each row, padding included, or document lies in all rows end to end, and its source.
    pub fn spans(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let mut start = 0;
        self.of_source.iter().enumerate().map(move |(place, &source)| {
            let length = self.documents.get(place).map_or(self.length, |&length| length as usize);
            start += length;
            (start - length..start, source)
        })
    }

    /// Positions with a label, of each source.
    pub fn supervised_by_source(&self) -> Vec<usize> {
        let mut counts = vec![0; self.sources];
        for (span, source) in self.spans() {
            counts[source] += self.labels[span].iter().filter(|&&label| label != i64::from(IGNORED)).count();
        }
        counts
    }

    /// Puts a document with these ids and labels at `start`. Labels of a classifier are not shifted.
    fn put(&mut self, start: usize, (ids, labels): (&[u32], &[i32]), classified: bool) {
        for (slot, &id) in self.input_ids[start..].iter_mut().zip(ids) {
            *slot = i64::from(id);
        }
        for (slot, &label) in self.labels[start..].iter_mut().zip(labels.iter().skip(usize::from(!classified))) {
            *slot = i64::from(label);
            self.supervised += usize::from(label != IGNORED);
        }
        self.tokens += ids.len();
    }

    /// Adds the types of tokens and the numbers that are told of its rows, which lie `stride` apart, or end to end where it is 0.
    fn classify(&mut self, dataset: &TokenizedDataset, stride: usize) {
        let mut start = 0;
        for (place, &row) in self.of_dataset.iter().enumerate() {
            let (row, begin) = (row as usize, if stride > 0 { place * stride } else { start });
            let (length, second) = (dataset.row(row).0.len(), dataset.seconds[row] as usize);
            start += length;
            self.values.extend_from_slice(dataset.values(row));
            if second < length {
                self.token_types.resize(self.input_ids.len(), 0);
                self.token_types[begin + second..begin + length].fill(1);
            }
        }
    }

    /// The row at `place` alone, padding included, or the document; where there is none, the empty batch of
    /// [`Batch::collate`]: one pad token with nothing supervised.
    pub fn single_row(&self, place: usize) -> Batch {
        let Some(&row) = self.of_dataset.get(place) else {
            return Batch { sources: self.sources, ..Batch::unlearned(1, 1, 0) };
        };
        let all = match self.documents.get(place) {
            Some(&length) => {
                let start = self.documents[..place].iter().sum::<i64>() as usize;
                start..start + length as usize
            }
            None => place * self.length..(place + 1) * self.length,
        };
        let labels = self.labels[all.clone()].to_vec();
        let token_types = self.token_types.get(all.clone()).unwrap_or_default().to_vec();
        let values = self.values.len() / self.of_dataset.len();
        let input_ids = self.input_ids[all].to_vec();
        Batch {
            rows: 1,
            length: input_ids.len(),
            tokens: input_ids.len(),
            supervised: labels.iter().filter(|&&label| label != i64::from(IGNORED)).count(),
            documents: Vec::new(),
            of_dataset: vec![row],
            sources: self.sources,
            of_source: vec![self.of_source[place]],
            input_ids,
            labels,
            token_types,
            values: self.values[place * values..(place + 1) * values].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset() -> TokenizedDataset {
        let mut dataset = TokenizedDataset::new();
        dataset.push(1, &[5, 6, 7], &[5, IGNORED, 7]);
        dataset.push(3, &[8], &[8]);
        dataset.push(4, &[1, 2, 3, 4], &[IGNORED, IGNORED, 3, 4]);
        dataset
    }

    #[test]
    fn labels_are_shifted_and_rows_padded_on_the_right() {
        let batch = Batch::collate(&dataset(), &[0, 1, 2], 9).unwrap();
        assert_eq!((batch.rows, batch.length, batch.tokens, batch.supervised), (3, 4, 8, 3));
        assert_eq!(batch.input_ids, [5, 6, 7, 9, 8, 9, 9, 9, 1, 2, 3, 4]);
        assert_eq!(batch.labels, [-100, 7, -100, -100, -100, -100, -100, -100, -100, 3, 4, -100]);
        assert_eq!(batch.supervised, dataset().supervised_tokens());
        assert_eq!((batch.of_dataset.as_slice(), batch.single_row(1).of_dataset), ([0, 1, 2].as_slice(), vec![1]));
    }

    #[test]
    fn no_rows_give_one_pad_token_and_nothing_to_learn() {
        let batch = Batch::collate(&dataset(), &[], 9).unwrap();
        let empty = Batch {
            input_ids: vec![9],
            labels: vec![-100],
            token_types: vec![],
            values: vec![],
            rows: 1,
            length: 1,
            tokens: 0,
            supervised: 0,
            documents: vec![],
            of_dataset: vec![],
            sources: 1,
            of_source: vec![],
        };
        assert_eq!(batch, empty);
        assert_eq!(Batch::flatten(&dataset(), &[], 9), empty);
    }

    #[test]
    fn documents_lie_end_to_end_and_predict_nothing_of_each_other() {
        let piece = |row, first, length| Piece { row, first, length };
        let batch = Batch::flatten(&dataset(), &[piece(2, 0, 4), piece(0, 0, 3), piece(2, 2, 2), piece(1, 0, 1)], 9);
        assert_eq!((batch.rows, batch.length, batch.tokens, batch.supervised), (1, 10, 10, 4));
        assert_eq!(batch.documents, [4, 3, 2, 1]);
        assert_eq!(batch.of_dataset, [2, 0, 2, 1]);
        assert_eq!(batch.input_ids, [1, 2, 3, 4, 5, 6, 7, 3, 4, 8]);
        assert_eq!(batch.labels, [-100, 3, 4, -100, -100, 7, -100, 4, -100, -100]);
        let second = batch.single_row(1);
        assert_eq!((&second.input_ids, &second.labels), (&vec![5, 6, 7], &vec![-100, 7, -100]));
        assert_eq!((second.rows, second.length, second.supervised), (1, 3, 1));
        assert_eq!((second.documents, second.of_dataset), (vec![], vec![0]));
    }

    #[test]
    fn labels_are_counted_by_source() {
        let mut dataset = dataset();
        dataset.sources = vec![2, 1];
        let padded = Batch::collate(&dataset, &[2, 0, 1], 9).unwrap();
        assert_eq!((padded.sources, &padded.of_source), (2, &vec![1, 0, 0]));
        assert_eq!(padded.supervised_by_source(), [1, 2]);
        assert_eq!(padded.spans().last(), Some((8..12, 0)));
        let piece = |row, length| Piece { row, first: 0, length };
        let flat = Batch::flatten(&dataset, &[piece(0, 3), piece(2, 4)], 9);
        assert_eq!(flat.supervised_by_source(), [1, 2]);
        assert_eq!(flat.spans().collect::<Vec<_>>(), [(0..3, 0), (3..7, 1)]);
        assert_eq!((flat.single_row(1).of_source, flat.single_row(1).sources), (vec![1], 2));
        assert_eq!(Batch::collate(&dataset, &[], 9).unwrap().supervised_by_source(), [0, 0]);
    }

    /// Two rows of a classifier that tells two numbers at the first token, the first row with a second text from its third token on.
    fn classified() -> TokenizedDataset {
        let mut dataset = TokenizedDataset::new();
        dataset.push(1, &[5, 6, 7], &[0, IGNORED, IGNORED]);
        dataset.push(2, &[8, 9], &[0, IGNORED]);
        dataset.seconds.held().extend([2, 2]);
        dataset.values.held().extend([0.5, 1.0, -1.0, 2.0]);
        dataset
    }

    #[test]
    fn what_a_classifier_tells_stands_where_it_is_told() {
        let padded = Batch::collate(&classified(), &[1, 0], 9).unwrap();
        assert_eq!((padded.labels.as_slice(), padded.supervised), ([0, -100, -100, 0, -100, -100].as_slice(), 2));
        assert_eq!(
            (padded.token_types.as_slice(), padded.values.as_slice()),
            ([0, 0, 0, 0, 0, 1].as_slice(), [-1.0, 2.0, 0.5, 1.0].as_slice())
        );
        let piece = |row, length| Piece { row, first: 0, length };
        let flat = Batch::flatten(&classified(), &[piece(0, 3), piece(1, 2)], 9);
        assert_eq!((flat.labels.as_slice(), flat.supervised), ([0, -100, -100, 0, -100].as_slice(), 2));
        assert_eq!(
            (flat.token_types.as_slice(), flat.values.as_slice()),
            ([0, 0, 1, 0, 0].as_slice(), [0.5, 1.0, -1.0, 2.0].as_slice())
        );
        let second = flat.single_row(1);
        assert_eq!((second.labels, second.token_types, second.values), (vec![0, -100], vec![0, 0], vec![-1.0, 2.0]));
        // Without a second text tokens have no types.
        assert!(Batch::collate(&classified(), &[1], 9).unwrap().token_types.is_empty());
        assert_eq!(classified().supervised_tokens(), 2);
        assert!(Batch::collate(&classified(), &[], 9).unwrap().values.is_empty());
    }

    #[test]
    fn an_unknown_row_is_an_error() {
        let error = Batch::collate(&dataset(), &[3], 0).unwrap_err().to_string();
        assert!(error.contains("row 3 of a data set of 3 rows"), "{error}");
    }
}
