//! What can be typed with `status` and `report`, and what it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::arguments::option;
use crate::run_report::ReportOptions;
use crate::watch::StatusOptions;

const REPORT_EXAMPLES: &str = "\
Examples:
  launch report runs/first
      writes runs/first/report.html
  launch report runs/first runs/second --output both.html
      their curves over each other, and what was configured differently

The page is one file for any browser and needs no network. A run that is at work may be drawn too.";

/// The commands' definitions.
pub(super) fn commands() -> [Command; 2] {
    [status(), report()]
}

fn status() -> Command {
    Command::new("status")
        .about("Tell what a run that is being trained is doing, rank by rank")
        .override_usage("launch status RUN [--watch[=SECONDS]] [--json] [--token-file FILE]")
        .after_help("The exit code is 1 when nothing is at work in the run; how far it came is told then.")
        .args_override_self(true)
        .arg(runs("The run's output_dir, on this host"))
        .arg(
            option("watch", "SECONDS", "Ask again and again until the job ends [default: every 2 seconds]")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("2")
                .value_parser(value_parser!(u64).range(1..)),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON; with --watch one line each time"),
        )
        .arg(
            option("token-file", "FILE", "Holds the token of a job on several hosts [default: ZEROFOLD_TOKEN]")
                .alias("token_file")
                .value_parser(value_parser!(PathBuf)),
        )
}

fn report() -> Command {
    Command::new("report")
        .about("Draw what runs did, as one HTML page: curves, where the time went, memory, restarts, configuration")
        .override_usage("launch report RUN... [--output FILE]")
        .after_help(REPORT_EXAMPLES)
        .args_override_self(true)
        .arg(runs("The output_dir of each run").num_args(1..).action(ArgAction::Append))
        .arg(
            option("output", "FILE", "Where the page goes [default: report.html, of one run in its folder]")
                .value_parser(value_parser!(PathBuf)),
        )
}

fn runs(help: &'static str) -> Arg {
    Arg::new("run").value_name("RUN").help(help).required(true).value_parser(value_parser!(PathBuf))
}

pub(super) fn status_meant(matches: &ArgMatches) -> StatusOptions {
    StatusOptions {
        run: matches.get_one::<PathBuf>("run").cloned().unwrap_or_default(),
        json: matches.get_flag("json"),
        watch: matches.get_one::<u64>("watch").map(|seconds| Duration::from_secs(*seconds)),
        token_file: matches.get_one::<PathBuf>("token-file").cloned(),
    }
}

pub(super) fn report_meant(matches: &ArgMatches) -> ReportOptions {
    ReportOptions {
        runs: matches.get_many::<PathBuf>("run").into_iter().flatten().cloned().collect(),
        output: matches.get_one::<PathBuf>("output").cloned(),
    }
}
