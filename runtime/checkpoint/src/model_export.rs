//! A Hugging Face model folder out of a checkpoint, a chunk at a time, and read back before it gets its name.

use crate::difference::round;
use crate::disk::{ensure_room, write_new};
use crate::dtype::Dtype;
use crate::error::{CheckpointError, Result};
use crate::export::{ExportPlan, ExportWriter};
use crate::header::TensorEntry;
use crate::model_files::ModelFiles;
use crate::places::element_words;
use crate::publish::Found;
use crate::read_back::LOOK_AT_MACHINE;
use crate::side_files::{SideChanges, copy_side_files};
use crate::staging::StagingDirectory;
use crate::state::StateReader;
use crate::units::{STATES, SavedParameter};
use std::fs;
use std::path::{Path, PathBuf};

/// Elements that are in memory at a time.
const CHUNK: u64 = 1 << 20;
/// What is exported.
const MASTER: &str = STATES[0];
/// The model card's file.
const CARD_FILE: &str = "README.md";

/// What is to be exported, and how.
#[derive(Clone, Copy, Debug)]
pub struct ModelExport<'a> {
    /// The checkpoint.
    pub found: &'a Found,
    /// The model folder that configuration, tokenizer and chat template come from.
    pub side_files: &'a Path,
    /// What they say otherwise.
    pub changes: SideChanges<'a>,
    /// The type of the weights.
    pub dtype: Dtype,
    /// At most this many bytes of weights in a file ([`crate::export::MAX_FILE_BYTES`]).
    pub max_file_bytes: u64,
    /// The model card.
    pub card: &'a str,
}

impl ModelExport<'_> {
    /// Writes the folder: whole and read back, or not at all. Tensors lie in the order of the checkpoint's units, as those of
    /// the model that a job writes at its end. Gives the plan that the files follow.
    ///
    /// # Errors
    /// If something stands there already, the disk has no room, a value is not finite in that type, or what was written does
    /// not read back as the checkpoint's.
    pub fn write(&self, target: &Path) -> Result<ExportPlan> {
        refuse_existing(target)?;
        let saved = StateReader::open(self.found)?;
        let entry = |parameter: &SavedParameter| {
            let shape: Vec<usize> = parameter.shape.iter().map(|&size| size as usize).collect();
            TensorEntry::new(parameter.name.clone(), self.dtype, shape)
        };
        let units = &self.found.manifest.units;
        let entries: Vec<_> = units.iter().flat_map(|unit| &unit.parameters).map(entry).collect();
        let plan = ExportPlan::new(&entries, self.max_file_bytes)?;
        if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(CheckpointError::io("create", parent))?;
        }
        ensure_room(target, plan.total_bytes)?;
        let staging = StagingDirectory::create(target)?;
        let mut writer = ExportWriter::create(staging.path(), &plan)?;
        for TensorEntry { name, .. } in &entries {
            for_each_chunk(&saved, name, |begin, values| {
                self.check_finite(&saved, name, begin, values)?;
                writer.write_f32(name, begin, values)
            })?;
        }
        writer.finish()?;
        copy_side_files(self.side_files, staging.path(), self.dtype, &self.changes)?;
        write_new(&staging.path().join(CARD_FILE), self.card.as_bytes())?;
        check_written(&saved, staging.path(), &entries)?;
        staging.commit(false)?;
        Ok(plan)
    }

    /// Every value is finite, also once it is rounded.
    fn check_finite(&self, saved: &StateReader, name: &str, begin: u64, values: &[f32]) -> Result<()> {
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        if finite(values) && (self.dtype != Dtype::F16 || finite(&round(values, self.dtype))) {
            return Ok(());
        }
        let bad = values.iter().position(|&value| !round(&[value], self.dtype)[0].is_finite()).unwrap_or(0);
        let (value, element) = (values[bad], element_words(begin + bad as u64, &saved.parameter(name)?.shape));
        let (reason, hint) = match value.is_finite() {
            true => (
                format!("{element} is {value}, beyond the range of {}", self.dtype.config_name()),
                "export in another type: --dtype bfloat16 or --dtype float32",
            ),
            false => (format!("{element} is {value}"), "no model can be made of it: export another step"),
        };
        let (path, tensor) = (saved.directory().to_owned(), name.to_owned());
        Err(CheckpointError::BadValue { path, tensor, reason, hint })
    }
}

