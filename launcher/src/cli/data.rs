//! What a command line with `data` means, and what can be typed there.

use clap::{Arg, ArgAction, ArgMatches, Command};
use zerofold_configs::nearest;
use zerofold_data::FindingKind;

use super::arguments::{configuration_options, key_flags, option};
use super::{last, plan, train};
use crate::data_command::{DataOptions, Filtered};
use crate::error::LaunchError;

const EXAMPLES: &str = "\
Examples:
  launch data check --config zero3.yaml
      this job's training and held-out data, with its model's template and tokenizer
  launch data check --data chat.jsonl --eval_dataset held-out.jsonl
      files by themselves: what their text tells
  launch data check --data 'data/*.parquet' --model_name_or_path FOLDER --max_length 2048 --json
  launch data check --data chat.jsonl --drop duplicates,near-duplicates,short --output clean.jsonl
      a copy without the rows of these findings

Every key of `launch train --help` is a flag here too. The exit code is 1 when something was found that would stop or spoil a
training: unreadable, refused, leaks, near-leaks.";

pub(super) fn command() -> Command {
    let drop = format!(
        "With --output: leave out the rows of these findings: {}",
        FindingKind::ALL.map(FindingKind::name).join(", ")
    );
    let check = Command::new("check")
        .about("Tell what is wrong with data before they are trained on, or write a copy without it")
        .override_usage("launch data check [--config FILE] [--data FILE...] [OPTIONS]")
        .after_help(EXAMPLES)
        .args_override_self(true)
        .args(configuration_options())
        .arg(
            option("data", "FILE", "Training data in place of the configuration's `dataset`: files, folders, patterns")
                .num_args(1..)
                .action(ArgAction::Append),
        )
        .arg(option("drop", "KINDS", drop))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .args(key_flags(true))
        .mut_arg("model_name_or_path", |arg| arg.visible_alias("model"))
        .mut_arg("output", |arg| {
            arg.hide(false)
                .num_args(1)
                .value_name("FILE")
                .help("With --drop: the JSONL file to write; nothing is overwritten")
        });
    Command::new("data")
        .about("Look at data before they are trained on; nothing is started")
        .override_usage("launch data check [OPTIONS]")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(check)
}

pub(super) fn meant(before: &ArgMatches, after: &ArgMatches) -> Result<DataOptions, LaunchError> {
    let (_, after) = after.subcommand().unwrap_or(("check", after));
    plan::refuse_options_of_a_run(before, "data check")?;
    let mut inputs = train::inputs(before, after)?;
    // Elsewhere `--output` is somebody's word for output_dir.
    inputs.flags.retain(|(name, _)| name != "output");
    let drop = after.get_one::<String>("drop").map(|text| kinds(text)).transpose()?;
    let filtered = match (drop, last("output", before, after)) {
        (Some(drop), Some(output)) => Some(Filtered { drop, output: output.into() }),
        (None, None) => None,
        (Some(_), None) => {
            let hint = "name the copy too: --output clean.jsonl";
            return Err(LaunchError::usage("--drop writes a copy, and --output is missing", hint));
        }
        (None, Some(_)) => {
            let hint = "say what is left out of the copy: --drop duplicates,short";
            return Err(LaunchError::usage("--output writes a copy, and --drop is missing", hint));
        }
    };
    let data = after.get_many::<String>("data").into_iter().flatten().cloned().collect();
    Ok(DataOptions { inputs, data, filtered, json: after.get_flag("json") })
}

/// The kinds of a list with commas, each once.
fn kinds(text: &str) -> Result<Vec<FindingKind>, LaunchError> {
    let mut kinds = Vec::new();
    for name in text.split(',').map(str::trim) {
        let names = FindingKind::ALL.map(FindingKind::name);
        let Some(kind) = FindingKind::from_name(&name.replace('_', "-")) else {
            let hint = match nearest(name, names) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("the findings are {}", names.join(", ")),
            };
            return Err(LaunchError::usage(format!("--drop {text}: `{name}` is no finding"), hint));
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use crate::cli::{CliError, Meant, parse};

    #[test]
    fn data_check_takes_files_every_key_and_findings() {
        let parse = |line: &str| parse(line.split_whitespace().map(OsString::from), false);
        let data = |line: &str| match parse(line) {
            Ok(Meant::Data(options)) => *options,
            other => panic!("{line}: {other:?}"),
        };
        let error = |line: &str| match parse(line).unwrap_err() {
            CliError::Clap(error) => error.to_string(),
            CliError::Launch(error) => error.to_string(),
        };
        let options = data("launch data check --config zero3.yaml");
        assert_eq!((options.data.len(), options.filtered, options.json), (0, None, false));
        let options = data("launch data check --data a.jsonl b.jsonl --data c/ --model m --max_length 64 --json");
        assert_eq!((options.data, options.json), (vec!["a.jsonl".into(), "b.jsonl".into(), "c/".into()], true));
        assert_eq!(options.inputs.flags.len(), 2, "{:?}", options.inputs.flags);
        let options = data("launch data check --data a --drop duplicates,near_duplicates,duplicates --output b.jsonl");
        let filtered = options.filtered.unwrap();
        let names: Vec<&str> = filtered.drop.iter().map(|kind| kind.name()).collect();
        assert_eq!((names, filtered.output), (vec!["duplicates", "near-duplicates"], "b.jsonl".into()));
        assert_eq!(options.inputs.flags, []);
        for (line, parts) in [
            ("--drop short", "--drop writes a copy, and --output is missing\nhint: "),
            ("--output b.jsonl", "--output writes a copy, and --drop is missing\nhint: "),
            ("--drop shrt --output b", "--drop shrt: `shrt` is no finding\nhint: did you mean short?"),
            ("--drop x,y --output b", "`x` is no finding\nhint: the findings are unreadable, refused"),
            ("--data", "--data <FILE>"),
        ] {
            let told = error(&format!("launch data check {line}"));
            assert!(told.contains(parts), "{line}: {told}");
        }
        assert!(error("launch --resume data check").contains("--resume has no meaning for data check"));
        assert!(error("launch data chek").contains("check"));
    }
}
