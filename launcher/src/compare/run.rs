//! One run of one configuration: what `train` does, but for the model at the end, and what it measured.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use zerofold_configs::Resolved;
use zerofold_data::Prepared;
use zerofold_proto::v1::StepRecord;

use super::figures::Round;
use crate::control::{ControlError, ControlPlane, Listen};
use crate::error::LaunchError;
use crate::event::{Event, StopSignal};
use crate::job::{Job, Meeting};
use crate::report;
use crate::supervise::{Limits, Observer, Verdict};
use crate::terminal::Terminal;
use crate::view::Story;

/// Steps at the beginning that warm up and are not counted.
pub(super) const WARM_UP: usize = 1;

/// How a run ended.
pub(super) enum Ended {
    /// Well.
    Measured(Round),
    /// By a signal.
    Stopped(StopSignal),
    /// Badly; this is what to tell.
    Failed(String),
}

/// What all runs have in common.
pub(super) struct Runner<'a> {
    pub(super) terminal: &'a Terminal,
    pub(super) data: &'a Prepared,
    pub(super) limits: Limits,
    pub(super) events: Sender<Event>,
    pub(super) received: Receiver<Event>,
}

impl Runner<'_> {
    /// Runs the job of `config` in its own folder. To be called on the main thread, which workers die with.
    pub(super) fn run(&self, config: Resolved) -> Result<Ended, LaunchError> {
        // The last run may have left words that it was too late for; a signal is never too late.
        let late = self.received.try_iter().find_map(|event| match event {
            Event::Signal(signal) => Some(signal),
            _ => None,
        });
        if let Some(signal) = late {
            return Ok(Ended::Stopped(signal));
        }
        // What it has to say was said about all runs together.
        let silent = Arc::new(Terminal::silent());
        let listen = Listen::loopback(config.main_process_port).map_err(ControlError::from)?;
        let meeting = Meeting { listen, hosts: None, received: &self.received };
        let job = Job::prepare(config, Some(self.data), None, meeting, (&silent, &self.events))?;
        let mut steps = Steps { terminal: self.terminal, records: Vec::new() };
        let (verdict, facts) = job.supervise(&self.limits, &silent, (&self.events, &self.received), &mut steps)?;
        let records = steps.records;
        Ok(match (verdict, facts.stop) {
            (Verdict::Failed { first, others }, _) => {
                let story = Story::default();
                let (first, others, facts, run) = (&first, &others[..], &facts, job.folder());
                let failed = report::Failed { first, others, facts, story: &story, run, arguments: &[] };
                Ended::Failed(report::failure(&failed))
            }
            (Verdict::Stopped(signal), _) | (Verdict::Completed, Some((_, signal))) => Ended::Stopped(signal),
            (Verdict::Completed, None) => {
                let measured = report::measured(&facts, records.last());
                let process = job.most_process_memory();
                let round = records.get(WARM_UP..).and_then(|steps| Round::of(steps, measured?, process));
                match round {
                    Some(round) => Ended::Measured(round),
                    None => Ended::Failed(format!(
                        "error: the ranks finished without a word of what they measured\nlog: {}",
                        job.folder().log(0).display()
                    )),
                }
            }
        })
    }
}

/// Keeps the steps that rank 0 tells.
struct Steps<'a> {
    terminal: &'a Terminal,
    records: Vec<StepRecord>,
}

impl Observer for Steps<'_> {
    fn event(&mut self, event: &Event, _: &ControlPlane) {
        if let Event::Steps(records) = event {
            self.records.extend_from_slice(records);
        }
    }

    fn notice(&mut self, text: &str) {
        self.terminal.complain(text);
    }
}
