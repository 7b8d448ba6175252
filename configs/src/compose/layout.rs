//! Accelerate's part of a file: which `distributed_type`, and what stands in the section that it reads.

use super::{LeftOut, Line};
use crate::outline::Outline;
use crate::registry::Section;
use crate::resolved::Resolved;
use crate::sharding::{BackwardPrefetch, ReshardAfterForward, Stage};
use crate::types::{DeviceKind, FsdpStrategy, Offload, StateDictType};
use crate::written::Written;
use serde_yaml::Value;

const NO_FSDP_SECTION: &str = "distributed_type DEEPSPEED, which ZeRO stages 1 and 2 are, reads no fsdp_config";
const NO_NVME: &str = "fsdp_config knows host memory and nothing else";

/// Whose words say what is sharded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// Nothing is: plain data parallel training.
    DataParallel,
    DeepSpeed,
    Fsdp {
        version: u8,
    },
}

/// Accelerate's part.
pub(super) struct Layout {
    pub(super) words: Words,
    pub(super) distributed_type: &'static str,
    /// What stands in the sections `deepspeed_config`, `fsdp_config` and `parallelism_config`.
    pub(super) lines: Vec<Line>,
    pub(super) left_out: Vec<LeftOut>,
}

impl Layout {
    pub(super) fn of(outline: &Outline) -> Self {
        let resolved = &outline.resolved;
        let written = resolved.written();
        let of_fsdp = |written: &&Written| {
            matches!(written.section, Section::Fsdp | Section::Parallelism) && !written.is_default()
        };
        let mut left_out = Vec::new();
        let words = words(resolved, written.iter().any(|written| of_fsdp(&written)));
        let lines = match words {
            Words::Fsdp { version } => {
                if let Some(folder) = written.iter().find(|written| written.key == "offload_optimizer_nvme_path") {
                    left_out.push(LeftOut::of(folder, NO_NVME));
                }
                fsdp(resolved, &written, version)
            }
            Words::DeepSpeed => {
                left_out.extend(written.iter().filter(of_fsdp).map(|written| LeftOut::of(written, NO_FSDP_SECTION)));
                deepspeed(resolved)
            }
            Words::DataParallel => Vec::new(),
        };
        Layout { words, distributed_type: distributed_type(words, outline), lines, left_out }
    }
}

fn words(resolved: &Resolved, says_more: bool) -> Words {
    let as_written = resolved.sharding_as_written.as_deref().unwrap_or_default();
    let by_fsdp = as_written.starts_with("fsdp_config.") || as_written == "distributed_type: FSDP";
    let by_deepspeed = as_written.starts_with("deepspeed_config.") || as_written == "distributed_type: DEEPSPEED";
    let in_files = matches!(resolved.offload_optimizer, Offload::Files(_));
    match resolved.sharding.stage {
        Stage::Zero if says_more => Words::Fsdp { version: 1 },
        Stage::Zero if by_fsdp => Words::Fsdp { version: 1 },
        Stage::Zero if by_deepspeed => Words::DeepSpeed,
        Stage::Zero => Words::DataParallel,
        Stage::Three if says_more || (by_fsdp && !in_files) => {
            // Only version 1 has them.
            let old = resolved.sharding.backward_prefetch != BackwardPrefetch::Pre
                || resolved.state_dict_type == StateDictType::Local;
            Words::Fsdp { version: if old { 1 } else { 2 } }
        }
        _ => Words::DeepSpeed,
    }
}

fn distributed_type(words: Words, outline: &Outline) -> &'static str {
    let resolved = &outline.resolved;
    let one = resolved.num_processes == 1
        && resolved.provenance.get("num_processes").is_some_and(|place| place != crate::written::DEFAULT);
    match words {
        Words::Fsdp { .. } => "FSDP",
        Words::DeepSpeed => "DEEPSPEED",
        Words::DataParallel if one => "NO",
        Words::DataParallel if resolved.device == DeviceKind::Cuda => "MULTI_GPU",
        Words::DataParallel => "MULTI_CPU",
    }
}

fn deepspeed(resolved: &Resolved) -> Vec<Line> {
    let line = |key, value: Value| Line { section: Section::DeepSpeed, key, value };
    let mut lines = vec![line("zero_stage", resolved.sharding.stage.number().into())];
    let parameters = resolved.sharding.stage == Stage::Three;
    match &resolved.offload_optimizer {
        Offload::No => {}
        Offload::HostMemory => {
            lines.push(line("offload_optimizer_device", "cpu".into()));
            lines.extend(parameters.then(|| line("offload_param_device", "cpu".into())));
        }
        Offload::Files(folder) => {
            lines.push(line("offload_optimizer_device", "nvme".into()));
            lines.push(line("offload_optimizer_nvme_path", folder.display().to_string().into()));
            lines.extend(parameters.then(|| line("offload_param_device", "nvme".into())));
        }
    }
    lines
}

fn fsdp(resolved: &Resolved, written: &[Written], version: u8) -> Vec<Line> {
    let line = |key, value: Value| Line { section: Section::Fsdp, key, value };
    let mut lines = vec![line("fsdp_version", version.into())];
    let kept = resolved.sharding.reshard_after_forward;
    let hybrid = resolved.sharding.replicas > 1;
    if version == 1 {
        let strategy = match (resolved.sharding.stage, kept, hybrid) {
            (Stage::Three, ReshardAfterForward::Always(false), false) => FsdpStrategy::ShardGradOp,
            (Stage::Three, ReshardAfterForward::Always(false), true) => FsdpStrategy::HybridShardZero2,
            (Stage::Three, _, true) => FsdpStrategy::HybridShard,
            (Stage::Three, _, false) => FsdpStrategy::FullShard,
            _ => FsdpStrategy::NoShard,
        };
        lines.push(line("fsdp_sharding_strategy", strategy.name().into()));
    } else {
        let value = match kept {
            ReshardAfterForward::Always(always) => always.into(),
            ReshardAfterForward::Group(ranks) => ranks.into(),
        };
        lines.push(line("fsdp_reshard_after_forward", value));
    }
    if resolved.offload_optimizer == Offload::HostMemory {
        lines.push(line("fsdp_offload_params", true.into()));
    }
    let same_words = ["fsdp_sharding_strategy", "fsdp_reshard_after_forward"];
    let says = |written: &&Written| {
        let of_version = match written.section {
            // Version 2 knows no other.
            Section::Fsdp => {
                !same_words.contains(&written.key) && (version == 1 || written.key != "fsdp_backward_prefetch")
            }
            Section::Parallelism => hybrid,
            _ => false,
        };
        of_version && !written.value.is_null() && (written.is_set() || !written.is_default())
    };
    let others = written.iter().filter(says);
    lines.extend(others.map(|written| Line {
        section: written.section,
        key: written.key,
        value: written.value.clone(),
    }));
    lines
}
