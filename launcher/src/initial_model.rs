//! What a job begins with: a model folder, or a checkpoint, whose masters are the weights (a warm start).

use std::path::{Path, PathBuf};

use zerofold_checkpoint::{Found, Manifest, open_step};
use zerofold_configs::{HubModel, Resolved};

use crate::chat_template;
use crate::checkpoints::Place;
use crate::error::LaunchError;

/// The folder with config.json, tokenizer and template, and the checkpoint that the weights come from, if it is not that
/// folder.
pub(crate) struct InitialModel {
    pub(crate) folder: PathBuf,
    pub(crate) checkpoint: Option<PathBuf>,
    /// Where that folder came from, if the checkpoint's job had it from the hub.
    pub(crate) hub_model: Option<HubModel>,
    /// The text of the chat template that the checkpoint's job chose, and the token that ended its turns.
    pub(crate) chat_template: Option<String>,
    pub(crate) eos_token: Option<String>,
    /// What is to be told of it.
    pub(crate) note: Option<String>,
}

impl InitialModel {
    /// Looks what lies at a path: a step's folder, a run (its newest published step), or a model folder, which is not looked
    /// at here. The checkpoint's values are not looked at either.
    ///
    /// # Errors
    /// A run without a checkpoint; a checkpoint whose model is not known or not there any more.
    pub(crate) fn of(path: &Path) -> Result<Self, LaunchError> {
        let model = || {
            let (folder, hub_model) = (path.to_owned(), None);
            Ok(InitialModel { folder, checkpoint: None, hub_model, chat_template: None, eos_token: None, note: None })
        };
        if !path.is_dir() || path.join("config.json").is_file() {
            return model();
        }
        let place = match Place::of(path) {
            Ok(place) => place,
            // A folder with nothing of ours in it is refused as a model folder is.
            Err(_) if !path.join("config.resolved.yaml").exists() => return model(),
            Err(error) => return Err(error),
        };
        let step = match place.newest()? {
            Place::Step(step) => crate::job::absolute(&step)?,
            Place::Model(_) | Place::Run(..) => return model(),
        };
        let found = open_step(&step)?;
        let Ok(run) = configuration(&found).inspect_err(|error| tracing::debug!("{}: {error}", step.display())) else {
            let message = format!("{} does not tell which model it was trained from", step.display());
            return Err(LaunchError::usage(message, EXPORT));
        };
        let folder = &run.training.model_name_or_path;
        if !folder.join("config.json").is_file() {
            let (step, folder) = (step.display(), folder.display());
            let message = format!("{step} was trained from {folder}, and no config.json is there any more");
            return Err(LaunchError::usage(message, EXPORT));
        }
        let note = check_template(&found.manifest, &run)?;
        let Resolved { hub_model, chat_template, training, .. } = run;
        let (folder, eos_token) = (training.model_name_or_path, training.eos_token);
        Ok(InitialModel { folder, checkpoint: Some(step), hub_model, chat_template, eos_token, note })
    }
}

const EXPORT: &str =
    "make a model folder of it, `launch export CHECKPOINT --output DIR --model FOLDER`, and name that one";

/// The same job with the model's folder in place of a checkpoint, and that as where the weights come from.
pub(crate) fn settle(mut config: Resolved) -> Result<Resolved, LaunchError> {
    let model = InitialModel::of(&config.training.model_name_or_path)?;
    config.training.model_name_or_path = model.folder;
    config.initial_checkpoint = model.checkpoint;
    config.hub_model = model.hub_model;
    config.chat_template = model.chat_template;
    config.training.eos_token = config.training.eos_token.or(model.eos_token);
    config.notes.extend(model.note);
    Ok(config)
}

/// What is to be told where a checkpoint was trained in another type than is computed in now: its masters are not rounded then as they
/// were, which shows in small models' losses.
pub(crate) fn other_type(config: &Resolved) -> Option<String> {
    let before = configuration(&open_step(config.initial_checkpoint.as_deref()?).ok()?).ok()?;
    let (before, now) = (before.element_types().compute, config.element_types().compute);
    (before != now).then(|| {
        format!(
            "it was trained and evaluated in {before}, and is evaluated in {now} here; --mixed_precision says in which"
        )
    })
}

