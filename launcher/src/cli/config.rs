//! What a command line with `config` means, and what can be typed there.

use clap::{Arg, ArgAction, ArgMatches, Command};
use zerofold_configs::Form;

use super::arguments::{configuration_options, key_flags, option};
use super::{last, plan, train};
use crate::config_command::{ConfigAction, ConfigOptions, Target};
use crate::error::LaunchError;

const EXAMPLES: &str = "\
Examples:
  launch config show --config zero3.yaml --changed
      what is decided, and where each value came from
  launch config check --config mine.yaml
      whether `train` would take it, without running
  launch config init --zero_stage 3 --bf16 --dataset chat.jsonl --output mine.yaml
      a commented file out of flags
  launch config convert --config mine.yaml --to accelerate --output accelerate.yaml
      the same job for accelerate launch; --to deepspeed writes a JSON
  launch config schema > zerofold.schema.json
      what an editor needs to complete and check such files";

pub(super) fn command() -> Command {
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let action = |name: &'static str, about: &'static str| {
        Command::new(name)
            .about(about)
            .override_usage(format!("launch config {name} [OPTIONS]"))
            .after_help("Every key of `launch train --help` is a flag here too.")
            .args_override_self(true)
            .args(configuration_options())
            .args(key_flags(true))
            .mut_arg("model_name_or_path", |arg| arg.alias("model"))
    };
    let output = |command: Command| {
        command
            .mut_arg("output", |arg| {
                arg.hide(false).num_args(1).value_name("FILE").help("The file to write [default: standard output]")
            })
            .arg(switch("force", "Overwrite a file that is there"))
    };
    let to = option("to", "FORM", "Whose file it is to be")
        .required(true)
        .value_parser(clap::builder::PossibleValuesParser::new(Form::NAMES));
    Command::new("config")
        .about("Show, check, write or convert a configuration; nothing is started")
        .override_usage("launch config ACTION [OPTIONS]")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            action("show", "Print every key with its value and where it came from")
                .arg(switch("json", "Print JSON"))
                .arg(switch("changed", "Leave out what is at its default")),
        )
        .subcommand(action("check", "Tell whether `train` would take this configuration"))
        .subcommand(output(action("init", "Write a commented file out of flags")))
        .subcommand(output(action("convert", "Write it as another program's file, or as ours")).arg(to))
        .subcommand(Command::new("schema").about("Print the JSON Schema of the file, for editors"))
}

pub(super) fn meant(before: &ArgMatches, after: &ArgMatches) -> Result<ConfigOptions, LaunchError> {
    let (name, after) = after.subcommand().unwrap_or(("show", after));
    plan::refuse_options_of_a_run(before, "config")?;
    if name == "schema" {
        return Ok(ConfigOptions { inputs: Default::default(), action: ConfigAction::Schema });
    }
    let mut inputs = train::inputs(before, after)?;
    let target = || Target { output: last("output", before, after).map(Into::into), force: after.get_flag("force") };
    let action = match name {
        "show" => ConfigAction::Show { json: after.get_flag("json"), changed: after.get_flag("changed") },
        "check" => ConfigAction::Check,
        "init" => ConfigAction::Init(target()),
        _ => {
            let form = after.get_one::<String>("to").and_then(|name| Form::from_name(name));
            ConfigAction::Convert(form.unwrap_or(Form::Zerofold), target())
        }
    };
    // Elsewhere `--output` is somebody's word for output_dir.
    if matches!(action, ConfigAction::Init(_) | ConfigAction::Convert(..)) {
        inputs.flags.retain(|(name, _)| name != "output");
    }
    Ok(ConfigOptions { inputs, action })
}
