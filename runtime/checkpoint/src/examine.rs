//! Everything that is wrong with a checkpoint or a model folder: every byte, every header, every value.
//!
//! Unlike [`verify`](crate::verify), which stops at the first fault, this goes on, and tells which parameters each fault may
//! have hit. Each file is read once.

use crate::disk::kind_of;
use crate::dtype::decode_f32;
use crate::error::{CheckpointError, Result};
use crate::manifest::{FileEntry, TensorRange};
use crate::model_files::listed_files;
use crate::places::{Places, element_words};
use crate::publish::{MANIFEST_FILE, check_tensor, manifest_of};
use crate::reader::{Piece, SafetensorsReader, tensors_cut_off};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// What was found in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Examined {
    /// The folder.
    pub path: PathBuf,
    /// Files that were looked at, and their bytes.
    pub files: usize,
    /// Bytes of these files.
    pub bytes: u64,
    /// Parameters (of a model folder: tensors) that lie in them.
    pub parameters: usize,
    /// What is wrong; nothing in a folder that is whole.
    pub faults: Vec<Fault>,
}

impl Examined {
    /// Nothing is wrong with a folder that holds nothing, and it is no use.
    fn or_empty(mut self) -> Self {
        if self.parameters == 0 && self.faults.is_empty() {
            self.faults.push(Fault {
                file: None,
                reason: "there are no parameters in it".to_owned(),
                parameters: Vec::new(),
            });
        }
        self
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file, unless it is the folder as such.
    pub file: Option<String>,
    /// What is wrong with it.
    pub reason: String,
    /// The parameters that it may have hit, as far as that is known.
    pub parameters: Vec<String>,
}

impl Fault {
    fn of_folder(error: &CheckpointError) -> Self {
        Fault { file: None, reason: error.reason(), parameters: Vec::new() }
    }
}

/// Examines the checkpoint in a step's folder: the manifest, and each file's size, header, tensors, hash and values.
pub fn examine_checkpoint(directory: &Path) -> Examined {
    let mut examined = Examined { path: directory.to_owned(), ..Examined::default() };
    let manifest = match manifest_of(directory) {
        Ok(manifest) => manifest,
        Err(error) => {
            examined.faults.push(Fault::of_folder(&error));
            return examined;
        }
    };
    (examined.files, examined.bytes) = (manifest.files.len(), manifest.bytes());
    examined.parameters = manifest.units.iter().map(|unit| unit.parameters.len()).sum();
    let shards = Shards { directory, places: Places::of(&manifest) };
    let changed = manifest.check_seal().err().map(|reason| Fault {
        file: Some(MANIFEST_FILE.to_owned()),
        reason: format!("it {reason}"),
        parameters: Vec::new(),
    });
    let files = manifest.files.iter().flat_map(|entry| shards.examine(entry));
    examined.faults = changed.into_iter().chain(files).collect();
    examined.or_empty()
}

/// The files of a checkpoint, as its manifest tells of them.
struct Shards<'a> {
    directory: &'a Path,
    places: Places<'a>,
}

impl<'a> Shards<'a> {
    fn examine(&self, entry: &'a FileEntry) -> Vec<Fault> {
        let path = self.directory.join(&entry.name);
        let all = || self.parameters(&entry.tensors);
        let fault = |reason: String, parameters: Vec<String>| {
            vec![Fault { file: Some(entry.name.clone()), reason, parameters }]
        };
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return fault("it is missing".into(), all()),
            Err(error) => return fault(error.to_string(), all()),
            Ok(metadata) if !metadata.is_file() => {
                return fault(format!("it is {}, not a file", kind_of(&metadata)), all());
            }
            Ok(metadata) if metadata.len() != entry.bytes => {
                let reason = format!("it has {} bytes, the manifest says {}", metadata.len(), entry.bytes);
                let hit = match metadata.len() < entry.bytes {
                    true => tensors_cut_off(&path).map(|cut| self.parameters_of_tensors(entry, &cut)),
                    false => None,
                };
                return fault(reason, hit.unwrap_or_else(all));
            }
            Ok(_) => {}
        }
        match self.read(entry, &path) {
            Ok(faults) => faults,
            Err(error) => fault(error.reason(), all()),
        }
    }

    /// Reads a file that has its size.
    fn read(&self, entry: &'a FileEntry, path: &Path) -> Result<Vec<Fault>> {
        let reader = SafetensorsReader::open(path)?;
        let mut faults = Vec::new();
        let mut tell = |reason: String, parameters: Vec<String>| {
            faults.push(Fault { file: Some(entry.name.clone()), reason, parameters });
        };
        for tensor in &entry.tensors {
            if let Err(reason) = check_tensor(&reader, &entry.name, tensor) {
                tell(reason, self.parameters([tensor]));
            }
        }
        let (mut hasher, mut values) = (blake3::Hasher::new(), Values::default());
        reader.read_through(|piece| {
            hasher.update(piece.bytes);
            values.look(piece);
        })?;
        let hash = hasher.finalize().to_hex();
        if hash.as_str() != entry.blake3 {
            let reason = format!("its hash is {hash}, the manifest says {}", entry.blake3);
            tell(reason, self.parameters(&entry.tensors));
        }
        if let Some(first) = values.first {
            let (words, parameters) = self.words(entry, &first);
            tell(not_finite(values.count, &words, first.value), parameters);
        }
        Ok(faults)
    }

    /// Where a value stands, and the parameter.
    fn words(&self, entry: &FileEntry, first: &NotFinite) -> (String, Vec<String>) {
        let range = entry.tensors.iter().find(|range| range.name == first.tensor);
        let place = range.and_then(|range| self.places.find(range, first.element));
        let Some(place) = place else {
            return (format!("element {} of {}", first.element, first.tensor), Vec::new());
        };
        match place.parameter {
            Some(parameter) => {
                let element = element_words(place.element, &parameter.shape);
                (format!("{} of {}, {element}", place.state, parameter.name), vec![parameter.name.clone()])
            }
            None => {
                let words = format!("{} of the padding of {}, element {}", place.state, place.unit.name, place.element);
                (words, Vec::new())
            }
        }
    }

    fn parameters(&self, ranges: impl IntoIterator<Item = &'a TensorRange>) -> Vec<String> {
        self.places.parameters_in(ranges).into_iter().map(str::to_owned).collect()
    }

    fn parameters_of_tensors(&self, entry: &'a FileEntry, tensors: &[String]) -> Vec<String> {
        self.parameters(entry.tensors.iter().filter(|range| tensors.contains(&range.name)))
    }
}

