//! The command `data check`: what is wrong with data, before they are trained on. Nothing is started.
//!
//! ```text
//! DataOptions ─ outline ─ model, template ─ zerofold_data::audit ─┬ print   (a report, or JSON)
//!                                                                 └ Audited::write_copy
//! ```

mod pairs;
mod print;

use std::path::PathBuf;

use serde_json::{Value, json};
use zerofold_configs::{Inputs, Outline, Resolved, outline};
use zerofold_data::{Audit, Audited, Classes, Copied, FindingKind, NEARLY_THE_SAME, audit};
use zerofold_plan::ModelConfig;

use pairs::{Pair, pairs};

use crate::error::{EXIT_FAILED, LaunchError};
use crate::hub::{self, Extent};
use crate::terminal::Terminal;
use crate::{chat_template, classifier, initial_model, job};

/// What the command line asks of `data check`.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// The configuration, as written.
    pub inputs: Inputs,
    /// Training data in place of the configuration's; empty for those.
    pub data: Vec<String>,
    /// The copy to write, if one is asked for.
    pub filtered: Option<Filtered>,
    /// Print JSON.
    pub json: bool,
}

/// A copy without the rows of some findings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filtered {
    /// The findings.
    pub drop: Vec<FindingKind>,
    /// The file.
    pub output: PathBuf,
}

/// Audits the data and tells what was found. Returns the exit code: 1 where something was found that would stop or spoil a
/// training.
///
/// # Errors
/// A configuration that cannot be used; no data, or data files that are not there; a model that is named and not there; a copy
/// that cannot be written.
pub fn data(options: &DataOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let mut outline = outline(&options.inputs)?;
    let with_model = !outline.missing.contains(&"model_name_or_path");
    let pairs = pairs(options, &outline, terminal)?;
    if let Some(filtered) = &options.filtered {
        zerofold_data::check_copy(&filtered.output)?;
        let [Pair { held_out, .. }] = &pairs[..] else {
            let hint = "name the files of one: --data FILE";
            return Err(LaunchError::usage(format!("a copy is of one source, and there are {}", pairs.len()), hint));
        };
        // Told before hours of reading; what else is not looked for depends on the rows.
        let never =
            |kind: &&FindingKind| kind.needs_model() && !with_model || kind.needs_held_out() && held_out.is_none();
        filtered.drop.iter().find(never).map_or(Ok(()), |kind| Err(not_looked_for(*kind)))?;
    }
    if with_model {
        let config = &mut outline.resolved;
        *config = initial_model::settle(config.clone())?;
        hub::bring(config, None, Extent::WithoutWeights, terminal)?;
        chat_template::settle(config, terminal)?;
    } else if let Some(place) = chat_template_place(&outline) {
        terminal.complain(&format!("note: chat_template_path ({place}) has no effect without a model"));
    }
    if with_model && let Ok(model) = ModelConfig::read(&outline.resolved.training.model_name_or_path) {
        let note = classifier::cap_length(&mut outline.resolved, &model);
        note.iter().for_each(|note| terminal.tell(note));
    }
    let classes = match with_model {
        true => classifier::of_audit(&outline.resolved, pairs.iter().map(|pair| &pair.training))?,
        false => None,
    };
    outline.resolved.notes.iter().for_each(|note| terminal.tell(&format!("note: {note}")));
    let (config, mut faulty, several) = (&outline.resolved, false, pairs.len() > 1);
    let mut told = Vec::new();
    for (index, pair) in pairs.iter().enumerate() {
        if several && !options.json {
            terminal.result(&format!("{}source {}", if index > 0 { "\n" } else { "" }, pair.label));
        }
        let (found, json) = check((options, config, with_model, classes.as_ref()), pair, several, terminal)?;
        faulty |= found;
        told.push(json);
    }
    if several && options.json {
        terminal.result(&serde_json::to_string_pretty(&told).unwrap_or_default());
    }
    Ok(if faulty { EXIT_FAILED } else { 0 })
}

/// Audits one source. Returns whether something was found that would stop or spoil a training, and all that was; of the only
/// source it is printed.
fn check(
    (options, config, with_model, classes): (&DataOptions, &Resolved, bool, Option<&Classes>),
    Pair { label, training: (training, own), held_out }: &Pair,
    several: bool,
    terminal: &Terminal,
) -> Result<(bool, Value), LaunchError> {
    let columns = job::columns(config, own.as_ref())?;
    // Nothing is kept of what is tokenised here.
    let how = (training, config.training.packing);
    let prepare = job::preparation(config, how, (&columns, classes), "".as_ref());
    terminal.tell(&format!("reading {} …", training.written()));
    let held_out_columns = held_out.as_ref().map(|(_, own)| job::columns(config, own.as_ref())).transpose()?;
    let held_out = held_out.as_ref().map(|(sources, _)| sources).zip(held_out_columns.as_ref());
    let audited = audit(&Audit { prepare: &prepare, held_out, with_model })?;
    let model = with_model.then(|| hub::shown(config));
    // What was found is told first: a copy may fail.
    if !options.json {
        print::report(&audited.report, model.as_deref(), terminal);
    }
    let copied = options.filtered.as_ref().map(|filtered| copy(&audited, filtered)).transpose();
    let copy = match &copied {
        Ok(copied) => json!(copied),
        Err(error) => json!({"error": error.to_string()}),
    };
    let mut told = json!({
        "model": model,
        "near_duplicates_from": NEARLY_THE_SAME,
        "training": audited.report.training,
        "held_out": audited.report.held_out,
        "copy": copy,
    });
    if several {
        told["source"] = json!(label);
    } else if options.json {
        terminal.result(&serde_json::to_string_pretty(&told).unwrap_or_default());
    }
    if let Some(copied) = copied?.filter(|_| !options.json) {
        print::copied(&copied, terminal);
    }
    Ok((audited.report.has_faults(), told))
}

/// Where the configuration names a chat template.
fn chat_template_place(outline: &Outline) -> Option<&String> {
    outline.resolved.training.chat_template_path.as_ref()?;
    outline.resolved.provenance.get("chat_template_path")
}

fn copy(audited: &Audited<'_>, filtered: &Filtered) -> Result<Copied, LaunchError> {
    let unknown = |kind: &&FindingKind| audited.report.training.not_checked.contains(kind);
    if let Some(kind) = filtered.drop.iter().find(unknown) {
        return Err(not_looked_for(*kind));
    }
    Ok(audited.write_copy(&filtered.drop, &filtered.output)?)
}

fn not_looked_for(kind: FindingKind) -> LaunchError {
    let message = format!("--drop {}: nothing was written, because this was not looked for", kind.name());
    LaunchError::usage(message, print::needs(kind))
}
