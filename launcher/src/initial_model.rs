//! What a job begins with: a model folder, or a checkpoint, whose masters are the weights (a warm start).

use std::path::{Path, PathBuf};

use zerofold_checkpoint::{Found, Manifest, open_step};
use zerofold_configs::{HubModel, Resolved};
use zerofold_data::ChatTemplate;

use crate::checkpoints::Place;
use crate::error::LaunchError;

/// The folder with config.json, tokenizer and template, and the checkpoint that the weights come from, if it is not that
/// folder.
pub(crate) struct InitialModel {
    pub(crate) folder: PathBuf,
    pub(crate) checkpoint: Option<PathBuf>,
    /// Where that folder came from, if the checkpoint's job had it from the hub.
    pub(crate) hub_model: Option<HubModel>,
}

impl InitialModel {
    /// Looks what lies at a path: a step's folder, a run (its newest published step), or a model folder, which is not looked
    /// at here. The checkpoint's values are not looked at either.
    ///
    /// # Errors
    /// A run without a checkpoint; a checkpoint whose model is not known or not there any more.
    pub(crate) fn of(path: &Path) -> Result<Self, LaunchError> {
        let model = || Ok(InitialModel { folder: path.to_owned(), checkpoint: None, hub_model: None });
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
        let run = configuration(&found).map(|run| (run.training.model_name_or_path, run.hub_model));
        let Ok((folder, hub_model)) = run.inspect_err(|error| tracing::debug!("{}: {error}", step.display())) else {
            let message = format!("{} does not tell which model it was trained from", step.display());
            return Err(LaunchError::usage(message, EXPORT));
        };
        if !folder.join("config.json").is_file() {
            let (step, folder) = (step.display(), folder.display());
            let message = format!("{step} was trained from {folder}, and no config.json is there any more");
            return Err(LaunchError::usage(message, EXPORT));
        }
        check_template(&found.manifest, &folder)?;
        Ok(InitialModel { folder, checkpoint: Some(step), hub_model })
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
    Ok(config)
}

/// The configuration of the job that saved a checkpoint: what its manifest tells, else what lies in its run's folder.
pub(crate) fn configuration(found: &Found) -> Result<Resolved, LaunchError> {
    if let Some(job) = &found.manifest.job {
        return serde_json::from_value(job.configuration.clone()).map_err(|error| {
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

/// The BLAKE3 hash of a model folder's chat template, if it has one.
pub(crate) fn template_digest(folder: &Path) -> Option<String> {
    ChatTemplate::load(folder).ok().map(|template| template.digest())
}

/// A model that sees other tokens around its messages than those it was trained on is a worse model, and nothing else tells.
///
/// # Errors
/// The template in `folder` is not the one that the checkpoint was trained with.
pub(crate) fn check_template(manifest: &Manifest, folder: &Path) -> Result<(), LaunchError> {
    let Some(job) = &manifest.job else { return Ok(()) };
    let here = template_digest(folder);
    if here == job.chat_template {
        return Ok(());
    }
    let words = |digest: Option<&String>| match digest {
        Some(digest) => format!("the one with hash {}…", digest.get(..16).unwrap_or(digest)),
        None => "none".to_owned(),
    };
    let message = format!(
        "the chat template of {} is not that of the checkpoint of step {}: here it is {}, there it was {}",
        folder.display(),
        manifest.step,
        words(here.as_ref()),
        words(job.chat_template.as_ref()),
    );
    Err(LaunchError::usage(message, "put the template back with which the model was trained"))
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
        assert!(check_template(&manifest(None), folder.path()).is_ok());
        std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
        let digest = template_digest(folder.path());
        assert!(digest.is_some() && check_template(&manifest(digest.clone()), folder.path()).is_ok());
        std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages[1].content }}").unwrap();
        let told = check_template(&manifest(digest), folder.path()).unwrap_err().to_string();
        assert!(told.contains("is not that of the checkpoint of step 7") && told.contains("hint: put"), "{told}");
        assert!(check_template(&manifest(None), folder.path()).unwrap_err().to_string().contains("there it was none"));
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
