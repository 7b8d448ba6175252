//! What a command line with `generate` means.

use clap::parser::ValueSource;
use clap::{ArgMatches, Command, value_parser};
use zerofold_configs::{ComputeDtype, GenerateRequest};

use super::arguments::{bounded, configuration_options, flag, key_flags, option, waiting_options};
use super::train;
use crate::error::LaunchError;
use crate::generate::GenerateOptions;

const EXAMPLES: &str = "\
Examples:
  launch generate --model FOLDER                        chat at the terminal
  launch generate --model FOLDER --chat \"Hello\"         one answer
  launch generate --model FOLDER --prompt \"Once upon\"   continue a text
  launch generate --model FOLDER --dataset held-out.jsonl --output answers.jsonl
      answer each example, and compare with the answer that stands there
  launch --nproc 2 generate --model runs/zero3 --dataset held-out.jsonl --zero_stage 3
      by two processes that share the model; every key of `launch train --help` is a flag here too";

/// Options of a training that mean nothing here.
const OF_A_TRAINING: [&str; 4] = ["resume", "grace", "max-restarts", "log-format"];

/// With the options that are not the configuration's.
fn own() -> Command {
    let defaults = GenerateRequest::new("");
    let number = |name: &'static str, value: &'static str, help: &str, default: String| {
        flag(name).value_name(value).help(format!("{help} [default: {default}]")).help_heading("Sampling")
    };
    let [timeout, _, quiet] = waiting_options();
    let command = Command::new("generate")
        .about("Answer, continue or chat with a model")
        .override_usage("launch [OPTIONS] generate --model NAME [OPTIONS]")
        .after_help(EXAMPLES)
        .args_override_self(true)
        .arg(option("model", "NAME", "The model: a Hugging Face folder, or the hub's id owner/name").required(true))
        .arg(super::checkpoints::model_revision())
        .arg(option("prompt", "TEXT", "Continue this text").conflicts_with_all(["chat", "dataset"]))
        .arg(
            option("chat", "TEXT", "Answer this message by the chat template; without a text, chat")
                .num_args(0..=1)
                .default_missing_value("")
                .conflicts_with("dataset"),
        )
        .arg(option("system", "TEXT", "The system message of the chat"))
        .arg(option(
            "dataset",
            "FILE",
            "Answer each example of a JSONL file with `messages`, and compare; on --nproc processes, sharded as the configuration \
             says, --per_device_eval_batch_size at a time on each",
        ))
        .arg(option("output", "FILE", "Where the answers to --dataset are written, as JSONL").requires("dataset"))
        .arg(
            option("limit", "N", "At most so many examples of --dataset")
                .value_parser(value_parser!(u64).range(1..))
                .requires("dataset"),
        )
        .arg(
            number("max_new_tokens", "N", "At most so many new tokens", defaults.max_new_tokens.to_string())
                .value_parser(value_parser!(u32).range(1..)),
        )
        .arg(
            number(
                "temperature",
                "X",
                "Softmax temperature; 0 takes the likeliest token",
                defaults.temperature.to_string(),
            )
            .value_parser(temperature),
        )
        .arg(
            number("top_p", "X", "Sample among the likeliest tokens that hold this share", defaults.top_p.to_string())
                .value_parser(top_p),
        )
        .arg(
            number("top_k", "N", "Sample among so many likeliest tokens; 0 means all", defaults.top_k.to_string())
                .value_parser(value_parser!(u32)),
        )
        .arg(number("seed", "N", "Seed of the sampling", defaults.seed.to_string()).value_parser(value_parser!(u64)))
        .arg(
            option("dtype", "NAME", format!("The type to compute in [default: {}, or as the configuration of --dataset says]", defaults.dtype))
                .value_parser(clap::builder::PossibleValuesParser::new(ComputeDtype::NAMES)),
        );
    command.args([timeout, quiet])
}

pub(super) fn command() -> Command {
    let command = own();
    // Keys by names that mean something else here are not keys.
    let names = own_names();
    let keys = key_flags(true).into_iter().filter(|key| !names.iter().any(|name| key.get_id() == name.as_str()));
    command.args(configuration_options()).args(keys)
}

/// The options that are not the configuration's.
fn own_names() -> Vec<String> {
    own().get_arguments().map(|arg| arg.get_id().to_string()).collect()
}

fn temperature(text: &str) -> Result<f64, String> {
    bounded(text, |number| number >= 0.0, "temperature is a number of 0 or more")
}

