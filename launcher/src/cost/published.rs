//! The model of the step's time against runs that others measured, and a guide's hours and prices.

use serde_json::{Value, json};
use zerofold_plan::{
    CALIBRATED_ON, GUIDE, GUIDE_EXAMPLES, GUIDE_LENGTH, GuideRow, Held, PUBLISHED_RUNS, PublishedError, PublishedRun,
    Verdict, hold, judge,
};

use super::table::{dollars, hours};
use super::{CostOptions, estimate};
use crate::columns::left_aligned;
use crate::error::LaunchError;
use crate::format;

/// Beyond this share the prediction of a run that it is held to would be wrong.
const TOLERANCE: f64 = 0.15;

pub(super) fn answer(options: &CostOptions) -> Result<(Vec<String>, Value), LaunchError> {
    let hardware = estimate::hardware(options)?;
    let (efficiency, held) = hold(&hardware, CALIBRATED_ON).map_err(|error| usage(&error))?;
    let mut lines = vec![format!(
        "runs that others published, FSDP over all GPUs; calibrated on the first: compute_efficiency {efficiency:.3}"
    )];
    lines.extend(runs(&held));
    lines.push(String::new());
    let verdicts =
        GUIDE.iter().map(|row| judge(row, &hardware)).collect::<Result<Vec<_>, _>>().map_err(|error| usage(&error))?;
    lines.push(format!(
        "a fine-tuning guide: one epoch over {} examples, here of {} tokens each, 2 rows a micro-batch and 8 micro-batches a \
         step; no more recomputing, bfloat16 masters and offloading than memory asks for",
        format::count(GUIDE_EXAMPLES),
        format::count(GUIDE_LENGTH as u64),
    ));
    lines.extend(guide(&verdicts));
    Ok((lines, json!({ "compute_efficiency": efficiency, "runs": runs_json(&held), "guide": guide_json(&verdicts) })))
}

fn usage(error: &PublishedError) -> LaunchError {
    LaunchError::usage_of("--published", error)
}

fn runs(held: &[Held]) -> Vec<String> {
    let head = ["run", "model", "GPUs", "measured", "predicted", "error", ""].map(str::to_owned).to_vec();
    let row = |(run, held): (&PublishedRun, &Held)| {
        let remark = match (held.calibrated_on, run.held) {
            (true, _) => "calibrated on it".to_owned(),
            (_, true) if held.error.abs() <= TOLERANCE => "held to: within 15 %".to_owned(),
            (_, true) => "held to: NOT within 15 %".to_owned(),
            (_, false) if held.error.abs() <= TOLERANCE => String::new(),
            (_, false) => format!("beyond 15 %: {}", run.remark),
        };
        vec![
            run.name.to_owned(),
            run.model.to_owned(),
            format!("{} x {}", run.gpus, run.gpu),
            format::figure(held.measured),
            format::figure(held.predicted),
            format!("{:+.1} %", 100.0 * held.error),
            remark,
        ]
    };
    let rows = PUBLISHED_RUNS.iter().zip(held).map(row);
    let mut lines = left_aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    lines.push("tokens/s of one GPU".to_owned());
    let mut sources: Vec<&str> = PUBLISHED_RUNS.iter().map(|run| run.source).collect();
    sources.dedup();
    lines.extend(sources.iter().map(|source| format!("source: {source}")));
    lines
}

fn guide(verdicts: &[Verdict]) -> Vec<String> {
    let head =
        ["row", "guide", "here", "money", "tokens/s a GPU", "how it fits", "verdict"].map(str::to_owned).to_vec();
    let row = |(row, verdict): (&GuideRow, &Verdict)| {
        let [from, to] = row.hours;
        vec![
            row.situation.to_owned(),
            format!("{} to {}", hours(from), hours(to)),
            hours(verdict.hours),
            verdict.money.map(dollars).unwrap_or_default(),
            format::figure(verdict.tokens_per_second_per_gpu),
            way(verdict),
            if verdict.hours_inside { "inside".to_owned() } else { "outside".to_owned() },
        ]
    };
    let rows = GUIDE.iter().zip(verdicts).map(row);
    let mut lines = left_aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    lines.extend(GUIDE.iter().zip(verdicts).filter_map(|(row, verdict)| prices(row, verdict)));
    lines.extend(GUIDE.iter().zip(verdicts).filter(|(_, verdict)| !verdict.hours_inside).map(reason));
    lines
}

/// How the job was made to fit.
fn way(verdict: &Verdict) -> String {
    let mut words = vec![format!("stage {}", verdict.stage)];
    let more = [
        (verdict.gradient_checkpointing, "recomputing"),
        (verdict.bfloat16_masters, "bfloat16 masters"),
        (verdict.offload_optimizer, "offloading"),
        (!verdict.fits, "does not fit"),
    ];
    words.extend(more.iter().filter(|(is, _)| *is).map(|(_, word)| (*word).to_owned()));
    words.join(", ")
}

/// The guide's price of a run, where it has one.
fn prices(row: &GuideRow, verdict: &Verdict) -> Option<String> {
    let ([low, high], inside) = (row.money?, verdict.money_inside?);
    let verdict = if inside { "inside" } else { "outside" };
    let money = dollars(zerofold_configs::PriceRange { low, high });
    Some(format!("a run of {}: the guide says {money}; {verdict}", row.situation))
}

/// Why a row's hours are not in the guide's range.
fn reason((row, verdict): (&GuideRow, &Verdict)) -> String {
    let [low, high] = verdict.guide_utilization.map(|share| 100.0 * share);
    let published = verdict.published_against_7b.map(|times| {
        format!(
            "; of published runs, that of {} did {times:.2} times the operations a second of that of llama-7b",
            row.model
        )
    });
    format!(
        "{}: the guide's range asks for {low:.0} to {high:.0} % of the peak where {:.0} % are predicted; it has {:.1} times the \
         hours of its 7B row for {:.2} times the operations of a GPU{}",
        row.situation,
        100.0 * verdict.model_flops_utilization,
        verdict.hours_against_7b,
        verdict.work_against_7b,
        published.unwrap_or_default(),
    )
}

fn runs_json(held: &[Held]) -> Vec<Value> {
    let one = |(run, held): (&PublishedRun, &Held)| {
        json!({
            "name": run.name,
            "source": run.source,
            "model": run.model,
            "gpu": run.gpu,
            "gpus": run.gpus,
            "held_to": run.held,
            "calibrated_on": held.calibrated_on,
            "measured_tokens_per_second_per_gpu": held.measured,
            "predicted_tokens_per_second_per_gpu": held.predicted,
            "error": held.error,
        })
    };
    PUBLISHED_RUNS.iter().zip(held).map(one).collect()
}

fn guide_json(verdicts: &[Verdict]) -> Vec<Value> {
    let one = |(row, verdict): (&GuideRow, &Verdict)| json!({ "situation": row.situation, "guide_hours": row.hours, "guide_money": row.money, "verdict": verdict });
    GUIDE.iter().zip(verdicts).map(one).collect()
}
