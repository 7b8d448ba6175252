//! The tokenised data set: what the launcher writes once and every worker reads.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::DataError;

/// The label of a token that nothing is learned from.
pub const IGNORED: i32 = -100;

/// Rows of token ids with a label for each token.
///
/// `labels[i]` is the label *of* token `i` (unshifted, as Hugging Face stores it): the id itself where it is
/// supervised, [`IGNORED`] elsewhere. [`crate::Batch::collate`] shifts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizedDataset {
    /// All rows' ids end to end.
    pub input_ids: Vec<u32>,
    /// All rows' labels end to end, as many as there are ids.
    pub labels: Vec<i32>,
    /// Row `i` is `offsets[i]..offsets[i + 1]`; one more entry than rows, the first 0, the last the number of tokens.
    pub offsets: Vec<u64>,
    /// In which line of the data file each row stands, from 1: rows in which nothing is supervised, and empty lines, are
    /// left out, so a row's place here does not tell.
    pub lines: Vec<u64>,
}

impl TokenizedDataset {
    /// A data set without rows.
    pub fn new() -> TokenizedDataset {
        TokenizedDataset { input_ids: Vec::new(), labels: Vec::new(), offsets: vec![0], lines: Vec::new() }
    }

    /// Adds the row of this line of the data file; `ids` and `labels` must be of one length.
    ///
    /// # Panics
    /// When they are not.
    pub fn push(&mut self, line: u64, ids: &[u32], labels: &[i32]) {
        assert_eq!(ids.len(), labels.len(), "a row has one label for each token");
        self.input_ids.extend_from_slice(ids);
        self.labels.extend_from_slice(labels);
        self.offsets.push(self.input_ids.len() as u64);
        self.lines.push(line);
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Ids and labels of row `index`.
    ///
    /// # Panics
    /// When there is no such row, as a slice does.
    pub fn row(&self, index: usize) -> (&[u32], &[i32]) {
        let range = self.offsets[index] as usize..self.offsets[index + 1] as usize;
        (&self.input_ids[range.clone()], &self.labels[range])
    }

    /// Number of tokens in all rows.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Number of tokens that a loss is taken on: labels of all but each row's first token, which nothing predicts.
    pub fn supervised_tokens(&self) -> usize {
        (0..self.rows()).map(|index| supervised(self.row(index).1)).sum()
    }

    /// Writes the data set as one safetensors file (`input_ids` U32, `labels` I32, `offsets` and `lines` U64).
    ///
    /// The file appears whole or not at all: it is written beside `path`, synced and renamed.
    ///
    /// # Errors
    /// [`DataError::Io`] when the folder cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        let ids: Vec<u8> = self.input_ids.iter().flat_map(|value| value.to_le_bytes()).collect();
        let labels: Vec<u8> = self.labels.iter().flat_map(|value| value.to_le_bytes()).collect();
        let offsets: Vec<u8> = self.offsets.iter().flat_map(|value| value.to_le_bytes()).collect();
        let lines: Vec<u8> = self.lines.iter().flat_map(|value| value.to_le_bytes()).collect();
        let views = [
            ("input_ids", Dtype::U32, self.input_ids.len(), &ids),
            ("labels", Dtype::I32, self.labels.len(), &labels),
            ("offsets", Dtype::U64, self.offsets.len(), &offsets),
            ("lines", Dtype::U64, self.lines.len(), &lines),
        ];
        let mut tensors = Vec::with_capacity(views.len());
        for (name, dtype, length, bytes) in views {
            let view = TensorView::new(dtype, vec![length], bytes).map_err(|error| damaged(path, error.to_string()))?;
            tensors.push((name, view));
        }
        let metadata = HashMap::from([("format".to_string(), "zerofold-rows".to_string())]);
        let bytes =
            safetensors::serialize(tensors, Some(metadata)).map_err(|error| damaged(path, error.to_string()))?;
        write_atomically(path, &bytes)
    }

