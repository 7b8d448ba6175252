//! The whole step against plain PyTorch and against itself, with threads as ranks over real Gloo.
//!
//! Expected losses and gradient norms come from `scripts/fixtures/`: transformers' own models in a single process.

use serde_json::Value;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Kind};
use zerofold_checkpoint::ModelFiles;
use zerofold_configs::Stage;
use zerofold_data::{Batch, Sampling, StepPlan, StepPlanOptions, TokenizedDataset};
use zerofold_plan::{Layout, Precision, state_bytes};
use zerofold_runtime::comm::{Activity, Collectives, Gloo, LocalStore, Store};
use zerofold_runtime::model::{Llama, ModelConfig};
use zerofold_runtime::optim::{Schedule, ScheduleKind};
use zerofold_runtime::shard::Shards;
use zerofold_runtime::torch::AdamW;
use zerofold_runtime::trainer::{StepOptions, StepOutcome, Trainer};

const STAGES: [Stage; 4] = [Stage::Zero, Stage::One, Stage::Two, Stage::Three];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

fn json(name: &str) -> Value {
    let path = fixture(name);
    serde_json::from_slice(&std::fs::read(&path).expect("the fixture is committed")).expect("the fixture is JSON")
}

/// The pre-tokenised rows of the fixtures.
fn rows() -> TokenizedDataset {
    let text = std::fs::read_to_string(fixture("data/rows.jsonl")).unwrap();
    let mut dataset = TokenizedDataset::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let numbers = |key: &str| row[key].as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect::<Vec<_>>();
        let ids: Vec<u32> = numbers("input_ids").into_iter().map(|id| id as u32).collect();
        let labels: Vec<i32> = numbers("labels").into_iter().map(|label| label as i32).collect();
        dataset.push(&ids, &labels);
    }
    dataset
}

/// One layout of the same training.
#[derive(Clone)]
struct Run {
    model: &'static str,
    curve: &'static str,
    stage: Stage,
    world_size: usize,
    accumulation: u32,
    compute: Kind,
    gradient_checkpointing: bool,
}

impl Run {
    fn new(model: &'static str, curve: &'static str, stage: Stage, world_size: usize, accumulation: u32) -> Self {
        Run { model, curve, stage, world_size, accumulation, compute: Kind::Float, gradient_checkpointing: false }
    }

    fn recipe(&self) -> Value {
        json(&format!("training/{}.json", self.model))["curves"][self.curve].clone()
    }

    fn trainer(&self, comm: Rc<dyn Collectives>, recipe: &Value, activity: Arc<Activity>) -> Trainer {
        let number = |key: &str| recipe[key].as_f64().unwrap();
        let directory = fixture("models").join(self.model);
        let model = Llama::new(ModelConfig::read(&directory).unwrap(), self.compute, Device::Cpu).unwrap();
        let layout = Layout::new(&model.units(), self.world_size).unwrap();
        let mut shards = Shards::new(layout, self.stage, self.compute, comm).unwrap();
        shards.load(&ModelFiles::open(&directory).unwrap()).unwrap();
        let options = StepOptions {
            schedule: Schedule {
                kind: ScheduleKind::Linear,
                peak: number("learning_rate"),
                warmup_steps: number("warmup_steps") as u64,
                total_steps: number("max_steps") as u64,
            },
            adamw: AdamW {
                learning_rate: 0.0,
                beta1: number("adam_beta1"),
                beta2: number("adam_beta2"),
                epsilon: number("adam_epsilon"),
                weight_decay: number("weight_decay"),
            },
            max_grad_norm: number("max_grad_norm"),
            gradient_checkpointing: self.gradient_checkpointing,
        };
        Trainer { model, shards, activity, options }
    }

