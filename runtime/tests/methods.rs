//! What is frozen, grouped, opened later or drawn back, against plain PyTorch and against itself; ranks are threads.
//!
//! Expected losses and gradient norms come from scripts/fixtures/methods.py.

mod common;

use common::checkpoints::{committed, on_ranks, take_steps, write};
use common::{STAGES, Spec, bits, fixture};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use zerofold_checkpoint::{FISHER, Found, STATES, StateReader, Weights, step_directory};
use zerofold_configs::{ElementType, Stage, UnitPolicy};
use zerofold_plan::{fisher_bytes, pretrained_bytes, state_bytes, unmixed_bytes};
use zerofold_runtime::comm::Activity;
use zerofold_runtime::trainer::{StepOutcome, TrainError, Trainer};

const MODELS: [&str; 2] = ["tiny-llama", "tiny-llama-tied"];
const CURVES: [&str; 12] = [
    "groups",
    "frozen",
    "frozen_below",
    "all_but_head",
    "layer_wise",
    "l2",
    "ewc",
    "mixout",
    "by_epoch",
    "by_steps",
    "together",
    "consolidated",
];

fn spec(model: &str, curve: &str, stage: Stage, world_size: usize, accumulation: u32) -> Spec {
    Spec::new("methods", model, curve, stage, world_size, accumulation)
}

/// Trains, and hands out rank 0's steps and what `look` makes of its trainer afterwards.
fn train<T: Send>(spec: &Spec, look: impl Fn(&Trainer) -> T + Sync) -> (Vec<StepOutcome>, T) {
    let mut ranks = on_ranks(spec.world_size, |comm| {
        let mut trainer = spec.trainer(comm, Arc::new(Activity::default()));
        let outcomes = take_steps(&mut trainer, spec, 0, spec.steps());
        trainer.shards.forget_gathered().unwrap();
        (outcomes, look(&trainer))
    });
    for (other, _) in &ranks[1..] {
        assert_eq!(bits(other), bits(&ranks[0].0), "ranks disagree");
    }
    ranks.swap_remove(0)
}

/// The largest relative difference of losses, norms and distances from PyTorch's.
fn difference(spec: &Spec, outcomes: &[StepOutcome]) -> f64 {
    let curve = spec.expected();
    let expected = curve["steps"].as_array().unwrap();
    assert_eq!(outcomes.len(), expected.len());
    let relative = |ours: f64, theirs: &serde_json::Value| {
        let theirs = theirs.as_f64().unwrap();
        if theirs == 0.0 { ours.abs() } else { ((ours - theirs) / theirs).abs() }
    };
    let of_step = |(ours, theirs): (&StepOutcome, &serde_json::Value)| {
        let penalties = [("l2_toward_pretrained", ours.l2_toward_pretrained), ("ewc_penalty", ours.ewc_penalty)];
        let penalties = penalties.map(|(key, ours)| {
            assert_eq!(ours.is_some(), theirs.get(key).is_some(), "{key}");
            ours.map_or(0.0, |ours| relative(ours, &theirs[key]))
        });
        let largest = relative(ours.loss, &theirs["loss"]).max(relative(ours.grad_norm, &theirs["grad_norm"]));
        penalties.into_iter().fold(largest, f64::max)
    };
    outcomes.iter().zip(expected).map(of_step).fold(0.0, f64::max)
}

#[test]
fn every_method_equals_pytorch_at_every_stage_to_the_bit() {
    for model in MODELS {
        for curve in CURVES {
            let mut first: Option<Vec<StepOutcome>> = None;
            for stage in STAGES {
                let spec = spec(model, curve, stage, 2, 1);
                let (outcomes, ()) = train(&spec, |_| ());
                let difference = difference(&spec, &outcomes);
                println!("{model}, {curve}, stage {stage}: largest relative difference {difference:.1e}");
                assert!(difference < 1e-5, "{model}, {curve}, stage {stage}: {difference:e}");
                let first = first.get_or_insert_with(|| outcomes.clone());
                assert_eq!(bits(first), bits(&outcomes), "{model}, {curve}, stage {stage} and 0");
            }
        }
    }
}

