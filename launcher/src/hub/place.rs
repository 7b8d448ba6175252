//! What a model's name means: a folder of this machine, or a model of the hub.

use std::path::{Path, PathBuf};

use zerofold_configs::{HubModel, Resolved, nearest};

use super::error::{HubError, HubTrouble};
use super::http::Client;
use super::model::Extent;
use super::names::RepoId;
use super::settings::Settings;
use super::snapshot::{Request, Snapshot, short};
use crate::error::LaunchError;
use crate::terminal::Terminal;

/// The branch that a repository has from its beginning.
pub(super) const MAIN: &str = "main";
const MODEL_REVISION: &str = "model_revision";

/// A model as it was named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelName<'a> {
    /// A folder, or a repository.
    pub(crate) name: &'a Path,
    /// The revision, if one was asked for.
    pub(crate) revision: Option<&'a str>,
}

impl ModelName<'_> {
    /// The model on this machine, brought here if it is one of the hub; a folder of this name goes before. A name that can be
    /// neither is given back as it is: whoever reads the folder says what is wrong with it.
    pub(crate) fn find(self, extent: Extent, terminal: &Terminal) -> Result<(PathBuf, Option<HubModel>), LaunchError> {
        let Some(id) = self.repository() else { return Ok((self.name.to_owned(), None)) };
        let client = Client::new(Settings::from_environment());
        let revision = self.revision.unwrap_or(MAIN);
        let found = Request { client: &client, id: &id, revision, wanted: &extent, terminal }.snapshot();
        let Snapshot { commit, folder } = found.map_err(|error| explained(error, self.name, "folder", Path::is_dir))?;
        Ok((folder, Some(HubModel { id: id.to_string(), revision: revision.to_owned(), commit })))
    }

    /// The repository that is meant where there is no such folder.
    fn repository(self) -> Option<RepoId> {
        if self.name.exists() { None } else { RepoId::of_path(self.name) }
    }
}

/// Whether a model of this name would be looked for on the hub: there is no such folder, and it can be a repository.
pub(crate) fn is_repository(name: &Path) -> bool {
    ModelName { name, revision: None }.repository().is_some()
}

/// What the hub does not have may be the misspelt name of something on this machine: `what`, for which a path `fits`.
pub(super) fn explained(mut error: HubError, name: &Path, what: &str, fits: impl Fn(&Path) -> bool) -> HubError {
    if matches!(error.trouble, HubTrouble::Refused | HubTrouble::Failed) {
        return error;
    }
    let joined = if error.trouble == HubTrouble::NotHere { ";" } else { ", and" };
    error.message = format!("there is no such {what}{joined} {}", error.message);
    if let Some(near) = near(name, fits) {
        error.hint = format!("did you mean the {what} {}? Else: {}", near.display(), error.hint);
    }
    error
}

/// What fits and has nearly this name.
fn near(path: &Path, fits: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let parent = path.parent()?;
    let look = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let found = std::fs::read_dir(look).ok()?.flatten().filter(|entry| fits(&entry.path()));
    let names: Vec<String> = found.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let near = nearest(path.file_name()?.to_str()?, names.iter().map(String::as_str))?;
    Some(parent.join(near))
}

/// Brings the model of a job to this machine and makes the configuration name its folder there. A run that is gone on with
/// keeps the commit that it began with, which its own configuration tells.
///
/// # Errors
/// The hub does not have it, does not give it, or does not answer.
pub(crate) fn bring(
    config: &mut Resolved,
    earlier: Option<&Resolved>,
    extent: Extent,
    terminal: &Terminal,
) -> Result<(), LaunchError> {
    let told = config.provenance.get(MODEL_REVISION).filter(|place| *place != "default").cloned();
    let (name, revision) = (config.training.model_name_or_path.clone(), config.training.model_revision.clone());
    let earlier = earlier.and_then(|earlier| earlier.hub_model.as_ref());
    let same = earlier.filter(|model| {
        Path::new(&model.id) == name && (told.is_none() || [&model.revision, &model.commit].contains(&&revision))
    });
    let pinned = same.map_or(revision.as_str(), |model| model.commit.as_str());
    let (folder, model) = ModelName { name: &name, revision: Some(pinned) }.find(extent, terminal)?;
    match (model, told) {
        (Some(mut model), _) => {
            if let Some(same) = same {
                model.revision = same.revision.clone();
            }
            config.training.model_name_or_path = folder;
            config.hub_model = Some(model);
        }
        (None, Some(place)) if name.exists() => {
            let note = format!("model_revision ({place}) has no effect: {} is a folder", name.display());
            terminal.tell(&format!("note: {note}"));
            config.notes.push(note);
        }
        (None, _) => {}
    }
    Ok(())
}

/// A model as it is told to people: by its name on the hub, with the commit, or by its folder.
pub(crate) fn shown(config: &Resolved) -> String {
    match &config.hub_model {
        Some(HubModel { id, revision, commit }) if revision == commit => format!("{id} at {}", short(commit)),
        Some(HubModel { id, revision, commit }) => format!("{id} at {} ({revision})", short(commit)),
        None => config.training.model_name_or_path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_before_a_repository() {
        let folder = tempfile::tempdir().unwrap();
        let name = |path: &Path| ModelName { name: path, revision: None }.repository();
        assert_eq!(name(folder.path()), None);
        assert_eq!(name(&folder.path().join("none")), None, "an absolute path is no repository");
        assert_eq!(name(Path::new("src")), None, "the crate's own folder of sources");
        assert_eq!(name(Path::new("owner/model")).unwrap().to_string(), "owner/model");
    }

    #[test]
    fn a_misspelt_folder_is_guessed() {
        let near = |path| near(Path::new(path), Path::is_dir);
        assert_eq!(near("src/hob"), Some(PathBuf::from("src/hub")));
        assert_eq!(near("tets"), Some(PathBuf::from("tests")));
        assert_eq!(near("nowhere/model"), None);
    }
}
