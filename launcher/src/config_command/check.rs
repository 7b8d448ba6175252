//! What `train` would refuse, told without running, and what lies at the paths that are named.

use std::path::Path;

use zerofold_configs::{DataSource, Dataset, HubName, Inputs, Outline, Resolved, outline};
use zerofold_data::{ChatTemplate, Columns, Sources, SpecialTokens, TemplateSource, Tokenizer, first_row};
use zerofold_plan::ModelConfig;

use crate::error::LaunchError;
use crate::hub::{DataUse, is_repository};
use crate::initial_model::{self, InitialModel};
use crate::terminal::Terminal;
use crate::{chat_template, classifier, format, job, model_folder};

pub(super) fn check(inputs: &Inputs, terminal: &Terminal) -> Result<(), LaunchError> {
    let outline = outline(inputs)?;
    for note in &outline.resolved.notes {
        terminal.result(&format!("note: {note}"));
    }
    outline.check()?;
    let mut config = outline.resolved.clone();
    job::columns(&config, None)?;
    let name = config.training.model_name_or_path.clone();
    terminal.result(&format!("model  {}", model(&name)?));
    let with_model = !is_repository(&name);
    if with_model {
        config = initial_model::settle(config)?;
        let later = config.notes.iter().filter(|note| !outline.resolved.notes.contains(note));
        later.for_each(|note| terminal.result(&format!("note: {note}")));
        model_folder::check_layer_classes(&config, &ModelConfig::read(&config.training.model_name_or_path)?)?;
    }
    let with_model = template(&mut config, with_model, terminal)? && with_model;
    let mut names = config.training.dataset.sources().iter().flat_map(|source| source.path.names());
    if with_model && !names.any(|name| HubName::meant(name).is_some()) {
        classifier::settle(&mut config, &Terminal::new(true))?;
        // What it tells is known now.
        model_folder::check_metric(&config, &classifier::model(&config)?)?;
    }
    let training = &config.training;
    let data =
        |which: DataUse, source: &DataSource, packing: bool| data((which, source), packing, (&config, with_model));
    for source in training.dataset.sources() {
        terminal.result(&format!("data   {}", data(DataUse::Training, source, training.packing)?));
    }
    for source in training.eval_dataset.iter().flat_map(Dataset::sources) {
        terminal.result(&format!("held-out data  {}", data(DataUse::HeldOut, source, training.eval_packing)?));
    }
    for source in training.ewc_dataset.iter().flat_map(Dataset::sources) {
        terminal.result(&format!("Fisher data  {}", data(DataUse::Fisher, source, false)?));
    }
    terminal.result(&format!("ok: {}", summary(&outline)));
    Ok(())
}

/// Looks up the chat template that is chosen, and the end of turn, as far as the model is there; whether that was all.
fn template(config: &mut Resolved, with_model: bool, terminal: &Terminal) -> Result<bool, LaunchError> {
    if let Some(token) = config.training.eos_token.as_deref().filter(|_| with_model) {
        Tokenizer::load(&config.training.model_name_or_path)?.id_of(token)?;
    }
    let Some(name) = config.training.chat_template_path.clone() else { return Ok(true) };
    let shown = name.display();
    chat_template::check_name(&name)?;
    let builtin = name.to_str().is_some_and(TemplateSource::is_builtin);
    if !builtin && is_repository(&name) {
        terminal.result(&format!("template  {shown}: taken from the hub, which is not asked here"));
        return Ok(false);
    }
    let source = match (with_model, builtin) {
        (false, true) => {
            terminal.result(&format!("template  {shown}: a built-in one; whether it fits the model is not known here"));
            return Ok(true);
        }
        (false, false) => Some(TemplateSource::named(&name, &config.training.model_name_or_path, None)?),
        (true, _) => {
            chat_template::settle(config, terminal)?;
            config.chat_template.clone().map(|text| TemplateSource { text, place: name.clone() })
        }
    };
    // Rows that are no conversations leave it unused, and a broken one untold.
    source.map(|source| ChatTemplate::compile(source, SpecialTokens::default())).transpose()?;
    terminal
        .result(&format!("template  {shown}: {}", if builtin { "a built-in one that fits" } else { "can be read" }));
    Ok(true)
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

/// What lies where a source of data is named, and what its first row is. Whether all can be used only reading them tells. The hub is
/// not asked.
fn data(
    (which, source): (DataUse, &DataSource),
    packing: bool,
    (config, with_model): (&Resolved, bool),
) -> Result<String, LaunchError> {
    let of_hub = |name: &&String| HubName::meant(name).is_some();
    let (of_hub, local): (Vec<&String>, Vec<&String>) = source.path.names().iter().partition(of_hub);
    local.iter().try_for_each(|name| which.meant(&config.training, source, name).check_local())?;
    let joined = |names: &[&String]| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let columns = job::columns(config, source.column_mapping.as_ref())?;
    let mut told = Vec::new();
    if !local.is_empty() {
        let found = Sources::find(&local).map_err(|error| {
            let key = which.key();
            let place = config.provenance.get(key).map_or("default", String::as_str);
            let text = error.to_string();
            let relative = "paths are relative to the folder that launch is started in";
            let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, relative));
            LaunchError::usage(format!("{place}: {key}: {message}"), hint)
        })?;
        let sizes = found.files().iter().filter_map(|file| std::fs::metadata(file.path()).ok());
        let (files, bytes) = (found.files().len() as u64, sizes.map(|metadata| metadata.len()).sum());
        // Nothing is kept of it.
        let classes = classifier::classes(config);
        // Which classes there are is not known while the training rows are elsewhere.
        let with_model = with_model && (classes.is_some() || !classifier::is_wanted(config));
        let look = |columns: &Columns| {
            let prepare = job::preparation(config, (&found, packing), (columns, classes.as_ref()), "".as_ref());
            first_row(&prepare, with_model)
        };
        // A model that is not here may be a classifier.
        let rows = look(&columns).or_else(|error| match is_repository(&config.training.model_name_or_path) {
            true => look(&columns.clone().of_classifier()).map_err(|_| error),
            false => Err(error),
        })?;
        let (files, bytes) = (format::plural(files, "file"), format::bytes(bytes));
        told.push(format!("{}: {files}, {bytes}, rows of {rows}", joined(&local)));
    }
    if !of_hub.is_empty() {
        let shown = joined(&of_hub);
        told.push(format!("{shown}: no such file or folder, so it is taken from the hub, which is not asked here"));
    }
    told.extend(source.weight.map(|weight| format!("weight {weight}")));
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
