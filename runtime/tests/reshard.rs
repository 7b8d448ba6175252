//! Checkpoints of every layout read by every other: masters and moments bit by bit, and the losses of the steps to come.
//! Ranks are threads that share memory.

mod common;

use common::checkpoints::{committed, on_ranks, take_steps, write};
use common::{STAGES, Spec, bits};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zerofold_checkpoint::{Found, STATES, StateReader, step_directory};
use zerofold_configs::{ElementType, Stage, UnitPolicy};
use zerofold_runtime::comm::Activity;
use zerofold_runtime::trainer::{Progress, StepOutcome};

const WORLD_SIZES: [usize; 5] = [1, 2, 3, 4, 8];
/// Steps before the checkpoint, and after it.
const BEFORE: u64 = 3;
const AFTER: u64 = 2;

fn spec(world_size: usize, stage: Stage) -> Spec {
    Spec::new("matrix", "odd-llama-tied", "clipped", stage, world_size, 1)
}

/// A checkpoint, and the steps that its own job took after it.
struct Saved {
    found: Found,
    after: Vec<StepOutcome>,
}

fn folder(root: &Path, name: &str) -> PathBuf {
    let directory = step_directory(&root.join(name), BEFORE);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn save(spec: &Spec, root: &Path, name: &str) -> Saved {
    let directory = folder(root, name);
    let mut ranks = on_ranks(spec.world_size, |comm| {
        let mut trainer = spec.trainer(comm, Arc::new(Activity::default()));
        take_steps(&mut trainer, spec, 0, BEFORE);
        let part = write(&trainer, &directory, BEFORE);
        (part, take_steps(&mut trainer, spec, BEFORE, AFTER))
    });
    let after = std::mem::take(&mut ranks[0].1);
    Saved { found: committed(&directory, ranks.into_iter().map(|(part, _)| part).collect()), after }
}

/// Loads a checkpoint into another layout and saves it again: the state is the same, bit by bit. Gives the steps after it.
fn load(saved: &Saved, spec: &Spec, root: &Path, name: &str) -> Vec<StepOutcome> {
    let directory = folder(root, name);
    let mut ranks = on_ranks(spec.world_size, |comm| {
        let mut trainer = spec.trainer(comm, Arc::new(Activity::default()));
        assert_eq!(trainer.restore(&saved.found).unwrap(), Progress { step: BEFORE });
        let part = write(&trainer, &directory, BEFORE);
        (part, take_steps(&mut trainer, spec, BEFORE, AFTER))
    });
    let after = std::mem::take(&mut ranks[0].1);
    let loaded = committed(&directory, ranks.into_iter().map(|(part, _)| part).collect());
    assert_same_state(&saved.found, &loaded, name);
    std::fs::remove_dir_all(directory.parent().unwrap()).unwrap();
    after
}

fn assert_same_state(one: &Found, other: &Found, name: &str) {
    let (one, other) = (StateReader::open(one).unwrap(), StateReader::open(other).unwrap());
    let shapes = |reader: &StateReader| {
        reader.parameters().map(|(name, stored)| (name.to_owned(), stored.shape.clone())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(shapes(&one), shapes(&other), "{name}");
    for (parameter, stored) in one.parameters() {
        for state in STATES {
            let values = |reader: &StateReader| {
                let mut values = vec![0.0; stored.elements() as usize];
                reader.read(parameter, state, 0..stored.elements(), &mut values).unwrap();
                values.iter().map(|value: &f32| value.to_bits()).collect::<Vec<_>>()
            };
            let values = (values(&one), values(&other));
            assert!(values.0.iter().any(|&bits| bits != 0), "{name}: {parameter}/{state} is all zeros");
            assert!(values.0 == values.1, "{name}: {parameter}/{state} differs");
        }
    }
}

/// Losses and norms of the steps to come are those of the job that saved: the same bits where it adds in the same order.
fn assert_same_steps(saved: &Saved, after: &[StepOutcome], exact: bool, name: &str) {
    assert_eq!(after.len(), saved.after.len());
    if exact {
        assert_eq!(bits(after), bits(&saved.after), "{name}");
    }
    for (one, other) in saved.after.iter().zip(after) {
        let difference = ((one.loss - other.loss) / one.loss).abs();
        assert!(difference <= 1e-6, "{name}: loss {} and {}: {difference:e}", one.loss, other.loss);
    }
}

/// Stages that add in the same order.
fn adds_alike(one: Stage, other: Stage) -> bool {
    let shards = |stage: Stage| stage.shards_gradients();
    shards(one) == shards(other)
}

#[test]
fn every_layout_reads_what_every_other_saved() {
    let layouts: Vec<(usize, Stage)> =
        WORLD_SIZES.into_iter().flat_map(|world_size| STAGES.map(|stage| (world_size, stage))).collect();
    let root = tempfile::tempdir().unwrap();
    let mut pairs = 0;
    for &(world_size, stage) in &layouts {
        let saved = save(&spec(world_size, stage), root.path(), "saved");
        for &(other_size, other_stage) in &layouts {
            let name = format!("{world_size} ranks at stage {stage:?} to {other_size} at {other_stage:?}");
            let after = load(&saved, &spec(other_size, other_stage), root.path(), "loaded");
            assert_same_steps(&saved, &after, world_size == other_size && adds_alike(stage, other_stage), &name);
            pairs += 1;
        }
        std::fs::remove_dir_all(root.path().join("saved")).unwrap();
    }
    println!("{pairs} pairs of layouts");
}

/// Other units, copies, types and places of the state.
#[test]
fn whatever_else_a_layout_is_made_of_may_change() {
    let root = tempfile::tempdir().unwrap();
    let offload = tempfile::tempdir().unwrap();
    let plain = || spec(2, Stage::Three);
    let units = |policy| {
        let mut spec = plain();
        spec.sharding.units = policy;
        spec
    };
    let mut copies = spec(4, Stage::Three);
    copies.sharding.replicas = 2;
    let layouts = [
        ("decoder blocks", plain()),
        ("halves of blocks", units(UnitPolicy::BlockHalves)),
        ("one unit", units(UnitPolicy::Whole)),
        ("units of some size", units(UnitPolicy::MinParameters(3000))),
        ("two copies", copies),
        ("bfloat16", Spec { compute: ElementType::Bfloat16, ..plain() }),
        ("offloaded", Spec { offload: Some(offload.path().to_owned()), ..spec(2, Stage::Two) }),
    ];
    for (from, one) in &layouts {
        let saved = save(one, root.path(), "saved");
        for (to, other) in &layouts {
            let name = format!("{from} to {to}");
            let after = load(&saved, other, root.path(), "loaded");
            // Another type has other losses.
            if one.compute == other.compute {
                assert_same_steps(&saved, &after, from == to, &name);
            }
        }
        std::fs::remove_dir_all(root.path().join("saved")).unwrap();
    }
}
