//! The memberships of a job: each begins with processes and ends with a verdict; after a failure there may be another one,
//! from the newest whole checkpoint.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use zerofold_checkpoint::prepare_to_resume;
use zerofold_proto::hosts::Start;

use super::{Job, step_plan};
use crate::control::ControlPlane;
use crate::environment as env;
use crate::error::LaunchError;
use crate::event::{Event, StopSignal};
use crate::hosts::{NotGathered, nccl_interface};
use crate::run_folder::Resume;
use crate::supervise::restart::{self, Ended, Next, Restart};
use crate::supervise::{Facts, Fleet, Limits, Observer, Verdict, Worker, supervise};
use crate::terminal::Terminal;
use crate::worker_command::{JobEnvironment, LocalRanks};
use crate::{best_checkpoint, initial_model, logs, report, resume, store};

/// How often it is looked whether a checkpoint is still being published.
const PUBLISHING: Duration = Duration::from_millis(20);

/// How often a failed job is begun again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restarts {
    /// At most so many times.
    pub(crate) most: u32,
}

impl Job {
    /// Runs memberships until the job is done, is stopped, or is not to be begun again. Tells how the last one ended, and in the
    /// second place why it was the last, where that needs a word.
    pub(crate) fn run_generations(
        &mut self,
        limits: &Limits,
        restarts: Restarts,
        terminal: &Arc<Terminal>,
        (events, received): (&Sender<Event>, &Receiver<Event>),
        observer: &mut dyn Observer,
    ) -> Result<(Verdict, Facts, Option<String>), LaunchError> {
        let mut ends = Vec::new();
        loop {
            let (verdict, facts) = self.supervise(limits, terminal, (events, received), observer)?;
            let Verdict::Failed { first, others } = &verdict else { return Ok((verdict, facts, None)) };
            if facts.stop.is_some() {
                return Ok((verdict, facts, None));
            }
            if facts.ranks.iter().any(|it| it.exit.is_none()) {
                let why = "a process of it does not end, and may still hold its device".to_owned();
                return Ok((verdict, facts, Some(why)));
            }
            let furthest = self.control.members().iter().map(|member| member.step).max().unwrap_or(0);
            ends.push(Ended::new(furthest.max(self.steps().1), first));
            let pause = match restart::next(&ends, restarts.most) {
                Next::Restart(pause) => pause,
                Next::GiveUp(why) => return Ok((verdict, facts, why)),
            };
            let reason = report::short(first, &facts);
            terminal.complain(&report::cause(first, others, &facts));
            self.board.restart(&reason);
            observer.notice(&format!(
                "restart {} of at most {}{}",
                ends.len(),
                restarts.most,
                if pause.is_zero() { String::new() } else { format!(", in {} s", pause.as_secs()) }
            ));
            let mut signal = wait(pause, received, &self.control, observer);
            while signal.is_none() && self.control.is_publishing() {
                signal = wait(PUBLISHING, received, &self.control, observer);
            }
            if let Some(signal) = signal {
                let facts = Facts { stop: Some((Instant::now(), signal)), signals: 1, ..facts };
                return Ok((Verdict::Stopped(signal), facts, None));
            }
            match self.gather(received, terminal, observer) {
                Ok(()) => {}
                Err(NotGathered::Stopped(signal)) => {
                    let facts = Facts { stop: Some((Instant::now(), signal)), signals: 1, ..facts };
                    return Ok((Verdict::Stopped(signal), facts, None));
                }
                // What ended the membership is still the cause, and what was saved can still be gone on from.
                Err(NotGathered::Failed(error)) => return Ok((verdict, facts, Some(error.to_string()))),
            }
            self.board.wait_for("the newest checkpoint");
            self.begin_again(terminal)?;
            // Of what was said until now only a signal still counts.
            if let Some(signal) = wait(Duration::ZERO, received, &self.control, observer) {
                let facts = Facts { stop: Some((Instant::now(), signal)), signals: 1, ..facts };
                return Ok((Verdict::Stopped(signal), facts, None));
            }
            observer.restarted(&Restart {
                generation: self.generation,
                after: self.resume.is_some().then(|| self.steps().1),
                total: self.steps().0,
                reason,
            })?;
        }
    }

    /// Starts the processes of one membership and watches over them until the last one has ended.
    pub(crate) fn supervise(
        &self,
        limits: &Limits,
        terminal: &Arc<Terminal>,
        (events, received): (&Sender<Event>, &Receiver<Event>),
        observer: &mut dyn Observer,
    ) -> Result<(Verdict, Facts), LaunchError> {
        let Some(hosts) = &self.hosts else {
            let local = LocalRanks::all(self.config.num_processes);
            let mut workers = self.spawn((local, None), limits, terminal, events)?;
            return Ok(supervise(&mut workers, &self.control, received, limits, observer));
        };
        let interface = hosts.interface()?;
        let mut fleet = hosts.start(&self.start(limits), || {
            self.spawn((hosts.own_ranks(), interface.as_deref()), limits, terminal, events)
        })?;
        self.board.run_on(fleet.places().into_iter().map(|place| place.host).collect());
        Ok(supervise(&mut fleet, &self.control, received, limits, observer))
    }

