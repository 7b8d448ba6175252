//! Rows put side by side, padded to the longest.

use crate::dataset::{IGNORED, TokenizedDataset};
use crate::error::DataError;

/// One micro-batch of one rank, as plain vectors in row-major order `[rows, length]`.
///
/// Causal attention and padding on the right: what stands after a row's last token never reaches its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `rows * length` of them.
    pub input_ids: Vec<i64>,
    /// `labels[t]` is the token that position `t` must predict (already shifted), −100 where nothing is learned.
    pub labels: Vec<i64>,
    /// Number of rows, at least 1.
    pub rows: usize,
    /// Length of every padded row, at least 1.
    pub length: usize,
    /// Tokens that are not padding.
    pub tokens: usize,
    /// Positions with a label.
    pub supervised: usize,
    /// Which rows of the data set they are; empty for a rank without work.
    pub of_dataset: Vec<u32>,
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
        let count = rows.len().max(1);
        let mut batch = Batch {
            input_ids: vec![i64::from(pad_id); count * longest],
            labels: vec![i64::from(IGNORED); count * longest],
            rows: count,
            length: longest,
            tokens: 0,
            supervised: 0,
            of_dataset: rows.to_vec(),
        };
        for (index, &row) in rows.iter().enumerate() {
            let (ids, labels) = dataset.row(row as usize);
            let start = index * longest;
            for (slot, &id) in batch.input_ids[start..].iter_mut().zip(ids) {
                *slot = i64::from(id);
            }
            for (slot, &label) in batch.labels[start..].iter_mut().zip(labels.iter().skip(1)) {
                *slot = i64::from(label);
                batch.supervised += usize::from(label != IGNORED);
            }
            batch.tokens += ids.len();
        }
        Ok(batch)
    }

    /// The row at `place` alone, padding included; where there is none, the empty batch of
    /// [`Batch::collate`]: one pad token with nothing supervised.
    pub fn single_row(&self, place: usize) -> Batch {
        let Some(&row) = self.of_dataset.get(place) else {
            let (input_ids, labels) = (vec![0], vec![i64::from(IGNORED)]);
            return Batch { input_ids, labels, rows: 1, length: 1, tokens: 0, supervised: 0, of_dataset: Vec::new() };
        };
        let all = place * self.length..(place + 1) * self.length;
        let labels = self.labels[all.clone()].to_vec();
        let supervised = labels.iter().filter(|&&label| label != i64::from(IGNORED)).count();
        let input_ids = self.input_ids[all].to_vec();
        Batch {
            rows: 1,
            length: self.length,
            tokens: self.length,
            supervised,
            of_dataset: vec![row],
            input_ids,
            labels,
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
            rows: 1,
            length: 1,
            tokens: 0,
            supervised: 0,
            of_dataset: vec![],
        };
        assert_eq!(batch, empty);
    }

    #[test]
    fn an_unknown_row_is_an_error() {
        let error = Batch::collate(&dataset(), &[3], 0).unwrap_err().to_string();
        assert!(error.contains("row 3 of a data set of 3 rows"), "{error}");
    }
}
