//! The recommendation in words.

use zerofold_configs::Stage;
use zerofold_plan::{Advice, Fit, Lever, Plan, PlanInputs, PlannedDevice, RESERVE, Tried, usable};

use super::Capacity;
use crate::format;

/// With so many micro-batches a step, what stage 2 and 3 send each time outweighs what they save.
const MUCH_ACCUMULATION: usize = 4;

/// What to do, with the reason.
pub(super) fn lines(advice: &Advice, plans: &[Plan], inputs: &PlanInputs<'_>, capacity: Capacity) -> Vec<String> {
    match advice {
        Advice::Stage(fit) => vec![recommended(*fit, plans, inputs, capacity)],
        Advice::Nothing { least, levers } => {
            let mut lines = vec![format!(
                "nothing fits: stage {} needs least, {}, and {} can be used{}. What could be changed, in this order:",
                least.stage,
                format::bytes(least.total),
                format::bytes(usable(capacity.bytes)),
                reserve(capacity),
            )];
            let rows: Vec<(String, String)> =
                levers.iter().enumerate().map(|(index, tried)| row(index, tried)).collect();
            lines.extend(side_by_side(&rows));
            lines
        }
    }
}

fn recommended(fit: Fit, plans: &[Plan], inputs: &PlanInputs<'_>, capacity: Capacity) -> String {
    let of = |stage: Stage| plans.iter().find(|plan| plan.stage == stage && plan.replicas == 1);
    let mut text = format!("take stage {}: ", fit.stage);
    let lower = plans.iter().take_while(|plan| plan.stage < fit.stage).last();
    match (fit.stage, lower) {
        (Stage::Zero, _) if inputs.world_size == 1 => text.push_str("one rank has nobody to share with"),
        (Stage::Zero, _) => text.push_str("everything fits unsharded, and nothing is simpler"),
        (_, Some(lower)) => text.push_str(&format!(
            "it is the lowest that fits (stage {} needs {})",
            lower.stage,
            format::bytes(lower.total)
        )),
        (_, None) => text.push_str("it is the lowest that fits"),
    }
    text.push_str(&format!(
        "; {} of {} used{}.",
        format::bytes(fit.total),
        format::bytes(capacity.bytes),
        reserve(capacity)
    ));
    if let (Some(one), Some(two)) = (of(Stage::One), of(Stage::Two))
        && inputs.world_size > 1
        && inputs.accumulation >= MUCH_ACCUMULATION
        && fit.stage <= Stage::One
    {
        text.push_str(&format!(
            " With {} micro-batches a step, stage 1 also sends less than stage 2 ({} against {}).",
            inputs.accumulation,
            format::bytes(one.sent_bytes_per_step),
            format::bytes(two.sent_bytes_per_step)
        ));
    }
    let configured = inputs.sharding.stage;
    if configured != fit.stage {
        text.push_str(&format!(" The configuration has stage {configured}."));
    }
    text
}

fn reserve(capacity: Capacity) -> String {
    let percent = RESERVE * 100.0;
    match capacity.device {
        PlannedDevice::Gpu => format!(", {percent:.0} % kept free for the allocator and the CUDA context"),
        PlannedDevice::Cpu => {
            format!(
                " (this machine's memory over its ranks), {percent:.0} % kept free for the allocator and the program"
            )
        }
    }
}

/// `  --flag value   what it does`.
fn row(index: usize, tried: &Tried) -> (String, String) {
    let words = |fit: Fit| format!("stage {}, {}", fit.stage, format::bytes(fit.total));
    let effect = match (tried.alone, tried.together) {
        (Some(fit), _) => format!("fits: {}", words(fit)),
        (None, Some(fit)) if index > 0 => format!("fits with those above: {}", words(fit)),
        (None, Some(fit)) => format!("fits: {}", words(fit)),
        (None, None) => "not enough".to_owned(),
    };
    (format!("  {}", flag(tried.lever)), effect)
}

/// The flag of a lever.
fn flag(lever: Lever) -> String {
    match lever {
        Lever::Bfloat16Compute => "--mixed_precision bf16".to_owned(),
        Lever::GradientCheckpointing => "--gradient_checkpointing true".to_owned(),
        Lever::MicroBatch(rows) => format!("--per_device_train_batch_size {rows}"),
        Lever::Bfloat16Masters => "--master_dtype bfloat16".to_owned(),
        Lever::Ranks(ranks) => format!("--nproc {ranks}"),
        Lever::OffloadOptimizer => "--offload_optimizer_device nvme".to_owned(),
    }
}

/// Two columns, both to the left.
fn side_by_side(rows: &[(String, String)]) -> Vec<String> {
    let width = rows.iter().map(|(flag, _)| flag.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(flag, effect)| format!("{flag:<width$}  {effect}")).collect()
}
