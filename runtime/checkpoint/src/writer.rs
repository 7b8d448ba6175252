//! Writes one safetensors file at byte ranges, in any order.

use crate::direct::DirectFile;
use crate::disk::reserve;
use crate::dtype::for_each_encoded_chunk;
use crate::error::{CheckpointError, Result};
use crate::header::{TensorEntry, encode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes read or converted at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The size of a file and the BLAKE3 hash of all its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Bytes of the file.
    pub bytes: u64,
    /// The hash, 64 hexadecimal digits.
    pub blake3: String,
}

/// Hashes a file that exists.
pub fn digest_file(path: &Path) -> Result<FileDigest> {
    let file = File::open(path).map_err(CheckpointError::io("open", path))?;
    let bytes = file.metadata().map_err(CheckpointError::io("read", path))?.len();
    let mut hasher = blake3::Hasher::new();
    hash_range(&file, path, 0, bytes, &mut hasher)?;
    Ok(FileDigest { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

/// A safetensors file that is being written. Every byte of every tensor is written once; dropped before
/// [`finish`](SafetensorsWriter::finish), the file is removed.
///
/// The hash is taken as the bytes come while they come in the file's order; what came out of order is read again at the end.
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    file: DirectFile,
    names: HashMap<String, usize>,
    tensors: Vec<Target>,
    bytes: u64,
    hasher: Option<blake3::Hasher>,
    hashed: u64,
    finished: bool,
    conversion: Vec<u8>,
}

/// Where a tensor lies in the file and what was written of it.
#[derive(Debug)]
struct Target {
    entry: TensorEntry,
    begin: u64,
    bytes: u64,
    written: Ranges,
}

impl SafetensorsWriter {
    /// Creates the file, reserves its space and writes its header; the tensors lie in the given order. `metadata` are strings
    /// about the file (a model for `transformers` needs `format` = `pt`).
    ///
    /// # Errors
    /// If the path exists, the disk has no room for all of it, or two tensors have one name.
    pub fn create(path: &Path, entries: &[TensorEntry], metadata: &BTreeMap<String, String>) -> Result<Self> {
        Self::open(path, entries, metadata, Some(blake3::Hasher::new()))
    }

    /// As [`create`](Self::create), for a file whose hash nobody asks for.
    pub(crate) fn create_without_digest(
        path: &Path,
        entries: &[TensorEntry],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        Self::open(path, entries, metadata, None)
    }

    fn open(
        path: &Path,
        entries: &[TensorEntry],
        metadata: &BTreeMap<String, String>,
        hasher: Option<blake3::Hasher>,
    ) -> Result<Self> {
        let layout = encode(entries, metadata);
        let (header, begins, bytes) =
            layout.map_err(|reason| CheckpointError::BadLayout { path: path.to_owned(), reason })?;
        let created = File::options().read(true).write(true).create_new(true).open(path);
        let file = created.map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => CheckpointError::Exists {
                path: path.to_owned(),
                hint: "it belongs to another run or another attempt; nothing is written over",
            },
            _ => CheckpointError::Io { action: "create", path: path.to_owned(), source },
        })?;
        let tensors = entries.iter().zip(begins).map(|(entry, begin)| Target {
            entry: entry.clone(),
            begin,
            bytes: entry.bytes().unwrap_or_default(),
            written: Ranges::default(),
        });
        let mut writer = SafetensorsWriter {
            path: path.to_owned(),
            file: DirectFile::new(file, path),
            names: entries.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index)).collect(),
            tensors: tensors.collect(),
            bytes,
            hasher,
            hashed: 0,
            finished: false,
            conversion: Vec::new(),
        };
        reserve(writer.file.file(), path, bytes)?;
        writer.put(0, &header)?;
        Ok(writer)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes bytes of a tensor, beginning at `byte_offset` of it.
    ///
    /// # Errors
    /// If the tensor does not have these bytes, or some of them were written before; or from the operating system.
    pub fn write_at(&mut self, name: &str, byte_offset: u64, bytes: &[u8]) -> Result<()> {
        let index = self.index(name)?;
        let target = &mut self.tensors[index];
        let end = byte_offset.checked_add(bytes.len() as u64).filter(|end| *end <= target.bytes);
        let reason = match end {
            None => Some(format!("{} bytes at byte {byte_offset} do not fit into its {}", bytes.len(), target.bytes)),
            Some(end) if !target.written.insert(byte_offset, end) => {
                Some(format!("some of its bytes {byte_offset} to {end} were written before"))
            }
            Some(_) => None,
        };
        if let Some(reason) = reason {
            return Err(CheckpointError::BadRange { path: self.path.clone(), tensor: name.to_string(), reason });
        }
        let position = target.begin + byte_offset;
        self.put(position, bytes)
    }

    /// Writes values of a tensor, beginning at `element_offset` of it, rounded to the tensor's type.
    pub fn write_f32(&mut self, name: &str, element_offset: u64, values: &[f32]) -> Result<()> {
        let dtype = self.tensors[self.index(name)?].entry.dtype;
        let begin = element_offset.saturating_mul(dtype.size() as u64);
        let mut conversion = std::mem::take(&mut self.conversion);
        let write = |offset, bytes: &[u8]| self.write_at(name, begin.saturating_add(offset), bytes);
        let written = for_each_encoded_chunk(values, dtype, &mut conversion, write);
        self.conversion = conversion;
        written
    }

    /// Checks that every byte was written, syncs the file to disk, and gives its size and hash.
    pub fn finish(mut self) -> Result<FileDigest> {
        if let Some(target) = self.tensors.iter().find(|target| target.written.total() != target.bytes) {
            return Err(CheckpointError::Incomplete {
                path: self.path.clone(),
                tensor: target.entry.name.clone(),
                written: target.written.total(),
                expected: target.bytes,
            });
        }
        self.file.flush().map_err(CheckpointError::write(&self.path, self.bytes))?;
        let mut blake3 = String::new();
        if let Some(hasher) = &mut self.hasher {
            hash_range(self.file.file(), &self.path, self.hashed, self.bytes, hasher)?;
            blake3 = hasher.finalize().to_hex().to_string();
        }
        self.file.file().sync_all().map_err(CheckpointError::write(&self.path, self.bytes))?;
        self.finished = true;
        Ok(FileDigest { bytes: self.bytes, blake3 })
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.names.get(name).copied().ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_string(),
            near: None,
        })
    }

    fn put(&mut self, position: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, position).map_err(CheckpointError::write(&self.path, self.bytes))?;
        if let Some(hasher) = &mut self.hasher
            && position == self.hashed
        {
            hasher.update(bytes);
            self.hashed += bytes.len() as u64;
        }
        Ok(())
    }
}

