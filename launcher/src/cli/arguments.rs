//! What can be typed, with its help.

use std::ops::RangeInclusive;

use clap::builder::styling::AnsiColor;
use clap::builder::{StyledStr, Styles};
use clap::{Arg, ArgAction, Command, value_parser};
use zerofold_configs::{DefaultValue, DeviceKind, Group, KEYS, Key, Kind, flag_names, other_keys};
use zerofold_plan::ModelConfig;

use crate::compare::{DEFAULT_ROUNDS, DEFAULT_STEPS};
use crate::logs::LogFormat;

/// A longer list of names stands in the help line, not in place of the value.
const PLACEHOLDER_LETTERS: usize = 24;

/// Seconds: a third of a year, which the clock's arithmetic still holds.
const LONGEST_WAIT: u64 = 10_000_000;

const EXAMPLES: &str = "\
Examples:
  launch --nproc 2 --config zero3.yaml train
      fine-tune the demo model on two processes, everything sharded
  launch --config zero3.yaml train --learning_rate 5e-5 --output_dir runs/second
      the same with two values changed; every key of the file is a flag
  launch --config accelerate.yaml train --model_name_or_path FOLDER --dataset FILE --output_dir X
      an Accelerate file of your own, the rest by flags
  launch --config zero3.yaml --resume train
      go on from the newest whole checkpoint
  launch plan --config zero3.yaml
      what each stage would need, and which one fits
  launch cost --model llama-7b --gpus 8 --examples 10000
      how long that takes and what it costs; --scale, --break-even, --published
  launch compare --config zero3.yaml
      a few steps of each stage: which one is fastest here
  launch config show --config zero3.yaml
      every key, its value and where it came from; check, init and convert are there too
  launch data check --config zero3.yaml
      what is wrong with the data, before they are trained on
  launch status runs/zero3
      what a run is doing; launch report draws what it did
  launch evaluate models/base runs/zero3 --dataset held-out.jsonl
      held-out loss, perplexity and token accuracy before and after
  launch generate --model runs/zero3/model --chat \"Hello\"
      ask the result something
  launch export runs/zero3 --output models/mine
      the newest checkpoint as a model folder; inspect, verify and diff look at checkpoints too
  launch --nnodes 2 --node-rank 0 --rdzv-endpoint HOST0:29500 --token-file FILE --config zero3.yaml train
      on two hosts: the same on each, with its own node rank; `launch token FILE` makes the token
  launch doctor
      what on this machine would hurt a job, and how to mend it

Presets for --config: ddp.yaml, zero1.yaml, zero2.yaml, zero3.yaml, sft-basic.yaml, sft-recipe.yaml.
`launch train --help` lists every key; `launch COMMAND --help` what each of the others can do.";

const TRAIN_NOTE: &str = "Each of these is also a key of the file, in its section `training:` or in Accelerate's own part, \
    and can be given by --set KEY=VALUE. Flags go before --set, --set before the file, the file before the defaults.";

const PLAN_EXAMPLES: &str = "\
Examples:
  launch plan --config zero3.yaml
      the job of a file, against this machine's memory
  launch --nproc 8 plan --model_name_or_path FOLDER --bf16 --gpu-memory 80GiB
      a model folder (its config.json is enough), against GPUs
  launch --nproc 8 plan --model llama-70b --bf16 --gpu-memory 80GiB --max_length 4096 --json
      a published shape, as JSON

Every key of `launch train --help` is a flag here too; data and output_dir are not needed.
A plan leaves 10 % of the memory free.";

const COMPARE_EXAMPLES: &str = "\
Examples:
  launch compare --config zero3.yaml
      every stage with this job's model and data
  launch compare --config zero3.yaml --backend shm,gloo --stages 0,3
      what a wire costs, beside shared memory
  launch compare --config zero3.yaml --accumulation 1,4 --output_dir runs/accumulation

Every key of `launch train --help` is a flag here too; --backend takes a list. Nothing is evaluated, saved or exported.
Writes compare.html (for any browser, without a network) and compare.json to --output_dir [default: runs/compare].";

