//! Watches the workers until the last one has ended: events become facts, facts become decisions ([`verdict`], [`hang`],
//! [`restart`]), decisions become signals ([`fleet`], [`child`]).
//!
//! The contract of a job with the person who started it; tests name its numbers:
//! 1. A rank is there when it says so itself ([`Event::Joined`](crate::event::Event::Joined)); it is never guessed.
//! 2. The end of a process is told once, with how it ended and its last lines.
//! 3. The cause is told first, its consequences after it, and what `launch` did itself is nobody's failure.
//! 4. Who holds the others up is named with what it does, within [`hang::FLOOR`] or five times what is usual, whether it is
//!    stopped, spins, sleeps, or called another collective; after `--timeout` the job ends, with that as its cause.
//! 5. Ending is SIGTERM, and SIGKILL a few seconds later. A worker that is blocked where nothing wakes it is ended by its own
//!    control thread, or by the signal.
//! 6. No process outlives `launch`, by whatever means `launch` ends.
//! 7. A signal that asks `launch` or any worker to end (Ctrl-C, SIGTERM, a closed terminal) lets the step be finished and saved;
//!    a second Ctrl-C does not wait.
//! 8. A job that is begun again goes on from its newest whole checkpoint, bit by bit as if nothing had been, and is not begun
//!    again where that would fail in the same way for ever.
//! 9. Time is the monotonic clock's: setting a machine's clock changes nothing. A `launch` that was stopped for a while blames
//!    nobody for what it did not hear.

pub mod child;
pub mod fleet;
pub mod hang;
#[cfg(test)]
mod hang_tests;
pub mod restart;
pub mod verdict;
#[cfg(test)]
mod verdict_tests;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

pub use child::{SpawnError, Worker};
pub use fleet::{Fleet, Place};
pub use hang::Hang;
pub use verdict::{Cause, Decision, Ending, Exit, Facts, Failure, Limits, Verdict};

use crate::control::ControlPlane;
use crate::error::LaunchError;
use crate::event::{Event, StopSignal};
use crate::format;
use restart::Restart;
use verdict::Report;

/// The longest sleep without a look at the clock and the heartbeats.
const TICK: Duration = Duration::from_millis(500);
/// A longer time between two looks means that `launch` itself was stopped.
const BREAK: Duration = Duration::from_secs(5);

/// Sees what the job does; prints and records it.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: &Event, control: &ControlPlane);
    /// `launch` decided something a person should know.
    fn notice(&mut self, text: &str);

    /// The job is begun again; what came after its step is about to be done again.
    ///
    /// # Errors
    /// What was recorded cannot be taken back.
    fn restarted(&mut self, _restart: &Restart) -> Result<(), LaunchError> {
        Ok(())
    }

    /// Somebody holds the job up, in one sentence; or nobody does any more.
    fn hang(&mut self, _words: Option<&str>) {}
}

