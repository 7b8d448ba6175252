//! Memory: what the plan says against the live bytes of tensors, counted by the allocator, at ten points of a step and at
//! its peak.

use crate::Tally;
use crate::workers::{Curve, Task, Wire, Workers};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};
use zerofold_checkpoint::Weights;
use zerofold_configs::{
    BackwardPrefetch, ElementType, ElementTypes, Inputs, NonFinite, Offload, ReshardAfterForward, ScheduleShape,
    Sharding, Stage, Training, UnitPolicy, WarmupType, resolve,
};
use zerofold_data::{Batch, Batching, Collator, Places, TokenizedDataset};
use zerofold_plan::{Layout, Mesh, ModelConfig, ModelUnits, Plan, PlanInputs, PlannedDevice, UnitSpec, plan};
use zerofold_runtime::comm::{Activity, Collectives, CommError, Pending, Traffic};
use zerofold_runtime::metrics::Timeline;
use zerofold_runtime::model::Transformer;
use zerofold_runtime::optim::Schedule;
use zerofold_runtime::shard::{Kinds, ShardOptions, Shards};
use zerofold_runtime::torch::{AdamW, memory};
use zerofold_runtime::trainer::{Requests, Rows, StepOptions, Trainer};

/// Ranks of the measured jobs.
const RANKS: usize = 2;
/// Points of a step at which live bytes are looked at.
const POINTS: usize = 10;
/// How far the plan's total may be from the measured peak.
const TOLERANCE: f64 = 0.05;
/// The tiles of 16-bit products on a processor without instructions for them (runtime/csrc/products.cpp), and what the allocator rounds.
const TILES: f64 = 1.5 * 1_048_576.0;

/// A job whose memory is measured. Weights stay zero: they cost the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MemorySpec {
    /// A folder with a config.json.
    folder: PathBuf,
    sharding: Sharding,
    compute: ElementType,
    /// Masters, gradients and moments in the compute type too.
    pure: bool,
    rows: usize,
    length: usize,
    recompute_every: Option<usize>,
    /// What is said of parameters, as flags.
    methods: Vec<(String, String)>,
}

