//! What looks at checkpoints and models, and makes one of the other, needs the memory of a few buffers, whatever their size.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use zerofold_checkpoint::{
    FileEntry, Manifest, Part, STATES, SavedParameter, SavedUnit, TensorRange, digest_file, digest_units, publish,
    shard_file_name, step_directory,
};
use zerofold_tests::{Dtype, RandomModel, Scene};

const MIB: u64 = 1 << 20;
const RANKS: u32 = 2;

/// 540 million parameters: 2.16 GB in float32. The largest tensor is the embedding, 131 MB.
const TWO_GIGABYTES: RandomModel = RandomModel {
    hidden: 1024,
    intermediate: 2816,
    layers: 40,
    vocabulary: 32_000,
    tied: true,
    dtype: Dtype::F32,
    file_bytes: 500_000_000,
};

/// A checkpoint of a model, all zeros. Files of zeros take no room on a disk.
fn zeros(checkpoints: &Path, model: &RandomModel, folder: &Path) -> (PathBuf, Vec<SavedUnit>) {
    let units: Vec<SavedUnit> = model
        .write_configuration(folder)
        .into_iter()
        .map(|unit| {
            let (mut parameters, mut begin) = (Vec::new(), 0);
            for parameter in unit.leaves.iter().flat_map(|leaf| &leaf.parameters) {
                let shape = parameter.shape.iter().map(|&size| size as u64).collect();
                parameters.push(SavedParameter { name: parameter.name.clone(), shape, begin });
                begin += parameter.numel() as u64;
            }
            SavedUnit { name: unit.name.clone(), length: begin.next_multiple_of(u64::from(RANKS)), parameters }
        })
        .collect();
    let directory = step_directory(checkpoints, 7);
    std::fs::create_dir_all(&directory).unwrap();
    let part = |rank: u32| {
        let (mut header, mut tensors, mut offset) = (serde_json::Map::new(), Vec::new(), 0);
        for unit in &units {
            let (name, length) = (&unit.name, unit.length);
            let half = length / u64::from(RANKS);
            for state in STATES {
                let whole = format!("{name}/{state}");
                let bytes = [offset, offset + 4 * half];
                header.insert(whole.clone(), json!({"dtype": "F32", "shape": [half], "data_offsets": bytes}));
                offset = bytes[1];
                let begin = half * u64::from(rank);
                let (dtype, end) = (Dtype::F32, begin + half);
                tensors.push(TensorRange { name: whole.clone(), dtype, whole, length, begin, end });
            }
        }
        let header = serde_json::to_vec(&header).unwrap();
        let name = shard_file_name(rank, RANKS, 1);
        let path = directory.join(&name);
        let mut file = File::create_new(&path).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        file.set_len(8 + header.len() as u64 + offset).unwrap();
        Part {
            rank,
            world_size: RANKS,
            step: 7,
            generation: 1,
            stage: 3,
            layout: digest_units(&units),
            units: if rank == 0 { units.clone() } else { Vec::new() },
            state: json!({}),
            files: vec![FileEntry::new(name, digest_file(&path).unwrap(), tensors)],
        }
    };
    let manifest = Manifest::assemble((0..RANKS).map(part).collect()).unwrap();
    publish(&directory, &manifest).unwrap();
    (directory, units)
}

/// The most memory that any process had that was started and awaited so far.
fn most_memory() -> u64 {
    // SAFETY: rusage is a plain C struct for which all zeros is a value, and outlives the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage), 0);
        usage
    };
    usage.ru_maxrss as u64 * 1024
}

/// Export, verify and diff need less than 1.2 times the largest tensor, the program included.
#[track_caller]
fn assert_little_memory(model: &RandomModel) {
    let scene = Scene::new();
    let source = scene.path("source");
    let (step, units) = zeros(&scene.path("run/checkpoints"), model, &source);
    let sizes = || units.iter().flat_map(|unit| &unit.parameters).map(|parameter| 4 * parameter.elements().unwrap());
    let (largest, all) = (sizes().max().unwrap(), sizes().sum::<u64>());
    let (written, rounded) = (scene.path("written"), scene.path("rounded"));
    let path = |path: &Path| path.display().to_string();
    let commands: [(&str, Vec<String>); 6] = [
        ("export --dtype float32 --output", vec![path(&written), "--model".into(), path(&source), path(&step)]),
        ("export --dtype bfloat16 --output", vec![path(&rounded), "--model".into(), path(&source), path(&step)]),
        ("verify", vec![path(&step)]),
        ("verify", vec![path(&written), path(&rounded)]),
        ("diff", vec![path(&step), path(&written)]),
        ("diff", vec![path(&written), path(&rounded)]),
    ];
    for (words, arguments) in commands {
        let began = std::time::Instant::now();
        let ended = scene.launch(words).adjust(|command| {
            command.args(&arguments);
        });
        ended.run().assert_done();
        let (most, seconds) = (most_memory(), began.elapsed().as_secs_f64());
        eprintln!(
            "{words}: {} MiB at most so far, {seconds:.1} s; the model {} MiB, its largest tensor {} MiB",
            most / MIB,
            all / MIB,
            largest / MIB
        );
        assert!(most * 10 < largest * 12, "{words}: {most} bytes, the largest tensor has {largest}");
    }
}

/// Its largest tensor, of 65 MiB, is an eighth of it.
#[test]
fn a_model_of_half_a_gigabyte_is_exported_verified_and_compared_in_little_memory() {
    assert_little_memory(&RandomModel { layers: 9, vocabulary: 16_000, ..TWO_GIGABYTES });
}

#[test]
#[ignore = "writes 3.3 GB and takes a minute"]
fn two_gigabytes_are_exported_verified_and_compared_in_little_memory_which_takes_a_minute() {
    assert_little_memory(&TWO_GIGABYTES);
}