    /// The BLAKE3 hash of what is trained on, 64 hexadecimal digits: tokens, labels, and where rows begin.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for offset in &self.offsets {
            hasher.update(&offset.to_le_bytes());
        }
        for id in &self.input_ids {
            hasher.update(&id.to_le_bytes());
        }
        for label in &self.labels {
            hasher.update(&label.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Reads what [`TokenizedDataset::save`] wrote and checks that its arrays fit together.
    ///
    /// # Errors
    /// [`DataError::Io`] when the file cannot be read, [`DataError::Dataset`] when it is damaged.
    pub fn load(path: &Path) -> Result<TokenizedDataset, DataError> {
        let bytes = fs::read(path).map_err(DataError::io("read the tokenised data set", path))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(path, error.to_string()))?;
        let tensor = |name: &str, dtype: Dtype| -> Result<Vec<u8>, DataError> {
            let view = file.tensor(name).map_err(|_| damaged(path, format!("there is no tensor `{name}`")))?;
            if view.dtype() != dtype || view.shape().len() != 1 {
                let found = format!("{:?} of shape {:?}", view.dtype(), view.shape());
                return Err(damaged(path, format!("`{name}` is {found}, expected {dtype:?} of one dim")));
            }
            Ok(view.data().to_vec())
        };
        let dataset = TokenizedDataset {
            input_ids: words(&tensor("input_ids", Dtype::U32)?).map(u32::from_le_bytes).collect(),
            labels: words(&tensor("labels", Dtype::I32)?).map(i32::from_le_bytes).collect(),
            offsets: words(&tensor("offsets", Dtype::U64)?).map(u64::from_le_bytes).collect(),
            lines: words(&tensor("lines", Dtype::U64)?).map(u64::from_le_bytes).collect(),
        };
        dataset.check().map_err(|message| damaged(path, message))?;
        Ok(dataset)
    }

    fn check(&self) -> Result<(), String> {
        let tokens = self.input_ids.len();
        if self.labels.len() != tokens {
            return Err(format!("{tokens} input_ids but {} labels", self.labels.len()));
        }
        if self.offsets.first() != Some(&0) || self.offsets.last() != Some(&(tokens as u64)) {
            return Err(format!("offsets must begin with 0 and end with the number of tokens, {tokens}"));
        }
        if let Some(index) = self.offsets.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(format!("offsets do not rise at row {index}"));
        }
        if let Some(index) = self.labels.iter().position(|&label| label < 0 && label != IGNORED) {
            return Err(format!("label {} at token {index} is neither an id nor {IGNORED}", self.labels[index]));
        }
        if self.lines.len() != self.rows() {
            return Err(format!("{} rows but {} lines", self.rows(), self.lines.len()));
        }
        Ok(())
    }
}

/// Supervised tokens of one row's unshifted labels.
pub(crate) fn supervised(labels: &[i32]) -> usize {
    labels.iter().skip(1).filter(|&&label| label != IGNORED).count()
}

fn words<const SIZE: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; SIZE]> + '_ {
    bytes.as_chunks::<SIZE>().0.iter().copied()
}

fn damaged(path: &Path, message: String) -> DataError {
    DataError::dataset(
        path,
        format!("not a tokenised data set: {message}"),
        "this file is written when training starts; start again with a new output_dir",
    )
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(DataError::io("create the folder", folder))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.partial", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    });
    if written.is_err() {
        // The error below is the one that matters; a leftover that cannot be removed either changes nothing.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(DataError::io("write the tokenised data set", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> TokenizedDataset {
        let mut dataset = TokenizedDataset::new();
        dataset.push(2, &[1, 2, 3], &[1, IGNORED, 3]);
        dataset.push(5, &[4, u32::MAX], &[IGNORED, IGNORED]);
        dataset
    }

    #[test]
    fn saves_and_loads_the_same_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/train.safetensors");
        sample().save(&path).unwrap();
        assert_eq!(TokenizedDataset::load(&path).unwrap(), sample());
        assert_eq!(fs::read_dir(folder.path().join("data")).unwrap().count(), 1, "no leftover beside the file");
    }

    #[test]
    fn the_first_token_of_a_row_is_never_counted_as_supervised() {
        assert_eq!(sample().supervised_tokens(), 1);
        assert_eq!((sample().rows(), sample().tokens()), (2, 5));
        assert_eq!(sample().row(1).0, [4, u32::MAX]);
    }

    #[test]
    fn damaged_files_are_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.safetensors");
        type Damage = fn(&mut TokenizedDataset);
        let cases: [(Damage, &str); 7] = [
            (|dataset| dataset.labels.truncate(4), "5 input_ids but 4 labels"),
            (|dataset| dataset.offsets = vec![0, 4, 3, 5], "offsets do not rise at row 1"),
            (|dataset| dataset.offsets = vec![0, 0, 5], "offsets do not rise at row 0"),
            (|dataset| dataset.offsets = vec![0, 3], "end with the number of tokens, 5"),
            (|dataset| dataset.offsets.clear(), "begin with 0"),
            (|dataset| dataset.lines.truncate(1), "2 rows but 1 lines"),
            (|dataset| dataset.labels[1] = -7, "label -7 at token 1"),
        ];
        for (damage, expected) in cases {
            let mut dataset = sample();
            damage(&mut dataset);
            dataset.save(&path).unwrap();
            let error = TokenizedDataset::load(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("hint: "), "{error}");
        }
        fs::write(&path, b"no tensors here").unwrap();
        assert!(TokenizedDataset::load(&path).unwrap_err().to_string().contains("not a tokenised data set"));
    }
}
