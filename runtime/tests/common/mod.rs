//! What the tests of the engine share: one training, described by a [`Spec`], and PyTorch's curves to compare with.
#![allow(dead_code, reason = "each test program uses its part of it")]

pub(crate) mod checkpoints;
pub(crate) mod stand_in;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use zerofold_configs::{
    ElementType, ElementTypes, Inputs, NonFinite, Offload, ScheduleShape, Sharding, Stage, Training, WarmupType,
    resolve,
};
use zerofold_data::{Batch, Places, TokenizedDataset};
use zerofold_plan::{Layout, Mesh, ModelUnits};
use zerofold_runtime::comm::{Activity, Collectives};
use zerofold_runtime::model::{ModelConfig, Transformer, model_weights};
use zerofold_runtime::optim::{LossScale, Schedule};
use zerofold_runtime::shard::{Kinds, ShardOptions, Shards};
use zerofold_runtime::torch::AdamW;
use zerofold_runtime::trainer::{Requests, StepOptions, StepOutcome, Trainer};

pub(crate) const STAGES: [Stage; 4] = [Stage::Zero, Stage::One, Stage::Two, Stage::Three];

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

pub(crate) fn json(name: &str) -> Value {
    let path = fixture(name);
    serde_json::from_slice(&std::fs::read(&path).expect("the fixture is committed")).expect("the fixture is JSON")
}

/// A file of pre-tokenised rows among the fixtures.
pub(crate) fn rows(name: &str) -> TokenizedDataset {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    let mut dataset = TokenizedDataset::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let numbers = |key: &str| row[key].as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect::<Vec<_>>();
        let ids: Vec<u32> = numbers("input_ids").into_iter().map(|id| id as u32).collect();
        let labels: Vec<i32> = numbers("labels").into_iter().map(|label| label as i32).collect();
        dataset.push(dataset.rows() as u64 + 1, &ids, &labels);
    }
    dataset
}

/// One training: which curve of which fixture, and how it is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The fixture's folder: `training`, `matrix` or `families`.
    pub(crate) suite: String,
    pub(crate) model: String,
    pub(crate) curve: String,
    /// The row that the first step begins with.
    pub(crate) offset: usize,
    /// Steps to take; the curve's own number when `None`.
    pub(crate) steps: Option<u64>,
    pub(crate) world_size: usize,
    pub(crate) accumulation: u32,
    pub(crate) sharding: Sharding,
    pub(crate) compute: ElementType,
    pub(crate) master: ElementType,
    pub(crate) reduce: ElementType,
    pub(crate) accumulate: ElementType,
    pub(crate) recompute_every: Option<usize>,
    /// The loss scale to begin with, in float16.
    pub(crate) loss_scale: Option<f64>,
    pub(crate) nonfinite_skip: bool,
    pub(crate) attention_dropout: f64,
    /// That of the embeddings and of the residual stream.
    pub(crate) other_dropout: f64,
    /// Where optimizer state is offloaded to.
    pub(crate) offload: Option<PathBuf>,
}

impl Spec {
    pub(crate) fn new(
        suite: &str,
        model: &str,
        curve: &str,
        stage: Stage,
        world_size: usize,
        accumulation: u32,
    ) -> Self {
        let float32 = ElementType::Float32;
        Spec {
            suite: suite.to_owned(),
            model: model.to_owned(),
            curve: curve.to_owned(),
            offset: 0,
            steps: None,
            world_size,
            accumulation,
            sharding: Sharding::of(stage),
            compute: float32,
            master: float32,
            reduce: float32,
            accumulate: float32,
            recompute_every: None,
            loss_scale: None,
            nonfinite_skip: false,
            attention_dropout: 0.0,
            other_dropout: 0.0,
            offload: None,
        }
    }

    pub(crate) fn types(&self) -> ElementTypes {
        let Spec { compute, master, reduce, accumulate, .. } = *self;
        ElementTypes { compute, master, reduce, accumulate }
    }

    /// PyTorch's curve, with its recipe.
    pub(crate) fn expected(&self) -> Value {
        let file = match self.suite.as_str() {
            "families" => format!("families/{}/curve.json", self.model),
            suite => format!("{suite}/{}.json", self.model),
        };
        json(&file)["curves"][self.curve.as_str()].clone()
    }

    /// The rows of the suite.
    pub(crate) fn dataset(&self) -> TokenizedDataset {
        rows(match self.suite.as_str() {
            "matrix" => "matrix/rows.jsonl",
            "families" => "families/rows.jsonl",
            _ => "data/rows.jsonl",
        })
    }

    /// The model's folder.
    pub(crate) fn folder(&self) -> PathBuf {
        fixture(if self.suite == "families" { "families" } else { "models" }).join(&self.model)
    }

    /// The keys by which the curve says how parameters are treated, as flags; none where it says nothing.
    fn method_flags(&self) -> Vec<(String, String)> {
        let curve = self.expected();
        let keys = curve["methods"].as_object().into_iter().flatten();
        keys.map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect()
    }

    /// The section `training:` of a job that treats parameters as the curve says.
    pub(crate) fn methods(&self) -> Training {
        let recipe = &self.expected()["recipe"];
        let mut flags = self.method_flags();
        for (key, value) in [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o")] {
            flags.push((key.to_owned(), value.to_owned()));
        }
        for key in ["learning_rate", "weight_decay"] {
            flags.push((key.to_owned(), recipe[key].to_string()));
        }
        resolve(&Inputs { flags, ..Inputs::default() }).unwrap().training
    }

