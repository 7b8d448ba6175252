//! Reads one safetensors file at byte ranges: never more than was asked for.

use crate::disk::open_file;
use crate::dtype::{Dtype, decode_f32};
use crate::error::{CheckpointError, Result};
use crate::header::{Header, HeaderTensor, MAX_HEADER_BYTES};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes read and converted at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A safetensors file whose header was read and checked. Reading needs no lock: it may be shared by threads.
#[derive(Debug)]
pub struct SafetensorsReader {
    path: PathBuf,
    file: File,
    bytes: u64,
    data_begin: u64,
    header: Header,
}

/// A tensor as a file's header describes it, of whatever type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribedTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// The type of its elements as the file spells it.
    pub dtype: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its bytes.
    pub bytes: u64,
}

/// A piece of a file that is read from end to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    /// The tensor that the bytes belong to; `None` for the header.
    pub(crate) tensor: Option<&'a str>,
    /// The type of the tensor's elements, if it is one that is read here.
    pub(crate) dtype: Option<Dtype>,
    /// The first byte of the tensor that is here; whole elements come.
    pub(crate) byte_offset: u64,
    /// The bytes as they lie in the file.
    pub(crate) bytes: &'a [u8],
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// The type of its elements in the file.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The file.
    pub file: PathBuf,
    /// Its first byte in the file.
    pub begin: u64,
}

impl StoredTensor {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl SafetensorsReader {
    /// Opens a file and checks its header against its size: every byte belongs to one tensor, and every tensor has the bytes
    /// that its shape and type ask for.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_file(path, CheckpointError::bad_file)?;
        let bytes = file.metadata().map_err(CheckpointError::io("read", path))?.len();
        let json = header_json(&file, path, bytes)?;
        let data_begin = 8 + json.len() as u64;
        let header =
            Header::parse(&json, bytes - data_begin).map_err(|reason| CheckpointError::bad_file(path, reason))?;
        Ok(SafetensorsReader { path: path.to_owned(), file, bytes, data_begin, header })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the whole file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the header says of a tensor, of whatever type.
    pub fn describe(&self, name: &str) -> Option<DescribedTensor<'_>> {
        let (name, tensor) = self.header.tensors.get_key_value(name)?;
        let (dtype, shape) = (tensor.dtype.as_str(), tensor.shape.as_slice());
        Some(DescribedTensor { name, dtype, shape, bytes: tensor.end - tensor.begin })
    }

    /// Reads every byte of the file once, from end to end, in pieces of at most a mebibyte.
    pub(crate) fn read_through(&self, mut visit: impl FnMut(Piece<'_>)) -> Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut section = |tensor: Option<(&str, &HeaderTensor)>, begin: u64, end: u64| {
            let dtype = tensor.and_then(|(_, tensor)| Dtype::from_name(&tensor.dtype));
            let tensor = tensor.map(|(name, _)| name);
            let mut position = begin;
            while position < end {
                let bytes = &mut buffer[..CHUNK_BYTES.min((end - position) as usize)];
                self.read_exact(tensor.unwrap_or("of the header"), position, bytes)?;
                visit(Piece { tensor, dtype, byte_offset: position - begin, bytes });
                position += bytes.len() as u64;
            }
            Ok(())
        };
        section(None, 0, self.data_begin)?;
        let mut order: Vec<_> = self.header.tensors.iter().collect();
        order.sort_by_key(|(_, tensor)| (tensor.begin, tensor.end));
        for (name, tensor) in order {
            section(Some((name, tensor)), self.data_begin + tensor.begin, self.data_begin + tensor.end)?;
        }
        Ok(())
    }

    /// The strings about the file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// True if there is a tensor of that name, of whatever type.
    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// What the file says of a tensor.
    ///
    /// # Errors
    /// If it is not there (a near name is told), or its type is none of F32, BF16, F16.
    pub fn entry(&self, name: &str) -> Result<StoredTensor> {
        let (dtype, tensor) = self.find(name)?;
        Ok(StoredTensor {
            dtype,
            shape: tensor.shape.clone(),
            file: self.path.clone(),
            begin: self.data_begin + tensor.begin,
        })
    }