/// The configuration of the job that saved a checkpoint: what its manifest tells, else what lies in its run's folder.
pub(crate) fn configuration(found: &Found) -> Result<Resolved, LaunchError> {
    if let Some(job) = &found.manifest.job {
        return Resolved::of_value(job.configuration.clone()).map_err(|error| {
            let message =
                format!("the configuration in the manifest of {} cannot be read: {error}", found.directory.display());
            LaunchError::usage(message, "it was written by another version of launch")
        });
    }
    let absolute = crate::job::absolute(&found.directory)?;
    let root = absolute.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    Ok(Resolved::read(&root.join("config.resolved.yaml"))?)
}

/// The same configuration, which tells its model wherever a command is run that reads it.
pub(crate) fn anywhere(config: &Resolved) -> Resolved {
    let mut config = config.clone();
    if let Ok(model) = std::path::absolute(&config.training.model_name_or_path) {
        config.training.model_name_or_path = model;
    }
    config
}

/// A model that sees other tokens around its messages than those it was trained on is a worse model, and nothing else tells.
/// Gives what is to be told where the checkpoint does not say: one of a job without a template, or of an earlier version of
/// launch, which kept the hash of no template that it could not compile.
///
/// # Errors
/// The template of the configuration, or in its model's folder, is not the one that the checkpoint was trained with.
pub(crate) fn check_template(manifest: &Manifest, config: &Resolved) -> Result<Option<String>, LaunchError> {
    let folder = &config.training.model_name_or_path;
    check_digest(manifest, chat_template::digest(config), folder)
}

/// As [`check_template`], with the template's hash.
pub(crate) fn check_digest(
    manifest: &Manifest,
    here: Option<String>,
    folder: &Path,
) -> Result<Option<String>, LaunchError> {
    let there = manifest.job.as_ref().and_then(|job| job.chat_template.as_ref());
    let (folder, step) = (folder.display(), manifest.step);
    let words = |digest: &String| format!("the one with hash {}", chat_template::short(digest));
    let message = match (&here, there) {
        (here, there) if here.as_ref() == there => return Ok(None),
        (Some(here), None) => {
            return Ok(Some(format!(
                "the checkpoint of step {step} does not tell its chat template, so nothing says that it is that of {folder}, {}",
                words(here),
            )));
        }
        (here, there) => format!(
            "the chat template of {folder} is not that of the checkpoint of step {step}: here it is {}, there it was {}",
            here.as_ref().map_or_else(|| "none".to_owned(), words),
            there.map_or_else(|| "none".to_owned(), words),
        ),
    };
    let hint = "put the template back with which the model was trained, or give the job's chat_template_path";
    Err(LaunchError::usage(message, hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use zerofold_checkpoint::JobRecord;

    fn manifest(chat_template: Option<String>) -> Manifest {
        let job = JobRecord { configuration: json!({}), chat_template, data: None };
        serde_json::from_value(
            json!({"format_version": 2, "step": 7, "generation": 1, "world_size": 1, "stage": 0, "units": [],
            "state": {}, "job": job, "files": []}),
        )
        .unwrap()
    }

    #[test]
    fn another_template_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let template_digest = |folder: &Path| chat_template::digest_of(None, folder);
        let check_template =
            |manifest: &Manifest, folder: &Path| check_digest(manifest, template_digest(folder), folder);
        assert_eq!(check_template(&manifest(None), folder.path()).unwrap(), None);
        std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
        let digest = template_digest(folder.path());
        assert!(digest.is_some());
        assert_eq!(check_template(&manifest(digest.clone()), folder.path()).unwrap(), None);
        std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages[1].content }}").unwrap();
        let told = check_template(&manifest(digest), folder.path()).unwrap_err().to_string();
        assert!(told.contains("is not that of the checkpoint of step 7") && told.contains("hint: put"), "{told}");
        let note = check_template(&manifest(None), folder.path()).unwrap().unwrap();
        assert!(note.starts_with("the checkpoint of step 7 does not tell its chat template"), "{note}");
    }

    #[test]
    fn what_is_no_checkpoint_is_left_to_others() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("none"), folder.path().to_owned()] {
            let model = InitialModel::of(&path).unwrap();
            assert_eq!((model.folder, model.checkpoint), (path, None));
        }
        std::fs::write(folder.path().join("config.resolved.yaml"), "").unwrap();
        let told = InitialModel::of(folder.path()).err().unwrap().to_string();
        assert!(told.contains("has no checkpoint"), "{told}");
    }
}