/// The option whose value may be left out, and what it is then, by its name with `_` or `-`.
pub(super) fn value_when_bare(name: &str) -> Option<&'static str> {
    let name = name.replace('-', "_");
    if name == "resume" {
        return Some("newest");
    }
    let key = KEYS.iter().find(|key| key.name == name);
    match key {
        Some(key) => (key.kind == Kind::Switch).then_some("true"),
        None => flag_names().contains(&name.as_str()).then_some("true"),
    }
}

/// Whether the option of this name, with `_` or `-`, is true or false.
pub(super) fn is_switch(name: &str) -> bool {
    let name = name.replace('-', "_");
    KEYS.iter().any(|key| key.name == name && key.kind == Kind::Switch)
}

/// The whole command line.
pub(super) fn command() -> Command {
    let styles = Styles::styled()
        .header(AnsiColor::Green.on_default().bold())
        .usage(AnsiColor::Green.on_default().bold())
        .literal(AnsiColor::Cyan.on_default().bold())
        .placeholder(AnsiColor::Cyan.on_default());
    Command::new("launch")
        .about("Fine-tunes Hugging Face language models on many devices at once, with ZeRO sharding.")
        .version(env!("CARGO_PKG_VERSION"))
        .styles(styles)
        .max_term_width(110)
        .override_usage("launch [OPTIONS] train [OPTIONS]\n       launch [OPTIONS] plan [OPTIONS]\n       launch [OPTIONS] cost [OPTIONS]\n       launch [OPTIONS] compare [OPTIONS]\n       launch config ACTION [OPTIONS]\n       launch data check [OPTIONS]\n       launch [OPTIONS] evaluate [MODEL]... [OPTIONS]\n       launch [OPTIONS] generate --model NAME [OPTIONS]\n       launch status RUN [OPTIONS]\n       launch report RUN... [OPTIONS]\n       launch checkpoint RUN\n       launch inspect PATH [OPTIONS]\n       launch verify PATH... [OPTIONS]\n       launch diff A B [OPTIONS]\n       launch export CHECKPOINT --output DIR [OPTIONS]\n       launch push FOLDER --repo OWNER/NAME [OPTIONS]\n       launch doctor [OPTIONS]\n       launch bench [OPTIONS]\n       launch token [FILE]")
        .after_help(EXAMPLES)
        .allow_external_subcommands(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args_override_self(true)
        .args(job_options())
        .args(key_flags(true))
        .subcommand(train())
        .subcommand(plan())
        .subcommand(super::cost::command())
        .subcommand(compare())
        .subcommand(super::config::command())
        .subcommand(super::data::command())
        .subcommand(super::evaluate::command())
        .subcommand(super::generate::command())
        .subcommands(super::watching::commands())
        .subcommands(super::checkpoints::commands())
        .subcommand(doctor())
        .subcommand(bench())
        .subcommand(token())
}

fn train() -> Command {
    Command::new("train")
        .about("Fine-tune a model: one process per rank, supervised until the model is written")
        .override_usage("launch [OPTIONS] train [OPTIONS]")
        .after_help(format!(
            "{TRAIN_NOTE} Also read, as Accelerate and its trainers have them: {}.",
            other_keys().join(", ")
        ))
        .args_override_self(true)
        .args(job_options())
        .args(key_flags(false))
        .mut_arg("model_name_or_path", |arg| arg.visible_alias("model"))
        // Somebody who comes from `accelerate launch … train.py`.
        .arg(Arg::new("script").hide(true).num_args(0..).trailing_var_arg(true))
}

fn plan() -> Command {
    Command::new("plan")
        .about("Tell what a job would need on each rank, stage by stage, and which stage to take; nothing is run")
        .override_usage("launch [OPTIONS] plan [OPTIONS]")
        .after_help(PLAN_EXAMPLES)
        .args_override_self(true)
        .args(configuration_options())
        .arg(option(
            "model",
            "NAME",
            format!("A published shape in place of a model: {}", ModelConfig::PUBLISHED.join(", ")),
        ))
        .arg(
            option("gpu-memory", "SIZE", "Memory of one GPU, such as 80GiB [default: this machine's, over its ranks]")
                .alias("gpu_memory")
                // Read later, so that what is wrong with it is told with a hint; -5GiB too is a value.
                .allow_hyphen_values(true),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON, all sizes in bytes"))
        .args(key_flags(true))
}

fn compare() -> Command {
    let number = |name: &'static str, help: &'static str, default: u32| {
        option(name, "N", format!("{help} [default: {default}]")).value_parser(value_parser!(u32).range(1..))
    };
    Command::new("compare")
        .about("Train a few steps at each stage, in turn: tokens/s, memory, bytes sent, and which to choose")
        .override_usage("launch [OPTIONS] compare [OPTIONS]")
        .after_help(COMPARE_EXAMPLES)
        .args_override_self(true)
        .args(configuration_options())
        .arg(option("stages", "LIST", "The ZeRO stages [default: 0,1,2,3]"))
        .arg(option("accumulation", "LIST", "Micro-batches of a step [default: the configuration's]"))
        .arg(number("steps", "Measured steps of a run, after one to warm up", DEFAULT_STEPS))
        .arg(number("rounds", "How often the whole series is gone through", DEFAULT_ROUNDS))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON in place of the table"))
        .args(waiting_options())
        .args(key_flags(true))
        .mut_arg("model_name_or_path", |arg| arg.visible_alias("model"))
}

fn doctor() -> Command {
    Command::new("doctor")
        .about("Look at this machine: what would hurt a job, and how to mend it")
        .override_usage("launch doctor [OPTIONS]")
        .after_help("The exit code is 1 when a job on this device with so many ranks would not run.")
        .args_override_self(true)
        .args(machine_options())
        .arg(flag("output_dir").value_name("DIR").help("The folder that a run would write to [default: this one]"))
}

fn bench() -> Command {
    Command::new("bench")
        .about("Measure what this machine reaches: matrix products, memory, collectives")
        .override_usage("launch bench [OPTIONS]")
        .args_override_self(true)
        .args(machine_options())
}

fn token() -> Command {
    Command::new("token")
        .about("Make the token that the launches of a job on several hosts share")
        .override_usage("launch token [FILE]")
        .after_help("Give it to every host by --token-file FILE, or in the environment as ZEROFOLD_TOKEN.")
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .help("A file to make, which nobody else can read; without one, the token is printed")
                .value_parser(value_parser!(std::path::PathBuf)),
        )
}

/// What `doctor` and `bench` have in common.
fn machine_options() -> Vec<Arg> {
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    vec![
        option("device", "NAME", "What a job would run on [default: cuda where there are GPUs, else cpu]")
            .value_parser(clap::builder::PossibleValuesParser::new(DeviceKind::NAMES)),
        nproc("Ranks of the job [default: one for each GPU, 2 on cpu]"),
        switch("quick", "Smaller sizes, fewer repetitions"),
        switch("json", "Print JSON"),
    ]
}

fn nproc(help: &'static str) -> Arg {
    option("nproc", "N", help)
        // The range is checked later, so that what is wrong is told with a hint.
        .value_parser(|text: &str| {
            text.parse::<i64>()
                .map_err(|_| "it is a whole number of processes; left out, it follows from the GPUs or the file")
        })
        .allow_negative_numbers(true)
        .visible_alias("nproc_per_node")
        .alias("nproc-per-node")
}

/// The options of the job, the same before and after the command.
fn job_options() -> Vec<Arg> {
    let resume =
        option("resume", "STEP", "Go on from a step's folder; without a value, from the newest whole checkpoint")
            .num_args(0..=1)
            .default_missing_value("newest");
    let log_format =
        option("log-format", "FORM", "Messages as lines for a person, or one JSON object a line [default: text]")
            .value_parser(clap::builder::PossibleValuesParser::new(LogFormat::NAMES))
            .alias("log_format");
    let restarts = option(
        "max-restarts",
        "N",
        "How often a job that failed is begun again from its newest checkpoint [default: 0]",
    )
    .value_parser(|text: &str| whole(text, 0..=u64::from(u32::MAX)).map(|number| number as u32))
    .alias("max_restarts");
    let own = [resume, restarts, log_format];
    configuration_options().into_iter().chain(own).chain(waiting_options()).collect()
}

/// A whole number in this range; what is wrong with another text is said in words of our own.
fn whole(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("it is a whole number from {} to {}, without a unit", range.start(), range.end()))
}

