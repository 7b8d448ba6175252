//! The command `data check`: what is wrong with data, before they are trained on. Nothing is started.
//!
//! ```text
//! DataOptions ─ outline ─ model, template ─ zerofold_data::audit ─┬ print   (a report, or JSON)
//!                                                                 └ Audited::write_copy
//! ```

mod print;

use std::path::PathBuf;

use serde_json::json;
use zerofold_configs::{Inputs, Outline, outline};
use zerofold_data::{Audit, Audited, Copied, FindingKind, NEARLY_THE_SAME, Sources, audit};

use crate::error::{EXIT_FAILED, LaunchError};
use crate::hub::{self, DataUse, Extent};
use crate::terminal::Terminal;
use crate::{chat_template, initial_model, job};

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
    outline.resolved.notes.iter().for_each(|note| terminal.tell(&format!("note: {note}")));
    let with_model = !outline.missing.contains(&"model_name_or_path");
    let (training, held_out) = sources(options, &outline, terminal)?;
    if let Some(filtered) = &options.filtered {
        zerofold_data::check_copy(&filtered.output)?;
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
    let config = &outline.resolved;
    let columns = job::columns(config)?;
    // Nothing is kept of what is tokenised here.
    let prepare = job::preparation(config, (&training, config.training.packing), &columns, "".as_ref());
    terminal.tell(&format!("reading {} …", training.written()));
    let audited = audit(&Audit { prepare: &prepare, held_out: held_out.as_ref(), with_model })?;
    let model = with_model.then(|| hub::shown(config));
    // What was found is told first: a copy may fail.
    if !options.json {
        print::report(&audited.report, model.as_deref(), terminal);
    }
    let copied = options.filtered.as_ref().map(|filtered| copy(&audited, filtered)).transpose();
    if options.json {
        let copy = match &copied {
            Ok(copied) => json!(copied),
            Err(error) => json!({"error": error.to_string()}),
        };
        let told = json!({
            "model": model,
            "near_duplicates_from": NEARLY_THE_SAME,
            "training": audited.report.training,
            "held_out": audited.report.held_out,
            "copy": copy,
        });
        terminal.result(&serde_json::to_string_pretty(&told).unwrap_or_default());
    }
    if let Some(copied) = copied?.filter(|_| !options.json) {
        print::copied(&copied, terminal);
    }
    Ok(if audited.report.has_faults() { EXIT_FAILED } else { 0 })
}

/// The training data and the held-out ones, if there are some. Those of the hub are brought.
fn sources(
    options: &DataOptions,
    outline: &Outline,
    terminal: &Terminal,
) -> Result<(Sources, Option<Sources>), LaunchError> {
    let training = &outline.resolved.training;
    let missing = |key: &str| outline.missing.contains(&key);
    let names = match options.data.is_empty() {
        true if missing("dataset") => {
            let hint = "pass --data FILE, or --config FILE that names a dataset";
            return Err(LaunchError::usage("data check needs data", hint));
        }
        true => training.dataset.names(),
        false => &options.data[..],
    };
    let held_out = training.eval_dataset.as_ref().filter(|_| !missing("eval_dataset"));
    let find = |names: &[String], which| hub::sources_of(names, &outline.resolved, which, terminal);
    let held_out = held_out.map(|names| find(names.names(), DataUse::HeldOut)).transpose()?;
    Ok((find(names, DataUse::Training)?, held_out))
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
