//! The command line: `launch [options] COMMAND [options]`.
//!
//! As typed → what is meant ([`Meant`]). Options of the job and every key may stand before or after the command; what
//! stands after goes before.

mod arguments;
mod checkpoints;
mod compare;
mod config;
mod cost;
mod data;
mod evaluate;
mod generate;
mod machine;
mod plan;
mod train;
mod watching;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ArgMatches;
use zerofold_configs::nearest;

use crate::bench::BenchOptions;
use crate::checkpoints::{DiffOptions, ExportOptions, InspectOptions, VerifyOptions};
use crate::compare::CompareOptions;
use crate::config_command::ConfigOptions;
use crate::cost::CostOptions;
use crate::data_command::DataOptions;
use crate::doctor::DoctorOptions;
use crate::error::LaunchError;
use crate::evaluate::EvaluateOptions;
use crate::generate::GenerateOptions;
use crate::hub::PushOptions;
use crate::plan::PlanOptions;
use crate::run_report::ReportOptions;
use crate::train::TrainOptions;
use crate::watch::StatusOptions;

/// The commands.
const COMMANDS: [&str; 19] = [
    "train",
    "plan",
    "cost",
    "compare",
    "config",
    "data",
    "evaluate",
    "generate",
    "status",
    "report",
    "checkpoint",
    "inspect",
    "verify",
    "diff",
    "export",
    "push",
    "doctor",
    "bench",
    "token",
];

/// What a command line means.
#[derive(Clone, Debug)]
pub enum Meant {
    /// Train.
    Train(Box<TrainOptions>),
    /// Tell what a job would need.
    Plan(Box<PlanOptions>),
    /// Tell what a job would take in time and money.
    Cost(Box<CostOptions>),
    /// Train a few steps in several configurations.
    Compare(Box<CompareOptions>),
    /// Show, check or write a configuration.
    Config(Box<ConfigOptions>),
    /// Look at data.
    Data(Box<DataOptions>),
    /// Measure models on held-out data.
    Evaluate(Box<EvaluateOptions>),
    /// Generate.
    Generate(Box<GenerateOptions>),
    /// Tell what a run is doing.
    Status(StatusOptions),
    /// Draw what runs did.
    Report(ReportOptions),
    /// Ask the run in this folder for a checkpoint.
    Checkpoint(PathBuf),
    /// Tell what lies in a checkpoint or model folder.
    Inspect(InspectOptions),
    /// Read every byte of checkpoints and model folders.
    Verify(VerifyOptions),
    /// Compare two of them.
    Diff(DiffOptions),
    /// Make a model folder out of a checkpoint.
    Export(ExportOptions),
    /// Upload a model folder to the hub.
    Push(PushOptions),
    /// Look at this machine.
    Doctor(Box<DoctorOptions>),
    /// Make a token by which the launches of a job know each other.
    Token(Option<PathBuf>),
    /// Measure this machine.
    Bench(Box<BenchOptions>),
}

/// Why there is nothing to run.
#[derive(Debug)]
pub enum CliError {
    /// Help, the version, or an error with usage, as clap words it.
    Clap(clap::Error),
    /// An error of ours.
    Launch(LaunchError),
}

impl From<clap::Error> for CliError {
    fn from(error: clap::Error) -> Self {
        CliError::Clap(error)
    }
}

impl From<LaunchError> for CliError {
    fn from(error: LaunchError) -> Self {
        CliError::Launch(error)
    }
}

