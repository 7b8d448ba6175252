//! A model that is to be evaluated: looked at, brought here, and the rows as its tokens.

use std::path::PathBuf;

use zerofold_configs::{Outline, Resolved};
use zerofold_data::DataReport;
use zerofold_plan::{Head, ModelConfig};

use super::EvaluateOptions;
use crate::error::LaunchError;
use crate::hub::{self, DataUse};
use crate::run_folder::RunFolder;
use crate::short_job::{self, set};
use crate::terminal::Terminal;
use crate::{chat_template, classifier, format, initial_model, job, model_folder};

/// A model with the rows that it is to predict.
pub(super) struct Candidate {
    /// As it was named.
    pub(super) name: String,
    /// How it is evaluated.
    pub(super) config: Resolved,
    /// Where its configuration, rows and logs lie, for as long as it is evaluated.
    pub(super) run: RunFolder,
    /// What is told of the rows.
    pub(super) data: DataReport,
    /// What tells the tokens from others.
    pub(super) digest: String,
    /// What deserves a second look.
    pub(super) remarks: Vec<String>,
}

impl Candidate {
    /// Looks at everything that can be wrong, cheap things first, and puts configuration and rows into `folder`. Without a name
    /// it is the model of the configuration. What is told of the rows of `first` is not told again.
    pub(super) fn prepare(
        (options, name): (&EvaluateOptions, Option<&str>),
        folder: PathBuf,
        first: Option<&Candidate>,
        terminal: &Terminal,
    ) -> Result<Candidate, LaunchError> {
        let run = RunFolder::new(folder);
        let mut config = configuration(options, name, &run)?;
        let name = config.training.model_name_or_path.display().to_string();
        config = initial_model::settle(config)?;
        let mut remarks: Vec<String> = config.notes.iter().map(|note| format!("note: {note}")).collect();
        remarks.extend(initial_model::other_type(&config).map(|note| format!("note: {name}: {note}")));
        let model = short_job::bring_model(&mut config, terminal)?;
        hub::bring_data(&mut config, &[DataUse::HeldOut], None, terminal)?;
        classifier::settle_evaluation(&mut config, &model)?;
        check_kind((options, &config), (&name, &model), first)?;
        chat_template::settle(&mut config, terminal)?;
        if let Some(step) = &config.initial_checkpoint {
            zerofold_checkpoint::verify(step)?;
        }
        // What is told of data elsewhere goes to standard output, which has the result alone here.
        let quiet = Terminal::new(true);
        let (of_held_out, told) = ((DataUse::HeldOut, config.training.eval_packing), first.map(|first| &first.data));
        let prepared = job::tokenise(&config, of_held_out, told, &quiet)?;
        let longest = job::longest_document(&config.training, &prepared);
        model_folder::check_positions("held-out rows", longest, &model)?;
        let report = &prepared.report;
        let too_long = model_folder::too_long("held-out rows have up to", longest, &model);
        remarks.extend(too_long.map(|text| format!("warning: {text}")));
        if report.truncated > 0 {
            let (rows, most) = (format::plural(report.truncated as u64, "row"), config.training.max_length);
            remarks.push(format!("note: {rows} cut to max_length {most}: what is beyond is not predicted"));
        }
        run.create(config.num_processes, true)?;
        // A link, since this folder may be on a small disk.
        let (rows, place) = (job::absolute(&prepared.file)?, run.eval_data());
        std::os::unix::fs::symlink(rows, &place).map_err(LaunchError::system(format!("write {}", place.display())))?;
        initial_model::anywhere(&config).write(&run.config())?;
        Ok(Candidate { name, data: prepared.report, digest: prepared.digest, config, run, remarks })
    }
}

/// The configuration of an evaluation, which needs less than a training.
fn configuration(options: &EvaluateOptions, name: Option<&str>, run: &RunFolder) -> Result<Resolved, LaunchError> {
    let mut inputs = options.inputs.clone();
    set(&mut inputs, "output_dir", &run.root().display().to_string());
    if let Some(name) = name {
        set(&mut inputs, "model_name_or_path", name);
    }
    if let Some(data) = &options.dataset {
        // What is said of the data of a training, such as their configuration on the hub, is said of these.
        set(&mut inputs, "dataset", data);
        set(&mut inputs, "eval_dataset", data);
    }
    let Outline { resolved, missing, .. } = short_job::configuration(&inputs, "an evaluation runs")?;
    if missing.contains(&"model_name_or_path") {
        let hint =
            "name a model folder, a run, a checkpoint or a model of the hub: launch evaluate MODEL --dataset FILE";
        return Err(LaunchError::usage("evaluate needs a model", hint));
    }
    if resolved.training.eval_dataset.is_none() || missing.contains(&"eval_dataset") {
        let hint = "pass --dataset FILE, or --config FILE of a job that has an eval_dataset";
        return Err(LaunchError::usage("evaluate needs held-out data", hint));
    }
    Ok(resolved)
}

/// Refuses models side by side that tell other things, and prompts for one that answers nothing.
fn check_kind(
    (options, config): (&EvaluateOptions, &Resolved),
    (name, model): (&str, &ModelConfig),
    first: Option<&Candidate>,
) -> Result<(), LaunchError> {
    if options.prompts.is_some() && model.head != Head::Language {
        let message = format!("{name} is a {}, which answers no prompts", model.architecture);
        return Err(LaunchError::usage(message, "leave --prompts out"));
    }
    let told = |config: &Resolved| classifier::classes(config).map(|classes| (classes.problem, classes.names));
    match first.filter(|first| told(&first.config) != told(config)) {
        None => Ok(()),
        Some(first) => {
            let words = |config: &Resolved| match told(config) {
                None => "next tokens".to_owned(),
                Some((problem, names)) => format!("{problem} of {}", names.join(", ")),
            };
            let message = format!("{} tells {}, and {name} tells {}", first.name, words(&first.config), words(config));
            Err(LaunchError::usage(message, "evaluate models side by side that tell the same, in the same order"))
        }
    }
}
