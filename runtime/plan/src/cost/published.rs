//! Runs that others measured and published, against which the step's time is held.

use super::{Assumptions, CalibrationError, CostInputs, Recomputed, calibrate, predict};
use crate::flops::model_flops;
use crate::model::ModelConfig;
use crate::planning::{PlanInputs, PlannedDevice};
use serde::Serialize;
use thiserror::Error;
use zerofold_configs::{ConfigError, ElementType, ElementTypes, Hardware, Sharding, Stage};

/// What a published run computed a second time.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Checkpointing {
    /// Nothing.
    None,
    /// One block in so many.
    Every(usize),
    /// By operation: every second matrix product, no attention, all that lies between them.
    Selective,
}

/// A run that was published: parameters, gradients and optimizer state sharded over all GPUs (FSDP), bfloat16, not compiled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PublishedRun {
    /// Whose it is.
    pub name: &'static str,
    /// Where it stands.
    pub source: &'static str,
    /// The shape, as [`ModelConfig::published`] knows it.
    pub model: &'static str,
    /// The GPU, as the shipped hardware file knows it.
    pub gpu: &'static str,
    /// GPUs, eight on each host.
    pub gpus: usize,
    /// Tokens a second of one GPU.
    pub measured: f64,
    /// Whether the prediction is held to it; others stand beside it, with their errors.
    pub held: bool,
    /// What explains a larger error, if there is one.
    pub remark: &'static str,
    /// Rows of a micro-batch of one GPU.
    rows: usize,
    /// Tokens of a row.
    length: usize,
    checkpointing: Checkpointing,
    /// The type that gradients are sent in.
    reduce: ElementType,
    /// Bytes a second of a host's network, in one direction.
    host_bandwidth: f64,
}

const TORCHTITAN: PublishedRun = PublishedRun {
    name: "torchtitan",
    source: "github.com/pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, FSDP without compile",
    model: "llama-8b",
    gpu: "h100-500w",
    gpus: 8,
    measured: 5762.0,
    held: true,
    remark: "",
    rows: 2,
    length: 8192,
    checkpointing: Checkpointing::Selective,
    reduce: ElementType::Float32,
    // 400 Gb/s a GPU.
    host_bandwidth: 400e9,
};

const IBM_A100: PublishedRun = PublishedRun {
    name: "IBM",
    source: "pytorch.org/blog/maximizing-training, table 1",
    model: "llama-7b",
    gpu: "a100-80gb",
    gpus: 128,
    measured: 3700.0,
    held: true,
    remark: "",
    rows: 2,
    length: 4096,
    checkpointing: Checkpointing::None,
    reduce: ElementType::Bfloat16,
    // 400 Gb/s between hosts.
    host_bandwidth: 50e9,
};

const IBM_H100: PublishedRun = PublishedRun {
    gpu: "h100",
    gpus: 96,
    measured: 7500.0,
    held: false,
    remark: "its authors found 10 % of the time in communication that did not hide, and blame the memory for the rest",
    // 800 Gb/s between hosts.
    host_bandwidth: 100e9,
    ..IBM_A100
};

/// "Selective" there is one block in so many; not told how many, but 1.16 times the model's operations were done.
const IBM_SELECTIVE: Checkpointing = Checkpointing::Every(2);

/// The runs; those that are held to come first.
pub const PUBLISHED_RUNS: [PublishedRun; 10] = [
    TORCHTITAN,
    PublishedRun { gpus: 128, measured: 5605.0, ..TORCHTITAN },
    IBM_A100,
    PublishedRun { model: "llama-13b", checkpointing: IBM_SELECTIVE, measured: 1800.0, held: false, ..IBM_A100 },
    PublishedRun {
        model: "llama-34b",
        checkpointing: Checkpointing::Every(1),
        measured: 700.0,
        held: false,
        ..IBM_A100
    },
    PublishedRun {
        model: "llama-70b",
        checkpointing: Checkpointing::Every(1),
        measured: 370.0,
        held: false,
        remark: "its large products reach more of the peak than the share that is assumed for all sizes",
        ..IBM_A100
    },
    IBM_H100,
    PublishedRun { model: "llama-13b", checkpointing: IBM_SELECTIVE, measured: 3800.0, ..IBM_H100 },
    PublishedRun { model: "llama-34b", checkpointing: Checkpointing::Every(1), measured: 1550.0, ..IBM_H100 },
    PublishedRun { model: "llama-70b", checkpointing: Checkpointing::Every(1), measured: 800.0, ..IBM_H100 },
];

/// The run that the default of `compute_efficiency` comes from.
pub const CALIBRATED_ON: usize = 0;