/// Runs until every worker has ended, then tells how the job ended and what is known of each rank.
pub fn supervise(
    fleet: &mut dyn Fleet,
    control: &ControlPlane,
    events: &Receiver<Event>,
    limits: &Limits,
    observer: &mut dyn Observer,
) -> (Verdict, Facts) {
    let mut facts = Facts::new(Instant::now(), fleet.places());
    let mut last_reason = "";
    let (mut awake, mut looked) = (Instant::now(), Instant::now());
    loop {
        let now = Instant::now();
        // `launch` itself stood still: what the ranks said meanwhile is yet to be heard.
        if now - looked > BREAK {
            awake = now;
        }
        looked = now;
        // Looked at in place: a copy of what thousands of ranks tell takes longer than looking.
        let found = control.look(|members| {
            for (rank, member) in facts.ranks.iter_mut().zip(members) {
                rank.heard = member.heard.map(|heard| heard.max(awake));
            }
            facts.terminated.is_none().then(|| hang::diagnose(now, awake, members))
        });
        if let Some(hang) = found {
            look_at(hang, &mut facts, now, fleet, observer);
        }
        let (decision, reason) = verdict::decide(now, &facts, limits);
        if reason != last_reason {
            tracing::debug!(?decision, reason, "supervision");
            last_reason = reason;
        }
        let until = match decision {
            Decision::Finish => {
                leave_behind(&facts, fleet, observer);
                return (verdict::verdict(now, &facts, limits), facts);
            }
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
                fleet.signal(libc::SIGTERM);
                // A stopped process would not see SIGTERM.
                fleet.signal(libc::SIGCONT);
                continue;
            }
            Decision::Kill => {
                facts.killed = Some(now);
                fleet.signal(libc::SIGKILL);
                continue;
            }
        };
        match events.recv_timeout(until.saturating_duration_since(now)) {
            Ok(event) => {
                if let Event::Exited { rank, exit } = &event {
                    fleet.reap(*rank);
                    if exit.ending != Ending::Code(0) {
                        control.rank_gone(*rank, &exit.ending.to_string());
                    }
                }
                if let Event::HostLost { ranks, .. } = &event {
                    ranks.iter().for_each(|rank| control.rank_gone(*rank, "is on a host that was lost"));
                }
                if let Event::SaveAsked = event {
                    control.ask_to_save();
                    observer.notice("SIGUSR1: a checkpoint is saved after the current step");
                }
                if facts.stop.is_none()
                    && let Some(asked) = asked_elsewhere(&event)
                {
                    observer.notice(&asked);
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

/// Who was asked to stop, where it was not `launch` itself.
fn asked_elsewhere(event: &Event) -> Option<String> {
    match event {
        Event::StopAsked { rank } => Some(format!("rank {rank} was sent SIGTERM")),
        Event::StopAskedByHost { host, signal } => Some(format!("host {host} was asked to stop by {}", signal.name())),
        _ => None,
    }
}

/// Tells of processes that the kernel does not let end, and no longer waits for them.
fn leave_behind(facts: &Facts, fleet: &mut dyn Fleet, observer: &mut dyn Observer) {
    for (rank, it) in (0..).zip(&facts.ranks).filter(|(_, it)| it.exit.is_none()) {
        let why = fleet.state(rank).map(|state| format!(": {state}")).unwrap_or_default();
        let pid = it.place.pid;
        observer.notice(&format!("warning: process {pid} (rank {rank}) does not end, not even by SIGKILL{why}"));
        fleet.leave_behind(rank);
    }
}

/// Keeps in mind who holds the job up, and tells of it once; and of the end of it.
fn look_at(hang: Option<Hang>, facts: &mut Facts, now: Instant, fleet: &dyn Fleet, observer: &mut dyn Observer) {
    let same = |before: &Hang, hang: &Hang| (before.rank, before.kind) == (hang.rank, hang.kind);
    match (hang, facts.hang.take()) {
        (Some(hang), Some((since, before))) if same(&before, &hang) => {
            facts.hang = Some((since, Hang { words: before.words, ..hang }))
        }
        (Some(mut hang), _) => {
            if let Some(state) = fleet.state(hang.rank) {
                hang.words.push_str(&format!("; {state}"));
            }
            let line = fleet.last_line(hang.rank).map(|line| format!("; its last line: {line}")).unwrap_or_default();
            let place = facts.ranks.get(hang.rank as usize).map(|it| &it.place).filter(|place| !place.host.is_empty());
            let words = match place {
                Some(Place { host, .. }) => {
                    let rank = format!("rank {}", hang.rank);
                    hang.words.replacen(&rank, &format!("{rank} on host {host}"), 1)
                }
                None => hang.words.clone(),
            };
            let words = format!("{words}{line}");
            observer.notice(&format!("warning: {words}"));
            observer.hang(Some(&words));
            let since = now.checked_sub(hang.lasts).unwrap_or(now);
            facts.hang = Some((since, hang));
        }
        (None, Some((since, before))) => {
            let lasted = format::duration(now - since);
            observer.notice(&format!("rank {} goes on after {lasted}", before.rank));
            observer.hang(None);
        }
        (None, None) => {}
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
        Event::Left { rank, left } => with(ranks, rank, |it| it.left = Some((now, left))),
        Event::Exited { rank, exit } => {
            let asked = exit.ending == Ending::Signal(libc::SIGTERM) && facts.terminated.is_none();
            with(ranks, rank, |it| it.exit = Some((now, exit)));
            if asked {
                // It meant the job, but came before the worker knew what to make of it.
                facts.stop.get_or_insert((now, StopSignal::Terminate));
            }
        }
        Event::Signal(signal) if verdict::is_repetition(facts.stop, now, signal) => {
            facts.signals = facts.signals.max(1);
        }
        Event::Signal(signal) => {
            facts.stop.get_or_insert((now, signal));
            facts.signals += 1;
        }
        Event::StopAsked { .. } => {
            // Not counted: a scheduler sends the same signal to all processes, and only a second one stops at once.
            facts.stop.get_or_insert((now, StopSignal::Terminate));
        }
        Event::StopAskedByHost { signal, .. } => {
            facts.stop.get_or_insert((now, signal));
            facts.signals = facts.signals.max(1);
        }
        Event::HostLost { host, ranks: lost, how } => host_lost(facts, now, &host, &lost, &how),
        Event::HostsChanged => {}
        Event::Steps(_) | Event::Evaluations(_) => {}
        Event::Checkpoint { .. } | Event::CheckpointFailed { .. } | Event::SaveAsked => {}
        Event::Stored { .. } | Event::StoreFailed { .. } | Event::StoreSkipped { .. } => {}
    }
}

/// The ranks of a host that is gone have ended, nobody knows how.
fn host_lost(facts: &mut Facts, now: Instant, host: &str, ranks: &[u32], how: &str) {
    if ranks.is_empty() {
        return;
    }
    let numbers: Vec<String> = ranks.iter().map(u32::to_string).collect();
    let plural = if ranks.len() == 1 { "rank" } else { "ranks" };
    let words = format!("host {host} ({plural} {}) {how}", numbers.join(", "));
    let terminated = facts.terminated.is_some();
    for rank in ranks {
        with(&mut facts.ranks, *rank, |it| {
            if it.exit.is_some() {
                return;
            }
            it.exit = Some((now, Exit { ending: Ending::Unknown, last_lines: Vec::new() }));
            if !terminated && it.left.is_none() {
                it.given_up = Some((now, Cause::HostLost(words.clone())));
            }
        });
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
            Ending::Unknown => formatter.write_str("was on a host that was lost"),
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
