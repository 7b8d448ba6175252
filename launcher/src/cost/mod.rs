//! The command `cost`: tokens/s, hours, GPU-hours and money of a job, from a model's `config.json` and named assumptions.
//!
//! ```text
//! CostOptions ─ estimate ─ zerofold_plan ─┬ table       (assumptions, a step by part, hours, money, memory)
//!      │  └ calibration (a measured run)  ├ scale       (stages and hybrid from 8 to 4,096 GPUs)
//!      │                                  ├ break_even  (tuning against prompting)
//!      │                                  └ JSON
//!      └ published (the model held against measured runs and a guide's table)
//! ```

mod break_even;
mod calibration;
mod estimate;
mod published;
mod scale;
mod table;

use std::path::PathBuf;

use serde_json::{Value, json};
use zerofold_configs::{Inputs, PriceRange};

use crate::error::LaunchError;
use crate::terminal::Terminal;
use estimate::Estimate;

/// The GPU, where none is named.
pub const DEFAULT_GPU: &str = "h100";
/// GPUs of a host, where nothing says how many.
pub const DEFAULT_GPUS_PER_HOST: usize = 8;
/// Examples, where no data are named.
pub const DEFAULT_EXAMPLES: u64 = 10_000;
/// GPUs of the job that `--scale` begins with.
pub const SCALE_FROM: u32 = 8;
/// Tokens of the prompts that a tuned model is compared with.
pub const DEFAULT_PROMPTS: &str = "400,600,1000,1800";
/// Requests for which both ways are told.
pub const DEFAULT_REQUESTS: &str = "1000,10000,100000,1000000";

/// What the command line asks of `cost`.
#[derive(Clone, Debug)]
pub struct CostOptions {
    /// The configuration, as written. Data and output may be missing.
    pub inputs: Inputs,
    /// A published model's name in place of a folder.
    pub model: Option<String>,
    /// A GPU of the hardware file.
    pub gpu: String,
    /// GPUs of a host.
    pub gpus_per_host: usize,
    /// The hardware file, in place of the one that ships with the program.
    pub hardware: Option<PathBuf>,
    /// Examples; else those of the configuration's data.
    pub examples: Option<u64>,
    /// Tokens of an example; else as the data have them.
    pub tokens_per_example: Option<u64>,
    /// Dollars of a GPU-hour, in place of the file's.
    pub price: Option<PriceRange>,
    /// Assumptions that are set.
    pub assume: Vec<(String, f64)>,
    /// The folder of a run that was measured.
    pub calibrate: Option<PathBuf>,
    /// What is shown.
    pub show: Show,
    /// Print JSON.
    pub json: bool,
}

/// What is shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Show {
    /// The run.
    Run,
    /// Every stage, and hybrid, from 8 to 4,096 GPUs.
    Scale,
    /// Tuning against prompting.
    BreakEven {
        /// Tokens of the prompts.
        prompts: Vec<f64>,
        /// Numbers of requests.
        requests: Vec<f64>,
    },
    /// The model of the step's time against measurements that others published, and a guide's table.
    Published,
}

/// Answers the question on `terminal`; returns the exit code, 0 even when the job does not fit.
///
/// # Errors
/// A configuration that `train` would refuse too (but for missing data and output), no model, hardware or assumptions that
/// are not known, a run that does not calibrate.
pub fn cost(options: &CostOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let (lines, json) = match options.show {
        Show::Published => published::answer(options)?,
        _ => answer(options, terminal)?,
    };
    match options.json {
        true => terminal.result(&serde_json::to_string_pretty(&json).unwrap_or_default()),
        false => lines.iter().for_each(|line| terminal.result(line)),
    }
    Ok(0)
}

fn answer(options: &CostOptions, terminal: &Terminal) -> Result<(Vec<String>, Value), LaunchError> {
    let estimate = Estimate::of(options, terminal)?;
    let mut lines = table::head(&estimate, options.show == Show::Scale);
    let mut json = json(&estimate);
    let (more, key, value) = match &options.show {
        Show::Scale => {
            let (more, value) = scale::answer(&estimate)?;
            (more, "scale", value)
        }
        Show::BreakEven { prompts, requests } => {
            let (more, value) = break_even::answer(&estimate, prompts, requests)?;
            (more, "break_even", value)
        }
        Show::Run | Show::Published => (table::run(&estimate), "", Value::Null),
    };
    lines.extend(more);
    if !key.is_empty() {
        json[key] = value;
    }
    Ok((lines, json))
}

/// Everything but what another view adds.
fn json(estimate: &Estimate) -> Value {
    let inputs = estimate.inputs();
    let job = &inputs.job;
    let assumptions = estimate.assumed.list().into_iter().map(|assumed| {
        json!({
            "name": assumed.name,
            "value": assumed.value,
            "unit": assumed.unit,
            "from": estimate.source(assumed.name),
        })
    });
    json!({
        "model": { "name": estimate.question.name, "parameters": estimate.question.parameters() },
        "job": {
            "num_processes": job.world_size,
            "gpus_per_host": inputs.gpus_per_host,
            "stage": job.sharding.stage,
            "replicas": job.sharding.replicas,
            "per_device_train_batch_size": job.per_device_batch,
            "gradient_accumulation_steps": job.accumulation,
            "gradient_checkpointing": job.gradient_checkpointing,
            "offload_optimizer": job.offload_optimizer,
            "row_tokens": inputs.length,
        },
        "hardware": { "file": estimate.hardware.file, "date": estimate.hardware.date, "gpu": estimate.gpu.name },
        "data": estimate.data,
        "assumptions": assumptions.collect::<Vec<_>>(),
        "prediction": estimate.prediction,
        "run": estimate.run,
        "price": estimate.price,
        "memory": {
            "per_rank": estimate.plan.total,
            "usable": estimate.usable(),
            "fits": estimate.fits(),
        },
        "notes": estimate.notes,
    })
}