    /// Reads elements of a tensor, in row-major order, as `f32`.
    ///
    /// # Errors
    /// If the tensor does not have these elements, `values` has another length, or the file cannot be read.
    pub fn read_f32(&self, name: &str, elements: Range<usize>, values: &mut [f32]) -> Result<()> {
        let (dtype, tensor) = self.find(name)?;
        let all = (tensor.end - tensor.begin) as usize / dtype.size();
        let Range { start, end } = elements;
        if start > end || end > all || end - start != values.len() {
            let reason = format!("elements {start} to {end} of {all} were asked for, with room for {}", values.len());
            return Err(self.bad_range(name, reason));
        }
        let mut position = self.data_begin + tensor.begin + (start * dtype.size()) as u64;
        if dtype == Dtype::F32 {
            return self.read_exact(name, position, bytemuck::cast_slice_mut(values));
        }
        let mut buffer = vec![0; CHUNK_BYTES.min(values.len() * dtype.size())];
        for chunk in values.chunks_mut(CHUNK_BYTES / dtype.size()) {
            let bytes = &mut buffer[..chunk.len() * dtype.size()];
            self.read_exact(name, position, bytes)?;
            decode_f32(bytes, dtype, chunk);
            position += bytes.len() as u64;
        }
        Ok(())
    }

    /// Reads a tensor's bytes as they lie in the file, beginning at `byte_offset` of it.
    pub fn read_bytes(&self, name: &str, byte_offset: u64, bytes: &mut [u8]) -> Result<()> {
        let (_, tensor) = self.find(name)?;
        let all = tensor.end - tensor.begin;
        if byte_offset.checked_add(bytes.len() as u64).is_none_or(|end| end > all) {
            let reason = format!("{} bytes at byte {byte_offset} of {all} were asked for", bytes.len());
            return Err(self.bad_range(name, reason));
        }
        self.read_exact(name, self.data_begin + tensor.begin + byte_offset, bytes)
    }

    fn find(&self, name: &str) -> Result<(Dtype, &HeaderTensor)> {
        let tensor = self.header.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_string(),
            near: nearest(name, self.names()),
        })?;
        let dtype = Dtype::from_name(&tensor.dtype).ok_or_else(|| CheckpointError::UnsupportedDtype {
            path: self.path.clone(),
            tensor: name.to_string(),
            dtype: tensor.dtype.clone(),
        })?;
        Ok((dtype, tensor))
    }

    fn read_exact(&self, name: &str, position: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, position).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                CheckpointError::bad_file(&self.path, format!("it ended inside tensor {name}, since it was opened"))
            }
            _ => CheckpointError::Io { action: "read", path: self.path.clone(), source },
        })
    }

    fn bad_range(&self, name: &str, reason: String) -> CheckpointError {
        CheckpointError::BadRange { path: self.path.clone(), tensor: name.to_string(), reason }
    }
}

/// The JSON of a file's header, which is told to be no longer than the file.
fn header_json(file: &File, path: &Path, bytes: u64) -> Result<Vec<u8>> {
    if bytes < 8 {
        return Err(CheckpointError::bad_file(path, format!("it has {bytes} bytes, the header's length alone is 8")));
    }
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(CheckpointError::io("read", path))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > bytes - 8 {
        let reason =
            format!("it tells of a header of {length} bytes, and has {bytes} in all; the bound is {MAX_HEADER_BYTES}");
        return Err(CheckpointError::bad_file(path, reason));
    }
    let mut json = vec![0; length as usize];
    file.read_exact_at(&mut json, 8).map_err(CheckpointError::io("read", path))?;
    Ok(json)
}

/// The tensors of a file whose end is missing that lie beyond it, at least in part; `None` if its header is lost as well.
pub(crate) fn tensors_cut_off(path: &Path) -> Option<Vec<String>> {
    let file = open_file(path, CheckpointError::bad_file).ok()?;
    let bytes = file.metadata().ok()?.len();
    let json = header_json(&file, path, bytes).ok()?;
    let data_bytes = bytes - 8 - json.len() as u64;
    let header = Header::parse_alone(&json).ok()?;
    let cut = header.tensors.into_iter().filter(|(_, tensor)| tensor.end > data_bytes);
    Some(cut.map(|(name, _)| name).collect())
}