impl Drop for SafetensorsWriter {
    fn drop(&mut self) {
        if !self.finished {
            // A file that stays is refused by name when it is written again, and cleared away when a run is resumed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn hash_range(file: &File, path: &Path, begin: u64, end: u64, hasher: &mut blake3::Hasher) -> Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES.min((end - begin) as usize)];
    let mut position = begin;
    while position < end {
        let length = (buffer.len() as u64).min(end - position) as usize;
        file.read_exact_at(&mut buffer[..length], position).map_err(CheckpointError::io("read", path))?;
        hasher.update(&buffer[..length]);
        position += length as u64;
    }
    Ok(())
}

/// Byte ranges that do not overlap, neighbours merged.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range; false, and nothing is added, if it overlaps one that is there.
    fn insert(&mut self, mut begin: u64, mut end: u64) -> bool {
        if begin == end {
            return true;
        }
        let before = self.0.range(..end).next_back().map(|(begin, end)| (*begin, *end));
        if before.is_some_and(|(_, before_end)| before_end > begin) {
            return false;
        }
        if let Some((before_begin, before_end)) = before
            && before_end == begin
        {
            self.0.remove(&before_begin);
            begin = before_begin;
        }
        if let Some(after_end) = self.0.remove(&end) {
            end = after_end;
        }
        self.0.insert(begin, end);
        true
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|(begin, end)| end - begin).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    fn entries() -> Vec<TensorEntry> {
        vec![TensorEntry::new("first", Dtype::F32, [2, 3]), TensorEntry::new("second", Dtype::BF16, [4])]
    }

    fn create(folder: &tempfile::TempDir) -> SafetensorsWriter {
        SafetensorsWriter::create(&folder.path().join("a.safetensors"), &entries(), &BTreeMap::new()).unwrap()
    }

    #[test]
    fn the_official_reader_reads_it_and_the_hash_is_the_files() {
        let folder = tempfile::tempdir().unwrap();
        for out_of_order in [false, true] {
            let mut writer = create(&folder);
            let path = writer.path().to_owned();
            let halves: Vec<u8> = (1..=8).collect();
            if out_of_order {
                writer.write_at("second", 0, &halves).unwrap();
            }
            writer.write_f32("first", 0, &[1.0, 2.0]).unwrap();
            writer.write_f32("first", 2, &[3.0, 4.0, 5.0, 6.0]).unwrap();
            if !out_of_order {
                writer.write_at("second", 0, &halves).unwrap();
            }
            let digest = writer.finish().unwrap();
            let content = fs::read(&path).unwrap();
            assert_eq!(digest, digest_file(&path).unwrap());
            assert_eq!(digest.blake3, blake3::hash(&content).to_hex().to_string());
            let file = safetensors::SafeTensors::deserialize(&content).unwrap();
            assert_eq!(file.tensor("first").unwrap().shape(), [2, 3]);
            assert_eq!(
                file.tensor("first").unwrap().data(),
                bytemuck::cast_slice::<f32, u8>(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
            );
            assert_eq!(file.tensor("second").unwrap().data(), halves);
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_gap_is_named_and_the_file_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = create(&folder);
        let path = writer.path().to_owned();
        writer.write_f32("first", 0, &[0.0; 6]).unwrap();
        writer.write_f32("second", 1, &[0.0; 3]).unwrap();
        let error = writer.finish().unwrap_err().to_string();
        assert!(error.contains("tensor second has 6 of 8 bytes"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn ranges_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = create(&folder);
        writer.write_at("first", 8, &[0; 8]).unwrap();
        for (name, offset, length, expected) in [
            ("first", 20, 8, "8 bytes at byte 20 do not fit into its 24"),
            ("first", u64::MAX, 2, "do not fit"),
            ("first", 0, 9, "bytes 0 to 9 were written before"),
            ("first", 15, 4, "were written before"),
            ("third", 0, 1, "tensor third is not in"),
        ] {
            let error = writer.write_at(name, offset, &vec![0; length]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        // What was refused left no trace.
        writer.write_at("first", 0, &[0; 8]).unwrap();
        writer.write_at("first", 16, &[0; 8]).unwrap();
        writer.write_f32("second", 0, &[0.0; 4]).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        fs::write(&path, "kept").unwrap();
        let error = SafetensorsWriter::create(&path, &entries(), &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, CheckpointError::Exists { .. }));
        assert_eq!(fs::read(&path).unwrap(), b"kept");
    }

    #[test]
    fn a_file_without_tensors_and_empty_tensors_can_be_finished() {
        let folder = tempfile::tempdir().unwrap();
        for (name, entries) in [("none", vec![]), ("empty", vec![TensorEntry::new("a", Dtype::F16, [0, 3])])] {
            let path = folder.path().join(name);
            SafetensorsWriter::create(&path, &entries, &BTreeMap::new()).unwrap().finish().unwrap();
            let content = fs::read(&path).unwrap();
            assert_eq!(safetensors::SafeTensors::deserialize(&content).unwrap().len(), entries.len());
        }
    }
}
