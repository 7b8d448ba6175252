//! What `train` would refuse, told without running, and what lies at the paths that are named.

use std::path::Path;

use zerofold_configs::{DataNames, HubName, Inputs, Outline, Resolved, outline};
use zerofold_data::Sources;

use crate::error::LaunchError;
use crate::format;
use crate::hub::{DataUse, is_repository};
use crate::initial_model::InitialModel;
use crate::model_folder;
use crate::terminal::Terminal;

pub(super) fn check(inputs: &Inputs, terminal: &Terminal) -> Result<(), LaunchError> {
    let outline = outline(inputs)?;
    for note in &outline.resolved.notes {
        terminal.result(&format!("note: {note}"));
    }
    outline.check()?;
    let resolved = &outline.resolved;
    let training = &resolved.training;
    terminal.result(&format!("model  {}", model(&training.model_name_or_path)?));
    terminal.result(&format!("data   {}", data(DataUse::Training, &training.dataset, resolved)?));
    if let Some(path) = &training.eval_dataset {
        terminal.result(&format!("held-out data  {}", data(DataUse::HeldOut, path, resolved)?));
    }
    terminal.result(&format!("ok: {}", summary(&outline)));
    Ok(())
}

/// What lies where the model is named. The hub is not asked.
fn model(path: &Path) -> Result<String, LaunchError> {
    let shown = path.display();
    if is_repository(path) {
        return Ok(format!("{shown}: no such folder, so it is taken from the hub, which is not asked here"));
    }
    let found = InitialModel::of(path)?;
    model_folder::check(&found.folder)?;
    Ok(match found.checkpoint {
        Some(step) => format!("{shown}: the checkpoint {} and its model folder are there", step.display()),
        None => format!("{shown}: configuration, tokenizer and weights are there"),
    })
}

/// What lies where data is named. Whether its rows can be used only reading them tells. The hub is not asked.
fn data(which: DataUse, names: &DataNames, resolved: &Resolved) -> Result<String, LaunchError> {
    let of_hub = |name: &&String| HubName::meant(name).is_some();
    let (of_hub, local): (Vec<&String>, Vec<&String>) = names.names().iter().partition(of_hub);
    local.iter().try_for_each(|name| which.meant(&resolved.training, name).check_local())?;
    let joined = |names: &[&String]| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let mut told = Vec::new();
    if !local.is_empty() {
        let found = Sources::find(&local).map_err(|error| {
            let key = if which == DataUse::Training { "dataset" } else { "eval_dataset" };
            let place = resolved.provenance.get(key).map_or("default", String::as_str);
            LaunchError::usage(
                format!("{place}: {key}: {error}"),
                "paths are relative to the folder that launch is started in",
            )
        })?;
        let sizes = found.files().iter().filter_map(|file| std::fs::metadata(file.path()).ok());
        let (files, bytes) = (found.files().len() as u64, sizes.map(|metadata| metadata.len()).sum());
        told.push(format!("{}: {}, {}", joined(&local), format::plural(files, "file"), format::bytes(bytes)));
    }
    if !of_hub.is_empty() {
        let shown = joined(&of_hub);
        told.push(format!("{shown}: no such file or folder, so it is taken from the hub, which is not asked here"));
    }
    Ok(told.join("; "))
}

/// The job in a line.
fn summary(outline: &Outline) -> String {
    let resolved = &outline.resolved;
    let hosts = match outline.topology.nodes.max {
        1 => String::new(),
        hosts => format!(" on {hosts} hosts"),
    };
    format!(
        "{}{hosts}, ZeRO stage {}, mixed precision {}, {} an optimizer step",
        format::plural(u64::from(resolved.num_processes), "rank"),
        resolved.sharding.stage,
        resolved.mixed_precision,
        format::items(resolved.global_batch(), resolved.training.packing),
    )
}
