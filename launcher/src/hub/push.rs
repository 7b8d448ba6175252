//! The command `push`: a model folder becomes one commit of a repository, or nothing of it does.

use std::path::PathBuf;

use super::error::HubError;
use super::http::Client;
use super::lfs;
use super::local::{self, LocalFile};
use super::names::{RepoId, is_revision};
use super::place::MAIN;
use super::remote::{Fate, Mode, Remote, commit_body};
use super::settings::Settings;
use super::transfer::Transfer;
use crate::error::LaunchError;
use crate::format;
use crate::terminal::Terminal;

/// What the command line asks of `push`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushOptions {
    /// A model folder, or a run for its model.
    pub folder: PathBuf,
    /// `owner/name`.
    pub repo: String,
    /// The branch; without one, main.
    pub revision: Option<String>,
    /// Whether a repository that has to be made is to be private.
    pub private: bool,
    /// What is said about the commit.
    pub message: Option<String>,
}

/// Uploads a model folder and prints the address of the commit. Returns the exit code.
///
/// # Errors
/// What is no whole model folder, no token, and what the hub does not allow; the repository then has no new commit.
pub fn push(options: &PushOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let Some(id) = RepoId::parse(&options.repo).filter(|id| id.owner_and_name().0.is_some()) else {
        let message = format!("--repo {}: this can be no repository", options.repo);
        let hint = "give it as OWNER/NAME: your account or organization, and a name of letters, digits, - _ and .";
        return Err(LaunchError::usage(message, hint));
    };
    let branch = options.revision.as_deref().unwrap_or(MAIN);
    if !is_revision(branch) {
        return Err(LaunchError::usage(format!("--revision {branch}: this can be no branch"), "give a branch's name"));
    }
    let settings = Settings::from_environment();
    if let Some(variable) = settings.offline {
        let hint = "unset it: a push needs the network";
        return Err(LaunchError::usage(format!("the network must not be asked ({variable})"), hint));
    }
    if settings.token.is_none() {
        let hint = format!(
            "make one that may write at {}/settings/tokens, and set HF_TOKEN to it (or keep it in the file that `hf auth login` \
             writes)",
            settings.shown_endpoint()
        );
        return Err(HubError::refused(&id, "there is no token to push with", hint).into());
    }
    let folder = local::model_folder(&options.folder)?;
    terminal.tell(&format!("checking {}", folder.display()));
    local::check(&folder)?;
    let files = local::files(&folder, terminal)?;
    let client = Client::new(settings);
    let remote = Remote { client: &client, id: &id, branch };
    let committed = send(&remote, options, files, terminal)?;
    terminal.result(&committed);
    Ok(0)
}

/// All that the hub hears of it; gives the address of the commit, or of the branch where there is nothing new.
fn send(
    remote: &Remote<'_>,
    options: &PushOptions,
    files: Vec<LocalFile>,
    terminal: &Terminal,
) -> Result<String, LaunchError> {
    let before = remote.see_to(options.private)?;
    let fates = remote.fates(&files)?;
    let there: Vec<&str> = before.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
    let gone = stale(&there, |name| files.iter().any(|file| file.name == name));
    let wanted = |(file, fate): (LocalFile, Fate)| match fate {
        Fate::Commit(mode) => Some((file, mode)),
        Fate::Nothing => None,
    };
    let all = files.len();
    let changed: Vec<(LocalFile, Mode)> = files.into_iter().zip(fates).filter_map(wanted).collect();
    if changed.len() < all {
        terminal.tell(&format!("{} of {all} are there already", format::plural((all - changed.len()) as u64, "file")));
    }
    if changed.is_empty() && gone.is_empty() {
        terminal.tell(&format!("{} has this model already; there is nothing to commit", remote.id));
        return Ok(remote.client.address(&format!("{}/tree/{}", remote.id, remote.branch)));
    }
    let large: Vec<&LocalFile> = changed.iter().filter(|(_, mode)| *mode == Mode::Lfs).map(|(file, _)| file).collect();
    lfs::upload(remote, &large, |count, bytes| {
        let files = format::plural(count as u64, "large file");
        terminal.tell(&format!("uploading {files} ({}) to {}", format::bytes(bytes), remote.id));
        Transfer::new(terminal, "uploaded", bytes)
    })?;
    for name in &gone {
        terminal.tell(&format!("note: {name} belongs to the model that was there, and goes with it"));
    }
    let message = options.message.as_deref().unwrap_or("Upload model with Zerofold");
    let body =
        commit_body(message, &before.sha, &changed, &gone).map_err(LaunchError::system("read the model folder"))?;
    Ok(remote.commit(&body)?.commit_url)
}

/// Weights of the model that was there before, which would be read in place of the new ones, or beside them.
fn stale(there: &[&str], is_pushed: impl Fn(&str) -> bool) -> Vec<String> {
    let is_weight = |name: &str| {
        let part = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
        name == "model.safetensors"
            || name == "model.safetensors.index.json"
            || part.is_some_and(|it| it.contains("-of-"))
    };
    there.iter().filter(|name| is_weight(name) && !is_pushed(name)).map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_another_cut_go_and_nothing_else() {
        let there = [
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "model.safetensors",
            "README.md",
            "pytorch_model.bin",
            "adapter.safetensors",
            "sub/model.safetensors",
        ];
        let pushed = ["model.safetensors", "config.json"];
        let gone = stale(&there, |name| pushed.contains(&name));
        assert_eq!(gone, ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_anything_is_read() {
        let told = |repo: &str, revision: Option<&str>| {
            let folder = PathBuf::from("nowhere");
            let revision = revision.map(str::to_owned);
            let options = PushOptions { folder, repo: repo.to_owned(), revision, private: false, message: None };
            push(&options, &Terminal::silent()).unwrap_err().to_string()
        };
        assert!(told("model", None).contains("hint: give it as OWNER/NAME"));
        assert!(told("a/b/c", None).contains("can be no repository"));
        assert!(told("a/b", Some("../x")).contains("can be no branch"));
    }
}
