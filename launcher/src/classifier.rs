//! A job that trains a classifier of sequences: its classes, and the model folder that it begins with.
//!
//! A model without such a head gets one as transformers gives it one. What a job begins with is a folder like any other, so that all
//! that follows need not know: `config.json` with the classes in it, links to the model's own files, and the new parameters.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::json;
use zerofold_checkpoint::{Dtype, ModelFiles, Naming, SafetensorsWriter, StagingDirectory, TensorEntry, is_side_file};
use zerofold_configs::{ProblemType, Resolved, Training};
use zerofold_data::{Classes, FoundLabels, Tokenizer};
use zerofold_plan::{Classifier, FileNames, Head, ModelConfig, label_names};

use crate::error::LaunchError;
use crate::hub::{self, DataUse};
use crate::run_folder::RunFolder;
use crate::terminal::Terminal;
use crate::{cache_folder, format, job};

/// The file of the parameters that the model did not have.
const NEW_PARAMETERS: &str = "model-new-head.safetensors";
/// In a folder that is made here.
const INDEX: &str = "model.safetensors.index.json";
/// Classes beyond these are not told one by one.
const SHOWN: usize = 8;

/// Whether the job trains a classifier: it says so, or its model tells nothing else.
fn is_wanted(training: &Training, model: &ModelConfig) -> bool {
    model.head != Head::Language || training.problem_type.is_some() || training.num_labels.is_some()
}