#[test]
fn ranks_accumulation_copies_and_units_do_not_matter() {
    for curve in ["by_epoch", "mixout", "together", "consolidated"] {
        let check = |spec: &Spec| {
            let difference = difference(spec, &train(spec, |_| ()).0);
            assert!(difference < 1e-5, "{curve}, {spec:?}: {difference:e}");
        };
        for (stage, world_size, accumulation) in [(Stage::Zero, 3, 2), (Stage::Two, 1, 2), (Stage::Three, 4, 2)] {
            check(&spec("tiny-llama", curve, stage, world_size, accumulation));
        }
        let mut copies = spec("tiny-llama", curve, Stage::Three, 4, 1);
        copies.sharding.replicas = 2;
        check(&copies);
        for units in [UnitPolicy::BlockHalves, UnitPolicy::Whole] {
            for stage in [Stage::Zero, Stage::Three] {
                let mut other = spec("tiny-llama-tied", curve, stage, 2, 1);
                other.sharding.units = units;
                check(&other);
            }
        }
    }
}

#[test]
fn recomputing_changes_nothing() {
    for curve in ["frozen_below", "by_steps", "ewc", "mixout"] {
        let kept = spec("tiny-llama", curve, Stage::Three, 2, 1);
        for every in [1, 2] {
            let recomputed = Spec { recompute_every: Some(every), ..kept.clone() };
            assert_eq!(bits(&train(&kept, |_| ()).0), bits(&train(&recomputed, |_| ()).0), "{curve}, {every}");
        }
    }
}

/// What is frozen has no gradient, no moments and the bytes of the model's files at the end; what is not has changed.
#[test]
fn what_is_frozen_costs_nothing_and_stays_as_it_was() {
    let directory = fixture("models/tiny-llama");
    for compute in [ElementType::Float32, ElementType::Bfloat16] {
        for stage in STAGES {
            for curve in ["frozen", "frozen_below", "all_but_head", "l2", "ewc", "mixout"] {
                let spec = Spec { compute, ..spec("tiny-llama", curve, stage, 2, 1) };
                let (_, ()) = train(&spec, |trainer| {
                    let mut theory = state_bytes(trainer.shards.layout(), stage, &spec.types());
                    let layout = trainer.shards.layout();
                    theory.pretrained = match curve {
                        "l2" | "mixout" => pretrained_bytes(layout, &spec.types()),
                        "ewc" => pretrained_bytes(layout, &spec.types()) + fisher_bytes(layout),
                        _ => 0,
                    };
                    if curve == "mixout" {
                        theory.masters += unmixed_bytes(layout, stage, &spec.types());
                    }
                    if trainer.shards.comm().rank() == 0 {
                        assert_eq!(trainer.shards.state_bytes(), theory, "{curve}, stage {stage}");
                    }
                    let files = Weights::of_model(&directory).unwrap();
                    let units = &trainer.shards.layout().units;
                    let look = |index: usize, values: &[f32]| {
                        for leaf in &units[index].leaves {
                            for parameter in &leaf.parameters {
                                let mut before = vec![0.0; parameter.end - parameter.begin];
                                let elements = 0..before.len() as u64;
                                files.read(&parameter.name, STATES[0], elements, &mut before).unwrap();
                                let same = before == values[parameter.begin..parameter.end];
                                assert_eq!(same, !leaf.group.is_trained(u32::MAX), "{curve}: {}", parameter.name);
                            }
                        }
                        Ok::<(), TrainError>(())
                    };
                    trainer.shards.for_each_full_master(look).unwrap();
                });
            }
        }
    }
}

/// Optimizer state grows when layers open, and only then; to have estimated the Fisher information of all leaves nothing behind.
#[test]
fn state_grows_as_layers_open() {
    for (stage, curve) in STAGES.into_iter().flat_map(|stage| [(stage, "by_steps"), (stage, "consolidated")]) {
        let spec = spec("tiny-llama", curve, stage, 2, 1);
        let mut ranks = on_ranks(spec.world_size, |comm| {
            let mut trainer = spec.trainer(comm, Arc::new(Activity::default()));
            let steps = (0..spec.steps()).map(|step| {
                take_steps(&mut trainer, &spec, step, 1);
                trainer.shards.state_bytes()
            });
            (steps.collect::<Vec<_>>(), state_bytes(trainer.shards.layout(), stage, &spec.types()))
        });
        let (steps, theory) = ranks.swap_remove(0);
        for (step, pair) in steps.windows(2).enumerate() {
            let opens = (step + 1).is_multiple_of(3);
            assert_eq!(pair[1].moments > pair[0].moments, opens, "stage {stage}, step {}", step + 2);
            assert_eq!(pair[1].gradients > pair[0].gradients, opens, "stage {stage}, step {}", step + 2);
        }
        // The head alone has a ninth of the parameters; after 12 steps all but the embedding are open.
        assert!(steps[0].moments * 7 < theory.moments, "{} of {}", steps[0].moments, theory.moments);
        assert!(steps[11].moments < theory.moments);
    }
}

