//! Reads masters and moments of a checkpoint by parameter, whatever layout they were saved in.

use crate::error::{CheckpointError, Result};
use crate::publish::Found;
use crate::reader::{SafetensorsReader, nearest};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The state in a checkpoint. Reading touches only the elements asked for; it may be shared by threads.
#[derive(Debug)]
pub struct StateReader {
    directory: PathBuf,
    files: Vec<SafetensorsReader>,
    /// The pieces of each stored whole, such as `layer 3/master`, by where they begin.
    pieces: BTreeMap<String, Vec<Piece>>,
    parameters: BTreeMap<String, StoredParameter>,
}

/// A range of a whole, and where it lies.
#[derive(Debug)]
struct Piece {
    elements: Range<u64>,
    file: usize,
    tensor: String,
}

/// A parameter in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredParameter {
    /// Its shape in the model's files.
    pub shape: Vec<u64>,
    unit: String,
    elements: Range<u64>,
}

impl StoredParameter {
    /// How many elements it has.
    pub fn elements(&self) -> u64 {
        self.elements.end - self.elements.start
    }
}

impl StateReader {
    /// Opens the files of a checkpoint and reads their headers.
    pub fn open(found: &Found) -> Result<Self> {
        let manifest = &found.manifest;
        let (mut files, mut pieces) = (Vec::new(), BTreeMap::<String, Vec<Piece>>::new());
        for entry in &manifest.files {
            for range in &entry.tensors {
                let piece = Piece { elements: range.begin..range.end, file: files.len(), tensor: range.name.clone() };
                pieces.entry(range.whole.clone()).or_default().push(piece);
            }
            files.push(SafetensorsReader::open(&found.directory.join(&entry.name))?);
        }
        pieces.values_mut().for_each(|pieces| pieces.sort_by_key(|piece| piece.elements.start));
        let parameters = manifest.units.iter().flat_map(|unit| {
            unit.parameters.iter().map(|parameter| {
                let end = parameter.begin + parameter.elements().unwrap_or_default();
                let stored = StoredParameter {
                    shape: parameter.shape.clone(),
                    unit: unit.name.clone(),
                    elements: parameter.begin..end,
                };
                (parameter.name.clone(), stored)
            })
        });
        Ok(StateReader { directory: found.directory.clone(), files, pieces, parameters: parameters.collect() })
    }

