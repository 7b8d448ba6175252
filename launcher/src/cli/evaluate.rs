//! What a command line with `evaluate` means, and what can be typed there.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use zerofold_configs::{GenerateRequest, Inputs};

use super::arguments::{configuration_options, key_flags, option, waiting_options};
use super::train;
use crate::error::LaunchError;
use crate::evaluate::EvaluateOptions;

const EXAMPLES: &str = "\
Examples:
  launch evaluate runs/zero3/model --dataset held-out.jsonl
      loss, perplexity and token accuracy of a model folder; a run, a checkpoint or a model of the hub too
  launch evaluate models/base runs/zero3 --dataset held-out.jsonl --prompts prompts.txt
      before and after, side by side, with what both answer
  launch --nproc 2 evaluate runs/zero3 --config runs/zero3/config.resolved.yaml
      on two processes, with the run's held-out data, lengths, template and sharding

Every key of `launch train --help` is a flag here too. Without --dataset it is the configuration's eval_dataset.";

/// Options of a training that mean nothing here.
const OF_A_TRAINING: [&str; 4] = ["resume", "grace", "max-restarts", "log-format"];

/// The names of the data: those of a training are not evaluated on, so each of them means the same here.
const DATA: [&str; 4] = ["dataset", "eval_dataset", "dataset_name", "datasets"];

pub(super) fn command() -> Command {
    let [timeout, _, quiet] = waiting_options();
    let most = GenerateRequest::new("").max_new_tokens;
    Command::new("evaluate")
        .about("Measure held-out loss, perplexity and token accuracy of models, side by side; nothing is trained")
        .override_usage("launch [OPTIONS] evaluate [MODEL]... [--dataset FILE] [OPTIONS]")
        .after_help(EXAMPLES)
        .args_override_self(true)
        .args(configuration_options())
        .arg(
            Arg::new("models")
                .value_name("MODEL")
                .num_args(0..)
                .help("Model folders, runs, checkpoints or models of the hub [default: the configuration's]"),
        )
        .arg(option("prompts", "FILE", "A prompt a line, which each model answers too"))
        .arg(
            option(
                "max_new_tokens",
                "N",
                format!("With --prompts: at most so many tokens of an answer [default: {most}]"),
            )
            .alias("max-new-tokens")
            .value_parser(value_parser!(u32).range(1..))
            .requires("prompts"),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON in place of the table"))
        .args([timeout, quiet])
        .args(key_flags(true))
        .mut_arg("model_name_or_path", |arg| arg.alias("model"))
        .mut_arg("dataset", |arg| {
            arg.hide(false).help_heading(None::<&'static str>).value_name("FILE").help(
                "The held-out data: files, folders, patterns or a data set of the hub [default: the configuration's \
                 eval_dataset]",
            )
        })
}

pub(super) fn meant(before: &ArgMatches, after: &ArgMatches) -> Result<EvaluateOptions, LaunchError> {
    let typed = |name: &&&str| before.value_source(name) == Some(ValueSource::CommandLine);
    if let Some(name) = OF_A_TRAINING.iter().find(typed) {
        let message = format!("--{name} has no meaning for evaluate");
        return Err(LaunchError::usage(message, "see `launch evaluate --help`"));
    }
    let mut inputs = train::inputs(before, after)?;
    if inputs.flags.iter().any(|(name, _)| name == "output_dir") {
        let hint = "it writes no files; --json prints what it found in a form for programs";
        return Err(LaunchError::usage("--output_dir has no meaning for evaluate", hint));
    }
    let dataset = take_one(&mut inputs, &DATA)?;
    let models: Vec<String> = after.get_many::<String>("models").into_iter().flatten().cloned().collect();
    if let (Some((name, value)), [model, ..]) =
        (inputs.flags.iter().find(|(name, _)| name == "model_name_or_path"), &models[..])
    {
        let message = format!("--{name} {value} and {model} both name a model");
        return Err(LaunchError::usage(
            message,
            format!("name them one after the other: launch evaluate {value} {model}"),
        ));
    }
    let train::Patience { timeout, .. } = train::Patience::of(before, after);
    Ok(EvaluateOptions {
        inputs,
        models,
        dataset,
        prompts: after.get_one::<String>("prompts").map(Into::into),
        max_new_tokens: after.get_one("max_new_tokens").copied().unwrap_or(GenerateRequest::new("").max_new_tokens),
        json: after.get_flag("json"),
        quiet: before.get_flag("quiet") || after.get_flag("quiet"),
        timeout,
    })
}

/// Takes the only flag of these names out.
fn take_one(inputs: &mut Inputs, names: &[&str]) -> Result<Option<String>, LaunchError> {
    let (mut found, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut inputs.flags).into_iter().partition(|(name, _)| names.contains(&name.as_str()));
    inputs.flags = others;
    match &found[..] {
        [(one, _), (other, _), ..] => {
            let message = format!("--{one} and --{other} both name the held-out data");
            Err(LaunchError::usage(message, "give one of the two"))
        }
        _ => Ok(found.pop().map(|(_, value)| value)),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use crate::cli::{CliError, Meant, parse};

    #[test]
    fn evaluate_takes_models_data_and_every_key() {
        let parse = |line: &str| parse(line.split_whitespace().map(OsString::from), false);
        let meant = |line: &str| match parse(line) {
            Ok(Meant::Evaluate(options)) => *options,
            other => panic!("{line}: {other:?}"),
        };
        let error = |line: &str| match parse(line).unwrap_err() {
            CliError::Clap(error) => error.to_string(),
            CliError::Launch(error) => error.to_string(),
        };
        let options = meant("launch evaluate a b --dataset d.jsonl --json");
        assert_eq!((options.models, options.dataset), (vec!["a".into(), "b".into()], Some("d.jsonl".into())));
        assert_eq!((options.inputs.flags, options.json, options.prompts), (Vec::new(), true, None));
        let options = meant("launch --nproc 2 --bf16 evaluate --config run.yaml --prompts p.txt --max_new_tokens 8");
        assert_eq!((options.models.len(), options.dataset, options.inputs.nproc), (0, None, Some(2)));
        assert_eq!((options.prompts, options.max_new_tokens), (Some("p.txt".into()), 8));
        assert_eq!(options.inputs.flags, [("bf16".to_owned(), "true".to_owned())]);
        let options = meant("launch evaluate --model m --eval_dataset d --max_length 9");
        assert_eq!((options.dataset, options.inputs.flags.len()), (Some("d".into()), 2));
        for (line, parts) in [
            ("launch evaluate a --dataset d --eval_dataset e", "both name the held-out data\nhint: give one"),
            ("launch evaluate a --model b --dataset d", "--model_name_or_path b and a both name a model\nhint: "),
            ("launch evaluate a --output_dir b", "--output_dir has no meaning for evaluate\nhint: it writes no files"),
            ("launch --resume evaluate a", "--resume has no meaning for evaluate"),
            ("launch evaluate a --max_new_tokens 8", "--prompts"),
            ("launch evaluate a --learning_rat 1", "--learning_rate"),
            ("launch evaluat a", "did you mean `evaluate`?"),
        ] {
            assert!(error(line).contains(parts), "{line}: {}", error(line));
        }
    }
}