impl MemorySpec {
    /// The section `training:` that says it.
    fn training(&self) -> Training {
        let ewc = self.methods.iter().any(|(key, _)| key == "ewc_lambda").then_some(("ewc_dataset", "d"));
        let required = [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o")].into_iter().chain(ewc);
        let flags = required.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let flags = flags.chain(self.methods.clone()).collect();
        resolve(&Inputs { flags, ..Inputs::default() }).unwrap().training
    }

    fn types(&self) -> ElementTypes {
        let compute = self.compute;
        match self.pure {
            true => ElementTypes { compute, master: compute, reduce: compute, accumulate: compute },
            false => ElementTypes::of(compute),
        }
    }

    fn plan(&self, wire: Wire) -> Plan {
        let model = ModelConfig::read(&self.folder).unwrap();
        plan(&PlanInputs {
            model: &model,
            world_size: RANKS,
            sharding: self.sharding,
            types: self.types(),
            per_device_batch: self.rows,
            length: self.length,
            longest_document: None,
            supervised: None,
            accumulation: 2,
            gradient_checkpointing: self.recompute_every.is_some(),
            gradient_checkpointing_every: self.recompute_every.unwrap_or(1),
            offload_optimizer: false,
            device: PlannedDevice::Cpu,
            receives: wire == Wire::Gloo,
            copies: wire == Wire::Shm,
            training: Some(&self.training()),
        })
        .unwrap()
    }

    /// Takes two steps of two micro-batches as one rank; live bytes are those of the second step.
    pub(crate) fn measure(&self, comm: Rc<dyn Collectives>, activity: Arc<Activity>) -> Curve {
        let kinds = Kinds::from(self.types());
        let model = Transformer::new(ModelConfig::read(&self.folder).unwrap(), kinds.compute, Device::Cpu).unwrap();
        let training = self.training();
        let mut cut = ModelUnits::new(&model.config, self.sharding.units);
        cut.group(&training).unwrap();
        let ModelUnits { units, segments } = cut;
        let layout = Layout::new(&units, Mesh::new(RANKS, self.sharding.replicas as usize).unwrap()).unwrap();
        let seen: Rc<RefCell<Vec<u64>>> = Rc::default();
        let comm: Rc<dyn Collectives> = Rc::new(Watched { inner: comm, seen: seen.clone() });
        let options = ShardOptions {
            sharding: self.sharding,
            kinds,
            offload: Offload::No,
            mixes: training.mixes(),
            device: Device::Cpu,
        };
        let mut shards = Shards::new(layout, &options, comm).unwrap();
        shards.share_state().unwrap();
        let options = StepOptions {
            schedule: Schedule {
                shape: ScheduleShape::Constant,
                peak: 1e-3,
                warmup_steps: 0,
                warmup: WarmupType::Linear,
                total_steps: 2,
            },
            adamw: AdamW { learning_rate: 0.0, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 },
            max_grad_norm: 1.0,
            l2_toward_pretrained: training.l2_toward_pretrained,
            ewc_lambda: training.ewc_lambda,
            mixout_probability: training.mixout_probability,
            recompute_every: self.recompute_every,
            backward_prefetch: BackwardPrefetch::Pre,
            label_smoothing: 0.0,
            nonfinite: NonFinite::Stop,
            seed: 1,
            places: Places::default(),
        };
        let mut dataset = TokenizedDataset::new();
        // Every position but the last of a row predicts something; the plan is for the most that can be.
        let tokens: Vec<u32> = (0..self.length as u32).map(|token| token % 50).collect();
        dataset.push(1, &tokens, &tokens.iter().map(|&token| token as i32).collect::<Vec<_>>());
        let batch = Batch::collate(&dataset, &vec![0; self.rows], 0).unwrap();
        let window = [batch.clone(), batch];
        let mut trainer = Trainer::new(model, segments, shards, activity, options);
        if training.keeps_pretrained() {
            write_zeros(&units, &self.folder);
            trainer.keep_pretrained(&Weights::of_model(&self.folder).unwrap()).unwrap();
        }
        if training.estimates_fisher() {
            let collator = Collator::new(&dataset, Batching::of(&training, false)).unwrap();
            trainer.estimate_fisher(&Rows { dataset, collator }, RANKS).unwrap();
        }
        zerofold_runtime::torch::restart_peak(Device::Cpu);
        trainer.step(0, &window, Requests::default()).unwrap();
        seen.borrow_mut().clear();
        let outcome = trainer.step(1, &window, Requests::default()).unwrap();
        trainer.shards.forget_gathered().unwrap();
        let all = seen.borrow();
        let points = (0..POINTS).map(|point| all[point * (all.len() - 1) / (POINTS - 1)]).collect();
        Curve { live: points, live_peak: outcome.live_peak_bytes, ..Curve::default() }
    }
}

/// Writes the weights of a model, all zero, where they are not there yet.
fn write_zeros(units: &[UnitSpec], folder: &Path) {
    let path = folder.join("model.safetensors");
    if path.exists() {
        return;
    }
    let parameters = units.iter().flat_map(|unit| &unit.leaves).flat_map(|leaf| &leaf.parameters);
    let zeros = parameters.map(|parameter| {
        let shape: Vec<i64> = parameter.shape.iter().map(|&size| size as i64).collect();
        (parameter.name.clone(), Tensor::zeros(shape, (Kind::BFloat16, Device::Cpu)))
    });
    // Ranks may write it at the same time.
    let written = folder.join(format!("{}.tmp", std::process::id()));
    Tensor::write_safetensors(&zeros.collect::<Vec<_>>(), &written).unwrap();
    std::fs::rename(written, path).unwrap();
}

/// Collectives that look at the live bytes at every call.
struct Watched {
    inner: Rc<dyn Collectives>,
    seen: Rc<RefCell<Vec<u64>>>,
}

impl Watched {
    fn look(&self) {
        self.seen.borrow_mut().push(memory(Device::Cpu).live as u64);
    }
}

impl Collectives for Watched {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn axis(&self, ranks: &[usize]) -> Result<Rc<dyn Collectives>, CommError> {
        Ok(Rc::new(Watched { inner: self.inner.axis(ranks)?, seen: self.seen.clone() }))
    }

    fn start_all_gather_into(&self, full: &Tensor, shard: &Tensor) -> Result<Pending, CommError> {
        self.look();
        self.inner.start_all_gather_into(full, shard)
    }

    fn start_reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<Pending, CommError> {
        self.look();
        self.inner.start_reduce_scatter_into(shard, full)
    }

    fn timeline(&self) -> &Timeline {
        self.inner.timeline()
    }

    fn activity(&self) -> &Activity {
        self.inner.activity()
    }

    fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }

    fn allocate(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        self.inner.allocate(numel, kind)
    }

    fn scratch(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        self.inner.scratch(numel, kind)
    }
}

/// The shapes that are measured: hidden, layers, heads, key heads, intermediate, vocabulary; whether tied; rows and length.
type Shape = (&'static str, [usize; 6], bool, (usize, usize));
const SHAPES: [Shape; 3] = [
    ("2.6M", [192, 4, 6, 2, 512, 2048], false, (2, 96)),
    ("15.7M", [384, 6, 6, 2, 1024, 8192], false, (2, 128)),
    ("24M, tied", [448, 8, 7, 1, 1152, 16384], true, (1, 192)),
];

/// The shapes that are measured with attention dropout. All scores are kept, and are nearly all of the first's memory.
const WITH_DROPOUT: [Shape; 4] = [("0.2M", [64, 2, 4, 2, 160, 320], false, (2, 512)), SHAPES[0], SHAPES[1], SHAPES[2]];

fn write_config(
    folder: &Path,
    [hidden, layers, heads, key_heads, inner, vocabulary]: [usize; 6],
    tied: bool,
    dropout: f64,
) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "intermediate_size": inner,
        "vocab_size": vocabulary, "tie_word_embeddings": tied, "max_position_embeddings": 2048,
        "attention_dropout": dropout,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder.to_owned()
}

