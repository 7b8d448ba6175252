//! The tokenised data set: what the launcher writes once and every worker maps into its memory.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::mapped::Words;
use crate::source::Unit;

/// The label of a token that nothing is learned from.
pub const IGNORED: i32 = -100;

/// Rows of token ids with a label for each token.
///
/// `labels[i]` is the label *of* token `i` (unshifted, as Hugging Face stores it): the id itself where it is
/// supervised, [`IGNORED`] elsewhere. [`crate::Batch::collate`] shifts.
#[derive(Debug, Clone, Default)]
pub struct TokenizedDataset {
    /// All rows' ids end to end.
    pub input_ids: Words<u32>,
    /// All rows' labels end to end, as many as there are ids.
    pub labels: Words<i32>,
    /// Row `i` is `offsets[i]..offsets[i + 1]`; one more entry than rows, the first 0, the last the number of tokens.
    pub offsets: Words<u64>,
    /// Of the rows of a classifier, where the tokens of the second text begin in each, which is its end where there is none; empty
    /// of others. What is told of a row is then its only label, at the token that tells it.
    pub(crate) seconds: Words<u32>,
    /// Of the rows of a classifier that are told more than a class: equally many numbers for each row, end to end.
    pub(crate) values: Words<f32>,
    /// Where the rows came from.
    pub places: Places,
    /// How many rows are of each source, one source after the other; none where all are of one.
    pub(crate) sources: Vec<usize>,
    /// What the file says of itself beside its arrays.
    pub(crate) metadata: HashMap<String, String>,
}

impl TokenizedDataset {
    /// A data set without rows, in memory.
    pub fn new() -> TokenizedDataset {
        TokenizedDataset { offsets: Words::Held(vec![0]), ..TokenizedDataset::default() }
    }

    /// Adds the row of this number in its file; `ids` and `labels` must be of one length. For small data sets: large ones
    /// are written as a stream by [`crate::prepare`].
    ///
    /// # Panics
    /// When they are not of one length.
    pub fn push(&mut self, number: u64, ids: &[u32], labels: &[i32]) {
        assert_eq!(ids.len(), labels.len(), "a row has one label for each token");
        self.input_ids.held().extend_from_slice(ids);
        self.labels.held().extend_from_slice(labels);
        let tokens = self.input_ids.len() as u64;
        self.offsets.held().push(tokens);
        self.places.numbers.held().push(number);
    }

    /// Whether the rows are those of a classifier.
    pub fn is_classified(&self) -> bool {
        !self.seconds.is_empty()
    }

    /// The numbers that a classifier is to tell of row `index`; empty where it tells a class, or the rows are of no classifier.
    pub(crate) fn values(&self, index: usize) -> &[f32] {
        let count = self.values.len() / self.rows().max(1);
        &self.values[index * count..(index + 1) * count]
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// How many rows are of each source, one source after the other.
    pub fn sources(&self) -> Vec<usize> {
        match self.sources.is_empty() {
            true => vec![self.rows()],
            false => self.sources.clone(),
        }
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
    ///
    /// Of the rows of a classifier one each.
    pub fn supervised_tokens(&self) -> usize {
        if self.is_classified() {
            return self.rows();
        }
        (0..self.rows()).map(|index| supervised(self.row(index).1)).sum()
    }

    /// The BLAKE3 hash of what is trained on, 64 hexadecimal digits: tokens, labels, and where rows begin. Taken over all
    /// bytes, unless [`crate::prepare`] has just done so.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytemuck::cast_slice(&self.offsets));
        hasher.update(bytemuck::cast_slice(&self.input_ids));
        hasher.update(bytemuck::cast_slice(&self.labels));
        hasher.update(bytemuck::cast_slice(&self.seconds));
        hasher.update(bytemuck::cast_slice(&self.values));
        hasher.finalize().to_hex().to_string()
    }

    /// The largest id or label, where the file tells it: looked for once, when it was written.
    pub fn largest_token(&self) -> Option<u32> {
        self.metadata.get("largest_token")?.parse().ok()
    }

    /// Maps a file that [`crate::prepare`] wrote, and checks that its arrays fit together.
    ///
    /// # Errors
    /// [`DataError::Io`] when the file cannot be read, [`DataError::Dataset`] when it is damaged.
    pub fn load(path: &Path) -> Result<TokenizedDataset, DataError> {
        let file = File::open(path).map_err(DataError::io("read the tokenised data set", path))?;
        // SAFETY: such a file is written under another name, renamed when it is whole, and never written to again, so the
        // bytes hold still. Who truncates it all the same ends this process by a signal, with no other harm.
        let map = unsafe { Mmap::map(&file) }.map_err(DataError::io("map the tokenised data set", path))?;
        let map = Arc::new(map);
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| damaged(path, error.to_string()))?;
        let words = |name: &str, dtype: Dtype| -> Result<std::ops::Range<usize>, DataError> {
            let info = metadata.info(name).ok_or_else(|| damaged(path, format!("there is no tensor `{name}`")))?;
            if info.dtype != dtype || info.shape.len() != 1 {
                let found = format!("{:?} of shape {:?}", info.dtype, info.shape);
                return Err(damaged(path, format!("`{name}` is {found}, expected {dtype:?} of one dim")));
            }
            let (first, after) = info.data_offsets;
            let start = header + 8;
            if map.len() < start + after {
                return Err(damaged(path, format!("the file ends inside of `{name}`")));
            }
            Ok(start + first..start + after)
        };
        // Only rows of a classifier have these.
        let words_if = |name: &str, dtype: Dtype| match metadata.info(name) {
            Some(_) => words(name, dtype).map(Some),
            None => Ok(None),
        };
        let misaligned =
            |name: &str| damaged(path, format!("`{name}` does not lie at a multiple of its entries' size"));
        let dataset = TokenizedDataset {
            input_ids: Words::mapped(&map, words("input_ids", Dtype::U32)?).ok_or_else(|| misaligned("input_ids"))?,
            labels: Words::mapped(&map, words("labels", Dtype::I32)?).ok_or_else(|| misaligned("labels"))?,
            offsets: Words::mapped(&map, words("offsets", Dtype::U64)?).ok_or_else(|| misaligned("offsets"))?,
            seconds: match words_if("seconds", Dtype::U32)? {
                Some(bytes) => Words::mapped(&map, bytes).ok_or_else(|| misaligned("seconds"))?,
                None => Words::default(),
            },
            values: match words_if("values", Dtype::F32)? {
                Some(bytes) => Words::mapped(&map, bytes).ok_or_else(|| misaligned("values"))?,
                None => Words::default(),
            },
            places: Places {
                numbers: Words::mapped(&map, words("places", Dtype::U64)?).ok_or_else(|| misaligned("places"))?,
                files: files_of(metadata.metadata().as_ref()).map_err(|message| damaged(path, message))?.into(),
            },
            sources: sources_of(metadata.metadata().as_ref()).map_err(|message| damaged(path, message))?,
            metadata: metadata.metadata().clone().unwrap_or_default(),
        };
        dataset.check().map_err(|message| damaged(path, message))?;
        Ok(dataset)
    }

