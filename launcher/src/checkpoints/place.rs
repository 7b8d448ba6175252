//! What a path means: a step's folder, a run, or a model folder.

use std::path::{Path, PathBuf};

use zerofold_checkpoint::publish::{MANIFEST_FILE, step_of};
use zerofold_checkpoint::{Weights, steps};

use crate::error::LaunchError;
use crate::format;
use crate::model_folder;

const WHAT_TO_GIVE: &str =
    "give a checkpoint (output_dir/checkpoints/step-…), a run's output_dir, or a Hugging Face model folder";

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A step's folder, published or not.
    Step(PathBuf),
    /// A run, or its folder of checkpoints: the steps' folders, oldest first, published or not.
    Run(PathBuf, Vec<PathBuf>),
    /// A model folder.
    Model(PathBuf),
}

impl Place {
    /// Looks at the names in a folder.
    pub(crate) fn of(path: &Path) -> Result<Place, LaunchError> {
        let shown = path.display();
        if !path.exists() {
            return Err(LaunchError::usage(format!("there is no {shown}"), WHAT_TO_GIVE));
        }
        if !path.is_dir() {
            let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let hint = format!("give the folder that it lies in: {}", folder.display());
            return Err(LaunchError::usage(format!("{shown} is a file"), hint));
        }
        if path.join(MANIFEST_FILE).exists() || step_of(path).is_some() {
            return Ok(Place::Step(path.to_owned()));
        }
        for checkpoints in [path.join("checkpoints"), path.to_owned()] {
            let steps: Vec<_> = steps(&checkpoints)?.into_iter().map(|(_, directory)| directory).collect();
            if !steps.is_empty() {
                return Ok(Place::Run(path.to_owned(), steps));
            }
        }
        if ["model.safetensors", "model.safetensors.index.json", "config.json"]
            .iter()
            .any(|name| path.join(name).exists())
        {
            return Ok(Place::Model(path.to_owned()));
        }
        if !path.join("config.resolved.yaml").exists() {
            let message = format!("{shown} is neither a checkpoint nor a run nor a model folder");
            return Err(LaunchError::usage(message, WHAT_TO_GIVE));
        }
        let model = path.join("model");
        let hint = match model.join("config.json").exists() {
            true => format!("the model that it wrote is {}", model.display()),
            false => WHAT_TO_GIVE.to_owned(),
        };
        Err(LaunchError::usage(format!("the run {shown} has no checkpoint"), hint))
    }

    /// The same, with the newest published step in place of a run.
    pub(crate) fn newest(self) -> Result<Place, LaunchError> {
        let Place::Run(path, steps) = self else { return Ok(self) };
        match steps.iter().rfind(|step| is_published(step)) {
            Some(step) => Ok(Place::Step(step.clone())),
            None => {
                let (shown, count) = (path.display(), format::plural(steps.len() as u64, "step"));
                let message = format!("{shown} has no published checkpoint: {count} without a {MANIFEST_FILE}");
                Err(LaunchError::usage(message, "a save that was interrupted leaves such a folder; give another run"))
            }
        }
    }

    /// Opens what lies there; of a run, the newest published step.
    pub(super) fn open(path: &Path) -> Result<Weights, LaunchError> {
        match Place::of(path)?.newest()? {
            Place::Step(step) => Ok(Weights::of_checkpoint(&step)?),
            Place::Model(folder) | Place::Run(folder, _) => Ok(Weights::Model(model_folder::weights(&folder)?)),
        }
    }
}

/// Whether a step's folder has a manifest.
pub(super) fn is_published(step: &Path) -> bool {
    step.join(MANIFEST_FILE).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_told_by_what_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let told = |path: &Path| Place::of(path).unwrap_err().to_string();
        assert!(told(&path("none")).starts_with("there is no "), "{}", told(&path("none")));
        std::fs::create_dir_all(path("run/checkpoints")).unwrap();
        std::fs::write(path("run/config.resolved.yaml"), "").unwrap();
        assert!(told(&path("run")).contains("has no checkpoint\nhint: give a checkpoint"), "{}", told(&path("run")));
        assert!(told(&path("run/config.resolved.yaml")).contains("is a file\nhint: give the folder"));
        for step in ["step-00000005", "step-00000010"] {
            std::fs::create_dir(path("run/checkpoints").join(step)).unwrap();
        }
        let unfinished = Place::of(&path("run")).unwrap().newest().unwrap_err().to_string();
        assert!(unfinished.contains("2 steps without a manifest.json"), "{unfinished}");
        let fifth = path("run/checkpoints/step-00000005");
        std::fs::write(fifth.join(MANIFEST_FILE), "").unwrap();
        for run in [path("run"), path("run/checkpoints")] {
            let place = Place::of(&run).unwrap();
            assert!(matches!(&place, Place::Run(_, steps) if steps.len() == 2), "{place:?}");
        }
        assert_eq!(Place::of(&path("run")).unwrap().newest().unwrap(), Place::Step(fifth.clone()));
        assert_eq!(Place::of(&fifth).unwrap(), Place::Step(fifth));
        let tenth = path("run/checkpoints/step-00000010");
        assert_eq!(Place::of(&tenth).unwrap(), Place::Step(tenth));
        std::fs::create_dir(path("model")).unwrap();
        assert!(told(&path("model")).contains("is neither a checkpoint nor a run nor a model folder"));
        std::fs::write(path("model/config.json"), "{}").unwrap();
        assert_eq!(Place::of(&path("model")).unwrap(), Place::Model(path("model")));
        assert!(Place::open(&path("model")).unwrap_err().to_string().contains("no model.safetensors"));
    }
}
