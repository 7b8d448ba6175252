//! Accelerate's own YAML, as `accelerate config` writes it.

use super::layout::{Layout, Words};
use super::yaml::scalar;
use super::{Composed, LeftOut};
use crate::outline::Outline;
use crate::registry::Section;
use crate::sharding::{ReshardAfterForward, Stage};
use crate::types::{DeviceKind, Offload};
use crate::written::Written;
use serde_yaml::Value;
use std::collections::BTreeMap;

const SCRIPT: &str = "an Accelerate file says nothing of the training: give it to the training script";
const GROUP: &str = "Accelerate takes true or false for it";
const OLD_HYBRID: &str = "Accelerate reads parallelism_config with fsdp_version 2 alone";
const OUR_HOSTS: &str = "Accelerate has no such key";

pub(super) fn compose(outline: &Outline) -> Composed {
    let mut layout = Layout::of(outline);
    let mut left_out = std::mem::take(&mut layout.left_out);
    let mut top = top(outline, &layout);
    let mut told = vec!["mixed_precision", "num_processes", "use_cpu", "main_process_port", "gpu_ids"];
    told.extend(["zero_stage", "fsdp_sharding_strategy", "offload_optimizer_device"]);
    let mut sections: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
    for line in &layout.lines {
        sections.entry(line.section.name()).or_default().insert(line.key, line.value.clone());
        told.push(line.key);
    }
    match layout.words {
        Words::DeepSpeed => {
            deepspeed(outline, sections.entry(Section::DeepSpeed.name()).or_default());
            told.extend(["gradient_accumulation_steps", "max_grad_norm"]);
        }
        Words::Fsdp { version } => {
            told.push("gradient_checkpointing");
            fsdp(outline, version, &mut sections, &mut left_out);
        }
        Words::DataParallel => {}
    }
    hosts(outline, &mut top, &mut left_out);
    let silent = |written: &&Written| !written.is_set() || written.value.is_null() || told.contains(&written.key);
    let resolved = outline.resolved.written();
    let others = resolved.iter().filter(|written| !silent(written) && !outline.missing.contains(&written.key));
    let named = |left: &LeftOut, all: &[LeftOut]| all.iter().any(|told| told.setting == left.setting);
    let others: Vec<LeftOut> = others
        .map(|written| LeftOut::of(written, reason(written.key)))
        .filter(|left| !named(left, &left_out))
        .collect();
    left_out.extend(others);
    Composed { text: text(top, sections), left_out }
}

/// Why a key stands nowhere in the file.
fn reason(key: &str) -> &'static str {
    if key == "fsdp_backward_prefetch" { "fsdp_version 2 has no such key: it always gathers ahead" } else { SCRIPT }
}

fn text(top: BTreeMap<&str, Value>, mut sections: BTreeMap<&str, BTreeMap<&str, Value>>) -> String {
    let mut text = String::new();
    let mut names: Vec<&str> = top.keys().chain(sections.keys()).copied().collect();
    names.sort_unstable();
    for name in names {
        match (sections.remove(name), top.get(name)) {
            (Some(entries), _) => {
                text.push_str(&format!("{name}:\n"));
                entries.iter().for_each(|(key, value)| text.push_str(&format!("  {key}: {}\n", scalar(value))));
            }
            (None, Some(value)) => text.push_str(&format!("{name}: {}\n", scalar(value))),
            (None, None) => {}
        }
    }
    text
}

/// What every file of Accelerate has at the top level.
fn top(outline: &Outline, layout: &Layout) -> BTreeMap<&'static str, Value> {
    let resolved = &outline.resolved;
    let cpu = resolved.device == DeviceKind::Cpu
        && (layout.distributed_type == "MULTI_CPU"
            || resolved.provenance.get("device").is_some_and(|place| place != crate::written::DEFAULT));
    let mut top = BTreeMap::from([
        ("compute_environment", Value::from("LOCAL_MACHINE")),
        ("debug", false.into()),
        ("distributed_type", layout.distributed_type.into()),
        ("downcast_bf16", "no".into()),
        ("enable_cpu_affinity", false.into()),
        ("machine_rank", outline.topology.node_rank.into()),
        ("main_training_function", "main".into()),
        ("mixed_precision", resolved.mixed_precision.name().into()),
        ("num_machines", outline.topology.nodes.max.into()),
        ("num_processes", resolved.num_processes.into()),
        ("rdzv_backend", "static".into()),
        ("same_network", true.into()),
        ("use_cpu", cpu.into()),
    ]);
    if let Some(port) = resolved.main_process_port {
        top.insert("main_process_port", port.into());
    }
    if let Some(ids) = resolved.written().into_iter().find(|written| written.key == "gpu_ids") {
        top.extend((!ids.value.is_null()).then_some(("gpu_ids", ids.value)));
    }
    top
}

