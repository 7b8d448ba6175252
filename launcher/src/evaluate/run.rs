//! One evaluation: the ranks of one membership, watched until they have left.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use zerofold_proto::v1::EvaluationRecord;

use super::candidate::Candidate;
use crate::checkpoint_publisher::publish_parts;
use crate::control::{ControlError, ControlOptions, ControlPlane, Listen};
use crate::environment as env;
use crate::error::LaunchError;
use crate::event::{Event, StopSignal};
use crate::hosts::nccl_interface;
use crate::report;
use crate::supervise::{Limits, Observer, Verdict, Worker, supervise};
use crate::terminal::Terminal;
use crate::view::Story;
use crate::worker_command::{FIRST_GENERATION, JobEnvironment, LocalRanks, find_worker};

/// How an evaluation ended.
pub(super) enum Ended {
    /// Well.
    Evaluated(EvaluationRecord),
    /// By a signal.
    Stopped(StopSignal),
    /// Badly; this is what to tell.
    Failed(String),
}

/// What all evaluations have in common.
pub(super) struct Runner {
    pub(super) terminal: Arc<Terminal>,
    pub(super) limits: Limits,
    pub(super) events: Sender<Event>,
    pub(super) received: Receiver<Event>,
}

impl Runner {
    /// Evaluates one model. To be called on the main thread, which workers die with.
    pub(super) fn run(&self, candidate: &Candidate) -> Result<Ended, LaunchError> {
        // The last one may have left words that it was too late for; a signal is never too late.
        let late = self.received.try_iter().find_map(|event| match event {
            Event::Signal(signal) => Some(signal),
            _ => None,
        });
        if let Some(signal) = late {
            return Ok(Ended::Stopped(signal));
        }
        let config = &candidate.config;
        let listen = Listen::loopback(config.main_process_port).map_err(ControlError::from)?;
        let publish = Arc::new(|directory: &Path, parts| publish_parts(None, directory, parts));
        let options = ControlOptions::new(listen, config.num_processes, FIRST_GENERATION, publish);
        let control = ControlPlane::start(options, self.events.clone())?;
        let mut workers = self.spawn(candidate, &control)?;
        let mut seen = Seen { terminal: &self.terminal, record: None, stopping: false };
        let (verdict, facts) = supervise(&mut workers, &control, &self.received, &self.limits, &mut seen);
        Ok(match (verdict, facts.stop, seen.record) {
            (Verdict::Failed { first, others }, ..) => {
                let story = Story::default();
                let (first, others, facts, run) = (&first, &others[..], &facts, &candidate.run);
                let failed = report::Failed { first, others, facts, story: &story, run, arguments: &[] };
                Ended::Failed(report::failure(&failed))
            }
            (Verdict::Stopped(signal), ..) | (Verdict::Completed, Some((_, signal)), _) => Ended::Stopped(signal),
            (Verdict::Completed, None, Some(record)) => Ended::Evaluated(record),
            (Verdict::Completed, None, None) => Ended::Failed(format!(
                "error: the ranks finished without a word of what they measured\nlog: {}",
                candidate.run.log(0).display()
            )),
        })
    }

    fn spawn(&self, candidate: &Candidate, control: &ControlPlane) -> Result<Vec<Worker>, LaunchError> {
        let (config, worker, file) = (&candidate.config, find_worker()?, candidate.run.config());
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
            let mut command = environment.command("evaluate", rank);
            command.envs(nccl_interface(config.device, None));
            command.env(env::LOG_FORMAT, self.terminal.format().name());
            let log = candidate.run.log(rank);
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
