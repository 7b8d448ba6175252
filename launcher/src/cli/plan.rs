//! What a command line with `plan` means.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::train;
use crate::error::LaunchError;
use crate::plan::{PlanOptions, parse_size};

/// Options of a job that is run.
const OF_A_RUN: [&str; 3] = ["resume", "timeout", "grace"];

/// Options of a job that is run have no meaning for a command that runs none.
pub(super) fn refuse_options_of_a_run(before: &ArgMatches, command: &str) -> Result<(), LaunchError> {
    match OF_A_RUN.iter().find(|name| before.value_source(name) == Some(ValueSource::CommandLine)) {
        Some(name) => {
            let message = format!("--{name} has no meaning for {command}");
            Err(LaunchError::usage(message, format!("see `launch {command} --help`")))
        }
        None => Ok(()),
    }
}

pub(super) fn meant(before: &ArgMatches, after: &ArgMatches) -> Result<PlanOptions, LaunchError> {
    refuse_options_of_a_run(before, "plan")?;
    let size = |text: &String| parse_size(text).map_err(|error| error.of_option("gpu-memory"));
    Ok(PlanOptions {
        inputs: train::inputs(before, after)?,
        model: after.get_one::<String>("model").cloned(),
        gpu_memory: after.get_one::<String>("gpu-memory").map(size).transpose()?,
        json: after.get_flag("json"),
    })
}
