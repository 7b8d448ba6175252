//! What a URL means: a step in a store, or the steps of a run there.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use zerofold_checkpoint::publish::step_of;
use zerofold_checkpoint::{Examined, Found, examine_checkpoint};
use zerofold_configs::StoreUrl;
use zerofold_store::{CheckpointStore, StoredStep};

use crate::error::LaunchError;
use crate::event::Event;
use crate::{signals, store};

/// What lies at a URL.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) store: CheckpointStore,
    /// All steps of the run, oldest first, published or not.
    pub(super) steps: Vec<StoredStep>,
    /// The step that was named, published or not.
    named: Option<StoredStep>,
}

impl Remote {
    /// Looks at what is in the store, if this is a URL and no path.
    pub(super) fn of(path: &Path) -> Result<Option<Remote>, LaunchError> {
        let Some(text) = path.to_str().filter(|text| text.contains("://")) else { return Ok(None) };
        let hint = "give a checkpoint in a store (s3://BUCKET/PREFIX/step-…), a run's prefix there, or a folder";
        let refused = |message: String| LaunchError::usage(message, hint);
        let url = StoreUrl::parse(text).ok_or_else(|| refused(format!("{text} must be {}", StoreUrl::WORDS)))?;
        let (parent, name) = url.prefix().rsplit_once('/').unwrap_or(("", url.prefix()));
        let step = step_of(Path::new(name));
        let run = match step {
            Some(_) => StoreUrl::parse(&format!("s3://{}/{parent}", url.bucket())).unwrap_or_else(|| url.clone()),
            None => url.clone(),
        };
        let store = store::to_look_at(&run)?;
        let steps = store.steps()?;
        let named = step.map(|step| steps.iter().find(|stored| stored.step == step).cloned());
        match named {
            Some(None) => Err(refused(format!("there is no {url}"))),
            None if steps.is_empty() => Err(refused(format!("there is no checkpoint in {url}"))),
            named => Ok(Some(Remote { store, steps, named: named.flatten() })),
        }
    }

    /// The steps that it stands for: the one that was named, else all.
    pub(super) fn chosen(&self) -> &[StoredStep] {
        self.named.as_ref().map_or(&self.steps[..], std::slice::from_ref)
    }

    /// The one that was named, else the newest published one.
    pub(super) fn newest(&self) -> Result<&StoredStep, LaunchError> {
        let newest = || self.steps.iter().rfind(|stored| stored.is_published());
        self.named.as_ref().or_else(newest).ok_or_else(|| {
            let message = format!("{} has no published checkpoint", self.store.url());
            LaunchError::usage(message, "an upload that was interrupted leaves such steps; give another run")
        })
    }

    /// Its manifest, once all objects are there in their sizes; nothing else is read.
    pub(super) fn found(&self) -> Result<Found, LaunchError> {
        let stored = self.newest()?;
        let (manifest, _) = self.store.manifest(stored)?;
        Ok(Found { directory: self.store.step_url(stored.step).into(), manifest })
    }

    /// Brings it here, whole, until the second of these is dropped.
    pub(super) fn fetch(&self) -> Result<(Found, Temporary), LaunchError> {
        let temporary = Temporary::new()?;
        Ok((self.store.fetch(self.newest()?, temporary.path())?, temporary))
    }

    /// Brings a step here as it is, and looks at all of it.
    pub(super) fn examine(&self, stored: &StoredStep) -> Result<Examined, LaunchError> {
        let temporary = Temporary::new()?;
        let directory = self.store.copy_as_it_is(stored, temporary.path())?;
        Ok(Examined { path: self.store.step_url(stored.step).into(), ..examine_checkpoint(&directory) })
    }
}

/// A folder for what is looked at, in TMPDIR. It is removed in the end, by a signal too.
#[derive(Debug)]
pub(super) struct Temporary(tempfile::TempDir);

impl Temporary {
    fn new() -> Result<Self, LaunchError> {
        let place = std::env::temp_dir();
        let made = tempfile::Builder::new().prefix("zerofold-").tempdir_in(&place);
        let folder = made.map_err(LaunchError::system(format!("make a folder in {} (TMPDIR)", place.display())))?;
        remove_on_signals(folder.path().to_owned()).map_err(LaunchError::system("listen for signals"))?;
        Ok(Temporary(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn remove_on_signals(folder: PathBuf) -> std::io::Result<()> {
    static FOLDERS: OnceLock<Mutex<Vec<PathBuf>>> = OnceLock::new();
    let mut first = false;
    let folders = FOLDERS.get_or_init(|| {
        first = true;
        Mutex::default()
    });
    folders.lock().unwrap_or_else(PoisonError::into_inner).push(folder);
    if !first {
        return Ok(());
    }
    let (events, received) = std::sync::mpsc::channel();
    signals::listen(events)?;
    std::thread::Builder::new().name("cleaning".to_owned()).spawn(move || {
        for event in received {
            if let Event::Signal(signal) = event {
                for folder in folders.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    let _ = std::fs::remove_dir_all(folder);
                }
                std::process::exit(signal.exit_code().into());
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_schemes_are_refused_and_paths_are_none() {
        assert!(Remote::of(Path::new("runs/a:b//c")).unwrap().is_none());
        for text in ["gs://bucket/run", "az://bucket/run", "s3://bucket/../run", "https://bucket/run"] {
            let error = Remote::of(Path::new(text)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text} must be s3://BUCKET or s3://BUCKET/PREFIX")), "{error}");
        }
    }

    #[test]
    fn temporary_folders_go_when_they_are_dropped() {
        let temporary = Temporary::new().unwrap();
        let path = temporary.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(temporary);
        assert!(!path.exists());
    }
}
