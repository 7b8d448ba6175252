//! A job that trains a classifier of sequences: its classes, and the model folder that it begins with.
//!
//! A model without such a head gets one as transformers gives it one. What a job begins with is a folder like any other, so that all
//! that follows need not know: `config.json` with the classes in it, links to the model's own files, and the new parameters.

mod folder;

use std::path::Path;

use zerofold_checkpoint::ModelFiles;
use zerofold_configs::{ColumnMapping, ProblemType, Resolved, Training};
use zerofold_data::{Classes, Columns, DataError, FoundLabels, Sources, Tokenizer};
use zerofold_plan::{Classifier, Head, ModelConfig, label_names, problem_type};

use crate::error::LaunchError;
use crate::hub::{self, DataUse};
use crate::terminal::Terminal;
use crate::{format, job, model_folder};

pub(crate) use folder::keep;

/// Classes beyond these are not told one by one.
const SHOWN: usize = 8;

/// Whether the job trains a classifier: it says so, or its model tells nothing else. A model that is not here says nothing.
pub(crate) fn is_wanted(config: &Resolved) -> bool {
    let Training { problem_type, num_labels, model_name_or_path, .. } = &config.training;
    let is_classifier = || ModelConfig::read(model_name_or_path).is_ok_and(|model| model.head != Head::Language);
    problem_type.is_some() || num_labels.is_some() || is_classifier()
}

/// The sizes of the job's model; where it is to become a classifier, and is not one yet, those it then has. How many classes there
/// are is a guess where only the data tell.
///
/// # Errors
/// A configuration of the model that cannot be used.
pub(crate) fn model(config: &Resolved) -> Result<ModelConfig, LaunchError> {
    let (training, folder) = (&config.training, &config.training.model_name_or_path);
    let model = ModelConfig::read(folder)?;
    let is_it = match model.head {
        Head::Language => !is_wanted(config),
        Head::Classes { labels, problem } => {
            training.num_labels.is_none_or(|count| count as usize == labels)
                && training.problem_type.is_none_or(|wanted| wanted == problem)
        }
    };
    if is_it {
        return Ok(model);
    }
    let problem = training.problem_type.unwrap_or(match training.num_labels {
        Some(1) => ProblemType::Regression,
        _ => ProblemType::SingleLabel,
    });
    let guess = if problem == ProblemType::Regression { 1 } else { 2 };
    let labels = numbered(training.num_labels.unwrap_or(guess) as usize);
    Ok(Classifier::of_model(folder, &labels, problem, None)?.config)
}

/// The classes of the job's rows, where its model is a classifier; none too where there is no model yet.
pub(crate) fn classes(config: &Resolved) -> Option<Classes> {
    let folder = &config.training.model_name_or_path;
    let model = ModelConfig::read(folder).ok()?;
    let Head::Classes { labels, problem } = model.head else { return None };
    let names = label_names(folder).ok().flatten().unwrap_or_else(|| numbered(labels));
    Some(Classes { problem, names, at_last_token: model.causal })
}

fn numbered(labels: usize) -> Vec<String> {
    (0..labels).map(|id| format!("LABEL_{id}")).collect()
}

/// What a job's classifier tells.
struct Choice {
    classes: Classes,
    /// The model has a trained head that tells it.
    has_head: bool,
}

/// What the job's model is to tell, by the job, by the model and by the labels of its data, which are `found` if need be.
fn choose(
    config: &Resolved,
    model: &ModelConfig,
    files: Option<&ModelFiles>,
    found: impl FnOnce() -> Result<FoundLabels, LaunchError>,
) -> Result<Choice, LaunchError> {
    let (training, folder) = (&config.training, &config.training.model_name_or_path);
    refuse_packing(config)?;
    let own = own_classes(folder, model, files)?;
    let (names, problem, has_head) = match own {
        Some(Own { names, problem, is_trained }) => {
            check_own(training, &names)?;
            let wanted = training.problem_type.unwrap_or(problem);
            (names, wanted, is_trained && wanted == problem)
        }
        None => {
            let (names, problem) = of_data(training, training.problem_type.or(problem_type(folder)?), &found()?)?;
            (names, problem, false)
        }
    };
    if problem != ProblemType::SingleLabel && training.label_smoothing_factor > 0.0 {
        let smoothing = training.label_smoothing_factor;
        let message = format!("label_smoothing_factor is {smoothing}, and problem_type is {problem}");
        return Err(LaunchError::usage(
            message,
            "labels are smoothed where a row is of one class of several: leave it out",
        ));
    }
    Ok(Choice { classes: Classes { problem, names, at_last_token: model.causal }, has_head })
}