/// Nothing may stand where the folder is to be, not even a link that leads nowhere.
pub fn refuse_existing(target: &Path) -> Result<()> {
    match fs::symlink_metadata(target) {
        Ok(_) => {
            let hint = "nothing is written over: move it away, or choose another folder";
            Err(CheckpointError::Exists { path: target.to_owned(), hint })
        }
        Err(_) => Ok(()),
    }
}

/// Reads a model folder back: it has these tensors and no others, in their types and shapes, and their values are the
/// checkpoint's, rounded.
pub fn check_written(saved: &StateReader, directory: &Path, entries: &[TensorEntry]) -> Result<()> {
    let written = ModelFiles::open(directory)?;
    let bad = |path: PathBuf, tensor: &str, reason: String| CheckpointError::BadValue {
        path,
        tensor: tensor.to_owned(),
        reason,
        hint: LOOK_AT_MACHINE,
    };
    if let Some(other) = written.names().find(|name| !entries.iter().any(|entry| entry.name == *name)) {
        return Err(bad(directory.to_owned(), other, "the checkpoint has no such parameter".to_owned()));
    }
    let mut back = Vec::new();
    for entry in entries {
        let stored = written.entry(&entry.name)?;
        if (stored.dtype, &stored.shape) != (entry.dtype, &entry.shape) {
            let reason = format!(
                "it reads back as {} {:?}, and should be {} {:?}",
                stored.dtype, stored.shape, entry.dtype, entry.shape
            );
            return Err(bad(stored.file, &entry.name, reason));
        }
        for_each_chunk(saved, &entry.name, |begin, values| {
            back.resize(values.len(), 0.0);
            written.read_f32(&entry.name, begin as usize..begin as usize + values.len(), &mut back)?;
            let expected = round(values, entry.dtype);
            let same = |place: &usize| expected[*place].to_bits() == back[*place].to_bits() && back[*place].is_finite();
            match (0..values.len()).find(|place| !same(place)) {
                None => Ok(()),
                Some(place) => {
                    let shape = &saved.parameter(&entry.name)?.shape;
                    let element = element_words(begin + place as u64, shape);
                    let (found, expected) = (back[place], expected[place]);
                    let reason = format!("{element} reads back as {found:?}, and should be {expected:?}");
                    Err(bad(stored.file.clone(), &entry.name, reason))
                }
            }
        })?;
    }
    Ok(())
}

