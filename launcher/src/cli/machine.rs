//! What a command line with `doctor` or `bench` means.

use clap::ArgMatches;
use zerofold_configs::DeviceKind;

use super::train;
use crate::bench::BenchOptions;
use crate::doctor::DoctorOptions;
use crate::error::LaunchError;

pub(super) fn doctor(before: &ArgMatches, after: &ArgMatches) -> Result<DoctorOptions, LaunchError> {
    Ok(DoctorOptions {
        bench: bench("doctor", before, after)?,
        output_dir: after.get_one::<String>("output_dir").map_or_else(|| ".".into(), Into::into),
    })
}

pub(super) fn bench(command: &str, before: &ArgMatches, after: &ArgMatches) -> Result<BenchOptions, LaunchError> {
    if let Some(name) = train::job_options_given(before, &["nproc"]) {
        let message = format!("--{name} has no meaning before {command}");
        return Err(LaunchError::usage(message, format!("see `launch {command} --help`")));
    }
    Ok(BenchOptions {
        device: after.get_one::<String>("device").and_then(|name| DeviceKind::from_name(name)),
        nproc: train::nproc(before, after)?,
        quick: after.get_flag("quick"),
        json: after.get_flag("json"),
    })
}