    /// That the arrays fit together. Ids and labels are not gone through: every rank would read all bytes for it.
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
        if self.places.numbers.len() != self.rows() {
            return Err(format!("{} rows but {} places", self.rows(), self.places.numbers.len()));
        }
        if self.is_classified() && self.seconds.len() != self.rows() {
            return Err(format!("{} rows but {} seconds", self.rows(), self.seconds.len()));
        }
        if !self.values.len().is_multiple_of(self.rows().max(1)) {
            return Err(format!("{} values do not go evenly into {} rows", self.values.len(), self.rows()));
        }
        if !self.sources.is_empty() && self.sources.iter().sum::<usize>() != self.rows() {
            return Err(format!("{} rows but {:?} of its sources", self.rows(), self.sources));
        }
        Ok(())
    }
}

/// The same rows; where they came from does not matter.
impl PartialEq for TokenizedDataset {
    fn eq(&self, other: &TokenizedDataset) -> bool {
        (&*self.offsets, &*self.input_ids, &*self.labels) == (&*other.offsets, &*other.input_ids, &*other.labels)
            && (&*self.seconds, &*self.values) == (&*other.seconds, &*other.values)
    }
}

/// Where the rows of a data set stand in its files: rows in which nothing is supervised are left out, so a row's place among
/// those that are trained on does not tell.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Which row of its file each is: a line from 1, an element of an array or a row of a table from 0.
    pub(crate) numbers: Words<u64>,
    pub(crate) files: Arc<[FileRows]>,
}

impl Places {
    /// Where row `index` stands, in words: `line 12 of chat.jsonl`.
    pub fn words(&self, index: usize) -> String {
        let number = self.numbers.get(index).copied().unwrap_or(0);
        let after = self.files.partition_point(|file| file.first_row <= index as u64);
        match after.checked_sub(1).and_then(|file| self.files.get(file)) {
            Some(file) => file.unit.words(&file.path.display().to_string(), number),
            None => format!("row {index}"),
        }
    }
}

/// From which row on the rows of a data set are those of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRows {
    pub(crate) path: PathBuf,
    pub(crate) unit: Unit,
    pub(crate) first_row: u64,
}

fn files_of(metadata: Option<&HashMap<String, String>>) -> Result<Vec<FileRows>, String> {
    let text = metadata.and_then(|metadata| metadata.get("files")).ok_or("it does not name the files of its rows")?;
    serde_json::from_str(text).map_err(|error| format!("the files of its rows: {error}"))
}

fn sources_of(metadata: Option<&HashMap<String, String>>) -> Result<Vec<usize>, String> {
    let Some(text) = metadata.and_then(|metadata| metadata.get("sources")) else { return Ok(Vec::new()) };
    serde_json::from_str(text).map_err(|error| format!("the rows of its sources: {error}"))
}

/// Supervised tokens of one row's unshifted labels.
pub(crate) fn supervised(labels: &[i32]) -> usize {
    labels.iter().skip(1).filter(|&&label| label != IGNORED).count()
}

fn damaged(path: &Path, message: String) -> DataError {
    DataError::dataset(
        path,
        format!("not a tokenised data set: {message}"),
        "this file is written when training starts; start again with a new output_dir",
    )
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
