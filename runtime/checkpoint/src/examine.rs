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
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::header::TensorEntry;
    use crate::model_files::{INDEX_FILE, SINGLE_FILE};
    use crate::publish::tests::{save, write_step};
    use crate::publish::{MANIFEST_FILE, publish};
    use crate::writer::{SafetensorsWriter, digest_file};
    use std::collections::BTreeMap;
    use std::os::unix::fs::FileExt;

    /// The faults as lines: file, reason, parameters.
    fn told(examined: &Examined) -> Vec<String> {
        let line = |fault: &Fault| {
            format!("{}: {} [{}]", fault.file.as_deref().unwrap_or("-"), fault.reason, fault.parameters.join(" "))
        };
        examined.faults.iter().map(line).collect()
    }

    #[track_caller]
    fn assert_told(examined: &Examined, parts: &[&str]) {
        let told = told(examined);
        assert_eq!(told.len(), 1, "{told:#?}");
        parts.iter().for_each(|part| assert!(told[0].contains(part), "{part:?} is not in {}", told[0]));
    }

    /// The file of rank 1, which holds the last three elements of `weight` alone.
    const SECOND: &str = "rank-00001-of-00002.g1.safetensors";

    #[test]
    fn a_whole_checkpoint_has_no_faults() {
        let folder = tempfile::tempdir().unwrap();
        let directory = save(folder.path(), 20);
        let examined = examine_checkpoint(&directory);
        assert_eq!((told(&examined), examined.files, examined.parameters), (vec![], 2, 2));
        assert!(examined.bytes > 2 * 48, "{}", examined.bytes);
    }

    #[test]
    fn each_damage_names_the_file_and_what_lies_in_it() {
        let folder = tempfile::tempdir().unwrap();
        type Damage = fn(&Path);
        let header: fn(&Path) -> u64 = |path| {
            let content = fs::read(path).unwrap();
            8 + u64::from_le_bytes(content[..8].try_into().unwrap())
        };
        let open = |path: &Path| fs::File::options().write(true).read(true).open(path).unwrap();
        let damages: [(&[&str], Damage); 7] = [
            (&["its hash is ", "[weight]"], |path| change(path, 4, 1)),
            (&["it is missing [weight]"], |path| fs::remove_file(path).unwrap()),
            (&["it has 4 bytes, the manifest says", "[weight]"], |path| cut(path, 4)),
            (&["a header of 18446744073709551615 bytes", "[weight]"], |path| write(path, 0, &[0xff; 8])),
            (&["its header", "[weight]"], |path| write(path, 8, b"[")),
            (&["bytes, the manifest says"], |path| {
                let mut content = fs::read(path).unwrap();
                content.push(0);
                fs::write(path, content).unwrap();
            }),
            (&["it is a folder"], |path| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            }),
        ];
        fn change(path: &Path, from_end: u64, bit: u8) {
            let content = fs::read(path).unwrap();
            let place = content.len() as u64 - from_end;
            write(path, place, &[content[place as usize] ^ bit]);
        }
        fn write(path: &Path, place: u64, bytes: &[u8]) {
            fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, place).unwrap();
        }
        fn cut(path: &Path, length: u64) {
            fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
        }
        for (step, (parts, damage)) in (1..).zip(damages) {
            let directory = save(folder.path(), step);
            damage(&directory.join(SECOND));
            let examined = examine_checkpoint(&directory);
            assert_told(&examined, parts);
            assert_eq!(examined.faults[0].file.as_deref(), Some(SECOND));
        }
        // What a file lost is told by its header: `master` and `exp_avg` of these elements are there.
        let directory = save(folder.path(), 30);
        let first = directory.join("rank-00000-of-00002.g1.safetensors");
        open(&first).set_len(header(&first) + 16 + 8).unwrap();
        assert_told(&examine_checkpoint(&directory), &["the manifest says", "[bias weight]"]);
        assert_eq!(tensors_cut_off(&first).unwrap(), ["layer 0/exp_avg", "layer 0/exp_avg_sq"]);
    }

    #[test]
    fn values_that_are_not_finite_are_found_though_the_hash_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, mut manifest) = write_step(folder.path(), 20);
        let path = directory.join(SECOND);
        let content = fs::read(&path).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        // The file ends with exp_avg_sq of elements 4 to 7: the last of `weight`, and the padding.
        for (from_end, value) in [(8, f32::NEG_INFINITY), (4, f32::NAN)] {
            file.write_all_at(&value.to_le_bytes(), content.len() as u64 - from_end).unwrap();
        }
        manifest.files[1].blake3 = digest_file(&path).unwrap().blake3;
        publish(&directory, &manifest).unwrap();
        let parts = ["2 values are not finite; the first, exp_avg_sq of weight, element 5 ([1, 2]), is -inf [weight]"];
        assert_told(&examine_checkpoint(&directory), &parts);
    }

    #[test]
    fn manifests_that_cannot_be_are_faults_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_told(
            &examine_checkpoint(folder.path()),
            &["-: it has no manifest.json, so its save was never finished"],
        );
        let directory = save(folder.path(), 20);
        let path = directory.join(MANIFEST_FILE);
        let good = fs::read_to_string(&path).unwrap();
        let cases = [
            (
                good.replace("\"format_version\": 2", "\"format_version\": 1"),
                "its format_version is 1; this program reads 2",
            ),
            (good.replace("rank-00001", "../rank-00001"), "is not of the form"),
            (good.replace("\"step\": 20", "\"step\": 21"), "named for step 20, the manifest is of step 21"),
            (good[..good.len() / 2].to_owned(), "EOF"),
            (empty(&good), "there are no parameters in it"),
            (good.replace("\"end\": 4", "\"end\": 3"), "no file holds element 3"),
        ];
        for (text, expected) in cases {
            assert_ne!(text, good, "{expected}");
            fs::write(&path, text).unwrap();
            assert_told(&examine_checkpoint(&directory), &[expected]);
        }
        // What could be is known by its seal, and the rest is looked at all the same.
        let other = good.replacen(&good[good.find("\"blake3\": \"").unwrap()..][..19], "\"blake3\": \"00000000", 1);
        fs::write(&path, &other).unwrap();
        let told = told(&examine_checkpoint(&directory));
        assert!(told[0].starts_with("manifest.json: it was changed after it was published: its seal is "), "{told:?}");
        assert!(told[1].contains("the manifest says 00000000") && told[1].ends_with("[bias weight]"), "{told:?}");
        fs::write(&path, unsealed(&other).to_string()).unwrap();
        assert_told(&examine_checkpoint(&directory), &["its hash is ", "the manifest says 00000000", "[bias weight]"]);
    }

    /// A manifest of before there were seals.
    fn unsealed(manifest: &str) -> serde_json::Value {
        let mut value: serde_json::Value = serde_json::from_str(manifest).unwrap();
        value["seal"].take();
        value
    }

    /// A manifest without units and files.
    fn empty(manifest: &str) -> String {
        let mut value = unsealed(manifest);
        (value["units"], value["files"]) = (serde_json::json!([]), serde_json::json!([]));
        value.to_string()
    }

    fn write_model(path: &Path, values: &[(&str, f32)]) {
        let entries: Vec<_> = values.iter().map(|(name, _)| TensorEntry::new(*name, Dtype::BF16, [2, 2])).collect();
        let mut writer = SafetensorsWriter::create(path, &entries, &BTreeMap::new()).unwrap();
        values.iter().for_each(|(name, value)| writer.write_f32(name, 0, &[1.0, *value, 1.0, 1.0]).unwrap());
        writer.finish().unwrap();
    }

    #[test]
    fn a_model_folder_is_examined_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let index = |map: serde_json::Value| {
            fs::write(path(INDEX_FILE), serde_json::json!({ "weight_map": map }).to_string()).unwrap();
        };
        assert_told(&examine_model(folder.path()), &["no model.safetensors"]);
        index(serde_json::json!({}));
        assert_told(&examine_model(folder.path()), &["there are no parameters in it"]);
        write_model(&path("one.safetensors"), &[("a", 1.0), ("b", f32::NAN)]);
        write_model(&path("two.safetensors"), &[("c", 1.0)]);
        index(
            serde_json::json!({"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors", "d": "two.safetensors"}),
        );
        let examined = examine_model(folder.path());
        assert_eq!(
            told(&examined),
            [
                "one.safetensors: a value is not finite: b, element 1 ([0, 1]), is NaN [b]",
                "two.safetensors: 1 of the 2 tensors that the index says are in it are not [d]"
            ]
        );
        assert_eq!((examined.files, examined.parameters), (2, 3));
        index(serde_json::json!({"a": "../one.safetensors"}));
        assert_told(&examine_model(folder.path()), &["-: ", "not a plain file name"]);
        write_model(&path(SINGLE_FILE), &[("a", 1.0), ("b", 2.0)]);
        assert_eq!(told(&examine_model(folder.path())), [""; 0]);
        let file = fs::File::options().write(true).open(path(SINGLE_FILE)).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        assert_told(&examine_model(folder.path()), &["model.safetensors: ", "lies at bytes 8 to 16 of 15 [b]"]);
    }
}
