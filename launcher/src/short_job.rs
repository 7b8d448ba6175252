//! Work that ranks do and leave, without steps and checkpoints: an evaluation, answers to a data set. One membership, watched until
//! all of it have left.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use tempfile::TempDir;
use zerofold_configs::{Inputs, Outline, Resolved, outline};
use zerofold_plan::ModelConfig;
use zerofold_proto::v1::EvaluationRecord;

use crate::checkpoint_publisher::publish_parts;
use crate::control::{ControlError, ControlOptions, ControlPlane, Listen};
use crate::environment as env;
use crate::error::{EXIT_FAILED, LaunchError};
use crate::event::{Event, StopSignal};
use crate::hosts::nccl_interface;
use crate::hub::{self, Extent};
use crate::run_folder::RunFolder;
use crate::supervise::{Limits, Observer, Verdict, Worker, supervise};
use crate::terminal::Terminal;
use crate::view::Story;
use crate::worker_command::{FIRST_GENERATION, JobEnvironment, LocalRanks, find_worker};
use crate::{job, model_folder, report, signals};

/// The exit code of a command whose temporary folder this is: where something failed, what lies in it stays, the logs above all.
pub(crate) fn keep_if_failed(folder: TempDir, code: u8) -> u8 {
    if code == EXIT_FAILED {
        let _kept = folder.keep();
    }
    code
}

/// The configuration that these inputs make, of a job that needs neither training data nor a folder of its own; `what` it does.
///
/// # Errors
/// As of any configuration, and one of several hosts.
pub(crate) fn configuration(inputs: &Inputs, what: &str) -> Result<Outline, LaunchError> {
    let outline = outline(inputs)?;
    match outline.topology.is_alone() {
        true => Ok(outline),
        false => Err(LaunchError::usage(
            format!("{what} on one host, and this job has several"),
            "leave --nnodes and num_machines out; --nproc says how many processes there are",
        )),
    }
}

/// Says a key as if it were a flag.
pub(crate) fn set(inputs: &mut Inputs, name: &str, value: &str) {
    inputs.flags.retain(|(other, _)| other != name);
    inputs.flags.push((name.to_owned(), value.to_owned()));
}

/// Brings the model here, be it of a run, a checkpoint or the hub, and checks its folder; returns its sizes.
///
/// # Errors
/// It is not there, or cannot be used.
pub(crate) fn bring_model(config: &mut Resolved, terminal: &Terminal) -> Result<ModelConfig, LaunchError> {
    hub::bring(config, None, Extent::Whole, terminal)?;
    let folder = &config.training.model_name_or_path;
    model_folder::check(folder)?;
    let model = ModelConfig::read(folder)?;
    model_folder::check_layer_classes(config, &model)?;
    Ok(model)
}

/// What several of them, one after the other, have in common.
pub(crate) struct ShortJobs {
    terminal: Arc<Terminal>,
    limits: Limits,
    events: Sender<Event>,
    received: Receiver<Event>,
}

impl ShortJobs {
    /// Listens for signals from now on; a rank may take so long to join, and be silent.
    pub(crate) fn begin(terminal: Arc<Terminal>, silence: Duration) -> Result<Self, LaunchError> {
        let (events, received) = mpsc::channel();
        signals::listen(events.clone()).map_err(LaunchError::system("listen for signals"))?;
        // Nothing is saved, so nothing is waited for once it is to stop.
        Ok(ShortJobs { terminal, limits: job::limits(silence, Duration::ZERO), events, received })
    }

    /// Where is told what happens.
    pub(crate) fn terminal(&self) -> &Arc<Terminal> {
        &self.terminal
    }

    /// Runs `worker COMMAND` as every rank of this configuration, whose folder is there. Continues with what was measured, if anything
    /// was; breaks with the exit code where it was stopped or failed, which is told then. To be called on the main thread, which workers
    /// die with.
    pub(crate) fn run(
        &self,
        command: &str,
        config: &Resolved,
        run: &RunFolder,
    ) -> Result<ControlFlow<u8, Option<EvaluationRecord>>, LaunchError> {
        // The last one may have left words that it was too late for; a signal is never too late.
        let late = self.received.try_iter().find_map(|event| match event {
            Event::Signal(signal) => Some(signal),
            _ => None,
        });
        if let Some(signal) = late {
            return Ok(self.stopped(signal));
        }
        let listen = Listen::loopback(config.main_process_port).map_err(ControlError::from)?;
        let publish = Arc::new(|directory: &Path, parts| publish_parts(None, directory, parts));
        let options = ControlOptions::new(listen, config.num_processes, FIRST_GENERATION, publish);
        let control = ControlPlane::start(options, self.events.clone())?;
        let mut workers = self.spawn((command, config, run), &control)?;
        let mut seen = Seen { terminal: &self.terminal, record: None, stopping: false };
        let (verdict, facts) = supervise(&mut workers, &control, &self.received, &self.limits, &mut seen);
        Ok(match (verdict, facts.stop) {
            (Verdict::Failed { first, others }, _) => {
                let story = Story::default();
                let (first, others, facts) = (&first, &others[..], &facts);
                let failed = report::Failed { first, others, facts, story: &story, run, arguments: &[] };
                self.terminal.complain(&report::failure(&failed));
                ControlFlow::Break(EXIT_FAILED)
            }
            (Verdict::Stopped(signal), _) | (Verdict::Completed, Some((_, signal))) => self.stopped(signal),
            (Verdict::Completed, None) => ControlFlow::Continue(seen.record),
        })
    }

    fn stopped<T>(&self, signal: StopSignal) -> ControlFlow<u8, T> {
        self.terminal.complain(&format!("stopped by {} before all was done", signal.name()));
        ControlFlow::Break(signal.exit_code())
    }

    fn spawn(
        &self,
        (command, config, run): (&str, &Resolved, &RunFolder),
        control: &ControlPlane,
    ) -> Result<Vec<Worker>, LaunchError> {
        let (worker, file) = (find_worker()?, run.config());
        let environment = JobEnvironment {
            worker: &worker,
            world_size: config.num_processes,
            device: config.device,
            gpu_ids: config.gpu_ids.as_deref(),
            control: control.contact(),
            local: LocalRanks::all(config.num_processes),
            interface: None,
            generation: FIRST_GENERATION,
            config: Some(&file),
            resume: None,
            timeout: self.limits.silence,
        };
        let spawn = |rank| {
            let mut command = environment.command(command, rank);
            command.envs(nccl_interface(config.device, None));
            command.env(env::LOG_FORMAT, self.terminal.format().name());
            let log = run.log(rank);
            Worker::spawn(rank, &mut command, &log, self.terminal.clone(), self.events.clone())
        };
        // A rank that cannot be started ends the others: their handles are dropped.
        Ok((0..config.num_processes).map(spawn).collect::<Result<Vec<_>, _>>()?)
    }
}

/// Keeps what rank 0 tells.
struct Seen<'a> {
    terminal: &'a Terminal,
    record: Option<EvaluationRecord>,
    stopping: bool,
}

impl Observer for Seen<'_> {
    fn event(&mut self, event: &Event, _: &ControlPlane) {
        match event {
            Event::Evaluations(records) => self.record = records.last().cloned(),
            Event::Signal(_) => self.stopping = true,
            _ => {}
        }
    }

    fn notice(&mut self, text: &str) {
        // Of a stop supervision tells in the words of a training, which finishes a step and saves it.
        if !self.stopping {
            self.terminal.complain(text);
        }
    }
}
