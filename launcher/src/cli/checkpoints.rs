//! What can be typed with `checkpoint`, `inspect`, `verify`, `diff`, `export` and `push`, and what it means.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::arguments::option;
use crate::checkpoints::{DEFAULT_TOP, DiffOptions, ExportDtype, ExportOptions, InspectOptions, VerifyOptions};
use crate::hub::PushOptions;

const PATH_HELP: &str = "A checkpoint (output_dir/checkpoints/step-…), a run's output_dir, s3://BUCKET/PREFIX of a run or of one step, or a Hugging \
     Face model folder";

const EXPORT_EXAMPLES: &str = "\
Examples:
  launch export runs/first --output models/first
      the newest checkpoint, in the type of the model that was trained
  launch export runs/first/checkpoints/step-00000020 --output models/step-20 --dtype float32
      an earlier step, as exact as it was saved

The folder appears whole or not at all, after every value in it was read back and compared with the checkpoint's.";

const PUSH_EXAMPLES: &str = "\
Examples:
  launch push runs/first --repo me/my-model
      the model of a run
  launch push models/first --repo me/my-model --revision experiment --private --message \"Three epochs\"
      an exported model folder, to a branch

Needs a token that may write: HF_TOKEN, or the file of `hf auth login`. The repository is made if it is not there. All files
become one commit, which comes last: what is interrupted before it changes nothing.";

/// The commands' definitions.
pub(super) fn commands() -> [Command; 6] {
    [checkpoint(), inspect(), verify(), diff(), export(), push()]
}

fn checkpoint() -> Command {
    Command::new("checkpoint")
        .about("Ask a run that is being trained for a checkpoint, and wait until it is saved")
        .override_usage("launch checkpoint RUN")
        .after_help("The run saves after its current step and goes on. `kill -USR1` of its launch does the same.")
        .arg(path("run", "RUN", "The run's output_dir, on this host"))
}

fn inspect() -> Command {
    Command::new("inspect")
        .about("Tell what lies in a checkpoint or a model folder; of a run, in its newest checkpoint")
        .override_usage("launch inspect PATH [--tensors] [--json]")
        .args_override_self(true)
        .arg(path("path", "PATH", PATH_HELP))
        .arg(switch("tensors", "List every parameter: name, shape, type, the files it lies in"))
        .arg(switch("json", "Print JSON, all sizes in bytes"))
}

fn verify() -> Command {
    Command::new("verify")
        .about(
            "Read every byte of checkpoints and model folders: hashes, sizes, headers, and that every value is finite",
        )
        .override_usage("launch verify PATH... [--json]")
        .after_help("A run's folder stands for all of its checkpoints. The exit code is 1 when anything is wrong.")
        .args_override_self(true)
        .arg(path("path", "PATH", PATH_HELP).num_args(1..).action(ArgAction::Append))
        .arg(switch("json", "Print JSON, with every affected parameter"))
}

fn diff() -> Command {
    Command::new("diff")
        .about("Compare two checkpoints or model folders, tensor by tensor")
        .override_usage("launch diff A B [--top N] [--json]")
        .after_help(
            "The exit code is 0 when all tensors are equal, 1 when some differ, 2 when they cannot be compared.",
        )
        .args_override_self(true)
        .arg(path("a", "A", PATH_HELP))
        .arg(path("b", "B", "The same, to compare with"))
        .arg(
            option("top", "N", format!("List the N tensors that differ most [default: {DEFAULT_TOP}]"))
                .value_parser(value_parser!(usize)),
        )
        .arg(switch("json", "Print JSON, with every tensor"))
}

fn export() -> Command {
    let folder =
        |name: &'static str, help: &'static str| option(name, "DIR", help).value_parser(value_parser!(PathBuf));
    Command::new("export")
        .about("Make a Hugging Face model folder out of a checkpoint")
        .override_usage("launch export CHECKPOINT --output DIR [OPTIONS]")
        .after_help(EXPORT_EXAMPLES)
        .args_override_self(true)
        .arg(path(
            "checkpoint",
            "CHECKPOINT",
            "A checkpoint, or a run's output_dir or s3://BUCKET/PREFIX for its newest one",
        ))
        .arg(folder("output", "The folder to make, which must not exist").required(true))
        .arg(
            option("dtype", "NAME", "The type of the weights [default: the run's save_dtype, else source]")
                .value_parser(clap::builder::PossibleValuesParser::new(ExportDtype::NAMES)),
        )
        .arg(
            option(
                "model",
                "NAME",
                "Where config.json and tokenizer come from: a folder, or a model of the hub [default: the run's model]",
            )
            .value_parser(value_parser!(PathBuf)),
        )
        .arg(model_revision().requires("model"))
}

fn push() -> Command {
    Command::new("push")
        .about("Upload a model folder to the Hugging Face hub, as one commit")
        .override_usage("launch push FOLDER --repo OWNER/NAME [OPTIONS]")
        .after_help(PUSH_EXAMPLES)
        .args_override_self(true)
        .arg(path("folder", "FOLDER", "A model folder, or a run's output_dir for its model"))
        .arg(option("repo", "OWNER/NAME", "The repository").required(true))
        .arg(option("revision", "BRANCH", "The branch, made if it is not there [default: main]"))
        .arg(switch("private", "If the repository has to be made, make it private"))
        .arg(option("message", "TEXT", "What is said about the commit"))
}

/// Which commit of a model of the hub is meant.
pub(super) fn model_revision() -> Arg {
    option("model_revision", "NAME", "Of a model of the hub: the branch, tag or commit [default: main]")
        .alias("model-revision")
}

fn path(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).value_name(value).help(help).required(true).value_parser(value_parser!(PathBuf))
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn given(matches: &ArgMatches, name: &str) -> PathBuf {
    matches.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

pub(super) fn run_meant(matches: &ArgMatches) -> PathBuf {
    given(matches, "run")
}

pub(super) fn inspect_meant(matches: &ArgMatches) -> InspectOptions {
    let (tensors, json) = (matches.get_flag("tensors"), matches.get_flag("json"));
    InspectOptions { path: given(matches, "path"), tensors, json }
}

pub(super) fn verify_meant(matches: &ArgMatches) -> VerifyOptions {
    let paths = matches.get_many::<PathBuf>("path").into_iter().flatten().cloned().collect();
    VerifyOptions { paths, json: matches.get_flag("json") }
}

pub(super) fn diff_meant(matches: &ArgMatches) -> DiffOptions {
    let top = matches.get_one::<usize>("top").copied().unwrap_or(DEFAULT_TOP);
    DiffOptions { left: given(matches, "a"), right: given(matches, "b"), top, json: matches.get_flag("json") }
}

pub(super) fn export_meant(matches: &ArgMatches) -> ExportOptions {
    let dtype = matches.get_one::<String>("dtype").and_then(|name| ExportDtype::from_name(name));
    let (checkpoint, output) = (given(matches, "checkpoint"), given(matches, "output"));
    let model = matches.get_one::<PathBuf>("model").cloned();
    let model_revision = matches.get_one::<String>("model_revision").cloned();
    ExportOptions { checkpoint, output, dtype, model, model_revision }
}

pub(super) fn push_meant(matches: &ArgMatches) -> PushOptions {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    PushOptions {
        folder: given(matches, "folder"),
        repo: text("repo").unwrap_or_default(),
        revision: text("revision"),
        private: matches.get_flag("private"),
        message: text("message"),
    }
}