    /// Waits for the hosts of the next membership, and fits the job to them.
    fn gather(
        &mut self,
        received: &Receiver<Event>,
        terminal: &Arc<Terminal>,
        observer: &mut dyn Observer,
    ) -> Result<(), NotGathered> {
        let Some(hosts) = &mut self.hosts else { return Ok(()) };
        let control = &self.control;
        let other = &mut |event| pass_on(event, control, observer);
        let gathered = hosts.gather(&self.config, received, (terminal, &self.board), other);
        let config = gathered?;
        if config.num_processes != self.config.num_processes {
            let (before, now) = (self.config.num_processes, config.num_processes);
            terminal.complain(&format!("the job goes on with {now} processes in place of {before}"));
        }
        self.config = config;
        let written = initial_model::anywhere(&self.config).write(&self.run.config());
        written.map_err(|error| NotGathered::Failed(error.into()))
    }

    /// What the other hosts need to know to start their ranks.
    fn start(&self, limits: &Limits) -> Start {
        let path = |path: &Path| path.display().to_string();
        Start {
            generation: self.generation,
            world_size: self.config.num_processes,
            first_rank: 0,
            configuration: path(&self.run.config()),
            resume: self.resume.as_ref().map(|found| path(&found.directory)).unwrap_or_default(),
            storage: self.storage.token().to_owned(),
            logs: self.run.log(0).parent().map(path).unwrap_or_default(),
            timeout_seconds: limits.silence.as_secs(),
            // Each host has its own.
            ranks_on_machine: 0,
        }
    }

    /// Makes ready for another membership: from the newest whole checkpoint, or from the beginning where there is none.
    fn begin_again(&mut self, terminal: &Arc<Terminal>) -> Result<(), LaunchError> {
        let store = self.uploader.as_ref().map(|uploader| uploader.store());
        let (config, model) = (&self.config, &self.model);
        let data = (&self.items, self.digest.get().map_or("", String::as_str));
        let found = match self.run.has_checkpoint()? {
            true => Some(resume::find(&self.run, &Resume::Newest, config, model, None, terminal)?),
            false => None,
        };
        (self.resume, self.plan) = match found {
            Some(found) => {
                let (found, plan) = resume::begin(&self.run, (found, &Resume::Newest), config, model, data, terminal)?;
                best_checkpoint::see_to(&self.run, &found, config, store, terminal)?;
                (Some(found), plan)
            }
            None => {
                terminal.complain("no step was saved yet: from the beginning");
                let _cleared = prepare_to_resume(&self.run.checkpoints(), 0)?;
                (None, step_plan(config, self.items.clone())?)
            }
        };
        if let Some(store) = store {
            // Where the newest one here is damaged, the store must not have a newer one than what is done from here on.
            // One that cannot be reached now is no reason to end the job: an upload that it stands in the way of is told.
            if let Err(error) = store::resume::clear_after(store, self.steps().1, terminal) {
                terminal.complain(&format!("warning: {error}"));
            }
        }
        self.generation += 1;
        self.run.write_generation(self.generation)?;
        self.control.begin(self.generation, self.config.num_processes);
        logs::at_generation(self.generation);
        self.board.begin(self.generation, self.plan.total_steps(), self.resume.as_ref());
        Ok(())
    }

    fn spawn(
        &self,
        (local, interface): (LocalRanks, Option<&str>),
        limits: &Limits,
        terminal: &Arc<Terminal>,
        events: &Sender<Event>,
    ) -> Result<Vec<Worker>, LaunchError> {
        let config = self.run.config();
        let environment = JobEnvironment {
            worker: &self.worker,
            world_size: self.config.num_processes,
            device: self.config.device,
            gpu_ids: self.config.gpu_ids.as_deref(),
            control: self.control.contact(),
            local,
            interface,
            generation: self.generation,
            config: Some(&config),
            resume: self.resume.as_ref().map(|found| found.directory.as_path()),
            timeout: limits.silence,
        };
        let spawn = |rank| {
            let mut command = environment.command("train", rank);
            command.env(env::STORAGE, self.storage.token());
            command.envs(nccl_interface(self.config.device, interface));
            command.env(env::LOG_FORMAT, terminal.format().name());
            Worker::spawn(rank, &mut command, &self.run.log(rank), terminal.clone(), events.clone())
        };
        // A rank that cannot be started ends the job: those before it are killed as their handles are dropped.
        Ok(local.ranks().map(spawn).collect::<Result<Vec<_>, _>>()?)
    }
}

/// Waits, and passes on what happens meanwhile; a signal ends it.
fn wait(
    pause: Duration,
    received: &Receiver<Event>,
    control: &ControlPlane,
    observer: &mut dyn Observer,
) -> Option<StopSignal> {
    let until = Instant::now() + pause;
    loop {
        match received.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Signal(signal)) => return Some(signal),
            Ok(Event::StopAskedByHost { host, signal }) => {
                observer.notice(&format!("host {host} was asked to stop by {}", signal.name()));
                return Some(signal);
            }
            Ok(Event::StopAsked { .. }) => return Some(StopSignal::Terminate),
            Ok(event) => pass_on(event, control, observer),
            Err(_) => return None,
        }
    }
}

/// What is still told of the membership that is over says nothing of the next one, but for its checkpoints.
fn pass_on(event: Event, control: &ControlPlane, observer: &mut dyn Observer) {
    match event {
        Event::Checkpoint { .. } | Event::CheckpointFailed { .. } => observer.event(&event, control),
        Event::Stored { .. } | Event::StoreFailed { .. } | Event::StoreSkipped { .. } => {
            observer.event(&event, control);
        }
        _ => {}
    }
}
