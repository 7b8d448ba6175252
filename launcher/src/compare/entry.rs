//! A configuration with its plan, before anything runs.

use std::time::Duration;

use zerofold_configs::Resolved;
use zerofold_data::{Prepared, StepPlan, TokenizedDataset};
use zerofold_plan::{ModelConfig, model_flops, usable};

use super::figures::{Planned, Round, Row};
use super::run::WARM_UP;
use super::series::Configuration;
use crate::error::LaunchError;
use crate::plan::Prediction;
use crate::{format, train};

/// A row that is to be measured.
pub(super) struct Entry {
    pub(super) row: Row,
    pub(super) config: Resolved,
    pub(super) rounds: Vec<Round>,
    /// The first run, from its start to the end of its last process.
    pub(super) took: Duration,
}

/// What is planned for a configuration, over the rows that it will see.
pub(super) fn entry(
    (configuration, config): (Configuration, Resolved),
    steps: u32,
    data: &Prepared,
    (model, memory): (&ModelConfig, Option<u64>),
) -> Result<Entry, LaunchError> {
    let plan = train::step_plan(&config, data.dataset.rows())?;
    let prediction = Prediction::of(&config, &data.dataset, &plan).ok_or_else(|| {
        LaunchError::usage(
            format!("{configuration}: it cannot be planned"),
            "`launch plan` with the same flags tells why",
        )
    })?;
    let peak_bytes_per_rank = prediction.plan.total;
    let planned = Planned {
        peak_bytes_per_rank,
        sent_bytes_per_step: prediction.plan.sent_bytes_per_step,
        model_flops_per_step: mean_flops(model, &data.dataset, &plan, steps),
        fits: memory.is_none_or(|memory| peak_bytes_per_rank <= usable(memory)),
    };
    let row = Row {
        configuration,
        reshard_after_forward: config.sharding.reshard_after_forward,
        replicas: config.sharding.replicas,
        rows_per_step: plan.global_batch(),
        planned,
        measured: None,
    };
    Ok(Entry { row, config, rounds: Vec::new(), took: Duration::ZERO })
}

/// Operations of a step on average over the measured ones, all ranks.
fn mean_flops(model: &ModelConfig, data: &TokenizedDataset, plan: &StepPlan, steps: u32) -> f64 {
    let of_row = |row: u32| {
        let (ids, labels) = data.row(row as usize);
        // The label of a row's first token is predicted by nothing.
        model_flops(model, ids.len(), labels.iter().skip(1).filter(|&&label| label >= 0).count())
    };
    let warm_up = WARM_UP as u64;
    let measured = (warm_up..warm_up + u64::from(steps)).flat_map(|step| plan.rows_of_step(step));
    measured.map(of_row).sum::<f64>() / f64::from(steps.max(1))
}

/// Tells what is left out, since a machine that runs out of memory ends more than this.
pub(super) fn check_that_something_fits(
    entries: &[Entry],
    memory: Option<u64>,
    told: impl Fn(&str),
) -> Result<(), LaunchError> {
    let can_be_used = format::bytes(memory.map_or(0, usable));
    for Entry { row, .. } in entries.iter().filter(|entry| !entry.row.planned.fits) {
        let needed = format::bytes(row.planned.peak_bytes_per_rank);
        told(&format!("{} is left out: it needs {needed} a rank, and {can_be_used} can be used", row.configuration));
    }
    let least = entries.iter().map(|entry| entry.row.planned.peak_bytes_per_rank).min().unwrap_or(0);
    match entries.iter().any(|entry| entry.row.planned.fits) {
        true => Ok(()),
        false => Err(LaunchError::usage(
            format!("nothing fits: at least {} a rank are needed, and {can_be_used} can be used", format::bytes(least)),
            "`launch plan` with the same flags tells what could be changed",
        )),
    }
}
