//! The comparison as a table, for the terminal and for the page.

use zerofold_configs::DeviceKind;

use super::figures::{Comparison, Row};
use crate::columns::aligned;
use crate::format;
use crate::plan::stage_name;

/// The table's head.
pub(super) const HEAD: [&str; 12] = [
    "stage",
    "backend",
    "accumulation",
    "tokens/s",
    "slowest to fastest",
    "of GEMM rate",
    "peak/rank",
    "planned",
    "sent/step",
    "planned",
    "exposed",
    "of step",
];

/// A row's cells, as many as the head has.
pub(super) fn cells(row: &Row) -> Vec<String> {
    let configuration = &row.configuration;
    let mut cells = vec![
        stage_name(configuration.stage, row.replicas, row.reshard_after_forward),
        configuration.backend.to_string(),
        configuration.accumulation.to_string(),
    ];
    let planned = [row.planned.peak_bytes_per_rank, row.planned.sent_bytes_per_step].map(bytes);
    let [planned_peak, planned_sent] = planned;
    let dash = || "-".to_owned();
    match &row.measured {
        Some(it) => cells.extend([
            format::figure(it.tokens_per_second),
            format::spread(it.tokens_per_second_lowest, it.tokens_per_second_highest),
            it.share_of_gemm_rate.map_or_else(dash, percent),
            bytes(it.peak_bytes_per_rank),
            planned_peak,
            bytes(it.sent_bytes_per_step),
            planned_sent,
            seconds(it.exposed_communication_seconds_per_step),
            percent(it.exposed_communication_share_of_step),
        ]),
        None => {
            let left_out = "does not fit".to_owned();
            cells.extend([left_out, dash(), dash(), dash(), planned_peak, dash(), planned_sent, dash(), dash()]);
        }
    }
    cells
}

/// `0.7 %`, `31 %`.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    format!("{percent:.*} %", usize::from(percent < 9.95))
}

/// `41 ms`, `1.25 s`.
pub(super) fn seconds(time: f64) -> String {
    if time < 1.0 { format!("{:.0} ms", 1e3 * time) } else { format!("{time:.2} s") }
}

fn bytes(count: u64) -> String {
    if count == 0 { "-".to_owned() } else { format::bytes(count) }
}

/// What to choose, a sentence each.
pub(super) fn choices(comparison: &Comparison) -> Vec<String> {
    let several = comparison
        .rows
        .iter()
        .any(|row| row.configuration.accumulation != comparison.rows[0].configuration.accumulation);
    let sentence = |choice: &super::Choice| match several {
        true => format!("accumulation {}: {}", choice.configuration.accumulation, choice.reason),
        false => choice.reason.clone(),
    };
    if comparison.choices.is_empty() {
        let usable = comparison.ceilings.usable_bytes_per_rank.unwrap_or(0);
        return vec![format!("none: every measured peak is above the {} that can be used", format::bytes(usable))];
    }
    comparison.choices.iter().map(sentence).collect()
}

/// What the figures are.
pub(super) fn footer(comparison: &Comparison) -> Vec<String> {
    let Comparison { method, ceilings, model, .. } = comparison;
    let rounds = match method.rounds {
        1 => "one round, so their spread is not known".to_owned(),
        rounds => format!("the median of {rounds} rounds, and the slowest and the fastest of them"),
    };
    let gemm = match ceilings.gemm_flops_per_second_all_ranks {
        Some(rate) => format!(
            "of GEMM rate: model FLOPs against {} of {} products with all ranks busy",
            format::operations(rate),
            model.compute_dtype
        ),
        None => format!("the rate of {} products cannot be measured here", model.compute_dtype),
    };
    vec![
        format!(
            "tokens/s: {rounds}; a round is {} after {WARM_UP} to warm up, on the same rows",
            format::plural(method.measured_steps_per_round.into(), "step"),
            WARM_UP = method.warm_up_steps_per_round
        ),
        gemm,
        "peak: most tensors of a rank at once; sent: by rank 0 in a step; exposed: of a step, what rank 0 waited in \
         collectives"
            .to_owned(),
    ]
}

/// What was compared, on what.
pub(super) fn words(comparison: &Comparison) -> Vec<String> {
    let Comparison { machine, model, .. } = comparison;
    let memory = machine.memory_bytes.map(|bytes| format!(", {}", format::bytes(bytes))).unwrap_or_default();
    vec![
        format!("model    {}, {}, {}", model.name, format::parameters(model.parameters), model.compute_dtype),
        format!(
            "batch    {} a micro-batch, longest {}, {}",
            format::plural(model.per_device_train_batch_size_rows.into(), "row"),
            format::plural(model.longest_row_tokens as u64, "token"),
            if model.gradient_checkpointing { "gradient checkpointing" } else { "no gradient checkpointing" }
        ),
        format!(
            "machine  {}, {}{memory}; {} of {} on {}",
            machine.processor,
            format::plural(machine.usable_cores as u64, "core"),
            format::plural(machine.ranks.into(), "rank"),
            format::plural(machine.threads_per_rank as u64, "thread"),
            match machine.device {
                DeviceKind::Cpu => "the CPU",
                DeviceKind::Cuda => "GPUs",
            }
        ),
    ]
}

/// Everything as lines.
pub(super) fn lines(comparison: &Comparison) -> Vec<String> {
    let head = HEAD.map(str::to_owned).to_vec();
    let rows = comparison.rows.iter().map(cells);
    let mut lines = words(comparison);
    lines.push(String::new());
    lines.extend(aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    lines.push(String::new());
    lines.extend(footer(comparison));
    lines.push(String::new());
    lines.extend(choices(comparison).iter().map(|choice| format!("choice: {choice}")));
    lines.extend(comparison.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines
}
