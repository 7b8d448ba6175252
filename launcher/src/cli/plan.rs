//! What a command line with `plan` means.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::train;
use crate::error::LaunchError;
use crate::plan::PlanOptions;

/// Options of a job that is run; a plan runs none.
const OF_A_RUN: [&str; 3] = ["resume", "timeout", "grace"];

pub(super) fn meant(before: &ArgMatches, after: &ArgMatches) -> Result<PlanOptions, LaunchError> {
    if let Some(name) = OF_A_RUN.iter().find(|name| before.value_source(name) == Some(ValueSource::CommandLine)) {
        let message = format!("--{name} has no meaning for plan");
        return Err(LaunchError::usage(message, "see `launch plan --help`"));
    }
    Ok(PlanOptions {
        inputs: train::inputs(before, after),
        model: after.get_one::<String>("model").cloned(),
        gpu_memory: after.get_one::<u64>("gpu-memory").copied(),
        json: after.get_flag("json"),
    })
}
