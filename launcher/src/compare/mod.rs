//! The command `compare`: the same job in several configurations, a few steps of each in turn, and which to choose.
//!
//! ```text
//! CompareOptions ─ series ─ plan of each ─ bench (the ceilings)
//!                → run, run, run, … (round by round; each is the job of `train`) → figures ─┬ table
//!                                                                        └ choice           ├ page (compare.html)
//!                                                                                           └ JSON (compare.json)
//! ```

mod charts;
mod choice;
mod entry;
mod figures;
mod folder;
mod page;
mod run;
mod series;
mod table;

pub use choice::Choice;
pub use series::Configuration;

use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use zerofold_configs::{Backend, BenchRequest, DeviceKind, Inputs, Stage, Training};
use zerofold_data::Prepared;

use crate::error::{EXIT_FAILED, LaunchError};
use crate::hub::{self, DataUse, Extent};
use crate::memory::memory_of_rank;
use crate::terminal::Terminal;
use crate::worker_command::find_worker;
use crate::{announce, bench, chat_template, classifier, format, job, model_folder, report, signals};
use entry::{Entry, check_that_something_fits, entry};
use figures::{Ceilings, Comparison, Machine, Method, Model};
use folder::Folder;
use run::{Ended, Runner, WARM_UP};

/// Steps that are measured in a run unless the command line says otherwise.
pub const DEFAULT_STEPS: u32 = 3;
/// How often the series is gone through unless the command line says otherwise.
pub const DEFAULT_ROUNDS: u32 = 2;

/// What the command line asks of `compare`.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// The configuration, as written.
    pub inputs: Inputs,
    /// The stages to compare.
    pub stages: Vec<Stage>,
    /// The accumulations to compare; none for the configuration's.
    pub accumulations: Option<Vec<u32>>,
    /// The backends to compare; none for the configuration's.
    pub backends: Option<Vec<Backend>>,
    /// Measured steps of a run.
    pub steps: u32,
    /// How often the series is gone through.
    pub rounds: u32,
    /// Print JSON in place of the table.
    pub json: bool,
    /// Only errors and the result.
    pub quiet: bool,
    /// How long a rank may take to join, and be silent.
    pub timeout: Duration,
    /// How long the workers may take to stop when asked.
    pub grace: Duration,
}

impl CompareOptions {
    /// All stages of this configuration, as `launch compare` alone does.
    pub fn new(inputs: Inputs) -> CompareOptions {
        CompareOptions {
            inputs,
            stages: vec![Stage::Zero, Stage::One, Stage::Two, Stage::Three],
            accumulations: None,
            backends: None,
            steps: DEFAULT_STEPS,
            rounds: DEFAULT_ROUNDS,
            json: false,
            quiet: false,
            timeout: Duration::from_secs(1800),
            grace: Duration::from_secs(60),
        }
    }
}

/// What is told while it runs, all on standard error: standard output has the result alone.
struct Progress<'a> {
    terminal: &'a Terminal,
    quiet: bool,
}

impl Progress<'_> {
    fn tell(&self, text: &str) {
        if !self.quiet {
            self.terminal.complain(text);
        }
    }
}

