//! Writing a model as Hugging Face's safetensors files: one, or several with an index.

use crate::disk::{forget_cached, write_new};
use crate::dtype::for_each_encoded_chunk;
use crate::error::{CheckpointError, Result};
use crate::header::TensorEntry;
use crate::model_files::{INDEX_FILE, SINGLE_FILE};
use crate::read_back::WrittenModel;
use crate::writer::SafetensorsWriter;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The size that no file exceeds unless a single tensor does: 5 GB, as `transformers` has it.
pub const MAX_FILE_BYTES: u64 = 5_000_000_000;

/// A file of an exported model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportFile {
    /// Its name: `model.safetensors`, or `model-00001-of-00003.safetensors`.
    pub name: String,
    /// Its tensors, in the order in which they lie.
    pub tensors: Vec<TensorEntry>,
}

/// Which tensor goes into which file. Tensors keep their order, so writing them in that order is sequential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportPlan {
    /// The files.
    pub files: Vec<ExportFile>,
    /// Bytes of all tensors.
    pub total_bytes: u64,
    /// Elements of all tensors.
    pub total_elements: u64,
}

impl ExportPlan {
    /// Fills files in the given order, each with at most `max_file_bytes` of tensors ([`MAX_FILE_BYTES`]); a larger tensor
    /// has a file of its own.
    ///
    /// # Errors
    /// If there is no tensor, or their sizes are beyond all bounds.
    pub fn new(entries: &[TensorEntry], max_file_bytes: u64) -> Result<Self> {
        let mut groups: Vec<(u64, Vec<TensorEntry>)> = Vec::new();
        let mut total_bytes = 0u64;
        let mut total_elements = 0u64;
        for entry in entries {
            let bytes = entry.bytes().ok_or_else(|| bad_plan(format!("tensor {} is too large", entry.name)))?;
            total_bytes = total_bytes.checked_add(bytes).ok_or_else(|| bad_plan("it is too large".to_string()))?;
            total_elements += bytes / entry.dtype.size() as u64;
            match groups.last_mut() {
                Some((filled, tensors)) if *filled + bytes <= max_file_bytes => {
                    *filled += bytes;
                    tensors.push(entry.clone());
                }
                _ => groups.push((bytes, vec![entry.clone()])),
            }
        }
        let count = groups.len();
        if count == 0 {
            return Err(bad_plan("it has no tensors".to_string()));
        }
        let name = |number| match count {
            1 => SINGLE_FILE.to_string(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        let numbered = (1..).zip(groups);
        let files = numbered.map(|(number, (_, tensors))| ExportFile { name: name(number), tensors }).collect();
        Ok(ExportPlan { files, total_bytes, total_elements })
    }

    /// The content of `model.safetensors.index.json`; none for a single file, which has no index.
    pub fn index(&self) -> Option<String> {
        if self.files.len() < 2 {
            return None;
        }
        let weight_map: BTreeMap<&str, &str> = self
            .files
            .iter()
            .flat_map(|file| file.tensors.iter().map(|tensor| (tensor.name.as_str(), file.name.as_str())))
            .collect();
        let metadata = serde_json::json!({"total_parameters": self.total_elements, "total_size": self.total_bytes});
        let index = serde_json::json!({"metadata": metadata, "weight_map": weight_map});
        Some(format!("{index:#}\n"))
    }
}

fn bad_plan(reason: String) -> CheckpointError {
    CheckpointError::BadLayout { path: SINGLE_FILE.into(), reason }
}

/// Writes the files of a plan; which file a tensor lies in is its own business. Each tensor is written from front to back and
/// hashed on the way, so that what was written can be read back and compared.
#[derive(Debug)]
pub struct ExportWriter {
    writers: Vec<SafetensorsWriter>,
    names: HashMap<String, usize>,
    targets: Vec<Target>,
    index: Option<String>,
    directory: PathBuf,
    conversion: Vec<u8>,
}

/// A tensor that is being written.
#[derive(Debug)]
struct Target {
    file: usize,
    entry: TensorEntry,
    hasher: blake3::Hasher,
    written: u64,
}

impl ExportWriter {
    /// Creates all files of the plan in a folder (a [`StagingDirectory`](crate::StagingDirectory), say) and reserves their
    /// space, so that a full disk is met here.
    pub fn create(directory: &Path, plan: &ExportPlan) -> Result<Self> {
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let mut writers = Vec::with_capacity(plan.files.len());
        let (mut names, mut targets) = (HashMap::new(), Vec::new());
        for (number, file) in plan.files.iter().enumerate() {
            let path = directory.join(&file.name);
            for tensor in &file.tensors {
                let (entry, hasher) = (tensor.clone(), blake3::Hasher::new());
                if names.insert(tensor.name.clone(), targets.len()).is_some() {
                    return Err(bad_plan(format!("tensor {} is given twice", tensor.name)));
                }
                targets.push(Target { file: number, entry, hasher, written: 0 });
            }
            writers.push(SafetensorsWriter::create_without_digest(&path, &file.tensors, &metadata)?);
        }
        let (index, directory) = (plan.index(), directory.to_owned());
        Ok(ExportWriter { writers, names, targets, index, directory, conversion: Vec::new() })
    }

    /// Writes values of a tensor, beginning at `element_offset` of it, rounded to the tensor's type.
    pub fn write_f32(&mut self, name: &str, element_offset: u64, values: &[f32]) -> Result<()> {
        let dtype = self.target(name)?.entry.dtype;
        let begin = element_offset.saturating_mul(dtype.size() as u64);
        let mut conversion = std::mem::take(&mut self.conversion);
        let write = |offset, bytes: &[u8]| self.write_at(name, begin.saturating_add(offset), bytes);
        let written = for_each_encoded_chunk(values, dtype, &mut conversion, write);
        self.conversion = conversion;
        written
    }

    /// Writes bytes of a tensor, beginning at `byte_offset` of it, where those before them end.
    pub fn write_at(&mut self, name: &str, byte_offset: u64, bytes: &[u8]) -> Result<()> {
        let directory = self.directory.clone();
        let target = self.target(name)?;
        if byte_offset != target.written {
            let reason = format!("bytes from {byte_offset} on come when {} were written", target.written);
            return Err(CheckpointError::BadRange { path: directory, tensor: name.to_owned(), reason });
        }
        target.hasher.update(bytes);
        target.written += bytes.len() as u64;
        let file = target.file;
        self.writers[file].write_at(name, byte_offset, bytes)
    }

    /// Checks that every byte was written, syncs the files, and writes the index where there is one. What was written can be read
    /// back then, from the disk and not from memory where the system allows it.
    pub fn finish(self) -> Result<WrittenModel> {
        for writer in self.writers {
            let path = writer.path().to_owned();
            writer.finish()?;
            forget_cached(&path);
        }
        self.index.map_or(Ok(()), |index| write_new(&self.directory.join(INDEX_FILE), index.as_bytes()))?;
        let tensors = self.targets.into_iter().map(|target| (target.entry, target.hasher.finalize()));
        Ok(WrittenModel::new(self.directory, tensors))
    }

    fn target(&mut self, name: &str) -> Result<&mut Target> {
        match self.names.get(name) {
            Some(&number) => Ok(&mut self.targets[number]),
            None => Err(CheckpointError::MissingTensor {
                path: self.directory.clone(),
                tensor: name.to_string(),
                near: crate::reader::nearest(name, self.names.keys().map(String::as_str)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::model_files::ModelFiles;
    use std::fs;

    fn entries() -> Vec<TensorEntry> {
        let shapes: [(&str, &[usize]); 4] = [("d", &[5]), ("c", &[2, 2]), ("b", &[4]), ("a", &[100])];
        shapes.iter().map(|(name, shape)| TensorEntry::new(*name, Dtype::BF16, *shape)).collect()
    }

    #[test]
    fn files_fill_up_in_order() {
        let plan = ExportPlan::new(&entries(), 18).unwrap();
        let files: Vec<Vec<&str>> =
            plan.files.iter().map(|file| file.tensors.iter().map(|tensor| tensor.name.as_str()).collect()).collect();
        assert_eq!(files, [vec!["d", "c"], vec!["b"], vec!["a"]]);
        assert_eq!(plan.files[2].name, "model-00003-of-00003.safetensors");
        assert_eq!((plan.total_bytes, plan.total_elements), (226, 113));
        let index: serde_json::Value = serde_json::from_str(&plan.index().unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 226);
        assert_eq!(index["weight_map"]["b"], "model-00002-of-00003.safetensors");
        let single = ExportPlan::new(&entries(), MAX_FILE_BYTES).unwrap();
        assert_eq!((single.files.len(), single.files[0].name.as_str(), single.index()), (1, SINGLE_FILE, None));
        assert!(ExportPlan::new(&[], 18).is_err());
    }

    #[test]
    fn what_was_exported_is_a_model() {
        for (max_file_bytes, count) in [(18, 4), (MAX_FILE_BYTES, 1)] {
            let folder = tempfile::tempdir().unwrap();
            let plan = ExportPlan::new(&entries(), max_file_bytes).unwrap();
            let mut writer = ExportWriter::create(folder.path(), &plan).unwrap();
            for (number, entry) in entries().iter().enumerate() {
                let elements = entry.bytes().unwrap() as usize / 2;
                writer.write_f32(&entry.name, 0, &vec![number as f32; elements - 1]).unwrap();
                writer.write_at(&entry.name, 2 * (elements as u64 - 1), &[0, 0]).unwrap();
            }
            assert!(writer.write_f32("dd", 0, &[0.0]).unwrap_err().to_string().contains("tensor dd"));
            writer.finish().unwrap().check().unwrap();
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), count);
            let model = ModelFiles::open(folder.path()).unwrap();
            assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
            let mut values = [0.0; 2];
            model.read_f32("a", 98..100, &mut values).unwrap();
            assert_eq!(values, [3.0, 0.0]);
        }
    }

    #[test]
    fn an_unfinished_export_is_an_error_without_an_index() {
        let folder = tempfile::tempdir().unwrap();
        let plan = ExportPlan::new(&entries(), 18).unwrap();
        let mut writer = ExportWriter::create(folder.path(), &plan).unwrap();
        writer.write_f32("d", 0, &[0.0; 5]).unwrap();
        assert!(writer.finish().unwrap_err().to_string().contains("tensor c has 0 of 8 bytes"));
        assert!(!folder.path().join(INDEX_FILE).exists());
    }
}
