//! The plan as a table: one row per stage.

use zerofold_configs::{Offload, ReshardAfterForward, Sharding, Stage};
use zerofold_plan::{Plan, RESERVE, usable};

use super::Capacity;
use crate::columns::aligned;
use crate::format;

/// The table's lines: a head, then a row per plan. With a `capacity`, the last column tells what fits.
pub(super) fn lines(plans: &[Plan], sharding: &Sharding, capacity: Option<Capacity>) -> Vec<String> {
    let mut head: Vec<String> = [
        "stage",
        "parameters",
        "gradients",
        "masters",
        "moments",
        "buffers",
        "activations",
        "working",
        "total",
        "sent/step",
    ]
    .map(str::to_owned)
    .to_vec();
    if let Some(capacity) = capacity {
        let (usable, all) = (format::bytes(usable(capacity.bytes)), format::bytes(capacity.bytes));
        head.push(format!("fits {usable} ({:.0} % of {all})", 100.0 * (1.0 - RESERVE)));
    }
    let rows = plans.iter().map(|plan| {
        let state = &plan.state;
        let buffers = plan.all_gather_buffers() + plan.gradient_buffers + plan.reduce_buffers;
        let mut row = vec![stage_name(plan.stage, plan.replicas, sharding.reshard_after_forward)];
        row.extend([state.parameters, state.gradients, state.masters, state.moments].map(|bytes| cell(bytes as u64)));
        let working = plan.loss.max(plan.temporary);
        row.extend([buffers, plan.activations, working, plan.total, plan.sent_bytes_per_step].map(cell));
        row.extend(capacity.map(
            |capacity| {
                if plan.total <= usable(capacity.bytes) { "yes".to_owned() } else { "no".to_owned() }
            },
        ));
        row
    });
    aligned(&[vec![head], rows.collect()].concat())
}

/// What the table does not have: figures that are the same at every stage, or of one kind of job.
pub(super) fn footer(plans: &[Plan], offload: &Offload) -> Vec<String> {
    let Some(first) = plans.first() else { return Vec::new() };
    let mut lines = vec![
        "bytes of one rank; working is the most beside activations while the head or one block runs".to_owned(),
        format!("disk   {} for each checkpoint, over all ranks", format::bytes(first.checkpoint_disk)),
    ];
    if !matches!(offload, Offload::Files(_)) {
        let bytes = format::bytes(first.save_copy);
        lines.push(format!("save   up to {bytes} of host memory more while a disk is slower than a step"));
    }
    if plans.iter().any(|plan| plan.state.pretrained > 0) {
        let kept: Vec<String> = plans.iter().map(|plan| cell(plan.state.pretrained as u64)).collect();
        lines.push(format!(
            "drawn  toward pretrained weights: bytes of one rank, in its total, by row: {}",
            kept.join(", ")
        ));
    }
    let offloaded: Vec<String> = plans.iter().map(|plan| cell(plan.offloaded_disk)).collect();
    if plans.iter().any(|plan| plan.offloaded_disk > 0) {
        let place = if *offload == Offload::HostMemory { "host " } else { "files" };
        lines.push(format!("{place}  masters and moments of one rank, by row: {}", offloaded.join(", ")));
    }
    lines
}

/// The stage, and what makes it special.
pub(crate) fn stage_name(stage: Stage, replicas: u32, reshard: ReshardAfterForward) -> String {
    let mut name = match stage {
        Stage::Zero => "0 (DDP)".to_owned(),
        stage => stage.to_string(),
    };
    if stage.shards_parameters() {
        match reshard {
            ReshardAfterForward::Always(true) => {}
            ReshardAfterForward::Always(false) => name.push_str(" kept after forward"),
            ReshardAfterForward::Group(ranks) => name.push_str(&format!(" in groups of {ranks}")),
        }
    }
    if replicas > 1 {
        name.push_str(&format!(" × {replicas} copies"));
    }
    name
}

fn cell(bytes: u64) -> String {
    if bytes == 0 { "-".to_owned() } else { format::bytes(bytes) }
}
