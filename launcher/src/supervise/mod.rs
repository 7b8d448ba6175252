//! Watches the workers until the last one has ended: events become facts, facts become decisions ([`verdict`]), decisions
//! become signals ([`child`]).

pub mod child;
pub mod verdict;
#[cfg(test)]
mod verdict_tests;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

pub use child::{SpawnError, Worker};
pub use verdict::{Cause, Decision, Ending, Exit, Facts, Failure, Limits, Verdict};

use crate::control::ControlPlane;
use crate::event::Event;
use verdict::Report;

/// The longest sleep without a look at the clock and the heartbeats.
const TICK: Duration = Duration::from_millis(500);

/// Sees what the job does; prints and records it.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: &Event, control: &ControlPlane);
    /// `launch` decided something a person should know.
    fn notice(&mut self, text: &str);
}

/// Runs until every worker has ended, then tells how the job ended and what is known of each rank.
pub fn supervise(
    workers: &mut [Worker],
    control: &ControlPlane,
    events: &Receiver<Event>,
    limits: &Limits,
    observer: &mut dyn Observer,
) -> (Verdict, Facts) {
    let pids: Vec<u32> = workers.iter().map(Worker::pid).collect();
    let mut facts = Facts::new(Instant::now(), &pids);
    let mut last_reason = "";
    loop {
        let now = Instant::now();
        for (rank, member) in facts.ranks.iter_mut().zip(control.members()) {
            rank.heard = member.heard;
        }
        let (decision, reason) = verdict::decide(now, &facts, limits);
        if reason != last_reason {
            tracing::debug!(?decision, reason, "supervision");
            last_reason = reason;
        }
        let until = match decision {
            Decision::Finish => return (verdict::verdict(now, &facts, limits), facts),
            Decision::Wait(until) => until.map_or(now + TICK, |until| until.min(now + TICK)),
            Decision::AskToStop => {
                facts.asked_to_stop = true;
                control.ask_to_stop();
                let name = facts.stop.map_or("a signal", |(_, signal)| signal.name());
                let grace = limits.stop.as_secs();
                observer.notice(&format!(
                    "{name}: stopping after the current step (at most {grace} s; again to stop at once)"
                ));
                continue;
            }
            Decision::Terminate => {
                verdict::give_up(now, &mut facts, limits);
                facts.terminated = Some(now);
                if facts.stop.is_some() && verdict::failures(now, &facts, limits).is_empty() {
                    observer.notice(&format!("stopping the workers at once: {reason}"));
                }
                workers.iter().for_each(|worker| worker.signal(libc::SIGTERM));
                // A stopped process would not see SIGTERM.
                workers.iter().for_each(|worker| worker.signal(libc::SIGCONT));
                continue;
            }
            Decision::Kill => {
                facts.killed = Some(now);
                workers.iter().for_each(|worker| worker.signal(libc::SIGKILL));
                continue;
            }
        };
        match events.recv_timeout(until.saturating_duration_since(now)) {
            Ok(event) => {
                if let Event::Exited { rank, exit } = &event {
                    if let Some(worker) = workers.get_mut(*rank as usize) {
                        worker.reap();
                    }
                    if exit.ending != Ending::Code(0) {
                        control.rank_gone(*rank, &exit.ending.to_string());
                    }
                }
                if let Event::SaveAsked = event {
                    control.ask_to_save();
                    observer.notice("SIGUSR1: a checkpoint is saved after the current step");
                }
                observer.event(&event, control);
                note(&mut facts, Instant::now(), event);
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The control plane holds a sender for as long as it lives, and it outlives this call.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
        }
    }
}

/// Adds what happened to what is known.
fn note(facts: &mut Facts, now: Instant, event: Event) {
    let ranks = &mut facts.ranks;
    match event {
        Event::Joined { rank } => with(ranks, rank, |it| it.joined = true),
        Event::Failed { rank, message, consequence } => with(ranks, rank, |it| {
            // The first words count: what follows is told by a process that is already falling apart.
            it.report.get_or_insert(Report { at: now, message, consequence });
        }),
        Event::Left { rank, left } => with(ranks, rank, |it| it.left = Some(left)),
        Event::Exited { rank, exit } => with(ranks, rank, |it| it.exit = Some((now, exit))),
        Event::Signal(signal) => {
            facts.stop.get_or_insert((now, signal));
            facts.signals += 1;
        }
        Event::Steps(_) | Event::Evaluations(_) => {}
        Event::Checkpoint { .. } | Event::CheckpointFailed { .. } | Event::SaveAsked => {}
        Event::Stored { .. } | Event::StoreFailed { .. } | Event::StoreSkipped { .. } => {}
    }
}

fn with(ranks: &mut [verdict::RankFacts], rank: u32, change: impl FnOnce(&mut verdict::RankFacts)) {
    if let Some(it) = ranks.get_mut(rank as usize) {
        change(it);
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Code(code) => write!(formatter, "exited with code {code}"),
            Ending::Signal(number) => write!(formatter, "was killed by {}", signal_name(*number)),
        }
    }
}

/// A signal as everybody knows it.
fn signal_name(number: i32) -> String {
    let name = match number {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}
