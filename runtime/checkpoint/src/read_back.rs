//! A model folder that was just written, read back before anybody relies on it.

use crate::error::{CheckpointError, Result};
use crate::examine::Values;
use crate::header::TensorEntry;
use crate::model_files::ModelFiles;
use crate::places::element_words;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to do where something reads back otherwise than it was written.
pub(crate) const LOOK_AT_MACHINE: &str =
    "it was written otherwise a moment ago: check the disk and the memory of this machine";

/// A model's files, and the hash of each tensor's bytes as they went out.
#[derive(Clone, Debug)]
pub struct WrittenModel {
    directory: PathBuf,
    tensors: BTreeMap<String, (TensorEntry, blake3::Hash)>,
}

impl WrittenModel {
    pub(crate) fn new(directory: PathBuf, tensors: impl Iterator<Item = (TensorEntry, blake3::Hash)>) -> Self {
        let tensors = tensors.map(|(entry, hash)| (entry.name.clone(), (entry, hash))).collect();
        WrittenModel { directory, tensors }
    }

    /// Reads every byte back, a mebibyte at a time: the folder has these tensors and no others, in their types and shapes,
    /// their bytes are those that were written, and every value is finite.
    pub fn check(&self) -> Result<()> {
        let model = ModelFiles::open(&self.directory)?;
        for file in model.files() {
            if let Some(other) = file.names().find(|name| !self.tensors.contains_key(*name)) {
                return Err(bad(file.path(), other, "no such tensor was written".to_owned(), LOOK_AT_MACHINE));
            }
        }
        for (name, (entry, _)) in &self.tensors {
            let stored = model.entry(name)?;
            if (stored.dtype, &stored.shape) != (entry.dtype, &entry.shape) {
                let (found, shape) = (stored.dtype, stored.shape);
                let reason =
                    format!("it reads back as {found} {shape:?}, and should be {} {:?}", entry.dtype, entry.shape);
                return Err(bad(&stored.file, name, reason, LOOK_AT_MACHINE));
            }
        }
        for file in model.files() {
            let (mut hashers, mut values) = (BTreeMap::<String, blake3::Hasher>::new(), Values::default());
            file.read_through(|piece| {
                if let Some(name) = piece.tensor {
                    hashers.entry(name.to_owned()).or_default().update(piece.bytes);
                    values.look(piece);
                }
            })?;
            for (name, hasher) in hashers {
                let (hash, expected) = (hasher.finalize(), self.tensors[&name].1);
                if hash != expected {
                    let reason = format!("its bytes read back with the hash {hash}, and were written with {expected}");
                    return Err(bad(file.path(), &name, reason, LOOK_AT_MACHINE));
                }
            }
            if let Some(first) = values.first {
                let shape: Vec<u64> = self.tensors[&first.tensor].0.shape.iter().map(|&size| size as u64).collect();
                let reason = format!("{} is {}", element_words(first.element, &shape), first.value);
                let hint = "a value that is beyond the range of float16 is none of bfloat16: choose another save_dtype, or make \
                            the model of the newest checkpoint by `launch export --dtype bfloat16`";
                return Err(bad(file.path(), &first.tensor, reason, hint));
            }
        }
        Ok(())
    }
}

