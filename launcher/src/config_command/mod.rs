//! The command `config`: the configuration itself, as something to look at, check and write. Nothing is started.
//!
//! ```text
//! ConfigOptions ─ zerofold_configs::outline ─┬ show    (every key, its value, where it came from)
//!                                            ├ check   (what `train` would refuse, and what lies there)
//!                                            └ write   (init: a file of ours; convert: another program's)
//! ```

mod check;
mod show;
mod write;

use std::path::PathBuf;

use zerofold_configs::{Form, Inputs, schema};

use crate::error::LaunchError;
use crate::terminal::Terminal;

/// What the command line asks of `config`.
#[derive(Clone, Debug)]
pub struct ConfigOptions {
    /// The configuration, as written.
    pub inputs: Inputs,
    /// What is done with it.
    pub action: ConfigAction,
}

/// What is done with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigAction {
    /// It is shown.
    Show {
        /// As JSON.
        json: bool,
        /// Only what is not at its default.
        changed: bool,
    },
    /// It is checked.
    Check,
    /// It is written as a file of ours.
    Init(Target),
    /// It is written as a file of this form.
    Convert(Form, Target),
    /// The schema of the file is printed.
    Schema,
}

/// Where a file is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The file; none for standard output.
    pub output: Option<PathBuf>,
    /// Whether a file that is there is overwritten.
    pub force: bool,
}

/// Does it; returns the exit code.
///
/// # Errors
/// A configuration that `train` would refuse too; for all but `check` without complaints about paths that are not named.
/// A file that is there already or cannot be written.
pub fn config(options: &ConfigOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let inputs = &options.inputs;
    match &options.action {
        ConfigAction::Show { json, changed } => show::show(inputs, *json, *changed, terminal)?,
        ConfigAction::Check => check::check(inputs, terminal)?,
        ConfigAction::Init(target) => write::write(inputs, Form::Zerofold, target, terminal)?,
        ConfigAction::Convert(form, target) => write::write(inputs, *form, target, terminal)?,
        ConfigAction::Schema => {
            terminal.result(&serde_json::to_string_pretty(&schema()).unwrap_or_default());
        }
    }
    Ok(0)
}