/// Reads a command line, program name first. `on_terminal` tells whether a person can type on standard input.
pub fn parse(words: impl IntoIterator<Item = OsString>, on_terminal: bool) -> Result<Meant, CliError> {
    let words = say_no(leave_out_steps(attach_commands(words.into_iter().collect())));
    let matches = arguments::command().try_get_matches_from(words)?;
    match matches.subcommand() {
        Some(("train", after)) => Ok(Meant::Train(Box::new(train::meant(&matches, after)?))),
        Some(("plan", after)) => Ok(Meant::Plan(Box::new(plan::meant(&matches, after)?))),
        Some(("cost", after)) => Ok(Meant::Cost(Box::new(cost::meant(&matches, after)?))),
        Some(("compare", after)) => Ok(Meant::Compare(Box::new(compare::meant(&matches, after)?))),
        Some(("config", after)) => Ok(Meant::Config(Box::new(config::meant(&matches, after)?))),
        Some(("data", after)) => Ok(Meant::Data(Box::new(data::meant(&matches, after)?))),
        Some(("evaluate", after)) => Ok(Meant::Evaluate(Box::new(evaluate::meant(&matches, after)?))),
        Some(("generate", after)) => Ok(Meant::Generate(Box::new(generate::meant(&matches, after, on_terminal)?))),
        Some((
            command @ ("status" | "report" | "checkpoint" | "inspect" | "verify" | "diff" | "export" | "push"),
            after,
        )) => {
            refuse_job_options(&matches, command)?;
            Ok(match command {
                "status" => Meant::Status(watching::status_meant(after)),
                "report" => Meant::Report(watching::report_meant(after)),
                "checkpoint" => Meant::Checkpoint(checkpoints::run_meant(after)),
                "inspect" => Meant::Inspect(checkpoints::inspect_meant(after)),
                "verify" => Meant::Verify(checkpoints::verify_meant(after)),
                "diff" => Meant::Diff(checkpoints::diff_meant(after)),
                "push" => Meant::Push(checkpoints::push_meant(after)),
                _ => Meant::Export(checkpoints::export_meant(after)),
            })
        }
        Some(("doctor", after)) => Ok(Meant::Doctor(Box::new(machine::doctor(&matches, after)?))),
        Some(("bench", after)) => Ok(Meant::Bench(Box::new(machine::bench("bench", &matches, after)?))),
        Some(("token", after)) => {
            refuse_job_options(&matches, "token")?;
            Ok(Meant::Token(after.get_one::<PathBuf>("file").cloned()))
        }
        Some((other, _)) => Err(not_a_command(other).into()),
        None => Err(LaunchError::usage("no command", format!("the commands are {}", COMMANDS.join(", "))).into()),
    }
}

/// Options of a job have no meaning for a command that runs none.
fn refuse_job_options(before: &ArgMatches, command: &str) -> Result<(), LaunchError> {
    match train::job_options_given(before, &[]) {
        Some(name) => {
            let message = format!("--{name} has no meaning for {command}");
            Err(LaunchError::usage(message, format!("see `launch {command} --help`")))
        }
        None => Ok(()),
    }
}

/// `--resume train` and `--bf16 train` mean the command `train`, not a value: a word that is a command is never taken by an
/// option whose value may be left out.
fn attach_commands(mut words: Vec<OsString>) -> Vec<OsString> {
    for index in 1..words.len().saturating_sub(1) {
        let next_is_command = COMMANDS.iter().any(|command| words[index + 1] == *command);
        let Some(word) = words[index].to_str() else { continue };
        let Some(default) = word.strip_prefix("--").and_then(arguments::value_when_bare) else {
            continue;
        };
        if next_is_command {
            words[index] = format!("{word}={default}").into();
        }
    }
    words
}

/// `--no_gradient_checkpointing` is `--gradient_checkpointing=false`, as transformers' parser has it for what is true by default.
fn say_no(mut words: Vec<OsString>) -> Vec<OsString> {
    for word in &mut words {
        let name = word.to_str().and_then(|word| word.strip_prefix("--no_").or(word.strip_prefix("--no-")));
        if let Some(name) = name.filter(|name| arguments::is_switch(name)) {
            *word = format!("--{name}=false").into();
        }
    }
    words
}

/// `--profile steps 5..8` is `--profile 5..8`.
fn leave_out_steps(mut words: Vec<OsString>) -> Vec<OsString> {
    if let Some(index) = words.windows(2).position(|pair| pair[0] == "--profile" && pair[1] == "steps") {
        words.remove(index + 1);
    }
    words
}

fn not_a_command(word: &str) -> LaunchError {
    if word.ends_with(".py") {
        return LaunchError::usage(
            format!("{word}: launch runs no script; its command is `train`"),
            "what the script sets is given by --config FILE and by flags of the same names, for example:\n      launch --nproc \
             2 --config zero3.yaml train --model_name_or_path FOLDER --dataset FILE.jsonl --output_dir runs/mine",
        );
    }
    let hint = match nearest(word, COMMANDS) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the commands are {}; see `launch --help`", COMMANDS.join(", ")),
    };
    LaunchError::usage(format!("`{word}` is no command"), hint)
}

/// The value of an option, as typed after the command, else before it.
fn last<'a>(name: &str, before: &'a ArgMatches, after: &'a ArgMatches) -> Option<&'a String> {
    let value = |matches: &'a ArgMatches| matches.try_get_one::<String>(name).ok().flatten();
    value(after).or_else(|| value(before))
}

#[cfg(test)]
mod tests;