/// The sizes of the job's model; where it is to become a classifier, and is not one yet, those it then has. How many classes there
/// are is a guess where only the data tell.
///
/// # Errors
/// A configuration of the model that cannot be used.
pub(crate) fn model(config: &Resolved) -> Result<ModelConfig, LaunchError> {
    let (training, folder) = (&config.training, &config.training.model_name_or_path);
    let model = ModelConfig::read(folder)?;
    if !is_wanted(training, &model) || model.head != Head::Language && training.num_labels.is_none() {
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

/// Makes a job that trains a classifier begin with the folder of one, and with rows end to end where the model sees padding.
///
/// # Errors
/// Data without labels, or with others than the model's; a head for other classes than those that are asked for; what such a job
/// cannot have.
pub(crate) fn settle(config: &mut Resolved, terminal: &Terminal) -> Result<(), LaunchError> {
    let folder = config.training.model_name_or_path.clone();
    let model = ModelConfig::read(&folder)?;
    if !is_wanted(&config.training, &model) {
        return Ok(());
    }
    refuse_what_does_not_fit(config)?;
    let files = crate::model_folder::weights(&folder)?;
    let own = own_classes(&folder, &model, &files)?;
    let (names, problem) = match &own {
        Some((names, problem)) => {
            check_own(&config.training, names)?;
            (names.clone(), config.training.problem_type.unwrap_or(*problem))
        }
        None => of_data(config)?,
    };
    if problem != ProblemType::SingleLabel && config.training.label_smoothing_factor > 0.0 {
        let message = format!(
            "label_smoothing_factor is {}, and problem_type is {problem}",
            config.training.label_smoothing_factor
        );
        return Err(LaunchError::usage(
            message,
            "labels are smoothed where a row is of one class of several: leave it out",
        ));
    }
    if !model.causal && !config.training.padding_free {
        config.training.padding_free = true;
        config.notes.push("rows lie end to end (padding_free): an encoder would see padding".to_owned());
    }
    let mut told = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        told = format!("{told} and {} more", names.len() - SHOWN);
    }
    terminal.say(&format!("class  {problem}, {}: {told}", format::plural(names.len() as u64, "label")));
    if own.is_some_and(|(_, before)| before == problem) {
        return Ok(());
    }
    let pad_token = Tokenizer::load(&folder)?.pad_id();
    let classifier = Classifier::of_model(&folder, &names, problem, Some(pad_token))?;
    let made = make(config, &classifier, &files)?;
    if let Some(told) = made.told {
        terminal.say(&format!("       {told}"));
    }
    config.training.model_name_or_path = made.folder;
    Ok(())
}

/// Makes an evaluation of a classifier one of rows end to end, where the model sees padding.
///
/// # Errors
/// A classifier without a trained head.
pub(crate) fn settle_evaluation(config: &mut Resolved, model: &ModelConfig) -> Result<(), LaunchError> {
    let Head::Classes { .. } = model.head else { return Ok(()) };
    let folder = config.training.model_name_or_path.clone();
    if own_classes(&folder, model, &crate::model_folder::weights(&folder)?)?.is_none() {
        let message = format!("it is a {} without a trained head ({})", model.architecture, model.names.classifier);
        let hint = "train it first: launch train makes a head for it (docs/classification.md)".to_owned();
        return Err(LaunchError::Model { path: folder, message, hint });
    }
    refuse_packing(config)?;
    config.training.padding_free |= !model.causal;
    Ok(())
}

/// Refuses what a job of a classifier cannot have.
fn refuse_what_does_not_fit(config: &Resolved) -> Result<(), LaunchError> {
    refuse_packing(config)?;
    if let Some(checkpoint) = &config.initial_checkpoint {
        let message = format!("{} is a checkpoint, and this job trains a classifier", checkpoint.display());
        return Err(LaunchError::usage(
            message,
            "make a model folder of it first: launch export CHECKPOINT --output DIR",
        ));
    }
    Ok(())
}

fn refuse_packing(config: &Resolved) -> Result<(), LaunchError> {
    if config.training.packing || config.training.eval_packing {
        let hint = "leave packing out; padding_free puts rows end to end without padding";
        return Err(LaunchError::usage("packing is for language models, and this model is a classifier", hint));
    }
    Ok(())
}

/// The classes that a model has a trained head for, and what it tells.
fn own_classes(
    folder: &Path,
    model: &ModelConfig,
    files: &ModelFiles,
) -> Result<Option<(Vec<String>, ProblemType)>, LaunchError> {
    let Head::Classes { labels, problem } = model.head else { return Ok(None) };
    let head = format!("{}.weight", model.names.classifier);
    if !files.contains(&head) {
        return Ok(None);
    }
    let names = label_names(folder)?.unwrap_or_else(|| numbered(labels));
    Ok(Some((names, problem)))
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

/// The classes that the data have, and what they tell, as far as the job does not say.
fn of_data(config: &Resolved) -> Result<(Vec<String>, ProblemType), LaunchError> {
    let training = &config.training;
    let mut found: Option<FoundLabels> = None;
    for source in training.dataset.sources() {
        let columns = job::columns(config, source.column_mapping.as_ref())?;
        let own = FoundLabels::of(&hub::sources(source, config, DataUse::Training)?, &columns)?;
        found = Some(match found {
            Some(before) => before.and(own),
            None => own,
        });
    }
    let found = found.unwrap_or_default();
    let of_one_number = (training.num_labels == Some(1)).then_some(ProblemType::Regression);
    let problem = training.problem_type.or(of_one_number).unwrap_or(found.problem());
    let names = found.classes(problem)?;
    let Some(count) = training.num_labels.map(|count| count as usize) else { return Ok((names, problem)) };
    let named = !found.names.is_empty();
    if count == names.len() || !named && problem != ProblemType::Regression && count > names.len() {
        return Ok((if named { names } else { numbered(count) }, problem));
    }
    let message = format!("num_labels is {count}, and the data have {} labels", names.len());
    Err(LaunchError::usage(
        message,
        "leave num_labels out, or make it as many; classes without a row are given by number",
    ))
}

/// Where folders of classifiers are made.
fn made_in(config: &Resolved) -> PathBuf {
    let cache = cache_folder::datasets(&config.training.output_dir).0;
    cache.parent().unwrap_or(&cache).join("classifiers")
}

/// A folder that was made.
struct Made {
    folder: PathBuf,
    /// Which parameters are new, in words.
    told: Option<String>,
}

/// Makes the folder of a classifier in the cache.
fn make(config: &Resolved, classifier: &Classifier, files: &ModelFiles) -> Result<Made, LaunchError> {
    let FileNames { parameters, prefix, old_ends, ignored } = classifier.config.file_names();
    let present = ModelFiles::open(files.directory())?.renamed(&Naming { parameters, prefix, old_ends, ignored });
    let new = classifier.new_parameters().into_iter().filter(|parameter| !present.contains(&parameter.name));
    let entries: Vec<TensorEntry> =
        new.map(|parameter| TensorEntry::new(parameter.name, Dtype::F32, parameter.shape)).collect();
    let identity = json!({
        "model": job::absolute(files.directory())?,
        "config": classifier.keys,
        "new": entries.iter().map(|entry| &entry.name).collect::<Vec<_>>(),
        "seed": config.training.seed,
    });
    let name = blake3::hash(identity.to_string().as_bytes()).to_hex();
    let folder = made_in(config).join(&name.as_str()[..16]);
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let told =
        (!names.is_empty()).then(|| format!("new, at random by seed {}: {}", config.training.seed, names.join(", ")));
    if !folder.join("config.json").is_file() {
        let failed = |source| LaunchError::system(format!("make {}", folder.display()))(source);
        fs::create_dir_all(folder.parent().unwrap_or(&folder)).map_err(failed)?;
        let staging = StagingDirectory::create(&folder)?;
        fill(staging.path(), classifier, &entries, config.training.seed)(files)?;
        staging.commit(true)?;
    }
    Ok(Made { folder, told })
}

/// Writes what the folder of a classifier holds.
fn fill<'a>(
    folder: &'a Path,
    classifier: &'a Classifier,
    entries: &'a [TensorEntry],
    seed: u64,
) -> impl Fn(&ModelFiles) -> Result<(), LaunchError> + 'a {
    move |files| {
        let source = job::absolute(files.directory())?;
        let failed = |error| LaunchError::system(format!("write into {}", folder.display()))(error);
        let write = |name: &str, content: &serde_json::Value| {
            let text = serde_json::to_string_pretty(content).unwrap_or_default();
            fs::write(folder.join(name), format!("{text}\n")).map_err(failed)
        };
        write("config.json", &classifier.keys.clone().into())?;
        for entry in fs::read_dir(&source).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name.to_str().is_some_and(|name| is_side_file(name) && name != "config.json") {
                symlink(source.join(&name), folder.join(&name)).map_err(failed)?;
            }
        }
        let mut places = BTreeMap::new();
        for (tensor, file) in ModelFiles::open(&source)?.tensors() {
            let name = file.path().file_name().unwrap_or_default();
            places.insert(tensor.name.to_owned(), name.to_string_lossy().into_owned());
            if !folder.join(name).exists() {
                symlink(source.join(name), folder.join(name)).map_err(failed)?;
            }
        }
        // A single file of this name would go before the index.
        let single = folder.join("model.safetensors");
        if single.exists() {
            fs::rename(&single, folder.join("model-before.safetensors")).map_err(failed)?;
            places
                .values_mut()
                .filter(|name| *name == "model.safetensors")
                .for_each(|name| *name = "model-before.safetensors".to_owned());
        }
        if !entries.is_empty() {
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            let mut writer = SafetensorsWriter::create(&folder.join(NEW_PARAMETERS), entries, &metadata)?;
            let mut random = Normal::new(seed);
            for entry in entries {
                let count: usize = entry.shape.iter().product();
                let values: Vec<f32> = match entry.shape.len() {
                    1 => vec![0.0; count],
                    _ => (0..count).map(|_| (classifier.initializer_range * random.draw()) as f32).collect(),
                };
                writer.write_f32(&entry.name, 0, &values)?;
                places.insert(entry.name.clone(), NEW_PARAMETERS.to_owned());
            }
            writer.finish()?;
        }
        write(INDEX, &json!({"metadata": {}, "weight_map": places}))
    }
}

