//! The command `report`: what runs did, as one page.
//!
//! ```text
//! run folder ─ run ─┬ metrics.jsonl → history → curves, events
//!                   ├ plan.json              → parts
//!                   └ config.resolved.yaml   → configuration   → page
//! ```

mod configuration;
mod curves;
mod history;
mod page;
mod parts;
mod run;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::LaunchError;
use crate::terminal::Terminal;
use run::Run;

/// The page's name where no other is given.
const NAME: &str = "report.html";

/// What the command line asks of `report`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportOptions {
    /// The run folders.
    pub runs: Vec<PathBuf>,
    /// Where the page goes; without it, the folder of the one run, or the working directory.
    pub output: Option<PathBuf>,
}

/// Writes the page; returns the exit code.
///
/// # Errors
/// A folder is no run, something in it cannot be read, or the page cannot be written.
pub fn report(options: &ReportOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let mut runs = options.runs.iter().map(|path| Run::read(path)).collect::<Result<Vec<_>, _>>()?;
    run::name(&mut runs);
    let output = match (&options.output, &options.runs[..]) {
        (Some(output), _) => output.clone(),
        (None, [only]) => only.join(NAME),
        (None, _) => PathBuf::from(NAME),
    };
    let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    write(&output, &page::page(&runs, made)).map_err(LaunchError::system(format!("write {}", output.display())))?;
    terminal.result(&format!("report: {}", output.display()));
    Ok(0)
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_into_the_run_or_where_it_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("metrics.jsonl"), "{\"step\":1,\"loss\":2.0}\n").unwrap();
        let runs = vec![folder.path().to_owned()];
        report(&ReportOptions { runs: runs.clone(), output: None }, &Terminal::silent()).unwrap();
        assert!(std::fs::read_to_string(folder.path().join("report.html")).unwrap().starts_with("<!DOCTYPE html>"));
        let other = folder.path().join("other.html");
        report(&ReportOptions { runs: runs.clone(), output: Some(other.clone()) }, &Terminal::silent()).unwrap();
        assert!(other.is_file());
        let nowhere = ReportOptions { runs, output: Some(folder.path().join("no/such/folder.html")) };
        let told = report(&nowhere, &Terminal::silent()).unwrap_err().to_string();
        assert!(told.contains("cannot write ") && told.contains("no/such/folder.html"), "{told}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "nothing else is left");
    }
}