fn top_p(text: &str) -> Result<f64, String> {
    bounded(text, |number| number > 0.0 && number <= 1.0, "top_p is a number above 0, at most 1")
}

pub(super) fn meant(
    before: &ArgMatches,
    matches: &ArgMatches,
    on_terminal: bool,
) -> Result<GenerateOptions, LaunchError> {
    let typed = |name: &str| before.value_source(name) == Some(ValueSource::CommandLine);
    if let Some(name) = OF_A_TRAINING.iter().find(|name| typed(name)) {
        let message = format!("--{name} has no meaning for generate");
        return Err(LaunchError::usage(message, "see `launch generate --help`"));
    }
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let mut request = GenerateRequest::new(text("model").unwrap_or_default());
    let message = text("chat");
    request.system = text("system");
    request.dataset = text("dataset").map(Into::into);
    request.output = text("output").map(Into::into);
    request.limit = matches.get_one::<u64>("limit").map(|&limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let plain = text("prompt");
    // Nothing asked for, and a person sits there: a chat.
    request.chat = message.is_some() || (on_terminal && plain.is_none() && request.dataset.is_none());
    request.prompt = plain.or(message.filter(|message| !message.is_empty()));
    if let Some(&count) = matches.get_one("max_new_tokens") {
        request.max_new_tokens = count;
    }
    if let Some(&temperature) = matches.get_one("temperature") {
        request.temperature = temperature;
    }
    if let Some(&top_p) = matches.get_one("top_p") {
        request.top_p = top_p;
    }
    if let Some(&top_k) = matches.get_one("top_k") {
        request.top_k = top_k;
    }
    if let Some(&seed) = matches.get_one("seed") {
        request.seed = seed;
    }
    let mut inputs = train::inputs(before, matches)?;
    let own = own_names();
    if let Some((name, _)) = inputs.flags.iter().find(|(name, _)| own.contains(name) && typed(name)) {
        let hint = format!("write it behind generate, where it is an option of its own: launch generate --{name} …");
        return Err(LaunchError::usage(format!("--{name} stands before generate"), hint));
    }
    inputs.flags.retain(|(name, _)| !own.contains(name));
    let names_model =
        inputs.flags.iter().find(|(name, _)| ["model_name_or_path", "output_dir"].contains(&name.as_str()));
    if let Some((name, value)) = names_model {
        let hint = "the model is --model, and what it answers goes to --output FILE";
        return Err(LaunchError::usage(format!("--{name} {value} has no meaning for generate"), hint));
    }
    let waits = [before, matches].iter().any(|it| it.value_source("timeout") == Some(ValueSource::CommandLine));
    let of_a_job = inputs.config.as_ref().map(|_| "config").or(inputs.nproc.map(|_| "nproc"));
    let of_a_job =
        of_a_job.or(inputs.set.first().map(|_| "set")).or(inputs.flags.first().map(|(name, _)| name.as_str()));
    let of_a_job = of_a_job.or(waits.then_some("timeout"));
    if let Some(name) = of_a_job.filter(|_| request.dataset.is_none()) {
        let hint =
            "answer a data set, or `launch evaluate MODEL --prompts FILE`, which answers by several processes too";
        return Err(LaunchError::usage(format!("--{name} has no meaning for generate without --dataset"), hint));
    }
    let of_data = [("output", request.output.is_some()), ("limit", request.limit.is_some())];
    if let Some((name, _)) = of_data.iter().find(|(_, given)| *given && request.dataset.is_none()) {
        let hint = "add --dataset FILE, or redirect standard output";
        return Err(LaunchError::usage(format!("--{name} belongs to a data set"), hint));
    }
    if request.system.is_some() && request.dataset.is_some() {
        let hint = "the system message of a row is one of its messages";
        return Err(LaunchError::usage("--system has no meaning with --dataset", hint));
    }
    if request.system.is_some() && !request.chat && request.dataset.is_none() {
        return Err(LaunchError::usage("--system needs a chat", "give --chat TEXT in place of --prompt TEXT"));
    }
    Ok(GenerateOptions {
        request,
        dtype: text("dtype").as_deref().and_then(ComputeDtype::from_name),
        model_revision: text("model_revision"),
        inputs,
        timeout: train::Patience::of(before, matches).timeout,
        quiet: before.get_flag("quiet") || matches.get_flag("quiet"),
    })
}
