//! The command `train`, from the configuration to the exit code.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use zerofold_configs::{Inputs, Reporter, Resolved, resolve_job};

use crate::control::{ControlError, ControlPlane, Listen};
use crate::error::{EXIT_FAILED, LaunchError};
use crate::event::{Event, StopSignal};
use crate::hosts::{self, Hosts};
use crate::hub::{self, DataUse, Extent};
use crate::job::{Job, Meeting, Restarts, limits};
use crate::logs::{self, LogFormat};
use crate::metrics::MetricsFile;
use crate::plan::PlanRecord;
use crate::records::Records;
use crate::run_folder::{Resume, RunFolder};
use crate::supervise::{Observer, Verdict};
use crate::tensorboard::{EventFile, EventsFolder};
use crate::terminal::Terminal;
use crate::view::View;
use crate::{chat_template, classifier, initial_model, profile, report, signals, store};

/// What the command line asks of `train`.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The configuration, as written.
    pub inputs: Inputs,
    /// Go on from a checkpoint.
    pub resume: Option<Resume>,
    /// Only errors and the result.
    pub quiet: bool,
    /// How long a rank may take to join, be silent, or hold the others up.
    pub timeout: Duration,
    /// How long the workers may take to stop when asked.
    pub grace: Duration,
    /// How often the job is begun again after a failure, at most.
    pub max_restarts: u32,
    /// The form of messages; none leaves it to the environment.
    pub log_format: Option<LogFormat>,
}

/// Runs a training job to its end; returns the exit code. Must be called on the main thread, which workers die with.
pub fn train(options: &TrainOptions, format: LogFormat, began: Instant) -> Result<u8, LaunchError> {
    let terminal = Arc::new(Terminal::with_format(options.quiet, format));
    let (events, received) = mpsc::channel();
    let (config, topology) = resolve_job(&options.inputs)?;
    signals::wait_with_saving();
    if !topology.is_coordinator() {
        return hosts::agent::run(topology, config, terminal);
    }
    let token = hosts::token_of_job(&topology)?;
    let listen = match Hosts::listen(&topology, token)? {
        Some(listen) => listen,
        None => Listen::loopback(config.main_process_port).map_err(ControlError::from)?,
    };
    let hosts = Hosts::of(&topology, &options.inputs, &config, &events);
    if !topology.is_alone() && !topology.tls {
        terminal.complain(hosts::NO_TLS);
    }
    let mut config = initial_model::settle(config)?;
    config.notes.iter().for_each(|note| terminal.say(&format!("note: {note}")));
    let earlier = options.resume.as_ref().and_then(|_| earlier(&config));
    hub::bring(&mut config, earlier.as_ref(), Extent::Whole, &terminal)?;
    hub::bring_data(&mut config, &DataUse::ALL, earlier.as_ref(), &terminal)?;
    chat_template::settle(&mut config, &terminal)?;
    classifier::settle(&mut config, &terminal)?;
    let meeting = Meeting { listen, hosts, received: &received };
    let job = Job::prepare(config, None, options.resume.as_ref(), meeting, (&terminal, &events))?;
    if topology.is_alone() {
        signals::listen(events.clone()).map_err(LaunchError::system("listen for signals"))?;
    }
    run(job, options, began, terminal, (events, received))
}

/// The configuration of the run that is gone on with, if it can be read.
fn earlier(config: &Resolved) -> Option<Resolved> {
    Resolved::read(&RunFolder::new(config.training.output_dir.clone()).config()).ok()
}

