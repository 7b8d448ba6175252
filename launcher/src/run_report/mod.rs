//! The command `report`.

use std::path::PathBuf;

/// What the command line asks of `report`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportOptions {
    /// The run folders.
    pub runs: Vec<PathBuf>,
    /// Where the page goes.
    pub output: Option<PathBuf>,
}