/// Every job; with `all` in all types, with and without recomputing, over both wires, else in one of these types and of these four ways
/// in turn: what is planned of a job does not depend on which.
pub(crate) fn check(all: bool, tally: &mut Tally) {
    let temporary = tempfile::tempdir().unwrap();
    let three = Sharding::of(Stage::Three);
    let shardings = [
        ("stage 0", Sharding::of(Stage::Zero)),
        ("stage 1", Sharding::of(Stage::One)),
        ("stage 2", Sharding::of(Stage::Two)),
        ("stage 3", three),
        ("kept after forward", Sharding { reshard_after_forward: ReshardAfterForward::Always(false), ..three }),
        ("block halves", Sharding { units: UnitPolicy::BlockHalves, ..three }),
    ];
    let mut job = 0;
    let mut check = |shape: Shape, dropout: f64, name: &str, sharding: Sharding, methods: &[(&str, &str)]| {
        let (shape, sizes, tied, (rows, length)) = shape;
        let folder = write_config(&temporary.path().join(format!("{shape}-{dropout}")), sizes, tied, dropout);
        let types = [
            ("float32", ElementType::Float32, false),
            ("bfloat16", ElementType::Bfloat16, false),
            ("pure bfloat16", ElementType::Bfloat16, true),
        ];
        job += 1;
        let ways = [(None, Wire::Gloo), (Some(1), Wire::Shm), (Some(1), Wire::Gloo), (None, Wire::Shm)];
        let types = if all { &types[..] } else { std::slice::from_ref(&types[job % types.len()]) };
        let ways = if all { &ways[..] } else { std::slice::from_ref(&ways[job % ways.len()]) };
        for &(types, compute, pure) in types {
            for &(recompute_every, wire) in ways {
                let methods = methods.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
                let folder = folder.clone();
                let spec = MemorySpec { folder, sharding, compute, pure, rows, length, recompute_every, methods };
                // New processes, so that nothing is left of the last job.
                let measured = Workers::start(RANKS, wire).run(&Task::Memory(spec.clone()));
                let result = measured.and_then(|measured| compare(&spec, wire, &measured));
                let job = format!("{shape}, {name}, {types}, recomputing {recompute_every:?}");
                tally.check(&format!("memory: {job}, over {wire:?}"), result);
            }
        }
    };
    // The weights that the job began with are kept beside the others, the Fisher information too.
    for stage in [Stage::Zero, Stage::Two, Stage::Three] {
        for method in [("l2_toward_pretrained", "0.01"), ("ewc_lambda", "1"), ("mixout_probability", "0.5")] {
            check(SHAPES[0], 0.0, &format!("{} at stage {stage}", method.0), Sharding::of(stage), &[method]);
        }
    }
    // What is frozen is spared: below the head, in the lower layers, and in between.
    for shape in [SHAPES[0], SHAPES[1]] {
        for stage in [Stage::Two, Stage::Three] {
            let frozen = [
                ("head alone", "all_but_head"),
                ("upper half", "model.embed_tokens.weight,model.layers.[01].*"),
                ("without attention", "model.embed_tokens.weight,model.layers.*self_attn*"),
            ];
            for (name, freeze) in frozen {
                let name = format!("{name} at stage {stage}");
                check(shape, 0.0, &name, Sharding::of(stage), &[("freeze", freeze)]);
            }
        }
    }
    for shape in SHAPES {
        shardings.iter().for_each(|&(name, sharding)| check(shape, 0.0, name, sharding, &[]));
    }
    for shape in WITH_DROPOUT {
        check(shape, 0.2, "dropout at stage 3", three, &[]);
    }
}

fn compare(spec: &MemorySpec, wire: Wire, measured: &Curve) -> Result<String, String> {
    let planned = spec.plan(wire);
    let error = planned.total as f64 / measured.live_peak as f64 - 1.0;
    let highest = *measured.live.iter().max().unwrap();
    let mebibytes = |bytes: u64| bytes as f64 / 1_048_576.0;
    let words = format!(
        "planned {:.1}, measured {:.1} MiB ({:+.1} %); ten points up to {:.1}",
        mebibytes(planned.total),
        mebibytes(measured.live_peak),
        100.0 * error,
        mebibytes(highest)
    );
    let widens = spec.compute != ElementType::Float32 && !std::arch::is_x86_feature_detected!("avx512bw");
    let tiles = if widens { TILES } else { 0.0 };
    let allowed = planned.total as f64 * TOLERANCE + tiles;
    let off = planned.total as f64 - measured.live_peak as f64;
    let points_fit = highest as f64 <= planned.total as f64 + allowed;
    if off.abs() <= allowed && points_fit { Ok(words) } else { Err(format!("{words}; {planned:?}")) }
}
