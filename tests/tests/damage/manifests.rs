//! Damage to the manifest of a checkpoint.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::kinds::{Kind, Tool, edit_manifest, make_pipe, manifest};
use crate::shards::SHARD;

/// No program that refuses a manifest needs more memory for it.
pub(crate) const MEMORY: u64 = 1 << 30;

/// What can befall a manifest.
pub(crate) fn kinds() -> Vec<Kind> {
    [texts(), fields(), names(), numbers(), places()].into_iter().flatten().collect()
}

/// What is no manifest at all.
fn texts() -> Vec<Kind> {
    let text = |name, damage, told| Kind::new(name, damage, told);
    vec![
        text("an empty manifest", |step| write(step, ""), &["manifest.json", "EOF while parsing"]),
        text("half a manifest", |step| write(step, half(step)), &["manifest.json", "EOF while parsing"]),
        text("no JSON", |step| write(step, "hello"), &["manifest.json", "expected value"]),
        text("no text", |step| write(step, [0xff; 100]), &["manifest.json", "expected value"]),
        text("a list", |step| write(step, "[]"), &["manifest.json", "expected a manifest"]),
        text("null", |step| write(step, "null"), &["manifest.json", "invalid type: null, expected a manifest"]),
        text("another object", |step| write(step, "{}"), &["its format_version is none; this program reads 2"]),
        text("NaN", |step| replace(step, "\"stage\": 3", "\"stage\": NaN"), &["manifest.json", "expected"]),
        text("infinity", |step| replace(step, "\"stage\": 3", "\"stage\": Infinity"), &["manifest.json", "expected"]),
        text(
            "a key twice",
            |step| replace(step, "\"stage\": 3", "\"stage\": 3, \"stage\": 3"),
            &["duplicate field `stage`"],
        ),
        text("deep nesting", |step| nest(step, 100_000), &["manifest.json", "recursion limit exceeded"]),
        text("200 MiB of state", |step| large(step, 200 << 20), &["its state has ", " bytes, and may have 1000000"]),
        text("more than any manifest has", beyond_all_bounds, &["it is larger than 256000000 bytes"]),
        text(
            "a pipe for a manifest",
            |step| replaced_by(step, make_pipe),
            &["manifest.json", "it is a pipe, not a file"],
        ),
        text(
            "a folder for a manifest",
            |step| replaced_by(step, |path| fs::create_dir(path).unwrap()),
            &["manifest.json", "it is a folder, not a file"],
        ),
        text(
            "a link to nowhere for a manifest",
            |step| replaced_by(step, |path| std::os::unix::fs::symlink("nowhere", path).unwrap()),
            &["cannot open ", "manifest.json", "No such file"],
        ),
        version("version 1", |manifest| manifest["format_version"] = json!(1), "its format_version is 1;"),
        version("version 3", |manifest| manifest["format_version"] = json!(3), "its format_version is 3;"),
        version(
            "a version in quotes",
            |manifest| manifest["format_version"] = json!("2"),
            "its format_version is \"2\";",
        ),
        Kind::new(
            "a huge version",
            |step| replace(step, "\"format_version\": 2", "\"format_version\": 99999999999999999999999999"),
            &["its format_version is 99999999999999999999999999; this program reads 2"],
        ),
    ]
}

fn version(name: &'static str, change: fn(&mut Value), told: &'static str) -> Kind {
    Kind::edited(name, change, &["this program reads 2"]).also(told)
}

/// What could be, and is not what was published: the seal tells.
fn fields() -> Vec<Kind> {
    let sealed = |name, change| {
        Kind::edited(name, change, &["manifest.json was changed after it was published: its seal is "])
            .verify(&["manifest.json: it was changed after it was published: its seal is "])
    };
    vec![
        sealed("another hash of a file", |manifest| {
            let hash = manifest["files"][1]["blake3"].as_str().unwrap();
            let other = if hash.starts_with('0') { "1" } else { "0" };
            manifest["files"][1]["blake3"] = json!(format!("{other}{}", &hash[1..]));
        })
        .verify(&["its hash is ", SHARD]),
        sealed("two files swapped", |manifest| {
            let names = [0, 1].map(|file| manifest["files"][file]["name"].clone());
            (manifest["files"][1]["name"], manifest["files"][0]["name"]) = names.into();
        }),
        // Both are norms, of the same shape: nothing else would ever tell.
        sealed("two parameters swapped", |manifest| {
            let norms: Vec<usize> =
                parameters(manifest).filter(|(_, name)| name.contains("layernorm")).map(|it| it.0).collect();
            let begins = [0, 1].map(|norm| manifest["units"][1]["parameters"][norms[norm]]["begin"].clone());
            (0..2).for_each(|norm| manifest["units"][1]["parameters"][norms[norm]]["begin"] = begins[1 - norm].clone());
        }),
        sealed("another row", |manifest| manifest["state"]["data"]["row"] = json!(1)),
        sealed("another stage", |manifest| manifest["stage"] = json!(0)),
        // Without a seal, as manifests of before there were any, it is the hash that does not fit.
        Kind::edited(
            "two files swapped, without a seal",
            |manifest| {
                let names = [0, 1].map(|file| manifest["files"][file]["name"].clone());
                (manifest["files"][1]["name"], manifest["files"][0]["name"]) = names.into();
                unseal(manifest);
            },
            &["has the hash ", "its manifest says "],
        )
        .seen_by(Tool::Verify)
        .verify(&["its hash is "]),
    ]
}