/// Compares, prints and writes; returns the exit code. Must be called on the main thread, which workers die with.
///
/// # Errors
/// A configuration that `train` would refuse too, a folder that is not free, nothing that fits.
pub fn compare(options: &CompareOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let began = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()));
    let progress = Progress { terminal, quiet: options.quiet };
    let mut series = series::series(options)?;
    let quiet = Terminal::new(true);
    for (_, config) in &mut series {
        hub::bring(config, None, Extent::Whole, if options.quiet { &quiet } else { terminal })?;
        chat_template::settle(config, &quiet)?;
    }
    if let Some((_, first)) = series.first_mut() {
        // All have the same model and data, so that the labels are looked for once.
        hub::bring_data(first, &[DataUse::Training], None, if options.quiet { &quiet } else { terminal })?;
        classifier::settle(first, &quiet)?;
        let Training { model_name_or_path, padding_free, max_length, .. } = first.training.clone();
        let data = first.hub_data.clone();
        for (_, config) in &mut series {
            config.training.model_name_or_path.clone_from(&model_name_or_path);
            (config.training.padding_free, config.training.max_length) = (padding_free, max_length);
            config.hub_data.clone_from(&data);
        }
    }
    let Some((_, first)) = series.first().cloned() else {
        return Err(LaunchError::usage("there is nothing to compare", "name a stage: --stages 0,1,2,3"));
    };
    series::notes(options).iter().for_each(|note| progress.tell(&format!("note: {note}")));
    announce::warning(&first).iter().for_each(|text| terminal.complain(text));
    let checked = series.iter().map(|(_, config)| job::check(config)).collect::<Result<Vec<_>, _>>()?;
    find_worker()?;
    let folder = Folder::fresh(job::absolute(&first.training.output_dir)?)?;
    let data = job::tokenise(&first, (DataUse::Training, first.training.packing), None, &quiet)?;
    let (model, longest) = (&checked[0], job::longest_document(&first.training, &data));
    model_folder::check_positions("training rows", longest, model)?;
    let warning = model_folder::too_long("rows have up to", longest, model);
    warning.iter().for_each(|warning| terminal.complain(&format!("warning: {warning}")));
    let memory = match first.device {
        DeviceKind::Cpu => memory_of_rank(first.num_processes),
        DeviceKind::Cuda => None,
    };
    let entry = |(configuration, config)| entry((configuration, config), options.steps, &data, (model, memory));
    let mut entries = series.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    check_that_something_fits(entries.iter().map(|entry| &entry.row), memory, |text| progress.tell(text))?;
    progress.tell(&format!("measuring the ceilings of {}", format::plural(first.num_processes.into(), "rank")));
    let rates = bench::measure(
        &BenchRequest { device: first.device, quick: true },
        first.num_processes,
        first.gpu_ids.as_deref(),
    )?;
    let ceilings = Ceilings::of(&rates, first.element_types().compute, memory);

    let _lock = folder.take(terminal)?;
    if let Some(code) = measure(&mut entries, options, (&folder, &data), &progress)? {
        return Ok(code);
    }
    let rows = entries.into_iter().map(|entry| entry.row.with(&entry.rounds, &ceilings)).collect::<Vec<_>>();
    let comparison = Comparison {
        machine: Machine::of(&first),
        model: Model::of(&first, model, longest),
        method: Method {
            began: format::date(began.1),
            rounds: options.rounds,
            measured_steps_per_round: options.steps,
            warm_up_steps_per_round: WARM_UP,
            seconds: began.0.elapsed().as_secs_f64(),
        },
        choices: figures::choices(&rows, &ceilings),
        warnings: figures::warnings(&rows),
        ceilings,
        rows,
    };
    let json = serde_json::to_string_pretty(&comparison).unwrap_or_default();
    let page = folder.write(&page::page(&comparison), &format!("{json}\n"))?;
    match options.json {
        true => terminal.result(&json),
        false => table::lines(&comparison).iter().for_each(|line| terminal.result(line)),
    }
    progress.tell(&format!("page: {}", report::quote(&page)));
    Ok(0)
}

/// Goes through the series round by round. Returns an exit code where it ended early.
fn measure(
    entries: &mut [Entry],
    options: &CompareOptions,
    (folder, data): (&Folder, &Prepared),
    progress: &Progress<'_>,
) -> Result<Option<u8>, LaunchError> {
    let (events, received) = mpsc::channel();
    signals::listen(events.clone()).map_err(LaunchError::system("listen for signals"))?;
    let limits = job::limits(options.timeout, options.grace);
    let runner = Runner { terminal: progress.terminal, data, limits, events, received };
    let mut fitting: Vec<&mut Entry> = entries.iter_mut().filter(|entry| entry.row.planned.fits).collect();
    let mut took = vec![Duration::ZERO; fitting.len()];
    for round in 1..=options.rounds {
        for index in 0..fitting.len() {
            let entry = &fitting[index];
            let what = format!("{}, round {round} of {}", entry.row.configuration, options.rounds);
            let mut config = entry.config.clone();
            config.training.output_dir = folder.run();
            let began = Instant::now();
            match runner.run(config)? {
                Ended::Measured(measured) => {
                    if round == 1 {
                        took[index] = began.elapsed();
                    }
                    fitting[index].rounds.push(measured);
                    let tokens = format::figure(measured.tokens_per_second());
                    progress.tell(&format!("{what}: {tokens} tokens/s{}", left(&took, (round, index), options.rounds)));
                }
                Ended::Stopped(signal) => {
                    folder.remove_run()?;
                    progress.terminal.complain("stopped; the comparison is not complete and nothing was written");
                    return Ok(Some(signal.exit_code()));
                }
                Ended::Failed(words) => {
                    progress.terminal.complain(&format!("{words}\nthe comparison ended at {what}"));
                    return Ok(Some(EXIT_FAILED));
                }
            }
            folder.remove_run()?;
        }
    }
    Ok(None)
}

/// The time left after a run, known once every configuration has run: `took` is what the first round took of each.
fn left(took: &[Duration], (round, index): (u32, usize), rounds: u32) -> String {
    let last = index + 1 == took.len();
    if (round == 1 && !last) || (round == rounds && last) {
        return String::new();
    }
    let left = took[index + 1..].iter().sum::<Duration>() + took.iter().sum::<Duration>() * (rounds - round);
    format!(" ({} left)", format::duration(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_told_from_the_end_of_the_first_round_on() {
        let took = [10, 20, 30].map(Duration::from_secs);
        let words = |round, index| left(&took, (round, index), 2);
        assert_eq!([words(1, 0), words(1, 1), words(2, 2)], [""; 3]);
        assert_eq!([words(1, 2), words(2, 0), words(2, 1)], [" (1 min 00 s left)", " (50 s left)", " (30 s left)"]);
    }
}
