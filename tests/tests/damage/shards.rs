//! Damage to the files of a checkpoint.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::kinds::{Kind, Tool, edit_manifest, make_pipe};

/// The file of rank 1.
pub(crate) const SHARD: &str = "rank-00001-of-00002.g1.safetensors";

/// What can befall it.
pub(crate) fn kinds() -> Vec<Kind> {
    let kind = Kind::new;
    vec![
        kind(
            "cut to half",
            |step| cut(step, |bytes| bytes / 2),
            &[SHARD, " bytes, its manifest says ", " are missing"],
        )
        .verify(&["the manifest says ", "affected: model."]),
        kind("cut by a byte", |step| cut(step, |bytes| bytes - 1), &[SHARD, "of model.layers.1.", " are missing"])
            .verify(&["the manifest says ", "affected: model."]),
        kind("cut inside its header", |step| cut(step, |_| 20), &[SHARD, "has 20 bytes, its manifest says "]),
        kind("empty", |step| cut(step, |_| 0), &[SHARD, "has 0 bytes, its manifest says "]),
        kind("longer by a byte", |step| cut(step, |bytes| bytes + 1), &[SHARD, " bytes, its manifest says "]),
        kind("missing", |step| fs::remove_file(shard(step)).unwrap(), &[SHARD, "No such file"])
            .verify(&["it is missing"]),
        kind(
            "a folder",
            |step| replaced_by(step, |path| fs::create_dir(path).unwrap()),
            &[SHARD, "is a folder, not a file"],
        ),
        kind("a pipe", |step| replaced_by(step, make_pipe), &[SHARD, "is a pipe, not a file"]),
        kind(
            "a link to a device",
            |step| replaced_by(step, |path| symlink("/dev/zero", path).unwrap()),
            &[SHARD, "is a device"],
        ),
        kind(
            "a link to another file",
            |step| replaced_by(step, |path| symlink("/etc/passwd", path).unwrap()),
            &[SHARD, " bytes, its manifest says "],
        ),
        kind("a link to the other shard", link_to_the_other, &[SHARD, "has the hash "])
            .seen_by(Tool::Verify)
            .verify(&["its hash is "]),
        kind(
            "a link to nowhere",
            |step| replaced_by(step, |path| symlink("nowhere", path).unwrap()),
            &[SHARD, "No such file"],
        )
        .verify(&["it is missing"]),
        hash("a bit of the header's length", |step| flip(step, |_| 0)).verify(&[SHARD]),
        hash("a bit of the header", |step| flip(step, |_| 30)).verify(&[SHARD]),
        hash("a bit in the middle", |step| flip(step, |bytes| bytes / 2)).verify(&["its hash is ", "affected: "]),
        hash("the last bit", |step| flip(step, |bytes| bytes - 1)).verify(&["its hash is ", "affected: "]),
        hash("a huge header", |step| write(step, 0, &u64::MAX.to_le_bytes()))
            .verify(&["a header of 18446744073709551615 bytes"]),
        hash("a header beyond the bound", |step| write(step, 0, &100_000_001_u64.to_le_bytes()))
            .verify(&["a header of 100000001 bytes"]),
        // With the right hash of the wrong file, what the file itself tells is all that there is.
        vouched(
            "a huge header that is vouched for",
            |step| write(step, 0, &u64::MAX.to_le_bytes()),
            "a header of 18446744073709551615 bytes",
        ),
        vouched("tensors that overlap", overlap, "begins at byte "),
        vouched("a tensor of another type", |step| replace(step, b"F32", b"I32"), "has type I32"),
        vouched(
            "a tensor of another name",
            |step| replace(step, b"embedding/master", b"embedding/mastex"),
            "tensor embedding/master is not in ",
        ),
        vouched("a header that is no JSON", |step| write(step, 8, b"["), "its header does not begin with {"),
        vouched(
            "a file of somebody's",
            |step| fs::write(shard(step), "hello, this is not a tensor").unwrap(),
            "a header of ",
        ),
    ]
}

/// Damage that only the hash, or reading the file, tells.
fn hash(name: &'static str, damage: fn(&Path)) -> Kind {
    Kind::new(name, damage, &[SHARD, "has the hash ", "its manifest says "]).seen_by(Tool::Verify)
}

fn vouched(name: &'static str, damage: fn(&Path), told: &'static str) -> Kind {
    Kind::new(name, damage, &[SHARD]).also(told).seen_by(Tool::Verify).vouched_for()
}

pub(crate) fn shard(step: &Path) -> PathBuf {
    step.join(SHARD)
}

/// The manifest tells the size and the hash of the file that is there.
pub(crate) fn vouch(step: &Path) {
    let digest = zerofold_checkpoint::digest_file(&shard(step)).unwrap();
    edit_manifest(step, |manifest| {
        let file = manifest["files"].as_array_mut().unwrap().iter_mut().find(|file| file["name"] == SHARD).unwrap();
        (file["bytes"], file["blake3"]) = (json!(digest.bytes), json!(digest.blake3));
        manifest.as_object_mut().unwrap().remove("seal");
    });
}

pub(crate) fn cut(step: &Path, length: fn(u64) -> u64) {
    let file = File::options().write(true).open(shard(step)).unwrap();
    file.set_len(length(file.metadata().unwrap().len())).unwrap();
}

pub(crate) fn flip(step: &Path, place: fn(u64) -> u64) {
    let path = shard(step);
    let place = place(fs::metadata(&path).unwrap().len());
    let mut byte = [0];
    File::open(&path).unwrap().read_exact_at(&mut byte, place).unwrap();
    write(step, place, &[byte[0] ^ 1]);
}

fn write(step: &Path, place: u64, bytes: &[u8]) {
    File::options().write(true).open(shard(step)).unwrap().write_all_at(bytes, place).unwrap();
}

pub(crate) fn replaced_by(step: &Path, make: impl FnOnce(&Path)) {
    fs::remove_file(shard(step)).unwrap();
    make(&shard(step));
}

/// The two have the same size, for every whole is cut in halves.
fn link_to_the_other(step: &Path) {
    let other = "rank-00000-of-00002.g1.safetensors";
    assert_eq!(fs::metadata(shard(step)).unwrap().len(), fs::metadata(step.join(other)).unwrap().len());
    replaced_by(step, |path| symlink(other, path).unwrap());
}

/// Replaces the first of some bytes by as many others.
fn replace(step: &Path, from: &[u8], to: &[u8]) {
    let content = fs::read(shard(step)).unwrap();
    let place = content.windows(from.len()).position(|window| window == from).expect("the header has it");
    write(step, place as u64, to);
}

/// The second tensor of the file begins a float before the first one ends, and is as long as before.
fn overlap(step: &Path) {
    let content = fs::read(shard(step)).unwrap();
    let end = 8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&content[8..end]).unwrap();
    let offsets = |value: &serde_json::Value| value["data_offsets"][0].as_u64();
    let second =
        header.values_mut().filter(|value| offsets(value) > Some(0)).min_by_key(|value| offsets(value)).unwrap();
    for place in 0..2 {
        second["data_offsets"][place] = json!(second["data_offsets"][place].as_u64().unwrap() - 4);
    }
    let mut json = serde_json::to_vec(&header).unwrap();
    assert!(json.len() <= end - 8, "the header has grown");
    json.resize(end - 8, b' ');
    write(step, 8, &json);
}
