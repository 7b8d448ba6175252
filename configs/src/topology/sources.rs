//! torchrun's environment, as settings between the file and `--set`.

use crate::error::ConfigError;
use crate::known::lookup;
use crate::registry::Section;
use crate::settings::{Layer, Setting, Settings};
use serde_yaml::Value;
use std::collections::BTreeMap;

/// The run id where nobody names one.
pub const STATIC_RUN_ID: &str = "default";

/// torchrun's variables, by the key that each sets.
const TORCHRUN: [(&str, &str); 8] = [
    ("PET_NNODES", "nnodes"),
    ("PET_NODE_RANK", "node_rank"),
    ("PET_RDZV_ENDPOINT", "rdzv_endpoint"),
    ("PET_RDZV_ID", "rdzv_id"),
    ("PET_RDZV_BACKEND", "rdzv_backend"),
    ("PET_RDZV_CONF", "rdzv_conf"),
    ("PET_MASTER_ADDR", "master_addr"),
    ("PET_MASTER_PORT", "master_port"),
];
const PER_NODE: &str = "PET_NPROC_PER_NODE";

/// Every variable that counts: torchrun's, Slurm's and Kubernetes'.
pub const ENVIRONMENT: [&str; 26] = [
    "PET_NNODES",
    "PET_NODE_RANK",
    "PET_RDZV_ENDPOINT",
    "PET_RDZV_ID",
    "PET_RDZV_BACKEND",
    "PET_RDZV_CONF",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
    PER_NODE,
    "JOB_COMPLETION_INDEX",
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
    "SLURM_PROCID",
    "SLURM_NODEID",
    "SLURM_LOCALID",
    "SLURM_STEP_NUM_NODES",
    "SLURM_NNODES",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
    "SLURM_STEP_NODELIST",
    "SLURM_NODELIST",
    "SLURM_JOB_NODELIST",
];

/// Adds what torchrun's variables set, but for the ranks of a node.
pub(crate) fn add_environment(settings: &mut Settings, environment: &BTreeMap<String, String>) {
    for (variable, key) in TORCHRUN {
        let value = environment.get(variable).map(|value| value.trim()).filter(|value| !value.is_empty());
        if let (Some(value), Some(key)) = (value, lookup(Section::Top, key)) {
            settings.add(setting(key, Value::from(value), variable));
        }
    }
}

/// torchrun's ranks of a node, if a number: its `gpu` and `auto` are what happens anyway.
pub(crate) fn ranks_per_node(environment: &BTreeMap<String, String>) -> Result<Option<(u32, Setting)>, ConfigError> {
    let Some(value) = environment.get(PER_NODE).map(|value| value.trim()) else { return Ok(None) };
    if ["", "auto", "gpu", "cpu"].contains(&value) {
        return Ok(None);
    }
    let setting = setting("nproc_per_node", Value::from(value), PER_NODE);
    match value.parse() {
        Ok(count @ 1..) => Ok(Some((count, setting))),
        _ => Err(setting.not_allowed("it must be a number of processes, gpu or auto", None)),
    }
}

fn setting(key: &'static str, value: Value, variable: &str) -> Setting {
    let place = format!("{variable} in the environment");
    let (section, layer) = (Section::Top, Layer::Environment);
    Setting { section, key, value, layer, place, original: None, column: None }
}