/// How long is waited for ranks, and how much is told.
pub(super) fn waiting_options() -> [Arg; 3] {
    [
        option("timeout", "SECONDS", "How long a rank may take to join, be silent, or hold others up [default: 1800]")
            .value_parser(|text: &str| whole(text, 1..=LONGEST_WAIT)),
        option("grace", "SECONDS", "How long ranks may take to stop when asked (Ctrl-C, SIGTERM) [default: 60]")
            .value_parser(|text: &str| whole(text, 0..=LONGEST_WAIT)),
        Arg::new("quiet").long("quiet").short('q').action(ArgAction::SetTrue).help("Print errors and the result only"),
    ]
}

/// The options that name a configuration.
pub(super) fn configuration_options() -> Vec<Arg> {
    vec![
        nproc(
            "Processes to start on this host, one rank each [default: its share of num_processes, else its GPUs, else 1]",
        ),
        option("config", "FILE", "A YAML file (Accelerate's form, with a section `training:`), or a preset's name")
            .visible_alias("config_file")
            .alias("config-file"),
        option("set", "KEY=VALUE", "Set one key, as if it stood in the file; may be given often")
            .action(ArgAction::Append),
    ]
}

pub(super) fn option(name: &'static str, value: &'static str, help: impl Into<StyledStr>) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help.into())
}

