//! A configuration with its plan, before anything runs.

use zerofold_configs::Resolved;
use zerofold_data::{Collator, Piece, Prepared, StepPlan, TokenizedDataset};
use zerofold_plan::{ModelConfig, model_flops, usable};

use super::figures::{Planned, Round, Row};
use super::run::WARM_UP;
use super::series::Configuration;
use crate::error::LaunchError;
use crate::plan::Prediction;
use crate::{format, job};

/// A row that is to be measured.
pub(super) struct Entry {
    pub(super) row: Row,
    pub(super) config: Resolved,
    pub(super) rounds: Vec<Round>,
}

/// What is planned for a configuration, over the rows that it will see.
pub(super) fn entry(
    (configuration, config): (Configuration, Resolved),
    steps: u32,
    data: &Prepared,
    (model, memory): (&ModelConfig, Option<u64>),
) -> Result<Entry, LaunchError> {
    let (collator, items) = job::collated(&config, &data.dataset)?;
    let plan = job::step_plan(&config, items)?;
    let rows = (&data.dataset, &collator);
    let prediction = Prediction::of(&config, rows, &plan).ok_or_else(|| {
        LaunchError::usage(
            format!("{configuration}: it cannot be planned"),
            "`launch plan` with the same flags tells why",
        )
    })?;
    let peak_bytes_per_rank = prediction.plan.total;
    let planned = Planned {
        peak_bytes_per_rank,
        sent_bytes_per_step: prediction.plan.sent_bytes_per_step,
        model_flops_per_step: mean_flops(model, rows, &plan, steps),
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
    Ok(Entry { row, config, rounds: Vec::new() })
}

/// Operations of a step on average over the measured ones, all ranks.
fn mean_flops(
    model: &ModelConfig,
    (dataset, collator): (&TokenizedDataset, &Collator),
    plan: &StepPlan,
    steps: u32,
) -> f64 {
    let of_piece = |piece: Piece| {
        let (ids, labels) = piece.of(dataset);
        // The label of a document's first token is predicted by nothing.
        model_flops(model, ids.len(), labels.iter().skip(1).filter(|&&label| label >= 0).count())
    };
    let warm_up = WARM_UP as u64;
    let measured = warm_up..warm_up + u64::from(steps);
    let pieces = measured.flat_map(|step| collator.pieces(dataset, &plan.rows_of_step(step)));
    pieces.map(of_piece).sum::<f64>() / f64::from(steps.max(1))
}

/// Tells what is left out, since a machine that runs out of memory ends more than this. An error where that is everything.
pub(super) fn check_that_something_fits<'a>(
    rows: impl Iterator<Item = &'a Row>,
    memory: Option<u64>,
    told: impl Fn(&str),
) -> Result<(), LaunchError> {
    let can_be_used = format::bytes(memory.map_or(0, usable));
    let (fitting, others): (Vec<&Row>, Vec<&Row>) = rows.partition(|row| row.planned.fits);
    let needed = |row: &Row| row.planned.peak_bytes_per_rank;
    for row in &others {
        let (name, needed) = (row.configuration, format::bytes(needed(row)));
        told(&format!("{name} is left out: it needs {needed} a rank, and {can_be_used} can be used"));
    }
    match (fitting.is_empty(), others.iter().map(|row| needed(row)).min()) {
        (true, Some(least)) => Err(LaunchError::usage(
            format!("nothing fits: at least {} a rank are needed, and {can_be_used} can be used", format::bytes(least)),
            "`launch plan` with the same flags tells what could be changed",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::planned;
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn what_does_not_fit_is_told_and_not_run() {
        let told = RefCell::new(Vec::new());
        let check = |rows: &[Row]| {
            let told = |text: &str| told.borrow_mut().push(text.to_owned());
            check_that_something_fits(rows.iter(), Some(10 << 30), told).map_err(|error| error.to_string())
        };
        let [fitting, large] = [(8 << 30, true), (12 << 30, false)].map(|(bytes, fits)| planned(bytes, fits));
        assert_eq!(check(&[fitting, large.clone()]), Ok(()));
        let expected =
            "stage 1 over gloo, accumulation 1 is left out: it needs 12.0 GiB a rank, and 9.00 GiB can be used";
        assert_eq!(*told.borrow(), [expected]);
        let error = check(&[large]).unwrap_err();
        assert!(
            error.starts_with("nothing fits: at least 12.0 GiB a rank are needed, and 9.00 GiB can be used"),
            "{error}"
        );
    }
}
