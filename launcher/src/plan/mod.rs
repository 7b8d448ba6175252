//! The command `plan`: what a job would need, stage by stage, and which stage to take; from a model's `config.json` alone.
//!
//! ```text
//! PlanOptions ─ question ─ zerofold_plan ─┬ table   (a row per stage)
//!                                         ├ advice  (the recommendation, or what could be changed)
//!                                         └ JSON
//! ```

mod advice;
mod question;
mod record;
mod size;
mod table;

pub(crate) use advice::{Situation, lines as advice_lines};
pub(crate) use question::{Question, parameters};
pub use record::{Measured, PlanRecord, Prediction};
pub use size::{SizeError, parse_size};
pub(crate) use table::stage_name;

use serde_json::json;
use zerofold_configs::Inputs;
use zerofold_plan::{Advice, Plan, PlannedDevice, RESERVE, plan_all_stages, recommend, usable};

use crate::error::LaunchError;
use crate::terminal::Terminal;

/// What the command line asks of `plan`.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// The configuration, as written. Data and output may be missing.
    pub inputs: Inputs,
    /// A published model's name in place of a folder.
    pub model: Option<String>,
    /// Memory of one GPU, in bytes.
    pub gpu_memory: Option<u64>,
    /// Print JSON.
    pub json: bool,
}

/// The memory that a rank may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Bytes of one rank.
    pub(crate) bytes: u64,
    /// What has them: a GPU, or this machine with all ranks.
    pub(crate) device: PlannedDevice,
}

/// Answers the question on `terminal`; returns the exit code, 0 even when nothing fits: the question was answered.
///
/// # Errors
/// A configuration that `train` would refuse too (but for missing data and output), no model, a `config.json` that
/// cannot be used.
pub fn plan(options: &PlanOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let question = Question::of(options, terminal)?;
    let inputs = question.inputs();
    let plans = plan_all_stages(&inputs)?;
    let capacity = question.capacity(options.gpu_memory);
    let advice = capacity.map(|capacity| recommend(&inputs, capacity.bytes)).transpose()?;
    if options.json {
        let answer = answer(&question, &plans, capacity, advice.as_ref());
        terminal.result(&serde_json::to_string_pretty(&answer).unwrap_or_default());
        return Ok(0);
    }
    for note in &question.config.notes {
        terminal.say(&format!("note: {note}"));
    }
    question.words().iter().for_each(|line| terminal.result(line));
    terminal.result("");
    table::lines(&plans, &question.config.sharding, capacity).iter().for_each(|line| terminal.result(line));
    terminal.result("");
    table::footer(&plans, &question.config.offload_optimizer).iter().for_each(|line| terminal.result(line));
    match (capacity, &advice) {
        (Some(capacity), Some(advice)) => {
            let situation = Situation { config: &question.config, inputs: &inputs, plans: &plans, capacity };
            advice::lines(advice, &situation).iter().for_each(|line| terminal.result(line));
        }
        _ => terminal.result("give --gpu-memory SIZE (such as 80GiB) to hear what fits and which stage to take"),
    }
    Ok(0)
}

/// The answer as JSON; all sizes in bytes.
fn answer(
    question: &Question,
    plans: &[Plan],
    capacity: Option<Capacity>,
    advice: Option<&Advice>,
) -> serde_json::Value {
    let inputs = question.inputs();
    let types = &inputs.types;
    json!({
        "model": { "name": question.name, "parameters": question.parameters() },
        "job": {
            "device": inputs.device,
            "num_processes": inputs.world_size,
            "sharding": inputs.sharding,
            "compute_dtype": types.compute,
            "master_dtype": types.master,
            "reduce_dtype": types.reduce,
            "grad_accum_dtype": types.accumulate,
            "per_device_train_batch_size": inputs.per_device_batch,
            "max_length": inputs.length,
            "gradient_accumulation_steps": inputs.accumulation,
            "gradient_checkpointing": inputs.gradient_checkpointing,
            "gradient_checkpointing_every": inputs.gradient_checkpointing_every,
            "offload_optimizer": inputs.offload_optimizer,
        },
        "plans": plans,
        "memory": capacity.map(|capacity| json!({
            "per_rank": capacity.bytes,
            "reserve": RESERVE,
            "usable": usable(capacity.bytes),
            "fits": plans.iter().map(|plan| plan.total <= usable(capacity.bytes)).collect::<Vec<_>>(),
        })),
        "advice": advice,
        "notes": question.config.notes,
    })
}