const BEFORE: u64 = 5;
const AFTER: u64 = 3;

fn saved(spec: &Spec, root: &Path) -> (Found, Vec<StepOutcome>) {
    let directory = step_directory(root, BEFORE);
    std::fs::create_dir_all(&directory).unwrap();
    let mut ranks = on_ranks(spec.world_size, |comm| {
        let mut trainer = spec.trainer(comm, Arc::new(Activity::default()));
        take_steps(&mut trainer, spec, 0, BEFORE);
        let part = write(&trainer, &directory, BEFORE);
        (part, take_steps(&mut trainer, spec, BEFORE, AFTER))
    });
    let after = std::mem::take(&mut ranks[0].1);
    (committed(&directory, ranks.into_iter().map(|(part, _)| part).collect()), after)
}

fn resumed(spec: &Spec, found: &Found) -> Vec<Result<Vec<StepOutcome>, String>> {
    on_ranks(spec.world_size, |comm| {
        let mut trainer = spec.trainer(comm, Arc::new(Activity::default()));
        trainer.open(spec.openings(&spec.dataset(), BEFORE), 0).unwrap();
        trainer.restore(found).map_err(|error| error.to_string())?;
        Ok(take_steps(&mut trainer, spec, BEFORE, AFTER))
    })
}

/// Saved in the middle of unfreezing, a run goes on to the bit, at any other stage too, and over the next opening.
#[test]
fn a_resumed_run_goes_on_to_the_bit() {
    for curve in ["frozen", "l2", "ewc", "mixout", "by_steps", "together", "consolidated"] {
        for stage in STAGES {
            let root = tempfile::tempdir().unwrap();
            let (found, after) = saved(&spec("tiny-llama", curve, stage, 2, 1), root.path());
            for other in STAGES {
                let again = resumed(&spec("tiny-llama", curve, other, 2, 1), &found).swap_remove(0).unwrap();
                assert_eq!(bits(&again), bits(&after), "{curve}, stage {stage} to {other}");
            }
            let other = spec("tiny-llama", curve, stage, 3, 2);
            let again = resumed(&other, &found).swap_remove(0).unwrap();
            for (one, other) in after.iter().zip(&again) {
                assert!(((one.loss - other.loss) / one.loss).abs() < 1e-6, "{curve}, stage {stage} to 3 ranks");
            }
        }
    }
}

/// Moments of what is frozen are zeros in a checkpoint, so that every tool and layout reads it.
#[test]
fn a_checkpoint_has_zeros_for_what_has_no_moments() {
    let root = tempfile::tempdir().unwrap();
    let (found, _) = saved(&spec("tiny-llama", "frozen_below", Stage::Two, 2, 1), root.path());
    let state = StateReader::open(&found).unwrap();
    for (name, stored) in state.parameters() {
        let mut values = vec![1.0; stored.elements() as usize];
        state.read(name, STATES[1], 0..stored.elements(), &mut values).unwrap();
        let frozen = name.starts_with("model.layers.0.") || name.starts_with("model.embed_tokens");
        assert_eq!(values.iter().all(|&value| value == 0.0), frozen, "{name}");
    }
    let trained = &found.manifest.state["trained"];
    assert_eq!(trained["frozen"].as_array().unwrap().len(), 10, "{trained}");
}