/// Examines a Hugging Face model folder: the index, and each file's header and values.
pub fn examine_model(directory: &Path) -> Examined {
    let mut examined = Examined { path: directory.to_owned(), ..Examined::default() };
    let files = match listed_files(directory) {
        Ok(files) => files,
        Err(error) => {
            examined.faults.push(Fault::of_folder(&error));
            return examined;
        }
    };
    for (name, listed) in files {
        let path = directory.join(&name);
        examined.files += 1;
        examined.bytes += fs::metadata(&path).map_or(0, |metadata| metadata.len());
        match read_model_file(&path, &name, &listed) {
            Ok((tensors, faults)) => {
                examined.parameters += tensors;
                examined.faults.extend(faults);
            }
            Err(error) => {
                let hit = tensors_cut_off(&path).filter(|cut| !cut.is_empty()).unwrap_or(listed);
                examined.faults.push(Fault { file: Some(name), reason: error.reason(), parameters: hit });
            }
        }
    }
    examined.or_empty()
}

/// Reads a model's file, in which these tensors should lie, from end to end; how many tensors it has, and what is wrong.
fn read_model_file(path: &Path, name: &str, listed: &[String]) -> Result<(usize, Vec<Fault>)> {
    let reader = SafetensorsReader::open(path)?;
    let mut faults = Vec::new();
    let mut tell = |reason: String, parameters: Vec<String>| {
        faults.push(Fault { file: Some(name.to_owned()), reason, parameters });
    };
    let missing: Vec<String> = listed.iter().filter(|tensor| !reader.contains(tensor)).cloned().collect();
    if !missing.is_empty() {
        tell(
            format!("{} of the {} tensors that the index says are in it are not", missing.len(), listed.len()),
            missing,
        );
    }
    let mut values = Values::default();
    reader.read_through(|piece| values.look(piece))?;
    if let Some(first) = values.first {
        let shape = reader.describe(&first.tensor).map(|tensor| tensor.shape).unwrap_or_default();
        let shape: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
        let words = format!("{}, {}", first.tensor, element_words(first.element, &shape));
        tell(not_finite(values.count, &words, first.value), vec![first.tensor]);
    }
    Ok((reader.names().count(), faults))
}

/// The first value of a file that is not finite.
pub(crate) struct NotFinite {
    pub(crate) tensor: String,
    pub(crate) element: u64,
    pub(crate) value: f32,
}

/// The values of a file as they pass by.
#[derive(Default)]
pub(crate) struct Values {
    count: u64,
    pub(crate) first: Option<NotFinite>,
    buffer: Vec<f32>,
}

impl Values {
    pub(crate) fn look(&mut self, piece: Piece<'_>) {
        let (Some(tensor), Some(dtype)) = (piece.tensor, piece.dtype) else { return };
        self.buffer.resize(piece.bytes.len() / dtype.size(), 0.0);
        decode_f32(piece.bytes, dtype, &mut self.buffer);
        let count = self.buffer.iter().filter(|value| !value.is_finite()).count();
        if count > 0 && self.first.is_none() {
            let place = self.buffer.iter().position(|value| !value.is_finite()).unwrap_or(0);
            let element = piece.byte_offset / dtype.size() as u64 + place as u64;
            self.first = Some(NotFinite { tensor: tensor.to_owned(), element, value: self.buffer[place] });
        }
        self.count += count as u64;
    }
}

fn not_finite(count: u64, words: &str, value: f32) -> String {
    match count {
        1 => format!("a value is not finite: {words}, is {value}"),
        _ => format!("{count} values are not finite; the first, {words}, is {value}"),
    }
}

#[cfg(test)]
#[path = "examine_tests.rs"]
mod tests;
