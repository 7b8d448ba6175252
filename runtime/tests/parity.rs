//! The whole step against plain PyTorch and against itself, with threads as ranks over real Gloo.
//!
//! Expected losses and gradient norms come from `scripts/fixtures/`: transformers' own models in a single process.

mod common;

use common::{STAGES, Spec, bits, fixture};
use serde_json::Value;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use zerofold_configs::{ElementType, Stage, UnitPolicy};
use zerofold_data::{Batch, TokenizedDataset};
use zerofold_plan::{Layout, Mesh, ModelConfig, ModelUnits, state_bytes};
use zerofold_runtime::comm::{Activity, Gloo, LocalStore, Single, Store};
use zerofold_runtime::trainer::{Requests, StepOutcome, TrainError, Trainer};

/// A training of the fixtures in `training/`.
fn training(model: &str, curve: &str, stage: Stage, world_size: usize, accumulation: u32) -> Spec {
    Spec::new("training", model, curve, stage, world_size, accumulation)
}

/// Trains with threads as ranks and returns rank 0's outcomes; every rank's losses are checked to be the same.
fn outcomes(spec: &Spec) -> Vec<StepOutcome> {
    let store: Arc<dyn Store> = Arc::new(LocalStore::default());
    let all: Vec<Vec<StepOutcome>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..spec.world_size)
            .map(|rank| {
                let store = store.clone();
                scope.spawn(move || {
                    let activity = Arc::new(Activity::default());
                    let limit = Duration::from_secs(60);
                    let comm =
                        Gloo::connect(store, rank, spec.world_size, "127.0.0.1", limit, activity.clone()).unwrap();
                    let (outcomes, trainer) = spec.train(Rc::new(comm), activity);
                    check_state_bytes(spec, &trainer);
                    outcomes
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for other in &all[1..] {
        assert_eq!(bits(other), bits(&all[0]), "ranks disagree");
    }
    all.into_iter().next().unwrap()
}

fn check_state_bytes(spec: &Spec, trainer: &Trainer) {
    let theory = state_bytes(trainer.shards.layout(), spec.sharding.stage, &spec.types());
    assert_eq!(trainer.shards.state_bytes(), theory, "stage {}", spec.sharding.stage);
}

/// The largest relative difference to PyTorch's losses; gradient norms are checked here.
fn difference_to_pytorch(spec: &Spec) -> f64 {
    difference_of(spec, &outcomes(spec))
}

fn difference_of(spec: &Spec, outcomes: &[StepOutcome]) -> f64 {
    let curve = spec.expected();
    let expected = curve["steps"].as_array().unwrap();
    assert_eq!(outcomes.len(), expected.len());
    let relative = |ours: f64, theirs: &Value| ((ours - theirs.as_f64().unwrap()) / theirs.as_f64().unwrap()).abs();
    let mut largest: f64 = 0.0;
    for (ours, theirs) in outcomes.iter().zip(expected) {
        assert_eq!(ours.learning_rate as f32, theirs["learning_rate"].as_f64().unwrap() as f32);
        assert_eq!(ours.supervised_tokens, theirs["supervised_tokens"].as_u64().unwrap());
        assert_eq!(ours.tokens, theirs["tokens"].as_u64().unwrap());
        largest = largest.max(relative(ours.loss, &theirs["loss"]));
        assert!(relative(ours.grad_norm, &theirs["grad_norm"]) < 1e-5, "step {}: gradient norm", ours.step);
    }
    largest
}

#[test]
fn twenty_steps_equal_pytorch_at_every_stage() {
    for model in ["tiny-llama", "tiny-llama-tied", "tiny-mistral"] {
        for stage in STAGES {
            let difference = difference_to_pytorch(&training(model, "batch_8", stage, 2, 2));
            println!("{model}, stage {stage}: largest relative difference {difference:.2e}");
            assert!(difference < 1e-5, "{model}, stage {stage}: {difference:e}");
        }
    }
}

/// The models of `families/`, one or two of each family.
fn families() -> Vec<String> {
    let entries = std::fs::read_dir(fixture("families")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    let mut names: Vec<String> = folders.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 16, "{names:?}");
    names
}

fn of_family(model: &str, stage: Stage) -> Spec {
    Spec::new("families", model, "batch_8", stage, 2, 1)
}

#[test]
fn every_family_equals_pytorch_and_is_the_same_to_the_bit_at_every_stage() {
    for model in families() {
        let runs = STAGES.map(|stage| {
            let spec = of_family(&model, stage);
            let outcomes = outcomes(&spec);
            let difference = difference_of(&spec, &outcomes);
            assert!(difference < 1e-5, "{model}, stage {stage}: {difference:e}");
            bits(&outcomes)
        });
        assert!(runs.iter().all(|run| *run == runs[0]), "{model}: stages differ");
    }
}

#[test]
fn smoothed_labels_give_pytorchs_losses() {
    for model in ["qwen2", "gemma2", "gpt2"] {
        for stage in [Stage::Zero, Stage::Three] {
            let spec = Spec { curve: "smoothed".to_owned(), ..of_family(model, stage) };
            let difference = difference_to_pytorch(&spec);
            assert!(difference < 1e-5, "{model}, stage {stage}: {difference:e}");
        }
    }
}

#[test]
fn any_number_of_ranks_equals_pytorch_at_the_same_global_batch() {
    for world_size in [1, 2, 3, 4, 8] {
        for stage in [Stage::Zero, Stage::Three] {
            let difference = difference_to_pytorch(&training("tiny-llama-tied", "batch_24", stage, world_size, 1));
            assert!(difference < 1e-5, "{world_size} ranks, stage {stage}: {difference:e}");
        }
    }
}

#[test]
fn stages_agree_to_the_bit() {
    let (float32, bfloat16) = (ElementType::Float32, ElementType::Bfloat16);
    for (model, world_size, compute) in
        [("tiny-llama", 2, float32), ("tiny-llama-tied", 4, float32), ("tiny-mistral", 2, bfloat16)]
    {
        let outcomes = |stage, accumulation| {
            let spec = Spec { compute, ..training(model, "batch_8", stage, world_size, accumulation) };
            bits(&outcomes(&spec))
        };
        let one = STAGES.map(|stage| outcomes(stage, 1));
        assert!(one.iter().all(|bits| *bits == one[0]), "{model}: accumulation 1");
        let two = STAGES.map(|stage| outcomes(stage, 2));
        assert_eq!(two[0], two[1], "{model}: stages 0 and 1 at accumulation 2");
        assert_eq!(two[2], two[3], "{model}: stages 2 and 3 at accumulation 2");
    }
}

#[test]
fn recomputing_activations_changes_nothing() {
    let kept = training("tiny-llama", "batch_8", Stage::Three, 2, 1);
    for every in [1, 2] {
        let recomputed = Spec { recompute_every: Some(every), ..kept.clone() };
        assert_eq!(bits(&outcomes(&kept)), bits(&outcomes(&recomputed)), "one block in {every}");
    }
}

#[test]
fn bfloat16_follows_float32() {
    let float32 = training("tiny-llama", "batch_8", Stage::Two, 2, 2);
    let bfloat16 = outcomes(&Spec { compute: ElementType::Bfloat16, ..float32.clone() });
    let float32 = outcomes(&float32);
    for (float, brain) in float32.iter().zip(&bfloat16) {
        let (step, float, brain) = (float.step, float.loss, brain.loss);
        assert!((float - brain).abs() < 0.02 * float, "step {step}: {float} {brain}");
    }
    assert_ne!(bits(&float32), bits(&bfloat16));
}

#[test]
fn communication_is_what_theory_says() {
    let sent = |stage, accumulation| {
        let outcomes = outcomes(&training("tiny-llama", "batch_8", stage, 2, accumulation));
        outcomes.last().unwrap().sent_bytes as f64
    };
    let directory = fixture("models/tiny-llama");
    let units = ModelUnits::new(&ModelConfig::read(&directory).unwrap(), UnitPolicy::Blocks).units;
    let layout = Layout::new(&units, Mesh::new(2, 1).unwrap()).unwrap();
    // Two ranks send half of a buffer each; a few small vectors come on top.
    let half = 4.0 * layout.numel() as f64 / 2.0;
    for (stage, accumulation, times) in [(0, 2, 2.0), (1, 2, 2.0), (2, 1, 2.0), (2, 2, 3.0)] {
        let measured = sent(STAGES[stage], accumulation) / half;
        assert!((measured - times).abs() < 0.01, "stage {stage}, accumulation {accumulation}: {measured} × P");
    }
    let measured = sent(Stage::Three, 1) / half;
    assert!(measured < 3.0 && measured > 2.0, "stage 3: {measured} × P");
}

/// A window in which no row has anything to learn has no loss: an error, before anything is computed.
#[test]
fn a_window_without_supervised_tokens_is_an_error() {
    let spec = training("tiny-llama", "batch_8", Stage::Three, 1, 1);
    let activity = Arc::new(Activity::default());
    let mut trainer = spec.trainer(Rc::new(Single::new(tch::Device::Cpu).unwrap()), activity);
    let mut dataset = TokenizedDataset::new();
    dataset.push(1, &[5, 6, 7], &[-100, -100, -100]);
    let error = trainer.step(4, &[Batch::collate(&dataset, &[0], 0).unwrap()], Requests::default()).unwrap_err();
    assert!(matches!(error, TrainError::NothingSupervised { step: 5 }), "{error}");
}