    /// The checkpoint's folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All parameters, by name.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &StoredParameter)> {
        self.parameters.iter().map(|(name, parameter)| (name.as_str(), parameter))
    }

    /// What is known of a parameter.
    ///
    /// # Errors
    /// If the checkpoint has none of that name; a near one is told.
    pub fn parameter(&self, name: &str) -> Result<&StoredParameter> {
        self.parameters.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.directory.clone(),
            tensor: name.to_owned(),
            near: nearest(name, self.parameters.keys().map(String::as_str)),
        })
    }

    /// Reads elements of a parameter's state, one of [`crate::STATES`], in row-major order.
    ///
    /// # Errors
    /// If there is no such parameter or state, it does not have these elements, `values` has another length, or a file
    /// cannot be read.
    pub fn read(&self, parameter: &str, state: &str, elements: Range<u64>, values: &mut [f32]) -> Result<()> {
        let stored = self.parameter(parameter)?;
        let Range { start, end } = elements;
        if start > end || end > stored.elements() || end - start != values.len() as u64 {
            let all = stored.elements();
            let reason = format!("elements {start} to {end} of {all} were asked for, with room for {}", values.len());
            return Err(self.bad_range(parameter, reason));
        }
        let wanted = stored.elements.start + start..stored.elements.start + end;
        let whole = format!("{}/{state}", stored.unit);
        let Some(pieces) = self.pieces.get(&whole) else {
            return Err(self.bad_range(parameter, format!("nothing is stored as {whole}")));
        };
        // Copies of a piece, which nothing forbids, would be read twice; a gap is refused when a manifest is read.
        let first = pieces.partition_point(|piece| piece.elements.end <= wanted.start);
        for piece in pieces[first..].iter().take_while(|piece| piece.elements.start < wanted.end) {
            let (begin, end) = (wanted.start.max(piece.elements.start), wanted.end.min(piece.elements.end));
            if begin >= end {
                continue;
            }
            let of_piece = (begin - piece.elements.start) as usize..(end - piece.elements.start) as usize;
            let target = &mut values[(begin - wanted.start) as usize..(end - wanted.start) as usize];
            self.files[piece.file].read_f32(&piece.tensor, of_piece, target)?;
        }
        Ok(())
    }

    fn bad_range(&self, parameter: &str, reason: String) -> CheckpointError {
        CheckpointError::BadRange { path: self.directory.clone(), tensor: parameter.to_owned(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::tests::save;
    use crate::publish::{open_step, publish};
    use crate::{FileEntry, Manifest, SafetensorsWriter, TensorEntry, shard_file_name, step_directory};

    /// Two ranks of four elements each, all of them the step's number; see `units` of the manifest's tests.
    #[test]
    fn parameters_are_read_across_files() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, mut manifest) = crate::publish::tests::write_step(folder.path(), 20);
        // Distinct values: what lies at element i of the whole is i.
        for (rank, file) in manifest.files.iter_mut().enumerate() {
            let entries: Vec<_> =
                file.tensors.iter().map(|tensor| TensorEntry::new(&tensor.name, tensor.dtype, [4])).collect();
            let path = directory.join(shard_file_name(rank as u32, 2, 1));
            std::fs::remove_file(&path).unwrap();
            let mut writer = SafetensorsWriter::create(&path, &entries, &Default::default()).unwrap();
            for entry in &entries {
                let values = [0, 1, 2, 3].map(|element| (4 * rank + element) as f32);
                writer.write_f32(&entry.name, 0, &values).unwrap();
            }
            *file = FileEntry::new(file.name.clone(), writer.finish().unwrap(), file.tensors.clone());
        }
        publish(&directory, &manifest).unwrap();
        let reader = StateReader::open(&open_step(&directory).unwrap()).unwrap();
        let shapes: Vec<_> = reader.parameters().map(|(name, stored)| (name, stored.shape.clone())).collect();
        assert_eq!(shapes, [("bias", vec![1]), ("weight", vec![2, 3])]);
        let read = |name: &str, elements: Range<u64>| {
            let mut values = vec![-1.0; (elements.end - elements.start) as usize];
            reader.read(name, "exp_avg", elements, &mut values).map(|()| values)
        };
        assert_eq!(read("weight", 0..6).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(read("weight", 2..4).unwrap(), [3.0, 4.0]);
        assert_eq!(read("weight", 5..6).unwrap(), [6.0]);
        assert_eq!(read("weight", 3..3).unwrap(), [0.0; 0]);
        assert_eq!(read("bias", 0..1).unwrap(), [0.0]);
        let told = |name: &str, elements| read(name, elements).unwrap_err().to_string();
        assert!(told("weight", 0..7).contains("elements 0 to 7 of 6 were asked for"), "{}", told("weight", 0..7));
        assert!(told("wieght", 0..1).contains("the nearest name there is weight"), "{}", told("wieght", 0..1));
        let unknown = reader.read("bias", "momentum", 0..1, &mut [0.0]).unwrap_err().to_string();
        assert!(unknown.contains("nothing is stored as layer 0/momentum"), "{unknown}");
    }

    #[test]
    fn a_file_that_is_gone_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let directory = save(folder.path(), 20);
        let found = open_step(&directory).unwrap();
        let Manifest { files, .. } = &found.manifest;
        std::fs::remove_file(step_directory(folder.path(), 20).join(&files[0].name)).unwrap();
        assert!(StateReader::open(&found).unwrap_err().to_string().contains("cannot open"));
    }
}