/// One flag per key. Known names of other programs that have no line of their own are accepted too: the configuration
/// knows what to answer.
pub(super) fn key_flags(hide: bool) -> Vec<Arg> {
    let keys = Group::ALL.into_iter().flat_map(|group| KEYS.iter().filter(move |key| key.group == group));
    let mut flags: Vec<Arg> = keys.map(|key| key_flag(key).hide(hide)).collect();
    let taken = [
        "nproc",
        "nproc_per_node",
        "config",
        "config_file",
        "set",
        "resume",
        "timeout",
        "grace",
        "quiet",
        "log_format",
        "help",
    ];
    for name in flag_names() {
        if !taken.contains(&name) && !KEYS.iter().any(|key| key.name == name) {
            flags.push(bare_means_true(flag(name)).hide(true));
        }
    }
    flags
}

fn key_flag(key: &Key) -> Arg {
    let placeholder = key.kind.placeholder();
    let (value, names) = match placeholder.len() > PLACEHOLDER_LETTERS {
        true => ("NAME", format!(": {}", placeholder.replace('|', ", "))),
        false => (placeholder.as_str(), String::new()),
    };
    let default = match key.default {
        DefaultValue::Required => " [required]".to_owned(),
        DefaultValue::Unset => String::new(),
        default => format!(" [default: {default}]"),
    };
    let help = format!("{}{names}{default}", key.help);
    let arg = flag(key.name).value_name(value.to_owned()).help(help).help_heading(key.group.title());
    match key.kind {
        Kind::Switch => bare_means_true(arg),
        // Each names more.
        Kind::Freeze => arg.action(ArgAction::Append),
        _ => arg,
    }
}

pub(super) fn flag(name: &'static str) -> Arg {
    let arg = Arg::new(name).long(name).allow_negative_numbers(true);
    if name.contains('_') { arg.alias(name.replace('_', "-")) } else { arg }
}

fn bare_means_true(arg: Arg) -> Arg {
    arg.num_args(0..=1).default_missing_value("true")
}

pub(super) fn bounded(text: &str, fits: impl Fn(f64) -> bool, words: &str) -> Result<f64, String> {
    let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && fits(*number));
    number.ok_or_else(|| words.to_owned())
}