/// What was frozen and is trained now goes on from there. Groups that were frozen in part are refused.
#[test]
fn other_groups_than_those_of_the_checkpoint_begin_anew_or_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let (found, _) = saved(&spec("tiny-llama", "frozen_below", Stage::Three, 2, 1), root.path());
    // All but the lowest layer and the embedding were trained for BEFORE steps, and are in units of their own.
    let plain = spec("tiny-llama", "layer_wise", Stage::Three, 2, 1);
    let groups = resumed(&plain, &found).swap_remove(0).unwrap();
    assert!(groups.iter().all(|outcome| outcome.loss.is_finite()));

    let mut whole = plain;
    whole.sharding.units = UnitPolicy::Whole;
    whole.curve = "l2".to_owned();
    for refused in resumed(&whole, &found) {
        let error = refused.unwrap_err();
        assert!(error.contains("what was trained") && error.contains("frozen"), "{error}");
        assert!(error.contains("hint: resume with the freeze"), "{error}");
    }
}

/// The weights that training is drawn toward are known again, whatever the layout, and others are refused.
#[test]
fn other_pretrained_weights_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let (mut found, _) = saved(&spec("tiny-llama", "l2", Stage::Three, 2, 1), root.path());
    let known: BTreeMap<String, String> = serde_json::from_value(found.manifest.state["trained"].clone()).unwrap();
    let (_, here) = train(&spec("tiny-llama", "together", Stage::Zero, 3, 1), |trainer| {
        let directory = tempfile::tempdir().unwrap();
        write(trainer, directory.path(), 1).state["trained"]["pretrained"].as_str().unwrap().to_owned()
    });
    assert_eq!(known["pretrained"], here);
    found.manifest.state["trained"]["pretrained"] = "0123456789abcdef".into();
    for refused in resumed(&spec("tiny-llama", "l2", Stage::Three, 2, 1), &found) {
        let error = refused.unwrap_err();
        assert!(error.contains("0123456789abcdef") && error.contains(&here), "{error}");
    }
}

/// A checkpoint without Fisher information is refused where it is needed; one that has it can be read without.
#[test]
fn the_fisher_information_is_that_of_the_beginning() {
    let root = tempfile::tempdir().unwrap();
    let ewc = |stage| spec("tiny-llama", "ewc", stage, 2, 1);
    let (found, _) = saved(&spec("tiny-llama", "l2", Stage::Three, 2, 1), root.path());
    assert!(!found.manifest.has_fisher());
    for refused in resumed(&ewc(Stage::Three), &found) {
        let error = refused.unwrap_err();
        assert!(error.contains("the Fisher information is missing there"), "{error}");
        assert!(error.contains("hint: it is estimated where a run begins"), "{error}");
    }
    let root = tempfile::tempdir().unwrap();
    let (found, _) = saved(&ewc(Stage::Two), root.path());
    assert!(found.manifest.has_fisher());
    assert_eq!(found.manifest.state["trained"]["fisher"], 7);
    let without = resumed(&spec("tiny-llama", "l2", Stage::Zero, 2, 1), &found).swap_remove(0).unwrap();
    assert!(without.iter().all(|outcome| outcome.ewc_penalty.is_none()));

    // As many numbers as there are parameters, none of them negative, and not all of them alike.
    let state = StateReader::open(&found).unwrap();
    for (name, stored) in state.parameters() {
        let mut values = vec![-1.0; stored.elements() as usize];
        state.read(name, FISHER, 0..stored.elements(), &mut values).unwrap();
        assert!(values.iter().all(|value| *value >= 0.0) && values.iter().any(|value| *value > 0.0), "{name}");
    }
}

/// In 16 bits the Fisher information is that of float32 but for the rounding of activations: squares are float32, and float16 does
/// not overflow.
#[test]
fn the_fisher_information_survives_16_bits() {
    let sum = |spec: &Spec| train(spec, |trainer| trainer.shards.fisher_sum().unwrap()).1;
    for stage in [Stage::Zero, Stage::Three] {
        let exact = Spec { steps: Some(1), ..spec("tiny-llama", "ewc", stage, 2, 1) };
        let wide = sum(&exact);
        for (narrow, accumulate) in
            [(ElementType::Bfloat16, ElementType::Bfloat16), (ElementType::Float16, ElementType::Float32)]
        {
            let found = sum(&Spec { compute: narrow, reduce: narrow, accumulate, ..exact.clone() });
            assert!((found / wide - 1.0).abs() < 0.03, "stage {stage}, {narrow:?}: {found:e} instead of {wide:e}");
        }
    }
}
