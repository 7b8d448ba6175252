//! What a command line with `cost` means, and what can be typed there.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use zerofold_configs::PriceRange;
use zerofold_plan::ModelConfig;

use super::arguments::{configuration_options, key_flags, option};
use super::{plan, train};
use crate::cost::{
    CostOptions, DEFAULT_EXAMPLES, DEFAULT_GPU, DEFAULT_GPUS_PER_HOST, DEFAULT_PROMPTS, DEFAULT_REQUESTS, SCALE_FROM,
    Show,
};
use crate::error::LaunchError;

const EXAMPLES: &str = "\
Examples:
  launch cost --model llama-7b --gpu h100 --gpus 8 --examples 10000 --tokens-per-example 1000 --epochs 3
      a published shape: tokens/s, hours, GPU-hours, money, and whether it fits
  launch cost --config mine.yaml --gpu a100-80gb --gpus 4
      the job of a file, with the lengths of its own data
  launch cost --model llama-8b --gpus 8 --calibrate runs/first --assume host_bandwidth=50e9
      as fast as a run that was measured, over a slower network
  launch cost --model llama-7b --per_device_train_batch_size 2 --max_length 4096 --scale
      every stage, and hybrid, from 8 to 4,096 GPUs
  launch cost --model llama-7b --gpu a100-80gb --master_dtype bfloat16 --break-even --assume tuned_tokens=150
      from how many requests on tuning is cheaper than prompting
  launch cost --published
      how far the prediction is from runs that others measured, and from a guide's table

Every key of `launch train --help` is a flag here too; data and output_dir are not needed. Nothing is run.";

/// Flags of a training under the names that they have here.
const SHORT: [(&str, &str); 2] = [("epochs", "num_train_epochs"), ("stage", "zero_stage")];

pub(super) fn command() -> Command {
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let count = |name: &'static str, help: String| option(name, "N", help).value_parser(value_parser!(u64).range(1..));
    let shapes = ModelConfig::PUBLISHED.join(", ");
    Command::new("cost")
        .about("Tell how long a job would take and what it would cost; every assumption is told and can be set")
        .override_usage("launch [OPTIONS] cost [OPTIONS]")
        .after_help(EXAMPLES)
        .args_override_self(true)
        .args(configuration_options())
        .arg(option("model", "NAME", format!("A folder, or a published shape: {shapes}")))
        .arg(option("gpu", "NAME", format!("A GPU of the hardware file [default: {DEFAULT_GPU}]")))
        .arg(count("gpus", "GPUs of the job, one rank each [default: as --nproc]".to_owned()))
        .arg(
            count("gpus-per-host", format!("GPUs of a host [default: {DEFAULT_GPUS_PER_HOST}]")).alias("gpus_per_host"),
        )
        .arg(
            count("examples", format!("Examples to train on [default: those of the data, else {DEFAULT_EXAMPLES}]"))
                .visible_alias("rows"),
        )
        .arg(
            count(
                "tokens-per-example",
                "Their mean length [default: as the data have them, else max_length]".to_owned(),
            )
            .alias("tokens_per_example"),
        )
        .arg(
            option("price", "LOW..HIGH", "Dollars of a GPU-hour, or one number [default: the hardware file's]")
                .allow_hyphen_values(true),
        )
        .arg(option("hardware", "FILE", "GPUs and prices, in place of the hardware.yaml in the program"))
        .arg(
            option("assume", "NAME=VALUE", "Set an assumption; may be given often")
                .action(ArgAction::Append)
                .allow_hyphen_values(true),
        )
        .arg(option("calibrate", "RUN", "The folder of a run: its tokens/s set compute_efficiency"))
        .arg(switch("scale", "Tell tokens/s of every stage, and hybrid, from 8 to 4,096 GPUs"))
        .arg(
            option(
                "break-even",
                "LIST",
                format!("Compare with prompting by so many tokens [default: {DEFAULT_PROMPTS}]"),
            )
            .alias("break_even")
            .num_args(0..=1)
            .default_missing_value(DEFAULT_PROMPTS),
        )
        .arg(
            option("requests", "LIST", format!("For so many requests [default: {DEFAULT_REQUESTS}]"))
                .requires("break-even"),
        )
        .arg(
            switch("published", "Hold the prediction against runs that others measured, and a guide's table")
                .conflicts_with_all(["scale", "break-even", "calibrate"]),
        )
        .arg(switch("json", "Print JSON: seconds, bytes, dollars"))
        .mut_arg("scale", |arg| arg.conflicts_with("break-even"))
        .args(key_flags(true))
        .mut_arg("epochs", |arg| shown(arg, "X", "Passes over them: num_train_epochs"))
        .mut_arg("stage", |arg| shown(arg, "N", "The ZeRO stage: zero_stage [default: the lowest that fits]"))
}

/// A flag that elsewhere is somebody's word for another one.
fn shown(arg: Arg, value: &'static str, help: &'static str) -> Arg {
    arg.hide(false).num_args(1).value_name(value).help(help)
}