/// Makes a job that trains a classifier begin with the folder of one, and with rows end to end where the model sees padding.
///
/// # Errors
/// Data without labels, or with others than the model's; a head for other classes than those that are asked for; what such a job
/// cannot have.
pub(crate) fn settle(config: &mut Resolved, terminal: &Terminal) -> Result<(), LaunchError> {
    if !is_wanted(config) {
        return Ok(());
    }
    let folder = config.training.model_name_or_path.clone();
    let (model, files) = (ModelConfig::read(&folder)?, model_folder::weights(&folder)?);
    let Choice { classes, has_head } = choose(config, &model, Some(&files), || {
        let of_source = |source: &zerofold_configs::DataSource| {
            Ok((hub::sources(source, config, DataUse::Training)?, source.column_mapping.clone()))
        };
        let sources = config.training.dataset.sources().iter().map(of_source);
        find(config, &sources.collect::<Result<Vec<_>, LaunchError>>()?, FoundLabels::of)
    })?;
    if let Some(note) = cap_length(config, &model) {
        terminal.say(&note);
    }
    if !model.causal && !config.training.padding_free {
        config.training.padding_free = true;
        terminal.say("note: rows lie end to end (padding_free): an encoder would see padding");
    }
    let Classes { problem, names, .. } = &classes;
    let mut told = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        told = format!("{told} and {} more", names.len() - SHOWN);
    }
    terminal.say(&format!("class  {problem}, {}: {told}", format::plural(names.len() as u64, "label")));
    if has_head {
        return Ok(());
    }
    if let Some(checkpoint) = &config.initial_checkpoint {
        let message = format!("{} is a checkpoint without a head for these labels", checkpoint.display());
        return Err(LaunchError::usage(
            message,
            "make a model folder of it first: launch export CHECKPOINT --output DIR",
        ));
    }
    let pad_token = Tokenizer::load(&folder)?.pad_id();
    let made = folder::make(config, &Classifier::of_model(&folder, names, *problem, Some(pad_token))?, &files)?;
    if let Some(told) = made.told {
        terminal.say(&format!("       {told}"));
    }
    config.training.model_name_or_path = made.folder;
    Ok(())
}

/// Cuts rows of a classifier to the positions that its model has, as the tokenizer of such a model does. A note where that is less than
/// `max_length`.
pub(crate) fn cap_length(config: &mut Resolved, model: &ModelConfig) -> Option<String> {
    let most = model.max_exact_length().and_then(|most| u32::try_from(most).ok()).filter(|_| is_wanted(config))?;
    let length = config.training.max_length;
    config.training.max_length = length.min(most);
    (length > most).then(|| {
        format!("note: rows are cut to the {most} tokens that the model has positions for (max_length is {length})")
    })
}

/// The classes that rows are audited for; the model's weights need not be there. None where the job trains no classifier.
///
/// # Errors
/// As [`settle`].
pub(crate) fn of_audit<'a>(
    config: &Resolved,
    sources: impl Iterator<Item = &'a (Sources, Option<ColumnMapping>)>,
) -> Result<Option<Classes>, LaunchError> {
    if !is_wanted(config) {
        return Ok(None);
    }
    let folder = &config.training.model_name_or_path;
    let (model, files) = (ModelConfig::read(folder)?, model_folder::weights(folder).ok());
    let sources: Vec<_> = sources.cloned().collect();
    choose(config, &model, files.as_ref(), || find(config, &sources, FoundLabels::of_readable))
        .map(|choice| Some(choice.classes))
}