/// A run beside what is predicted of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Held {
    /// Tokens a second of one GPU, measured.
    pub measured: f64,
    /// Predicted.
    pub predicted: f64,
    /// How much more is predicted, as a share of what was measured.
    pub error: f64,
    /// Whether it was calibrated on this run.
    pub calibrated_on: bool,
}

/// Why the published runs cannot be told about.
#[derive(Debug, Error)]
pub enum PublishedError {
    /// The hardware is not described.
    #[error(transparent)]
    Hardware(#[from] ConfigError),
    /// The run that is calibrated on cannot be.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// There is no such run, or it has no such model.
    #[error("there is no published run {0}\nhint: they are counted from 0 to {last}", last = PUBLISHED_RUNS.len() - 1)]
    NoSuchRun(usize),
}

impl PublishedRun {
    fn types(&self) -> ElementTypes {
        ElementTypes { reduce: self.reduce, ..ElementTypes::of(ElementType::Bfloat16) }
    }

    /// The run's job.
    fn inputs<'a>(&self, model: &'a ModelConfig) -> CostInputs<'a> {
        let job = PlanInputs {
            model,
            world_size: self.gpus,
            sharding: Sharding::of(Stage::Three),
            types: self.types(),
            per_device_batch: self.rows,
            length: self.length,
            longest_document: None,
            supervised: None,
            accumulation: 1,
            gradient_checkpointing: self.checkpointing != Checkpointing::None,
            gradient_checkpointing_every: match self.checkpointing {
                Checkpointing::Every(blocks) => blocks,
                Checkpointing::None | Checkpointing::Selective => 1,
            },
            offload_optimizer: false,
            device: PlannedDevice::Gpu,
            receives: false,
            copies: false,
            training: None,
        };
        let recomputed = match self.checkpointing {
            Checkpointing::Selective => Recomputed { products: 0.5, attention: 0.0, passes: 1.0 },
            Checkpointing::None | Checkpointing::Every(_) => Recomputed::ALL,
        };
        CostInputs { recomputed, ..CostInputs::new(job, GPUS_PER_HOST) }
    }

    /// What is assumed of its hardware.
    fn assumed(&self, hardware: &Hardware) -> Result<Assumptions, ConfigError> {
        let assumed = Assumptions::of(hardware.gpu(self.gpu)?, ElementType::Bfloat16);
        Ok(Assumptions { host_bandwidth: self.host_bandwidth, ..assumed })
    }
}

/// GPUs of the hosts of all published runs.
const GPUS_PER_HOST: usize = 8;

/// How many of the model's operations a published run of one model did in a second against that of another on the same GPUs;
/// none where one of them was not published.
pub(super) fn operations_against(model: &str, other: &str, gpu: &str) -> Option<f64> {
    let rate = |name: &str| {
        let run = PUBLISHED_RUNS.iter().find(|run| run.model == name && run.gpu == gpu)?;
        Some(run.measured * model_flops(&ModelConfig::published(name)?, run.length, run.length))
    };
    Some(rate(model)? / rate(other)?)
}

/// Calibrates on one of [`PUBLISHED_RUNS`] and predicts all of them; also returns the `compute_efficiency`.
///
/// # Errors
/// [`PublishedError`].
pub fn hold(hardware: &Hardware, calibrated_on: usize) -> Result<(f64, Vec<Held>), PublishedError> {
    let model_of =
        |index: usize, run: &PublishedRun| ModelConfig::published(run.model).ok_or(PublishedError::NoSuchRun(index));
    let chosen = PUBLISHED_RUNS.get(calibrated_on).ok_or(PublishedError::NoSuchRun(calibrated_on))?;
    let model = model_of(calibrated_on, chosen)?;
    let efficiency = calibrate(&chosen.inputs(&model), &chosen.assumed(hardware)?, chosen.measured)?.compute_efficiency;
    let held = |(index, run): (usize, &PublishedRun)| {
        let model = model_of(index, run)?;
        let assumed = Assumptions { compute_efficiency: efficiency, ..run.assumed(hardware)? };
        let prediction = predict(&run.inputs(&model), &assumed).map_err(CalibrationError::Layout)?;
        let predicted = prediction.tokens_per_second_per_gpu;
        Ok(Held {
            measured: run.measured,
            predicted,
            error: predicted / run.measured - 1.0,
            calibrated_on: index == calibrated_on,
        })
    };
    let held = PUBLISHED_RUNS.iter().enumerate().map(held).collect::<Result<Vec<_>, PublishedError>>()?;
    Ok((efficiency, held))
}