/// The masters of a parameter, with the first element of each chunk.
fn for_each_chunk(saved: &StateReader, name: &str, mut visit: impl FnMut(u64, &[f32]) -> Result<()>) -> Result<()> {
    let all = saved.parameter(name)?.elements();
    let mut values = vec![0.0; CHUNK.min(all) as usize];
    let mut begin = 0;
    while begin < all {
        let end = all.min(begin + CHUNK);
        let values = &mut values[..(end - begin) as usize];
        saved.read(name, MASTER, begin..end, values)?;
        visit(begin, values)?;
        begin = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::MAX_FILE_BYTES;
    use crate::model_files::SINGLE_FILE;
    use crate::publish::tests::{save, write_step};
    use crate::publish::{open_step, publish};
    use crate::reader::SafetensorsReader;
    use crate::writer::digest_file;
    use std::os::unix::fs::FileExt;

    /// A folder with a configuration, and a checkpoint whose every value is the number of its step.
    fn scene(step: u64) -> (tempfile::TempDir, Found) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("base")).unwrap();
        fs::write(folder.path().join("base/config.json"), r#"{"dtype": "float32"}"#).unwrap();
        let found = open_step(&save(&folder.path().join("checkpoints"), step)).unwrap();
        (folder, found)
    }

    fn export<'a>(base: &'a Path, found: &'a Found, dtype: Dtype) -> ModelExport<'a> {
        ModelExport {
            found,
            side_files: base,
            changes: SideChanges::default(),
            dtype,
            max_file_bytes: MAX_FILE_BYTES,
            card: "# a card\n",
        }
    }

    #[test]
    fn the_folder_has_the_masters_configuration_and_card() {
        let (folder, found) = scene(20);
        let target = folder.path().join("deeper/model");
        let plan = export(&folder.path().join("base"), &found, Dtype::BF16).write(&target).unwrap();
        assert_eq!((plan.total_elements, plan.total_bytes), (7, 14));
        let model = ModelFiles::open(&target).unwrap();
        let mut values = [0.0; 6];
        model.read_f32("weight", 0..6, &mut values).unwrap();
        assert_eq!(values, [20.0; 6]);
        assert_eq!(fs::read_to_string(target.join("config.json")).unwrap(), "{\n  \"dtype\": \"bfloat16\"\n}\n");
        assert_eq!(fs::read_to_string(target.join(CARD_FILE)).unwrap(), "# a card\n");
        let again = export(&folder.path().join("base"), &found, Dtype::BF16).write(&target).unwrap_err().to_string();
        assert!(again.contains("model exists already\nhint: nothing is written over"), "{again}");
        let left: Vec<_> = fs::read_dir(folder.path().join("deeper")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn several_files_have_an_index() {
        let (folder, found) = scene(20);
        let target = folder.path().join("model");
        let base = folder.path().join("base");
        let order = ModelExport { max_file_bytes: 4, ..export(&base, &found, Dtype::F32) };
        assert_eq!(order.write(&target).unwrap().files.len(), 2);
        assert_eq!(ModelFiles::open(&target).unwrap().names().collect::<Vec<_>>(), ["bias", "weight"]);
        assert!(!target.join(SINGLE_FILE).exists());
    }

    #[test]
    fn values_that_are_none_in_that_type_leave_nothing_behind() {
        // 70,000 is beyond float16.
        let (folder, found) = scene(70_000);
        let target = folder.path().join("model");
        let told = export(&folder.path().join("base"), &found, Dtype::F16).write(&target).unwrap_err().to_string();
        assert!(
            told.contains("tensor bias of ") && told.contains("element 0 is 70000, beyond the range of float16"),
            "{told}"
        );
        assert!(told.contains("hint: export in another type"), "{told}");
        export(&folder.path().join("base"), &found, Dtype::BF16).write(&target).unwrap();

        let (directory, mut manifest) = write_step(&folder.path().join("checkpoints"), 21);
        let path = directory.join(&manifest.files[1].name);
        let begin = SafetensorsReader::open(&path).unwrap().entry("layer 0/master").unwrap().begin;
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&f32::NAN.to_le_bytes(), begin + 4).unwrap();
        manifest.files[1].blake3 = digest_file(&path).unwrap().blake3;
        publish(&directory, &manifest).unwrap();
        let found = open_step(&directory).unwrap();
        let other = folder.path().join("other");
        let told = export(&folder.path().join("base"), &found, Dtype::F32).write(&other).unwrap_err().to_string();
        assert!(told.contains("tensor weight of ") && told.contains("element 4 ([1, 1]) is NaN"), "{told}");
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "base, checkpoints and model: {names:?}");
    }

    #[test]
    fn what_reads_back_otherwise_is_refused() {
        let (folder, found) = scene(20);
        let target = folder.path().join("model");
        export(&folder.path().join("base"), &found, Dtype::F32).write(&target).unwrap();
        let saved = StateReader::open(&found).unwrap();
        let entries = [TensorEntry::new("bias", Dtype::F32, [1]), TensorEntry::new("weight", Dtype::F32, [2, 3])];
        check_written(&saved, &target, &entries).unwrap();
        let told = |entries: &[TensorEntry]| check_written(&saved, &target, entries).unwrap_err().to_string();
        let mut other = entries.clone();
        other[1].dtype = Dtype::BF16;
        assert!(
            told(&other).contains("weight of ") && told(&other).contains("reads back as F32 [2, 3]"),
            "{}",
            told(&other)
        );
        assert!(told(&entries[..1]).contains("tensor weight of "), "{}", told(&entries[..1]));
        let begin = ModelFiles::open(&target).unwrap().entry("weight").unwrap().begin;
        let file = fs::File::options().write(true).open(target.join(SINGLE_FILE)).unwrap();
        file.write_all_at(&20.000002f32.to_le_bytes(), begin + 20).unwrap();
        assert!(
            told(&entries).contains("element 5 ([1, 2]) reads back as 20.000002, and should be 20.0"),
            "{}",
            told(&entries)
        );
    }
}
