//! A fine-tuning guide's table of hours and prices, row by row, against what is predicted.

use super::published::{PublishedError, operations_against};
use super::{Assumptions, CalibrationError, CostInputs, RunCost, RunData, predict};
use crate::flops::model_flops;
use crate::model::ModelConfig;
use crate::planning::{Advice, PlanInputs, PlannedDevice, recommend};
use serde::Serialize;
use zerofold_configs::{ElementType, ElementTypes, Hardware, PriceRange, Sharding, Stage};

/// A row: one epoch over [`GUIDE_EXAMPLES`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuideRow {
    /// As the guide writes it.
    pub situation: &'static str,
    /// The shape that stands for it.
    pub model: &'static str,
    /// The GPU, as the hardware file calls it.
    pub gpu: &'static str,
    /// How many.
    pub gpus: usize,
    /// Hours, from and to.
    pub hours: [f64; 2],
    /// Dollars of the run, from and to, where the guide tells them.
    pub money: Option<[f64; 2]>,
}

/// "About 15 minutes" is a range as well: a quarter of it on each side.
const ABOUT_15_MINUTES: [f64; 2] = [0.25 * 0.75, 0.25 * 1.25];

const fn row(
    (situation, model): (&'static str, &'static str),
    (gpu, gpus): (&'static str, usize),
    hours: [f64; 2],
    money: Option<[f64; 2]>,
) -> GuideRow {
    GuideRow { situation, model, gpu, gpus, hours, money }
}

/// The table.
pub const GUIDE: [GuideRow; 7] = [
    row(("350M, A100 40GB", "smollm2-360m"), ("a100-40gb", 1), ABOUT_15_MINUTES, None),
    row(("7B, A100 80GB", "llama-7b"), ("a100-80gb", 1), [2.0, 4.0], Some([5.0, 15.0])),
    row(("7B, H100 80GB", "llama-7b"), ("h100", 1), [1.0, 2.0], Some([4.0, 12.0])),
    row(("13B, 2 x A100 80GB", "llama-13b"), ("a100-80gb", 2), [4.0, 8.0], None),
    row(("13B, 2 x H100", "llama-13b"), ("h100", 2), [2.0, 4.0], None),
    row(("70B, 8 x A100 80GB", "llama-70b"), ("a100-80gb", 8), [12.0, 24.0], None),
    row(("70B, 8 x H100", "llama-70b"), ("h100", 8), [6.0, 12.0], None),
];

/// Examples of a row.
pub const GUIDE_EXAMPLES: u64 = 10_000;
/// Tokens of an example, which the guide does not tell: the same for all rows.
pub const GUIDE_LENGTH: usize = 3550;
/// Rows of a micro-batch, as in the guide's samples.
const ROWS: usize = 2;
/// Micro-batches of a step, as in its samples.
const ACCUMULATION: usize = 8;
/// The row whose hours and operations others of the same GPU are told as multiples of.
const REFERENCE: &str = "llama-7b";

/// What is predicted of a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The stage.
    pub stage: Stage,
    /// Whether blocks are recomputed, since all activations do not fit.
    pub gradient_checkpointing: bool,
    /// Whether masters are bfloat16, since float32 ones do not fit.
    pub bfloat16_masters: bool,
    /// Whether the optimizer's state lies in host memory, since it does not fit.
    pub offload_optimizer: bool,
    /// Whether it fits at last.
    pub fits: bool,
    /// Tokens a second of one GPU.
    pub tokens_per_second_per_gpu: f64,
    /// As [`super::Prediction::model_flops_utilization`].
    pub model_flops_utilization: f64,
    /// Hours.
    pub hours: f64,
    /// Dollars, from and to.
    pub money: Option<PriceRange>,
    /// Whether the hours lie in the guide's range.
    pub hours_inside: bool,
    /// Whether the dollars lie in the guide's range, where it has one.
    pub money_inside: Option<bool>,
    /// The model FLOPs utilisation that the guide's range asks for, from and to.
    pub guide_utilization: [f64; 2],
    /// The guide's hours as a multiple of those of its 7B row on the same GPU.
    pub hours_against_7b: f64,
    /// Operations of a GPU as a multiple of those of that row.
    pub work_against_7b: f64,
    /// Operations a second of a published run of this model, as a multiple of one of that row's on the same GPUs.
    pub published_against_7b: Option<f64>,
}

