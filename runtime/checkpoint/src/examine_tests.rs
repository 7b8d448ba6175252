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
    assert_told(&examine_checkpoint(folder.path()), &["-: it has no manifest.json, so its save was never finished"]);
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
