//! A Hugging Face model folder: `model.safetensors`, or several files with `model.safetensors.index.json`.

use crate::disk::{is_plain_name, read_bounded};
use crate::error::{CheckpointError, Result};
use crate::header::MAX_HEADER_BYTES;
use crate::reader::{DescribedTensor, SafetensorsReader, StoredTensor, nearest};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The name of a model's only file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of the index of a model of several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// A model's safetensors files, opened and checked. Reading needs no lock: it may be shared by threads.
#[derive(Debug)]
pub struct ModelFiles {
    pub(crate) directory: PathBuf,
    files: Vec<SafetensorsReader>,
    /// Which file holds a tensor.
    pub(crate) tensors: BTreeMap<String, usize>,
    /// What tensors are called in their files, where that is another name.
    pub(crate) in_files: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl ModelFiles {
    /// Opens a model folder. `model.safetensors` is preferred to an index, as `transformers` does.
    ///
    /// # Errors
    /// If there is neither, a header is wrong, a file of the index is missing or lies elsewhere, or it does not hold the
    /// tensors that the index says.
    pub fn open(directory: &Path) -> Result<Self> {
        let single = directory.join(SINGLE_FILE);
        let index = directory.join(INDEX_FILE);
        if single.exists() {
            let file = SafetensorsReader::open(&single)?;
            let tensors = file.names().map(|name| (name.to_string(), 0)).collect();
            return Ok(ModelFiles {
                directory: directory.to_owned(),
                files: vec![file],
                tensors,
                in_files: BTreeMap::new(),
            });
        }
        if index.exists() {
            return Self::open_index(directory, &index);
        }
        Err(CheckpointError::NoModel { path: directory.to_owned(), hint: hint_for(directory) })
    }

    fn open_index(directory: &Path, path: &Path) -> Result<Self> {
        let mut files: Vec<SafetensorsReader> = Vec::new();
        let mut opened = HashMap::new();
        let mut tensors = BTreeMap::new();
        for (tensor, name) in read_index(path)? {
            let number = match opened.get(&name) {
                Some(number) => *number,
                None => {
                    files.push(SafetensorsReader::open(&directory.join(&name))?);
                    opened.insert(name, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[number].contains(&tensor) {
                let reason =
                    format!("it says that tensor {tensor} lies in {}, where it is not", files[number].path().display());
                return Err(CheckpointError::bad_json(path, reason));
            }
            tensors.insert(tensor, number);
        }
        Ok(ModelFiles { directory: directory.to_owned(), files, tensors, in_files: BTreeMap::new() })
    }

    /// The model's folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Its files.
    pub fn files(&self) -> &[SafetensorsReader] {
        &self.files
    }

    /// Every tensor, of whatever type, with the file that it lies in; sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (DescribedTensor<'_>, &SafetensorsReader)> {
        self.tensors
            .iter()
            .filter_map(|(name, &file)| Some((self.files[file].describe(self.in_file(name))?, &self.files[file])))
    }

    /// True if there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Type, shape and place of a tensor.
    ///
    /// # Errors
    /// If it is not there (a near name is told), or its type is none of F32, BF16, F16.
    pub fn entry(&self, name: &str) -> Result<StoredTensor> {
        self.file_of(name)?.entry(self.in_file(name))
    }

    /// Reads elements of a tensor, in row-major order, as `f32`; nothing but these bytes is read.
    ///
    /// # Errors
    /// If the tensor does not have these elements, `values` has another length, or the file cannot be read.
    pub fn read_f32(&self, name: &str, elements: Range<usize>, values: &mut [f32]) -> Result<()> {
        self.file_of(name)?.read_f32(self.in_file(name), elements, values)
    }

    fn in_file<'a>(&'a self, name: &'a str) -> &'a str {
        self.in_files.get(name).map_or(name, String::as_str)
    }

    fn file_of(&self, name: &str) -> Result<&SafetensorsReader> {
        self.tensors.get(name).map(|file| &self.files[*file]).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.directory.clone(),
            tensor: name.to_string(),
            near: nearest(name, self.names()),
        })
    }
}

/// Which file of its own folder an index says that each tensor lies in.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let content = read_bounded(path, MAX_HEADER_BYTES)?;
    let index: Index = serde_json::from_slice(&content).map_err(|error| CheckpointError::bad_json(path, error))?;
    match index.weight_map.values().find(|name| !is_plain_name(name)) {
        Some(name) => Err(CheckpointError::UnsafeName { path: path.to_owned(), name: name.clone() }),
        None => Ok(index.weight_map),
    }
}