    /// Trains and returns rank 0's outcomes; every rank's losses are checked to be the same.
    fn outcomes(&self) -> Vec<StepOutcome> {
        let store: Arc<dyn Store> = Arc::new(LocalStore::default());
        let curve = self.recipe();
        let recipe = &curve["recipe"];
        let global_batch = recipe["global_batch"].as_u64().unwrap() as u32;
        let dataset = rows();
        let plan = StepPlan::new(StepPlanOptions {
            rows: dataset.rows(),
            world_size: self.world_size as u32,
            per_device_batch: global_batch / self.world_size as u32 / self.accumulation,
            accumulation: self.accumulation,
            epochs: 1.0,
            max_steps: recipe["max_steps"].as_i64().unwrap(),
            seed: 0,
            data_seed: None,
            sampling: Sampling::Sequential,
        })
        .unwrap();
        assert_eq!(plan.global_batch(), u64::from(global_batch));
        let all: Vec<Vec<StepOutcome>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..self.world_size)
                .map(|rank| {
                    let (store, dataset, plan) = (store.clone(), &dataset, &plan);
                    scope.spawn(move || {
                        let activity = Arc::new(Activity::default());
                        let limit = Duration::from_secs(60);
                        let comm =
                            Gloo::connect(store, rank, self.world_size, "127.0.0.1", limit, activity.clone()).unwrap();
                        let mut trainer = self.trainer(Rc::new(comm), recipe, activity);
                        let outcomes: Vec<StepOutcome> = (0..plan.total_steps())
                            .map(|step| {
                                let window: Vec<Batch> = (0..self.accumulation)
                                    .map(|micro| plan.rows_of(step, micro, rank as u32))
                                    .map(|rows| Batch::collate(dataset, &rows, 0).unwrap())
                                    .collect();
                                trainer.step(step, &window, false).unwrap()
                            })
                            .collect();
                        self.check_state_bytes(&trainer);
                        trainer.shards.comm().barrier().unwrap();
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

    fn check_state_bytes(&self, trainer: &Trainer) {
        let precision = if self.compute == Kind::Float { Precision::Float32 } else { Precision::Bfloat16 };
        let theory = state_bytes(trainer.shards.layout(), self.stage.number(), precision);
        assert_eq!(trainer.shards.state_bytes(), theory, "stage {}", self.stage);
    }

    /// The largest relative difference to PyTorch's losses and gradient norms.
    fn difference_to_pytorch(&self) -> f64 {
        let curve = self.recipe();
        let expected = curve["steps"].as_array().unwrap();
        let outcomes = self.outcomes();
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
}

/// Losses and gradient norms as bits.
fn bits(outcomes: &[StepOutcome]) -> Vec<(u64, u64)> {
    outcomes.iter().map(|outcome| (outcome.loss.to_bits(), outcome.grad_norm.to_bits())).collect()
}

#[test]
fn twenty_steps_equal_pytorch_at_every_stage() {
    for model in ["tiny-llama", "tiny-llama-tied", "tiny-mistral"] {
        for stage in STAGES {
            let difference = Run::new(model, "batch_8", stage, 2, 2).difference_to_pytorch();
            println!("{model}, stage {stage}: largest relative difference {difference:.2e}");
            assert!(difference < 1e-5, "{model}, stage {stage}: {difference:e}");
        }
    }
}

#[test]
fn any_number_of_ranks_equals_pytorch_at_the_same_global_batch() {
    for world_size in [1, 2, 3, 4, 8] {
        for stage in [Stage::Zero, Stage::Three] {
            let difference = Run::new("tiny-llama-tied", "batch_24", stage, world_size, 1).difference_to_pytorch();
            assert!(difference < 1e-5, "{world_size} ranks, stage {stage}: {difference:e}");
        }
    }
}

#[test]
fn stages_agree_to_the_bit() {
    for (model, world_size, compute) in
        [("tiny-llama", 2, Kind::Float), ("tiny-llama-tied", 4, Kind::Float), ("tiny-mistral", 2, Kind::BFloat16)]
    {
        let outcomes = |stage, accumulation| {
            let run = Run { compute, ..Run::new(model, "batch_8", stage, world_size, accumulation) };
            bits(&run.outcomes())
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
    let run = Run::new("tiny-llama", "batch_8", Stage::Three, 2, 1);
    let recomputed = Run { gradient_checkpointing: true, ..run.clone() };
    assert_eq!(bits(&run.outcomes()), bits(&recomputed.outcomes()));
}

#[test]
fn bfloat16_follows_float32() {
    let float = Run::new("tiny-llama", "batch_8", Stage::Two, 2, 2).outcomes();
    let brain = Run { compute: Kind::BFloat16, ..Run::new("tiny-llama", "batch_8", Stage::Two, 2, 2) }.outcomes();
    for (float, brain) in float.iter().zip(&brain) {
        assert!(
            (float.loss - brain.loss).abs() < 0.02 * float.loss,
            "step {}: {} {}",
            float.step,
            float.loss,
            brain.loss
        );
    }
    assert_ne!(bits(&float), bits(&brain));
}

#[test]
fn communication_is_what_theory_says() {
    let sent = |stage, accumulation| {
        let run = Run::new("tiny-llama", "batch_8", stage, 2, accumulation);
        let outcomes = run.outcomes();
        outcomes.last().unwrap().sent_bytes as f64
    };
    let directory = fixture("models/tiny-llama");
    let model = Llama::new(ModelConfig::read(&directory).unwrap(), Kind::Float, Device::Cpu).unwrap();
    let layout = Layout::new(&model.units(), 2).unwrap();
    // Two ranks send half of a buffer each; a few small vectors come on top.
    let half = 4.0 * layout.numel() as f64 / 2.0;
    for (stage, accumulation, times) in [(0, 2, 2.0), (1, 2, 2.0), (2, 1, 2.0), (2, 2, 3.0)] {
        let measured = sent(STAGES[stage], accumulation) / half;
        assert!((measured - times).abs() < 0.01, "stage {stage}, accumulation {accumulation}: {measured} × P");
    }
    let measured = sent(Stage::Three, 1) / half;
    assert!(measured < 3.0 && measured > 2.0, "stage 3: {measured} × P");
}