/// Numbers of the standard normal distribution (Box and Muller, 1958).
struct Normal {
    random: ChaCha8Rng,
    /// The second of a pair.
    kept: Option<f64>,
}

impl Normal {
    fn new(seed: u64) -> Normal {
        Normal { random: ChaCha8Rng::seed_from_u64(seed), kept: None }
    }

    fn draw(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        // Above 0, so that it has a logarithm.
        let mut uniform = || -> f64 { (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 };
        let (radius, angle) = ((-2.0 * (1.0 - uniform()).ln()).sqrt(), std::f64::consts::TAU * uniform());
        self.kept = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// Keeps the folder that was made in the run's own, which outlives the cache and is seen by all hosts.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn keep(config: &mut Resolved, run: &RunFolder) -> Result<(), LaunchError> {
    let folder = config.training.model_name_or_path.clone();
    if folder.parent() != Some(&made_in(config)) {
        return Ok(());
    }
    let kept = run.initial_model();
    if !kept.join("config.json").is_file() {
        let failed = |error| LaunchError::system(format!("write {}", kept.display()))(error);
        let staging = StagingDirectory::create(&kept)?;
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let from = entry.map_err(failed)?.path();
            let to = staging.path().join(from.file_name().unwrap_or_default());
            match fs::read_link(&from) {
                Ok(target) => symlink(target, to).map_err(failed)?,
                Err(_) => _ = fs::copy(&from, to).map_err(failed)?,
            }
        }
        staging.commit(true)?;
    }
    config.training.model_name_or_path = kept;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_normal_and_of_the_seed() {
        let draw = |seed: u64| {
            let mut normal = Normal::new(seed);
            (0..40_000).map(|_| normal.draw()).collect::<Vec<_>>()
        };
        let numbers = draw(7);
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let moment = |power: i32| numbers.iter().map(|number| (number - mean).powi(power)).sum::<f64>() / count;
        assert!(mean.abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.2);
        assert_eq!(numbers, draw(7));
        assert_ne!(numbers, draw(8));
    }
}
