//! Writes a tokenised data set as a stream: what is in memory does not grow with the rows.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, IntoInnerError, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::dataset::{FileRows, TokenizedDataset, supervised};
use crate::error::DataError;

/// Where the arrays of the file begin: a multiple of this, so that they can be mapped as numbers.
const ALIGNMENT: usize = 64;

/// Rows on their way into a file. Each array goes into a nameless file of its own; when all rows are there, these are put
/// end to end behind a header that tells their lengths, as one safetensors file (`input_ids` U32, `labels` I32, `offsets` and
/// `places` U64; of the rows of a classifier `values` F32 and `seconds` U32).
pub(crate) struct DatasetWriter {
    input_ids: BufWriter<File>,
    labels: BufWriter<File>,
    offsets: BufWriter<File>,
    places: BufWriter<File>,
    seconds: BufWriter<File>,
    values: BufWriter<File>,
    /// How many of the last two there are.
    classified: [u64; 2],
    tokens: u64,
    rows: u64,
    supervised: u64,
    largest: u32,
}

impl DatasetWriter {
    /// Begins to write in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// [`DataError::Io`] when the folder cannot be written.
    pub(crate) fn new(folder: &Path) -> Result<DatasetWriter, DataError> {
        fs::create_dir_all(folder).map_err(DataError::io("create the folder", folder))?;
        let array = || tempfile::tempfile_in(folder).map(|file| BufWriter::with_capacity(1 << 18, file));
        let failed = || DataError::io("write tokenised data into the folder", folder);
        let mut writer = DatasetWriter {
            input_ids: array().map_err(failed())?,
            labels: array().map_err(failed())?,
            offsets: array().map_err(failed())?,
            places: array().map_err(failed())?,
            seconds: array().map_err(failed())?,
            values: array().map_err(failed())?,
            classified: [0, 0],
            tokens: 0,
            rows: 0,
            supervised: 0,
            largest: 0,
        };
        writer.offsets.write_all(&0u64.to_le_bytes()).map_err(failed())?;
        Ok(writer)
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(crate) fn supervised(&self) -> u64 {
        self.supervised
    }

    /// Adds what makes the next row, which is then pushed, one of a classifier.
    pub(crate) fn classify(&mut self, second: u32, values: &[f32]) -> io::Result<()> {
        self.classified = [self.classified[0] + 1, self.classified[1] + values.len() as u64];
        // Its only label may stand at its first token.
        self.supervised += 1;
        self.seconds.write_all(&second.to_le_bytes())?;
        self.values.write_all(bytemuck::cast_slice(values))
    }

    /// Adds the row of this number in its file.
    pub(crate) fn push(&mut self, number: u64, ids: &[u32], labels: &[i32]) -> io::Result<()> {
        self.input_ids.write_all(bytemuck::cast_slice(ids))?;
        self.labels.write_all(bytemuck::cast_slice(labels))?;
        self.tokens += ids.len() as u64;
        self.rows += 1;
        if self.classified[0] == 0 {
            self.supervised += supervised(labels) as u64;
        }
        // Those of a classifier are no tokens.
        let labels = if self.classified[0] == 0 { labels } else { &[] };
        let labels = labels.iter().map(|&label| label.max(0).unsigned_abs());
        self.largest = ids.iter().copied().chain(labels).fold(self.largest, u32::max);
        self.offsets.write_all(&self.tokens.to_le_bytes())?;
        self.places.write_all(&number.to_le_bytes())
    }

    /// Puts everything into the file `path`, which appears whole or not at all, and maps it; also tells its
    /// [`TokenizedDataset::digest`]. `metadata` are words that the file carries.
    ///
    /// # Errors
    /// [`DataError::Io`] when it cannot be written.
    pub(crate) fn finish(
        self,
        path: &Path,
        files: &[FileRows],
        metadata: BTreeMap<String, String>,
    ) -> Result<(TokenizedDataset, String), DataError> {
        let digest = self.write(path, files, metadata).map_err(DataError::io("write the tokenised data set", path))?;
        Ok((TokenizedDataset::load(path)?, digest))
    }

    fn write(self, path: &Path, files: &[FileRows], mut metadata: BTreeMap<String, String>) -> io::Result<String> {
        let [seconds, values] = self.classified;
        let counts = [self.tokens, self.tokens, self.rows + 1, self.rows, values, seconds];
        let whole = |array: BufWriter<File>| array.into_inner().map_err(IntoInnerError::into_error);
        let [mut input_ids, mut labels] = [whole(self.input_ids)?, whole(self.labels)?];
        let [mut offsets, mut places] = [whole(self.offsets)?, whole(self.places)?];
        let [mut seconds, mut values] = [whole(self.seconds)?, whole(self.values)?];
        let mut hasher = blake3::Hasher::new();
        for array in [&mut offsets, &mut input_ids, &mut labels, &mut seconds, &mut values] {
            array.rewind()?;
            hasher.update_reader(array)?;
        }
        let digest = hasher.finalize().to_hex().to_string();
        let mut hasher = blake3::Hasher::new();
        places.rewind()?;
        hasher.update_reader(&mut places)?;
        metadata.insert("places_digest".into(), hasher.finalize().to_hex().to_string());
        metadata.insert("digest".into(), digest.clone());
        metadata.insert("largest_token".into(), self.largest.to_string());
        metadata.insert("format".into(), "zerofold-rows".into());
        metadata.insert("files".into(), serde_json::to_string(files)?);
        let header = header(counts, &metadata);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // As any file that a program makes, not for this user alone as temporary files are.
        let readable = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().permissions(readable).tempfile_in(folder)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for array in [&mut input_ids, &mut labels, &mut offsets, &mut places, &mut values, &mut seconds] {
            array.rewind()?;
            io::copy(array, file.as_file_mut())?;
        }
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder)?.sync_all()?;
        Ok(digest)
    }
}

/// The header of a file whose arrays have so many entries, padded with spaces.
fn header(counts: [u64; 6], metadata: &BTreeMap<String, String>) -> String {
    let mut header = json!({ "__metadata__": metadata });
    let mut start = 0;
    let always = [("input_ids", "U32", 4), ("labels", "I32", 4), ("offsets", "U64", 8), ("places", "U64", 8)];
    let arrays = always.into_iter().chain([("values", "F32", 4), ("seconds", "U32", 4)]);
    for ((name, dtype, size), count) in
        arrays.zip(counts).filter(|((name, ..), count)| *count > 0 || !matches!(*name, "values" | "seconds"))
    {
        let end = start + size * count;
        header[name] = json!({ "dtype": dtype, "shape": [count], "data_offsets": [start, end] });
        start = end;
    }
    let mut header = header.to_string();
    let length = (header.len() + 8).next_multiple_of(ALIGNMENT) - 8;
    header.extend(std::iter::repeat_n(' ', length - header.len()));
    header
}
