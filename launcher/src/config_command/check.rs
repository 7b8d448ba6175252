//! What `train` would refuse, told without running, and what lies at the paths that are named.

use std::path::Path;

use zerofold_configs::{DataSource, Dataset, Inputs, Outline, Resolved, outline};
use zerofold_data::Sources;

use crate::error::LaunchError;
use crate::format;
use crate::hub::is_repository;
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
    for source in training.dataset.sources() {
        terminal.result(&format!("data   {}", data("dataset", source, resolved)?));
    }
    for source in training.eval_dataset.iter().flat_map(Dataset::sources) {
        terminal.result(&format!("held-out data  {}", data("eval_dataset", source, resolved)?));
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

/// What lies where a source of data is named. Whether its rows can be used only reading them tells.
fn data(key: &str, source: &DataSource, resolved: &Resolved) -> Result<String, LaunchError> {
    let names = &source.path;
    let found = Sources::find(names.names()).map_err(|error| {
        let place = resolved.provenance.get(key).map_or("default", String::as_str);
        LaunchError::usage(
            format!("{place}: {key}: {error}"),
            "paths are relative to the folder that launch is started in",
        )
    })?;
    let sizes = found.files().iter().filter_map(|file| std::fs::metadata(file.path()).ok());
    let (files, bytes) = (found.files().len() as u64, sizes.map(|metadata| metadata.len()).sum());
    let weight = source.weight.map_or(String::new(), |weight| format!(", weight {weight}"));
    Ok(format!("{names}: {}, {}{weight}", format::plural(files, "file"), format::bytes(bytes)))
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