/// Makes an evaluation of a classifier one of rows end to end, where the model sees padding.
///
/// # Errors
/// A classifier without a trained head.
pub(crate) fn settle_evaluation(config: &mut Resolved, model: &ModelConfig) -> Result<(), LaunchError> {
    let Head::Classes { .. } = model.head else { return Ok(()) };
    let folder = config.training.model_name_or_path.clone();
    let own = own_classes(&folder, model, Some(&model_folder::weights(&folder)?))?;
    if !own.is_some_and(|own| own.is_trained) {
        let message = format!("it is a {} without a trained head ({})", model.architecture, model.names.classifier);
        let hint = "train it first: launch train makes a head for it (docs/classification.md)".to_owned();
        return Err(LaunchError::Model { path: folder, message, hint });
    }
    refuse_packing(config)?;
    let _told_of_training = cap_length(config, model);
    config.training.padding_free |= !model.causal;
    Ok(())
}

fn refuse_packing(config: &Resolved) -> Result<(), LaunchError> {
    if config.training.packing || config.training.eval_packing {
        let hint = "leave packing out; padding_free puts rows end to end without padding";
        return Err(LaunchError::usage("packing is for language models, and this model is a classifier", hint));
    }
    Ok(())
}

/// What a classifier's own files tell.
struct Own {
    names: Vec<String>,
    problem: ProblemType,
    /// They have its head; else its configuration names the classes alone.
    is_trained: bool,
}

fn own_classes(folder: &Path, model: &ModelConfig, files: Option<&ModelFiles>) -> Result<Option<Own>, LaunchError> {
    let Head::Classes { labels, problem } = model.head else { return Ok(None) };
    let named = label_names(folder)?;
    let head = format!("{}.weight", model.names.classifier);
    let is_trained = files.map_or(named.is_some(), |files| files.contains(&head));
    if !is_trained && named.is_none() {
        return Ok(None);
    }
    Ok(Some(Own { names: named.unwrap_or_else(|| numbered(labels)), problem, is_trained }))
}

fn check_own(training: &Training, names: &[String]) -> Result<(), LaunchError> {
    match training.num_labels {
        Some(count) if count as usize != names.len() => Err(LaunchError::usage(
            format!(
                "num_labels is {count}, and the model has a trained head for {}: {}",
                names.len(),
                names.join(", ")
            ),
            "leave num_labels out to go on with that head, or begin with a model that has none",
        )),
        _ => Ok(()),
    }
}

/// The labels of these rows.
fn find(
    config: &Resolved,
    sources: &[(Sources, Option<ColumnMapping>)],
    look: fn(&Sources, &Columns) -> Result<FoundLabels, DataError>,
) -> Result<FoundLabels, LaunchError> {
    let mut all: Option<FoundLabels> = None;
    for (sources, mapping) in sources {
        let found = look(sources, &job::columns(config, mapping.as_ref())?)?;
        all = Some(match all {
            Some(before) => before.and(found),
            None => found,
        });
    }
    Ok(all.unwrap_or_default())
}

/// The classes that the data have, and what they tell, as far as nothing else says.
fn of_data(
    training: &Training,
    problem: Option<ProblemType>,
    found: &FoundLabels,
) -> Result<(Vec<String>, ProblemType), LaunchError> {
    let of_one_number = (training.num_labels == Some(1)).then_some(ProblemType::Regression);
    let problem = problem.or(of_one_number).unwrap_or(found.problem());
    let names = found.classes(problem)?;
    let Some(count) = training.num_labels.map(|count| count as usize) else { return Ok((names, problem)) };
    let named = !found.names.is_empty();
    if count == names.len() || !named && problem != ProblemType::Regression && count > names.len() {
        return Ok((if named { names } else { numbered(count) }, problem));
    }
    let what = if problem == ProblemType::Regression { "numbers (problem_type is regression)" } else { "labels" };
    let largest = found.places.largest.as_ref().filter(|_| !named && problem != ProblemType::Regression);
    let place = largest.map_or(String::new(), |place| format!(" (the last of them in {place})"));
    let message = format!("num_labels is {count}, and the data have {} {what}{place}", names.len());
    Err(LaunchError::usage(
        message,
        "leave num_labels out, or make it as many; classes without a row are given by number",
    ))
}