pub(super) fn meant(before: &ArgMatches, after: &ArgMatches) -> Result<CostOptions, LaunchError> {
    plan::refuse_options_of_a_run(before, "cost")?;
    let mut inputs = train::inputs(before, after)?;
    for (short, key) in SHORT {
        let Some(place) = inputs.flags.iter().position(|(name, _)| name == short) else { continue };
        if inputs.flags.iter().any(|(name, _)| name == key) {
            return Err(LaunchError::usage(format!("--{short} and --{key} name the same"), "give one of the two"));
        }
        key.clone_into(&mut inputs.flags[place].0);
    }
    let show = show(after)?;
    let number = |name: &str| after.get_one::<u64>(name).copied();
    if let Some(gpus) = number("gpus") {
        if inputs.nproc.is_some() {
            return Err(LaunchError::usage("--gpus and --nproc name the same", "give one of the two"));
        }
        inputs.nproc = Some(small("gpus", gpus)?);
    }
    if show == Show::Scale && inputs.nproc.is_none() {
        // Where the table begins.
        inputs.nproc = Some(SCALE_FROM);
    }
    let path = |name: &str| after.get_one::<String>(name).map(Into::into);
    Ok(CostOptions {
        inputs,
        model: after.get_one::<String>("model").cloned(),
        gpu: after.get_one::<String>("gpu").cloned().unwrap_or_else(|| DEFAULT_GPU.to_owned()),
        gpus_per_host: match number("gpus-per-host") {
            Some(gpus) => small("gpus-per-host", gpus)? as usize,
            None => DEFAULT_GPUS_PER_HOST,
        },
        hardware: path("hardware"),
        examples: number("examples"),
        tokens_per_example: number("tokens-per-example"),
        price: after.get_one::<String>("price").map(|text| price(text)).transpose()?,
        assume: after
            .get_many::<String>("assume")
            .into_iter()
            .flatten()
            .map(|text| assumption(text))
            .collect::<Result<_, _>>()?,
        calibrate: path("calibrate"),
        show,
        json: after.get_flag("json"),
    })
}

fn show(after: &ArgMatches) -> Result<Show, LaunchError> {
    if after.get_flag("published") {
        return Ok(Show::Published);
    }
    if after.get_flag("scale") {
        return Ok(Show::Scale);
    }
    let Some(prompts) = after.get_one::<String>("break-even") else { return Ok(Show::Run) };
    let requests = after.get_one::<String>("requests").map_or(DEFAULT_REQUESTS, String::as_str);
    Ok(Show::BreakEven { prompts: list("break-even", prompts)?, requests: list("requests", requests)? })
}

/// A number of GPUs.
fn small(name: &str, number: u64) -> Result<u32, LaunchError> {
    /// More than there are anywhere.
    const MOST: u64 = 1 << 20;
    u32::try_from(number).ok().filter(|_| number <= MOST).ok_or_else(|| {
        let message = format!("--{name} is {number}, which is not allowed: it is at most {MOST}");
        LaunchError::usage(message, "give how many there are")
    })
}

/// `3` or `1.5..3.5`.
fn price(text: &str) -> Result<PriceRange, LaunchError> {
    let (low, high) = text.split_once("..").unwrap_or((text, text));
    let dollars = |text: &str| {
        let number = text.trim().trim_start_matches('$').parse::<f64>().ok();
        number.filter(|number| number.is_finite() && *number >= 0.0)
    };
    match (dollars(low), dollars(high)) {
        (Some(low), Some(high)) if low <= high => Ok(PriceRange { low, high }),
        _ => {
            let message = format!("--price {text}: it is no price, nor a range of prices from lower to higher");
            Err(LaunchError::usage(message, "write dollars of a GPU-hour: --price 2.5, or --price 1.5..3.5"))
        }
    }
}

/// `host_bandwidth=50e9`.
fn assumption(text: &str) -> Result<(String, f64), LaunchError> {
    let pair = text.split_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse::<f64>().ok()?)));
    pair.map(|(name, value)| (name.to_owned(), value)).ok_or_else(|| {
        let message = format!("--assume {text}: expected NAME=NUMBER");
        LaunchError::usage(
            message,
            "for example --assume host_bandwidth=50e9; the table of `launch cost` has the names",
        )
    })
}

/// Numbers above 0 with commas between them.
fn list(name: &str, text: &str) -> Result<Vec<f64>, LaunchError> {
    // Counts, which figures show to the last digit.
    let whole = |number: &f64| (1.0..=1e12).contains(number) && number.fract() == 0.0;
    let number = |word: &str| word.trim().parse::<f64>().ok().filter(whole);
    let numbers: Option<Vec<f64>> = text.split(',').map(number).collect();
    numbers.ok_or_else(|| {
        let message = format!("--{name} {text}: expected whole numbers from 1 to 10^12 with commas between them");
        LaunchError::usage(message, format!("for example --{name} {DEFAULT_PROMPTS}"))
    })
}