/// The parameters of the first decoder block.
fn parameters(manifest: &Value) -> impl Iterator<Item = (usize, String)> {
    let all = manifest["units"][1]["parameters"].as_array().unwrap().iter();
    all.map(|it| it["name"].as_str().unwrap().to_owned()).enumerate().collect::<Vec<_>>().into_iter()
}

/// Names that lead elsewhere, or are another job's. None of these needs the seal.
fn names() -> Vec<Kind> {
    fn named(name: &'static str, change: fn(&mut Value)) -> Kind {
        Kind::edited(name, change, &["the file name ", "is not of the form rank-NNNNN-of-0000"])
    }
    vec![
        named("a name that leads up", |manifest| rename(manifest, "../../rank-00001-of-00002.g1.safetensors")),
        named("a path of the system", |manifest| rename(manifest, "/etc/passwd")),
        named("a name with a zero byte", |manifest| rename(manifest, "rank\0-00001-of-00002.g1.safetensors")),
        named("an empty name", |manifest| rename(manifest, "")),
        named("a name that is too long", |manifest| {
            rename(manifest, &format!("{}-of-00002.g1.safetensors", "9".repeat(300)))
        }),
        named("another world size", |manifest| {
            manifest["world_size"] = json!(3);
            unseal(manifest);
        }),
        named("another generation", |manifest| {
            manifest["generation"] = json!(2);
            unseal(manifest);
        }),
        Kind::edited(
            "the same file twice",
            |manifest| {
                let first = manifest["files"][0].clone();
                manifest["files"].as_array_mut().unwrap().push(first);
                unseal(manifest);
            },
            &["the file rank-00000-of-00002.g1.safetensors is given twice"],
        ),
        Kind::edited(
            "no files",
            |manifest| {
                manifest["files"] = json!([]);
                unseal(manifest);
            },
            &["no file holds embedding/master"],
        ),
        Kind::edited(
            "no hash",
            |manifest| {
                manifest["files"][1]["blake3"] = json!("none");
                unseal(manifest);
            },
            &["the hash \"none\" of rank-00001", "is no BLAKE3 hash"],
        ),
        Kind::edited(
            "the step of another folder",
            |manifest| {
                manifest["step"] = json!(7);
                unseal(manifest);
            },
            &["the folder is named for step 3, the manifest is of step 7"],
        ),
    ]
}