/// The name that looks most like the one asked for, if any looks like it at all.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let allowed = (name.chars().count() / 3).max(3);
    let distances = names.map(|candidate| (strsim::levenshtein(name, candidate), candidate));
    distances.filter(|(distance, _)| *distance <= allowed).min().map(|(_, candidate)| candidate.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype as OfficialDtype, TensorView};
    use std::fs;

    fn official(path: &Path) -> Vec<u8> {
        let floats: Vec<u8> = (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect();
        let integers: Vec<u8> = 7i64.to_le_bytes().to_vec();
        let tensors = [
            ("weight", TensorView::new(OfficialDtype::F32, vec![2, 3], &floats).unwrap()),
            ("half", TensorView::new(OfficialDtype::F16, vec![4], &[0, 0x3c, 0, 0x40, 0, 0xbc, 0, 0]).unwrap()),
            ("position_ids", TensorView::new(OfficialDtype::I64, vec![1], &integers).unwrap()),
        ];
        let content = safetensors::serialize(tensors, None).unwrap();
        fs::write(path, &content).unwrap();
        content
    }

    #[test]
    fn the_official_writers_file_is_read_at_ranges() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        official(&path);
        let reader = SafetensorsReader::open(&path).unwrap();
        assert_eq!(reader.names().collect::<Vec<_>>(), ["half", "position_ids", "weight"]);
        let mut values = [0.0; 3];
        reader.read_f32("weight", 2..5, &mut values).unwrap();
        assert_eq!(values, [2.0, 3.0, 4.0]);
        reader.read_f32("half", 0..3, &mut values).unwrap();
        assert_eq!(values, [1.0, 2.0, -1.0]);
        let entry = reader.entry("weight").unwrap();
        assert_eq!((entry.dtype, entry.shape.as_slice(), entry.elements()), (Dtype::F32, &[2, 3][..], 6));
        let mut bytes = [0; 4];
        reader.read_bytes("half", 2, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0x40, 0, 0xbc]);
    }

    #[test]
    fn wrong_asks_name_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        official(&path);
        let reader = SafetensorsReader::open(&path).unwrap();
        let mut values = [0.0; 3];
        for (name, start, end, expected) in [
            ("weight", 4, 7, "elements 4 to 7 of 6"),
            ("weight", 0, 2, "with room for 3"),
            ("weight", 5, 2, "elements 5 to 2"),
            ("wieght", 0, 3, "hint: the nearest name there is weight"),
            ("position_ids", 0, 1, "tensor position_ids in"),
        ] {
            let error = reader.read_f32(name, Range { start, end }, &mut values).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(reader.entry("position_ids").unwrap_err().to_string().contains("has type I64"));
        assert!(!reader.entry("nothing.alike").unwrap_err().to_string().contains("hint"));
        assert!(reader.read_bytes("half", 8, &mut [0]).is_err());
        assert!(reader.read_bytes("half", u64::MAX, &mut [0]).is_err());
    }

    #[test]
    fn a_file_cut_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let content = official(&path);
        for length in 0..content.len() {
            fs::write(&path, &content[..length]).unwrap();
            assert!(SafetensorsReader::open(&path).is_err(), "{length} of {} bytes", content.len());
        }
        fs::write(&path, [&content[..], &[0]].concat()).unwrap();
        assert!(SafetensorsReader::open(&path).is_err());
    }

    #[test]
    fn a_huge_header_length_is_refused_before_it_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        assert!(SafetensorsReader::open(&path).unwrap_err().to_string().contains("a header of 18446744073709551615"));
    }

    #[test]
    fn damaged_files_are_errors_and_never_panics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let content = official(&path);
        let header_end = 8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
        let mut state = 1u64;
        let mut next = |bound: usize| {
            // A linear congruential generator is random enough to choose bytes to break.
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % bound
        };
        let (mut refused, mut values) = (0, vec![0.0; 6]);
        for _ in 0..600 {
            let mut broken = content.clone();
            for _ in 0..1 + next(3) {
                let choices = br#"{}[]",:0123456789-eF"#;
                let at = next(header_end);
                broken[at] = if next(2) == 0 { choices[next(choices.len())] } else { next(256) as u8 };
            }
            fs::write(&path, &broken).unwrap();
            match SafetensorsReader::open(&path) {
                Err(_) => refused += 1,
                Ok(reader) => {
                    for name in reader.names() {
                        let _ = reader.read_f32(name, 0..6, &mut values);
                        let _ = reader.entry(name).map(|entry| entry.elements());
                    }
                }
            }
        }
        assert!(refused > 300, "{refused} of 600 damaged files were refused");
    }
}
