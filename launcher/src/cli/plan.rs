//! What a command line with `plan` means.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::train;
use crate::error::LaunchError;
use crate::plan::{PlanOptions, parse_size};

/// Options of a job that is run; a plan runs none.
const OF_A_RUN: [&str; 3] = ["resume", "timeout", "grace"];

pub(super) fn meant(before: &ArgMatches, after: &ArgMatches) -> Result<PlanOptions, LaunchError> {
    if let Some(name) = OF_A_RUN.iter().find(|name| before.value_source(name) == Some(ValueSource::CommandLine)) {
        let message = format!("--{name} has no meaning for plan");
        return Err(LaunchError::usage(message, "see `launch plan --help`"));
    }
    let size = |text: &String| parse_size(text).map_err(|error| error.of_option("gpu-memory"));
    Ok(PlanOptions {
        inputs: train::inputs(before, after)?,
        model: after.get_one::<String>("model").cloned(),
        gpu_memory: after.get_one::<String>("gpu-memory").map(size).transpose()?,
        json: after.get_flag("json"),
    })
}
