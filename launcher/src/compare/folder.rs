//! Where a comparison is written: `compare.html` and `compare.json`, and while it is at work one run at a time.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::LaunchError;
use crate::run_folder::{LOCK, RunFolder};
use crate::terminal::Terminal;

const PAGE: &str = "compare.html";
const JSON: &str = "compare.json";
/// The run at work. What a comparison that ended early left of it is removed by the next one.
const RUN: &str = "compare.run";

/// The folder of a comparison.
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The folder at `root`, in which a comparison may begin: it does not exist, is empty, or holds one that never ended.
    ///
    /// # Errors
    /// It holds a comparison, or something else.
    pub(super) fn fresh(root: PathBuf) -> Result<Folder, LaunchError> {
        let folder = Folder { root };
        let entries = match std::fs::read_dir(&folder.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(folder),
            Err(error) => return Err(folder.error(error.to_string(), "give a folder that can be read and written")),
        };
        for entry in entries {
            let entry = entry.map_err(LaunchError::system(format!("read {}", folder.root.display())))?;
            let name = entry.file_name();
            if name == PAGE || name == JSON {
                let message = format!("there is a comparison in it ({})", name.to_string_lossy());
                return Err(folder.error(message, "remove it, or give another folder by --output_dir"));
            }
            if name != RUN && name != LOCK {
                let message = format!("the folder is not empty (it holds {})", name.to_string_lossy());
                return Err(folder.error(message, "give another folder by --output_dir"));
            }
        }
        Ok(folder)
    }

    /// Takes the folder, which is made if need be, for this process until the file is dropped, and clears it of what an
    /// earlier comparison left.
    pub(super) fn take(&self, terminal: &Terminal) -> Result<File, LaunchError> {
        let lock = RunFolder::new(&self.root).lock(|line| terminal.complain(&line))?;
        self.remove_run()?;
        Ok(lock)
    }

    /// Where the run at work is.
    pub(super) fn run(&self) -> PathBuf {
        self.root.join(RUN)
    }

    /// Removes the run that was at work.
    pub(super) fn remove_run(&self) -> Result<(), LaunchError> {
        match std::fs::remove_dir_all(self.run()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(LaunchError::system(format!("remove {}", self.run().display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes both files; returns the page's path.
    pub(super) fn write(&self, page: &str, json: &str) -> Result<PathBuf, LaunchError> {
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).map_err(LaunchError::system(format!("write {}", path.display())))
        };
        write(&self.root.join(JSON), json)?;
        let path = self.root.join(PAGE);
        write(&path, page)?;
        Ok(path)
    }

    fn error(&self, message: impl Into<String>, hint: impl Into<String>) -> LaunchError {
        LaunchError::RunFolder { path: self.root.clone(), message: message.into(), hint: hint.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_comparison_that_never_ended_is_taken_over() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("compare");
        let folder = Folder::fresh(root.clone()).unwrap();
        let terminal = Terminal::silent();
        drop(folder.take(&terminal).unwrap());
        std::fs::create_dir_all(folder.run().join("logs")).unwrap();
        drop(Folder::fresh(root.clone()).unwrap().take(&terminal).unwrap());
        assert!(!folder.run().exists());
        folder.write("page", "{}").unwrap();
        let error = Folder::fresh(root.clone()).err().unwrap().to_string();
        assert!(
            error.contains("there is a comparison in it (compare.") && error.contains("hint: remove it"),
            "{error}"
        );
        std::fs::remove_file(root.join(PAGE)).unwrap();
        std::fs::remove_file(root.join(JSON)).unwrap();
        std::fs::write(root.join("metrics.jsonl"), "{}\n").unwrap();
        let error = Folder::fresh(root.clone()).err().unwrap().to_string();
        assert!(error.contains("is not empty (it holds metrics.jsonl)"), "{error}");
        assert_eq!(std::fs::read_to_string(root.join("metrics.jsonl")).unwrap(), "{}\n");
    }
}