fn deepspeed(outline: &Outline, section: &mut BTreeMap<&str, Value>) {
    let resolved = &outline.resolved;
    section.insert("gradient_accumulation_steps", resolved.gradient_accumulation_steps.into());
    section.insert("gradient_clipping", resolved.max_grad_norm.into());
    section.entry("offload_optimizer_device").or_insert_with(|| "none".into());
    section.entry("offload_param_device").or_insert_with(|| "none".into());
    if let Offload::Files(folder) = &resolved.offload_optimizer
        && resolved.sharding.stage == Stage::Three
    {
        section.insert("offload_param_nvme_path", folder.display().to_string().into());
    }
    let sharded = resolved.sharding.stage == Stage::Three;
    section.insert("zero3_init_flag", sharded.into());
    section.insert("zero3_save_16bit_model", sharded.into());
}

fn fsdp(
    outline: &Outline,
    version: u8,
    sections: &mut BTreeMap<&str, BTreeMap<&str, Value>>,
    left_out: &mut Vec<LeftOut>,
) {
    let resolved = &outline.resolved;
    let written = resolved.written();
    let find = |key: &str| written.iter().find(|written| written.key == key);
    let section = sections.entry(Section::Fsdp.name()).or_default();
    // Left to the training script where nobody asked for it.
    let asked = resolved.provenance.get("gradient_checkpointing").is_some_and(|place| place != crate::written::DEFAULT);
    section.insert("fsdp_activation_checkpointing", (asked && resolved.gradient_checkpointing).into());
    section.insert("fsdp_cpu_ram_efficient_loading", true.into());
    section.entry("fsdp_offload_params").or_insert_with(|| false.into());
    section.entry("fsdp_auto_wrap_policy").or_insert_with(|| resolved.wrap_policy().name().into());
    section.entry("fsdp_state_dict_type").or_insert_with(|| resolved.state_dict_type.name().into());
    if let ReshardAfterForward::Group(_) = resolved.sharding.reshard_after_forward {
        section.insert("fsdp_reshard_after_forward", true.into());
        left_out.extend(find("fsdp_reshard_after_forward").map(|written| LeftOut::of(written, GROUP)));
    }
    if version == 1 && sections.remove(Section::Parallelism.name()).is_some() {
        let copies = find("parallelism_config_dp_replicate_size");
        left_out.extend(copies.map(|written| LeftOut::of(written, OLD_HYBRID)));
    }
    if let Some(section) = sections.get_mut(Section::Parallelism.name()) {
        let shards = resolved.num_processes / resolved.sharding.replicas;
        section.insert("parallelism_config_dp_shard_size", shards.into());
    }
}

/// Where the hosts meet, in Accelerate's words; what these cannot say is left out.
fn hosts(outline: &Outline, top: &mut BTreeMap<&str, Value>, left_out: &mut Vec<LeftOut>) {
    if let Some(endpoint) = &outline.topology.endpoint {
        top.insert("main_process_ip", endpoint.host.as_str().into());
        top.insert("main_process_port", endpoint.port.into());
    }
    let nodes = outline.topology.nodes;
    for written in &outline.hosts {
        match written.key {
            "nnodes" if nodes.min != nodes.max => {
                left_out
                    .push(LeftOut::of(written, "Accelerate takes one number of hosts; the most of them is written"));
            }
            "rdzv_id" | "rdzv_conf" | "interface" | "token_file" | "no_tls" => {
                left_out.push(LeftOut::of(written, OUR_HOSTS));
            }
            _ => {}
        }
    }
}