fn bad(path: &Path, tensor: &str, reason: String, hint: &'static str) -> CheckpointError {
    CheckpointError::BadValue { path: path.to_owned(), tensor: tensor.to_owned(), reason, hint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::export::{ExportPlan, ExportWriter};
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    /// Two tensors in a file each.
    fn written(folder: &Path, dtype: Dtype, last: f32) -> WrittenModel {
        let entries = [TensorEntry::new("a", dtype, [2, 3]), TensorEntry::new("b", dtype, [4])];
        let plan = ExportPlan::new(&entries, 8).unwrap();
        assert_eq!(plan.files.len(), 2);
        let mut writer = ExportWriter::create(folder, &plan).unwrap();
        writer.write_f32("a", 0, &[1.0, 2.0, 3.0]).unwrap();
        writer.write_f32("a", 3, &[4.0, 5.0, 6.0]).unwrap();
        writer.write_f32("b", 0, &[1.0, 2.0, 3.0, last]).unwrap();
        writer.finish().unwrap()
    }

    const FIRST: &str = "model-00001-of-00002.safetensors";
    const SECOND: &str = "model-00002-of-00002.safetensors";

    #[test]
    fn what_was_written_reads_back() {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let folder = tempfile::tempdir().unwrap();
            written(folder.path(), dtype, 4.0).check().unwrap();
        }
    }

    #[test]
    fn what_reads_back_otherwise_is_named() {
        type Damage = fn(&Path);
        fn replace(path: &Path, from: &str, to: &str) {
            let mut content = fs::read(path).unwrap();
            let place = content.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            content[place..place + from.len()].copy_from_slice(to.as_bytes());
            fs::write(path, content).unwrap();
        }
        let cases: [(&[&str], Damage); 6] = [
            (&["tensor b of ", SECOND, "its bytes read back with the hash "], |folder| {
                let file = File::options().read(true).write(true).open(folder.join(SECOND)).unwrap();
                let end = file.metadata().unwrap().len();
                let mut last = [0];
                file.read_exact_at(&mut last, end - 1).unwrap();
                file.write_all_at(&[last[0] ^ 1], end - 1).unwrap();
            }),
            (&["tensor a of ", "reads back as F32 [3, 2], and should be F32 [2, 3]"], |folder| {
                replace(&folder.join(FIRST), "[2,3]", "[3,2]");
            }),
            (&["tensor c of ", SECOND, "no such tensor was written"], |folder| {
                replace(&folder.join(SECOND), "\"b\"", "\"c\"");
                replace(&folder.join("model.safetensors.index.json"), "\"b\"", "\"c\"");
            }),
            (&["is not a whole safetensors file"], |folder| {
                File::options().write(true).open(folder.join(FIRST)).unwrap().set_len(90).unwrap();
            }),
            (&["cannot open ", FIRST], |folder| fs::remove_file(folder.join(FIRST)).unwrap()),
            (&["tensor b is not in "], |folder| {
                let index = folder.join("model.safetensors.index.json");
                fs::write(index, format!("{{\"weight_map\": {{\"a\": \"{FIRST}\"}}}}")).unwrap();
            }),
        ];
        for (parts, damage) in cases {
            let folder = tempfile::tempdir().unwrap();
            let model = written(folder.path(), Dtype::F32, 4.0);
            damage(folder.path());
            let told = model.check().unwrap_err().to_string();
            parts.iter().for_each(|part| assert!(told.contains(part), "{part:?} is not in {told}"));
        }
    }

    #[test]
    fn values_that_are_not_finite_are_no_model() {
        for (dtype, last, value) in
            [(Dtype::F32, f32::NAN, "NaN"), (Dtype::F16, 70_000.0, "inf"), (Dtype::BF16, f32::NEG_INFINITY, "-inf")]
        {
            let folder = tempfile::tempdir().unwrap();
            let told = written(folder.path(), dtype, last).check().unwrap_err().to_string();
            assert!(told.contains(&format!(": element 3 is {value}\nhint: ")), "{told}");
        }
    }

    #[test]
    fn tensors_are_written_from_front_to_back() {
        let folder = tempfile::tempdir().unwrap();
        let plan = ExportPlan::new(&[TensorEntry::new("a", Dtype::F32, [4])], 100).unwrap();
        let mut writer = ExportWriter::create(folder.path(), &plan).unwrap();
        let told = writer.write_f32("a", 2, &[3.0, 4.0]).unwrap_err().to_string();
        assert!(told.contains("bytes from 8 on come when 0 were written"), "{told}");
    }
}
