//! What a command line with `compare` means.

use std::fmt::Display;

use clap::ArgMatches;
use clap::parser::ValueSource;
use zerofold_configs::{Backend, Stage, nearest};

use super::train;
use crate::compare::CompareOptions;
use crate::error::LaunchError;

/// Flags of a training that have another name here, and which.
const NAMED_OTHERWISE: [(&str, &str); 2] = [("zero_stage", "stages"), ("max_steps", "steps")];

pub(super) fn meant(before: &ArgMatches, after: &ArgMatches) -> Result<CompareOptions, LaunchError> {
    let unusable = |message: String, hint: &str| Err(LaunchError::usage(message, hint));
    for name in ["resume", "log-format"] {
        if before.value_source(name) == Some(ValueSource::CommandLine) {
            return unusable(format!("--{name} has no meaning for compare"), "see `launch compare --help`");
        }
    }
    let mut inputs = train::inputs(before, after)?;
    for (name, value) in &inputs.flags {
        if let Some((_, here)) = NAMED_OTHERWISE.iter().find(|(other, _)| name == other) {
            return unusable(format!("--{name} has no meaning for compare"), &format!("give --{here} {value}"));
        }
    }
    let accumulations = list(after, "accumulation", accumulation)?;
    if let (Some(_), Some((name, _))) =
        (&accumulations, inputs.flags.iter().find(|(name, _)| name == "gradient_accumulation_steps"))
    {
        return unusable(format!("--accumulation and --{name} name the same"), "give one of the two");
    }
    let backends =
        inputs.flags.iter().position(|(name, _)| name == "backend").map(|index| inputs.flags.remove(index).1);
    let defaults = CompareOptions::new(inputs);
    let train::Patience { timeout, grace } = train::Patience::of(before, after);
    Ok(CompareOptions {
        stages: list(after, "stages", stage)?.unwrap_or(defaults.stages),
        accumulations,
        backends: backends.map(|text| parse("backend", &text, backend)).transpose()?,
        steps: after.get_one::<u32>("steps").copied().unwrap_or(defaults.steps),
        rounds: after.get_one::<u32>("rounds").copied().unwrap_or(defaults.rounds),
        json: after.get_flag("json"),
        quiet: before.get_flag("quiet") || after.get_flag("quiet"),
        timeout,
        grace,
        ..CompareOptions::new(defaults.inputs)
    })
}

/// Why a value cannot be meant, and what can.
type Refusal = (String, String);

fn stage(text: &str) -> Result<Stage, Refusal> {
    let stage = text.parse::<u8>().ok().and_then(|number| Stage::try_from(number).ok());
    stage.ok_or_else(|| {
        (format!("`{text}` is no ZeRO stage"), "the stages are 0, 1, 2 and 3: --stages 0,1,2,3".to_owned())
    })
}

fn accumulation(text: &str) -> Result<u32, Refusal> {
    let number = text.parse::<u32>().ok().filter(|&number| number > 0);
    let hint = "give how many micro-batches a step has, 1 or more: --accumulation 1,4";
    number.ok_or_else(|| (format!("`{text}` is no number of micro-batches"), hint.to_owned()))
}

fn backend(text: &str) -> Result<Backend, Refusal> {
    Backend::from_name(text).ok_or_else(|| {
        let near = nearest(text, Backend::NAMES.iter().copied());
        let near = near.map(|near| format!("did you mean {near}? ")).unwrap_or_default();
        let hint = format!("{near}the backends are {}: --backend shm,gloo", Backend::NAMES.join(", "));
        (format!("`{text}` is no backend"), hint)
    })
}

fn list<T: PartialEq>(
    matches: &ArgMatches,
    name: &str,
    one: impl Fn(&str) -> Result<T, Refusal>,
) -> Result<Option<Vec<T>>, LaunchError> {
    matches.get_one::<String>(name).map(|text| parse(name, text, one)).transpose()
}

/// Values with commas between them, each once.
fn parse<T: PartialEq>(
    name: impl Display,
    text: &str,
    one: impl Fn(&str) -> Result<T, Refusal>,
) -> Result<Vec<T>, LaunchError> {
    let mut values = Vec::new();
    for word in text.split(',').map(str::trim) {
        let value =
            one(word).map_err(|(problem, hint)| LaunchError::usage(format!("--{name} {text}: {problem}"), hint))?;
        if values.contains(&value) {
            return Err(LaunchError::usage(format!("--{name} {text}: {word} stands there twice"), "name each once"));
        }
        values.push(value);
    }
    Ok(values)
}