/// Numbers that cannot be, or that nothing may be computed with before they are looked at.
fn numbers() -> Vec<Kind> {
    fn range(name: &'static str, change: fn(&mut Value), told: &'static [&'static str]) -> Kind {
        Kind::edited(name, change, told)
    }
    vec![
        range(
            "a range from its end to its begin",
            |manifest| {
                let tensor = tensor(manifest);
                (tensor["begin"], tensor["end"]) = (tensor["end"].clone(), tensor["begin"].clone());
            },
            &["rank-00001", "holds elements ", "embedding/master"],
        ),
        range(
            "a range beyond its whole",
            |manifest| tensor(manifest)["end"] = json!(u64::MAX),
            &["holds elements ", "to 18446744073709551615 of embedding/master"],
        ),
        range(
            "a length that is another's",
            |manifest| tensor(manifest)["length"] = json!(u64::MAX),
            &["18446744073709551615"],
        ),
        range(
            "a gap",
            |manifest| tensor(manifest)["begin"] = json!(tensor(manifest)["begin"].as_u64().unwrap() + 1),
            &["no file holds element ", "embedding/master"],
        ),
        range(
            "lengths without bound",
            |manifest| {
                for file in manifest["files"].as_array_mut().unwrap() {
                    for tensor in file["tensors"].as_array_mut().unwrap() {
                        (tensor["begin"], tensor["end"], tensor["length"]) =
                            (json!(0), json!(u64::MAX), json!(u64::MAX));
                    }
                }
                manifest["units"].as_array_mut().unwrap().iter_mut().for_each(|unit| unit["length"] = json!(u64::MAX));
                unseal(manifest);
            },
            &["has ", " elements of F32, its manifest says 18446744073709551615 of F32"],
        )
        .seen_by(Tool::Verify)
        .verify(&["its manifest says 18446744073709551615 of F32"]),
        range(
            "a shape without bound",
            |manifest| {
                manifest["units"][0]["parameters"][0]["shape"] = json!([u64::MAX, u64::MAX]);
            },
            &["of shape [18446744073709551615, 18446744073709551615] does not fit at "],
        ),
        range(
            "a parameter at no place",
            |manifest| {
                manifest["units"][0]["parameters"][0]["begin"] = json!(u64::MAX);
            },
            &["does not fit at 18446744073709551615 of embedding"],
        ),
        range(
            "parameters on each other",
            |manifest| {
                manifest["units"][1]["parameters"][2]["begin"] = manifest["units"][1]["parameters"][1]["begin"].clone();
            },
            &["lie on the same elements of layer 0"],
        ),
        range(
            "a file without bound",
            |manifest| manifest["files"][1]["bytes"] = json!(u64::MAX),
            &[SHARD, "its manifest says 18446744073709551615"],
        ),
        range(
            "a negative number",
            |manifest| manifest["files"][1]["bytes"] = json!(-1),
            &["manifest.json", "invalid value: integer `-1`"],
        ),
        Kind::new(
            "a number that is none",
            |step| replace(step, "\"stage\": 3", "\"stage\": 1e400"),
            &["manifest.json", "number out of range"],
        ),
        Kind::new(
            "a number of 65 bits",
            |step| replace(step, "\"step\": 3", "\"step\": 18446744073709551616"),
            &["manifest.json", "invalid type: floating point"],
        ),
    ]
}

/// Places in the data that there are not.
fn places() -> Vec<Kind> {
    fn place(name: &'static str, change: fn(&mut Value), told: &'static [&'static str]) -> Kind {
        Kind::edited(name, change, told).seen_by(Tool::Resume)
    }
    vec![
        place(
            "no place in the data",
            |manifest| {
                manifest["state"] = json!({});
                unseal(manifest);
            },
            &["does not tell its place in the data"],
        ),
        place(
            "an epoch that nobody reaches",
            |manifest| {
                manifest["state"]["data"]["epoch"] = json!(u64::MAX);
                unseal(manifest);
            },
            &["a place in the data that there is not", "epoch: 18446744073709551615"],
        ),
        place(
            "a row that there is not",
            |manifest| {
                manifest["state"]["data"]["row"] = json!(u64::MAX);
                unseal(manifest);
            },
            &["a place in the data that there is not", "row: 18446744073709551615"],
        ),
        place(
            "other data",
            |manifest| {
                manifest["state"]["data"]["rows"] = json!(17);
                unseal(manifest);
            },
            &["was saved by a job with other data: rows of data 17 there, 192 here"],
        ),
    ]
}

fn unseal(manifest: &mut Value) {
    manifest.as_object_mut().unwrap().remove("seal");
}

fn rename(manifest: &mut Value, name: &str) {
    manifest["files"][1]["name"] = json!(name);
    unseal(manifest);
}

/// A tensor of the second file, of a manifest without a seal.
fn tensor(manifest: &mut Value) -> &mut Value {
    unseal(manifest);
    let tensors = manifest["files"][1]["tensors"].as_array_mut().unwrap();
    tensors.iter_mut().find(|tensor| tensor["whole"] == "embedding/master").unwrap()
}

fn write(step: &Path, content: impl AsRef<[u8]>) {
    fs::write(manifest(step), content).unwrap();
}

fn half(step: &Path) -> Vec<u8> {
    let content = fs::read(manifest(step)).unwrap();
    content[..content.len() / 2].to_vec()
}

fn replace(step: &Path, from: &str, to: &str) {
    let content = fs::read_to_string(manifest(step)).unwrap();
    assert!(content.contains(from), "{from} is not in the manifest");
    write(step, content.replacen(from, to, 1));
}

fn replaced_by(step: &Path, make: impl FnOnce(&Path)) {
    fs::remove_file(manifest(step)).unwrap();
    make(&manifest(step));
}

fn nest(step: &Path, depth: usize) {
    let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    edit_manifest(step, |manifest| manifest["state"] = json!("deep"));
    replace(step, "\"deep\"", &nested);
}

/// A state that would take many times its bytes in memory.
fn large(step: &Path, bytes: usize) {
    edit_manifest(step, |manifest| manifest["state"] = json!("large"));
    let content = fs::read_to_string(manifest(step)).unwrap();
    let (before, after) = content.split_once("\"large\"").unwrap();
    let mut file = std::io::BufWriter::new(File::create(manifest(step)).unwrap());
    let piece = "[],".repeat(1 << 16);
    write!(file, "{before}[").unwrap();
    (0..bytes / piece.len()).for_each(|_| file.write_all(piece.as_bytes()).unwrap());
    write!(file, "[]]{after}").unwrap();
}

fn beyond_all_bounds(step: &Path) {
    File::options().write(true).open(manifest(step)).unwrap().set_len(300_000_000).unwrap();
}