    /// How often gradual unfreezing has opened something by the step after so many finished ones.
    pub(crate) fn openings(&self, dataset: &TokenizedDataset, finished: u64) -> u32 {
        if self.method_flags().is_empty() {
            return 0;
        }
        let global_batch = self.expected()["recipe"]["global_batch"].as_u64().unwrap();
        let epoch = finished / (dataset.rows() as u64).div_ceil(global_batch);
        self.methods().openings(epoch, finished)
    }

    pub(crate) fn trainer(&self, comm: Rc<dyn Collectives>, activity: Arc<Activity>) -> Trainer {
        let curve = self.expected();
        let number = |key: &str| curve["recipe"][key].as_f64().unwrap();
        let directory = self.folder();
        let kinds = Kinds::from(self.types());
        let mut config = ModelConfig::read(&directory).unwrap();
        config.attention_dropout = self.attention_dropout;
        config.hidden_dropout = self.other_dropout;
        config.embedding_dropout = self.other_dropout;
        let model = Transformer::new(config, kinds.compute, comm.device()).unwrap();
        let mut cut = ModelUnits::new(&model.config, self.sharding.units);
        let frozen: Vec<String> = serde_json::from_value(curve["frozen"].clone()).unwrap_or_default();
        cut.freeze(|name| frozen.iter().any(|pattern| name.contains(pattern.as_str()))).unwrap();
        let methods = self.methods();
        if !self.method_flags().is_empty() {
            cut.group(&methods).unwrap();
        }
        let ModelUnits { units, segments } = cut;
        let mesh = Mesh::new(self.world_size, self.sharding.replicas as usize).unwrap();
        let offload = self.offload.clone().map_or(Offload::No, Offload::Files);
        let options =
            ShardOptions { sharding: self.sharding, kinds, offload, mixes: methods.mixes(), device: comm.device() };
        let mut shards = Shards::new(Layout::new(&units, mesh).unwrap(), &options, comm).unwrap();
        let weights = model_weights(&directory, &model.config).unwrap();
        shards.load(&weights).unwrap();
        let options = StepOptions {
            schedule: Schedule {
                shape: ScheduleShape::Linear,
                peak: number("learning_rate"),
                warmup_steps: number("warmup_steps") as u64,
                warmup: WarmupType::Linear,
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
            l2_toward_pretrained: methods.l2_toward_pretrained,
            ewc_lambda: methods.ewc_lambda,
            mixout_probability: methods.mixout_probability,
            recompute_every: self.recompute_every,
            backward_prefetch: self.sharding.backward_prefetch,
            label_smoothing: curve["recipe"]["label_smoothing_factor"].as_f64().unwrap_or(0.0),
            nonfinite: if self.nonfinite_skip { NonFinite::Skip } else { NonFinite::Stop },
            seed: 1,
            places: Places::default(),
        };
        let mut trainer = Trainer::new(model, segments, shards, activity, options);
        if methods.keeps_pretrained() {
            trainer.keep_pretrained(&weights).unwrap();
        }
        if let Some(scale) = self.loss_scale {
            trainer.state.loss_scale = Some(LossScale::new(scale));
        }
        trainer
    }

    /// Optimizer steps.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.unwrap_or_else(|| self.expected()["recipe"]["max_steps"].as_u64().unwrap())
    }

    /// A rank's micro-batches of a step: slice `accumulation step × N + rank` of the step's rows, in file order. Where they
    /// cannot be cut evenly the last slices are short or empty.
    pub(crate) fn window(&self, dataset: &TokenizedDataset, step: u64, rank: usize) -> Vec<Batch> {
        let global_batch = self.expected()["recipe"]["global_batch"].as_u64().unwrap() as usize;
        let begin = self.offset + step as usize * global_batch;
        let rows: Vec<u32> = (begin..begin + global_batch).map(|row| (row % dataset.rows()) as u32).collect();
        let size = global_batch.div_ceil(self.world_size * self.accumulation as usize);
        let slices: Vec<&[u32]> = rows.chunks(size).collect();
        (0..self.accumulation as usize)
            .map(|micro_batch| slices.get(micro_batch * self.world_size + rank).copied().unwrap_or(&[]))
            .map(|rows| Batch::collate(dataset, rows, 0).unwrap())
            .collect()
    }

    /// Trains as one rank, and hands out the steps and the trainer as it is afterwards.
    pub(crate) fn train(&self, comm: Rc<dyn Collectives>, activity: Arc<Activity>) -> (Vec<StepOutcome>, Trainer) {
        let dataset = self.dataset();
        let rank = comm.rank();
        let mut trainer = self.trainer(comm, activity);
        let outcomes = (0..self.steps())
            .map(|step| {
                trainer.open(self.openings(&dataset, step), step).unwrap();
                trainer.step(step, &self.window(&dataset, step, rank), Requests::default()).unwrap()
            })
            .collect();
        trainer.shards.forget_gathered().unwrap();
        trainer.shards.comm().barrier().unwrap();
        (outcomes, trainer)
    }
}

/// Losses and gradient norms as bits.
pub(crate) fn bits(outcomes: &[StepOutcome]) -> Vec<(u64, u64)> {
    outcomes.iter().map(|outcome| (outcome.loss.to_bits(), outcome.grad_norm.to_bits())).collect()
}