/// The safetensors files of a model folder, each with the tensors that the index says lie in it; the only file of a model
/// has no index, and no list. The files themselves are not looked at.
///
/// # Errors
/// If there is neither, or the index cannot be read or names files of other folders.
pub fn listed_files(directory: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let index = directory.join(INDEX_FILE);
    if directory.join(SINGLE_FILE).exists() {
        return Ok(BTreeMap::from([(SINGLE_FILE.to_string(), Vec::new())]));
    }
    if !index.exists() {
        return Err(CheckpointError::NoModel { path: directory.to_owned(), hint: hint_for(directory) });
    }
    let mut files = BTreeMap::<String, Vec<String>>::new();
    for (tensor, file) in read_index(&index)? {
        files.entry(file).or_default().push(tensor);
    }
    Ok(files)
}

fn hint_for(directory: &Path) -> String {
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth"];
    if !directory.is_dir() {
        return "this is not a folder; download the model and give its folder".to_string();
    }
    match pickles.iter().find(|name| directory.join(name).exists()) {
        Some(name) => format!(
            "{name} is a pickle, which can run any program when it is read, so it is never read here; \
             convert the model: load it in transformers and call save_pretrained, which writes safetensors"
        ),
        None => "download the whole model, config.json and the safetensors files".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::header::TensorEntry;
    use crate::writer::SafetensorsWriter;
    use std::fs;

    fn write(path: &Path, tensors: &[(&str, f32)]) {
        let entries: Vec<_> = tensors.iter().map(|(name, _)| TensorEntry::new(*name, Dtype::BF16, [2])).collect();
        let mut writer = SafetensorsWriter::create(path, &entries, &BTreeMap::new()).unwrap();
        for (name, value) in tensors {
            writer.write_f32(name, 0, &[*value; 2]).unwrap();
        }
        writer.finish().unwrap();
    }

    fn index(directory: &Path, weight_map: serde_json::Value) {
        let content = serde_json::json!({"metadata": {"total_size": 8}, "weight_map": weight_map});
        fs::write(directory.join(INDEX_FILE), content.to_string()).unwrap();
    }

    #[test]
    fn an_index_leads_to_its_files() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("one.safetensors"), &[("a", 1.0)]);
        write(&folder.path().join("two.safetensors"), &[("b", 2.0), ("unlisted", 3.0)]);
        index(folder.path(), serde_json::json!({"a": "one.safetensors", "b": "two.safetensors"}));
        let model = ModelFiles::open(folder.path()).unwrap();
        assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b"]);
        let mut values = [0.0];
        model.read_f32("b", 1..2, &mut values).unwrap();
        assert_eq!(values, [2.0]);
        assert_eq!(model.entry("b").unwrap().file, folder.path().join("two.safetensors"));
        let error = model.entry("model.b").unwrap_err().to_string();
        assert!(error.contains("tensor model.b is not in"), "{error}");
    }

    #[test]
    fn a_single_file_is_preferred() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join(SINGLE_FILE), &[("a", 1.0)]);
        index(folder.path(), serde_json::json!({"a": "gone.safetensors"}));
        assert!(ModelFiles::open(folder.path()).unwrap().contains("a"));
    }

    #[test]
    fn names_may_not_leave_the_folder() {
        let outside = tempfile::tempdir().unwrap();
        write(&outside.path().join("one.safetensors"), &[("a", 1.0)]);
        let inside = outside.path().join("model");
        fs::create_dir_all(inside.join("deeper")).unwrap();
        write(&inside.join("deeper/one.safetensors"), &[("a", 1.0)]);
        let absolute = outside.path().join("one.safetensors").display().to_string();
        for name in ["../one.safetensors", "..", "deeper/one.safetensors", "", absolute.as_str()] {
            index(&inside, serde_json::json!({"a": name}));
            let error = ModelFiles::open(&inside).unwrap_err();
            assert!(matches!(&error, CheckpointError::UnsafeName { name: told, .. } if told == name), "{error}");
        }
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("one.safetensors"), &[("a", 1.0)]);
        index(folder.path(), serde_json::json!({"a": "one.safetensors", "b": "one.safetensors"}));
        let error = ModelFiles::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tensor b lies in"), "{error}");
        index(folder.path(), serde_json::json!({"a": "gone.safetensors"}));
        let error = ModelFiles::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cannot open") && error.contains("gone.safetensors"), "{error}");
        fs::write(folder.path().join(INDEX_FILE), "{\"weight_map\": [1]}").unwrap();
        assert!(matches!(ModelFiles::open(folder.path()), Err(CheckpointError::BadJson { .. })));
    }

    #[test]
    fn pickles_are_explained() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
        let error = ModelFiles::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("pytorch_model.bin is a pickle") && error.contains("save_pretrained"), "{error}");
        let error = ModelFiles::open(&folder.path().join("nowhere")).unwrap_err().to_string();
        assert!(error.contains("not a folder"), "{error}");
    }
}