fn run(
    mut job: Job,
    options: &TrainOptions,
    began: Instant,
    terminal: Arc<Terminal>,
    (events, received): (Sender<Event>, Receiver<Event>),
) -> Result<u8, LaunchError> {
    let steps = job.steps();
    let records =
        Records::new(terminal.clone(), begin_metrics(&job, steps.1)?, begin_events(&job, steps.1, &terminal)?);
    logs::at_step(steps.1);
    let mut view =
        View::new(terminal.clone(), records, job.board().clone(), began, steps, job.config().training.logging_steps);
    let limits = limits(options.timeout, options.grace);
    let restarts = Restarts { most: options.max_restarts };
    let ended = job.run_generations(&limits, restarts, &terminal, (&events, &received), &mut view);
    let mut signal = None;
    if let (Some(uploader), Ok((_, facts, _))) = (job.uploader(), &ended) {
        let shown: (&mut dyn Observer, &ControlPlane) = (&mut view, job.control());
        signal = store::wait_for_uploads(uploader, facts, limits.stop, &received, shown);
    }
    let story = view.finish();
    let (verdict, facts, why_last) = ended?;
    let arguments: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let members = job.members();
    let measured = || report::measured(&facts, story.last.as_ref());
    let record = job.prediction().map(|planned| PlanRecord { planned, measured: measured() });
    if let Some(Err(error)) = record.filter(|it| it.measured.is_some()).map(|it| it.write(&job.folder().plan())) {
        terminal.complain(&format!("warning: {error}"));
    }
    let ended = report::Ended { time: began.elapsed(), facts: &facts, members: &members, plan: record.as_ref() };
    let (code, reason) = match verdict {
        Verdict::Completed => {
            terminal.say(&report::summary(&story, &ended));
            put_profile_together(&job, &terminal);
            report::result(&facts).iter().for_each(|line| terminal.result(line));
            (signal.map_or(0, StopSignal::exit_code), "the job is done".to_owned())
        }
        Verdict::Stopped(signal) => {
            terminal.say(&report::summary(&story, &ended));
            put_profile_together(&job, &terminal);
            terminal.complain(&report::stopped(&story, &facts, job.folder(), &arguments));
            (signal.exit_code(), format!("the job was stopped by {}; details on host 0", signal.name()))
        }
        Verdict::Failed { first, others } => {
            let (first, others, run) = (&first, &others[..], job.folder());
            let (facts, story, arguments) = (&facts, &story, &arguments[..]);
            why_last.iter().for_each(|why| terminal.complain(&format!("not begun again: {why}")));
            terminal.complain(&report::failure(&report::Failed { first, others, facts, story, run, arguments }));
            (EXIT_FAILED, format!("the job failed: {}; details on host 0", report::short(first, facts)))
        }
    };
    job.end(code, &reason);
    Ok(code)
}

/// The file of the run's steps, from after step `done` on.
fn begin_metrics(job: &Job, done: u64) -> Result<MetricsFile, LaunchError> {
    let path = job.folder().metrics();
    let begin = || {
        let mut metrics = if done > 0 { MetricsFile::resume(&path, done) } else { MetricsFile::create(&path) }?;
        if job.goes_on() {
            metrics.resumed(done, job.generation())?;
        }
        if let Some(model) = &job.config().hub_model {
            metrics.model(done, model)?;
        }
        job.config().hub_data.iter().try_for_each(|data| metrics.data(done, data))?;
        Ok(metrics)
    };
    begin().map_err(LaunchError::system(format!("write {}", path.display())))
}

/// TensorBoard's file of the run's steps, where it was asked for.
fn begin_events(job: &Job, done: u64, terminal: &Terminal) -> Result<Option<EventFile>, LaunchError> {
    let training = &job.config().training;
    let Some(Reporter::Tensorboard) = training.report_to else { return Ok(None) };
    let parent = training.logging_dir.clone().unwrap_or_else(|| job.folder().events());
    let folder = match &training.logging_dir {
        Some(folder) => EventsFolder::at(folder.clone()),
        None => EventsFolder::within(&parent, job.goes_on()),
    };
    let file = EventFile::create(&folder, done);
    let action = format!("write TensorBoard's events to {}", folder.path().display());
    let file = file.map_err(LaunchError::system(action))?;
    terminal.say(&format!("events tensorboard --logdir {}", parent.display()));
    Ok(Some(file))
}

/// The timeline, where one was asked for. After a failure the ranks' parts stay as they are.
fn put_profile_together(job: &Job, terminal: &Terminal) {
    let Some(steps) = job.config().training.profile else { return };
    match profile::put_together(job.config(), job.folder()) {
        Ok(Some(path)) => terminal.say(&format!("timeline: {} (open it at https://ui.perfetto.dev)", path.display())),
        Ok(None) => terminal.complain(&format!("warning: no timeline: none of the steps {steps} was taken")),
        Err(error) => terminal.complain(&format!("warning: {error}")),
    }
}
