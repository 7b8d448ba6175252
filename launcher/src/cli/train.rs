//! What a command line with `train` means.

use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;
use zerofold_configs::{Inputs, Kind, flag_names};

use super::last;
use crate::environment::MAX_RESTARTS;
use crate::error::LaunchError;
use crate::logs::LogFormat;
use crate::run_folder::Resume;
use crate::train::TrainOptions;

const TIMEOUT_SECONDS: u64 = 1800;
const GRACE_SECONDS: u64 = 60;

pub(super) fn meant(before: &ArgMatches, after: &ArgMatches) -> Result<TrainOptions, LaunchError> {
    if let Some(script) = after.get_many::<String>("script").and_then(|mut words| words.next()) {
        return Err(super::not_a_command(script));
    }
    let resume = last("resume", before, after).map(|step| match step.as_str() {
        "newest" => Resume::Newest,
        step => Resume::Step(step.into()),
    });
    let Patience { timeout, grace } = Patience::of(before, after);
    let typed = after.get_one("max-restarts").or_else(|| before.get_one("max-restarts")).copied();
    let max_restarts = typed.map_or_else(restarts_of_environment, Ok)?;
    Ok(TrainOptions {
        inputs: inputs(before, after)?,
        resume,
        quiet: before.get_flag("quiet") || after.get_flag("quiet"),
        timeout,
        grace,
        log_format: log_format(before, after),
        max_restarts,
    })
}

/// What torchrun's environment says of restarts.
fn restarts_of_environment() -> Result<u32, LaunchError> {
    let Ok(value) = std::env::var(MAX_RESTARTS) else { return Ok(0) };
    value.trim().parse().map_err(|_| {
        let message = format!("{MAX_RESTARTS} in the environment is {value:?}, which is no number of restarts");
        LaunchError::usage(message, "unset it, or give a number from 0; --max-restarts goes before it")
    })
}

/// The form of messages that was typed.
pub(super) fn log_format(before: &ArgMatches, after: &ArgMatches) -> Option<LogFormat> {
    last("log-format", before, after).and_then(|name| LogFormat::from_name(name))
}

/// How long is waited for ranks.
pub(super) struct Patience {
    /// That have not joined, or are silent.
    pub(super) timeout: Duration,
    /// That were asked to stop.
    pub(super) grace: Duration,
}

impl Patience {
    pub(super) fn of(before: &ArgMatches, after: &ArgMatches) -> Patience {
        let seconds = |name: &str, default: u64| {
            let typed = after.get_one::<u64>(name).or_else(|| before.get_one::<u64>(name));
            Duration::from_secs(typed.copied().unwrap_or(default))
        };
        Patience { timeout: seconds("timeout", TIMEOUT_SECONDS), grace: seconds("grace", GRACE_SECONDS) }
    }
}

/// The configuration as it was typed, before and after the command.
pub(super) fn inputs(before: &ArgMatches, after: &ArgMatches) -> Result<Inputs, LaunchError> {
    let set =
        [before, after].iter().filter_map(|matches| matches.get_many::<String>("set")).flatten().cloned().collect();
    let value = |name: &str| match zerofold_configs::KEYS.iter().find(|key| key.name == name).map(|key| key.kind) {
        Some(Kind::Freeze) => {
            let typed = |matches: &ArgMatches| -> Vec<String> {
                let values = matches.try_get_many::<String>(name).ok().flatten();
                values.map(|values| values.cloned().collect()).unwrap_or_default()
            };
            let all = [typed(before), typed(after)].concat();
            (!all.is_empty()).then(|| all.join(","))
        }
        _ => last(name, before, after).cloned(),
    };
    let flags = flag_names().into_iter().filter_map(|name| Some((name.to_owned(), value(name)?)));
    Ok(Inputs {
        config: last("config", before, after).cloned(),
        set,
        flags: flags.collect(),
        nproc: nproc(before, after)?,
        devices: crate::gpus::count(),
        environment: zerofold_configs::ENVIRONMENT
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .collect(),
        joined: None,
    })
}

/// The processes that were asked for on the command line.
pub(super) fn nproc(before: &ArgMatches, after: &ArgMatches) -> Result<Option<u32>, LaunchError> {
    let Some(&typed) = after.get_one::<i64>("nproc").or_else(|| before.get_one("nproc")) else { return Ok(None) };
    match u32::try_from(typed) {
        Ok(nproc @ 1..) => Ok(Some(nproc)),
        _ => Err(LaunchError::usage(
            format!("--nproc is {typed}, which is not allowed: a job has from 1 to {} processes", u32::MAX),
            "pass --nproc 1 or more, one process per rank; without --nproc it is the file's num_processes, else 1",
        )),
    }
}

/// An option of a training job that was typed before another command, if any but `allowed`. (`--quiet` asks for nothing
/// that matters.)
pub(super) fn job_options_given<'a>(before: &'a ArgMatches, allowed: &[&str]) -> Option<&'a str> {
    let mut names = before.ids().map(clap::Id::as_str).filter(|name| *name != "quiet" && !allowed.contains(name));
    names.find(|name| before.value_source(name) == Some(ValueSource::CommandLine))
}
