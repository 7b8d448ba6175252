//! Where the event files of a run lie.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::writer::is_event_file;
use crate::format;
use crate::watch::host_name;

/// A folder of event files, which TensorBoard shows as one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsFolder(PathBuf);

impl EventsFolder {
    /// The folder at `path`.
    pub fn at(path: PathBuf) -> EventsFolder {
        EventsFolder(path)
    }

    /// In `parent`, a folder for this start of a job, called by date and host. A job that goes on takes the newest that is
    /// there, so that its curves go on too.
    pub fn within(parent: &Path, goes_on: bool) -> EventsFolder {
        let earlier = goes_on.then(|| newest(parent)).flatten();
        EventsFolder(
            earlier.unwrap_or_else(|| parent.join(format!("{}_{}", format::stamp(SystemTime::now()), host_name()))),
        )
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The name of a file that is not there yet and stands after all that are: TensorBoard reads them by name.
    pub(super) fn new_file(&self) -> std::io::Result<PathBuf> {
        let mut seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for entry in std::fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let of = name.to_string_lossy().split('.').nth(3).and_then(|digits| digits.parse::<u64>().ok());
            // A clock that was set back must not put this file before them.
            seconds = seconds.max(of.filter(|of| *of < 10_000_000_000).map_or(0, |of| of + 1));
        }
        Ok(self.0.join(format!("events.out.tfevents.{seconds:010}.{}.{}.0", host_name(), std::process::id())))
    }
}

/// The folder that was written to last, of those with event files.
fn newest(parent: &Path) -> Option<PathBuf> {
    let written = |folder: &Path| {
        let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
        files.filter(|path| is_event_file(path)).filter_map(|path| path.metadata().ok()?.modified().ok()).max()
    };
    let folders = std::fs::read_dir(parent).ok()?.flatten().map(|entry| entry.path());
    let dated = folders.filter_map(|folder| Some((written(&folder)?, folder)));
    dated.max().map(|(_, folder)| folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_goes_on_writes_where_it_wrote_before() {
        let parent = tempfile::tempdir().unwrap();
        let fresh = EventsFolder::within(parent.path(), true);
        let name = fresh.path().file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.ends_with(&format!("_{}", host_name())) && name.len() > 16, "{name}");
        let old = parent.path().join("Jan01_00-00-00_old");
        std::fs::create_dir_all(&old).unwrap();
        std::fs::create_dir(parent.path().join("Zzz_no_events")).unwrap();
        std::fs::write(old.join("events.out.tfevents.9000000000.old.1.0"), "").unwrap();
        assert_eq!(EventsFolder::within(parent.path(), true).path(), old);
        assert_ne!(EventsFolder::within(parent.path(), false).path(), old);
        let file = EventsFolder::at(old).new_file().unwrap();
        let file = file.file_name().unwrap().to_string_lossy().into_owned();
        assert!(file.starts_with("events.out.tfevents.9000000001."), "{file}");
    }
}