/// How the job is made to fit, the first that does.
const WAYS: [[bool; 3]; 4] = [[false, false, false], [true, false, false], [true, true, false], [true, true, true]];

/// Predicts a row of the table.
///
/// # Errors
/// A GPU or a model that is not described.
pub fn judge(row: &GuideRow, hardware: &Hardware) -> Result<Verdict, PublishedError> {
    let gpu = hardware.gpu(row.gpu)?;
    let assumed = Assumptions::of(gpu, ElementType::Bfloat16);
    let shape = |name: &str| ModelConfig::published(name).ok_or(PublishedError::NoSuchRun(0));
    let (model, reference) = (shape(row.model)?, shape(REFERENCE)?);
    let (job, way, fits) = fitting(&model, row.gpus, gpu.memory as u64)?;
    let inputs = CostInputs::new(job, row.gpus);
    let prediction = predict(&inputs, &assumed).map_err(CalibrationError::Layout)?;
    let data =
        RunData { examples: GUIDE_EXAMPLES, tokens_per_example: GUIDE_LENGTH as f64, epochs: 1.0, max_steps: None };
    let run = RunCost::of(&data, &inputs, (&prediction, &assumed), gpu.price);
    let inside = |value: f64, [low, high]: [f64; 2]| (low..=high).contains(&value);
    let hours = run.hours();
    let [gradient_checkpointing, bfloat16_masters, offload_optimizer] = way;
    let utilization = |hours: f64| prediction.model_flops_utilization * run.hours() / hours;
    let [from, to] = row.hours;
    let of_reference = GUIDE.iter().find(|other| other.model == REFERENCE && other.gpu == row.gpu);
    let reference_hours = of_reference.map_or(f64::NAN, |other| other.hours[0]);
    let work = |model: &ModelConfig| model_flops(model, GUIDE_LENGTH, GUIDE_LENGTH);
    Ok(Verdict {
        stage: job.sharding.stage,
        gradient_checkpointing,
        bfloat16_masters,
        offload_optimizer,
        fits,
        tokens_per_second_per_gpu: prediction.tokens_per_second_per_gpu,
        model_flops_utilization: prediction.model_flops_utilization,
        hours,
        money: run.money,
        hours_inside: inside(hours, row.hours),
        money_inside: row
            .money
            .zip(run.money)
            .map(|(range, money)| inside(money.low, range) && inside(money.high, range)),
        guide_utilization: [utilization(to), utilization(from)],
        hours_against_7b: from / reference_hours,
        work_against_7b: work(&model) / row.gpus as f64 / work(&reference),
        published_against_7b: operations_against(row.model, REFERENCE, row.gpu),
    })
}

/// The first way, and the lowest stage, that fits; where none does, the last way at the stage that needs least.
fn fitting(
    model: &ModelConfig,
    gpus: usize,
    memory: u64,
) -> Result<(PlanInputs<'_>, [bool; 3], bool), CalibrationError> {
    let mut last = None;
    for way in WAYS {
        let job = job(model, gpus, way);
        match recommend(&job, memory)? {
            Advice::Stage(need) => return Ok((job.at(need.stage), way, true)),
            Advice::Nothing { least, .. } => last = Some((job.at(least.stage), way, false)),
        }
    }
    Ok(last.unwrap_or((job(model, gpus, WAYS[0]), WAYS[0], false)))
}

fn job(model: &ModelConfig, world_size: usize, [checkpointing, pure, offload_optimizer]: [bool; 3]) -> PlanInputs<'_> {
    let all = ElementType::Bfloat16;
    PlanInputs {
        model,
        world_size,
        sharding: Sharding::of(Stage::Zero),
        types: match pure {
            true => ElementTypes { compute: all, master: all, reduce: all, accumulate: all },
            false => ElementTypes::of(all),
        },
        per_device_batch: ROWS,
        length: GUIDE_LENGTH,
        longest_document: None,
        supervised: None,
        accumulation: ACCUMULATION,
        gradient_checkpointing: checkpointing,
        gradient_checkpointing_every: 1,
        offload_optimizer,
        device: PlannedDevice::Gpu,
        receives: false,
        copies: false,
        training: None,
    }
}
