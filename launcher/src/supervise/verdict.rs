//! What to do about the workers, decided from facts alone.
//!
//! 1. A job is over when every process has ended; nothing is concluded before.
//! 2. After a first failure others get a moment to fail too, because the first one heard of is often a consequence: a
//!    peer notices a broken connection before the dead rank's end is known.
//! 3. Then the rest is terminated, and killed if that does not help.
//! 4. The cause that is shown first is the earliest failure that is nobody else's consequence.
//! 5. What `launch` did to a worker itself is no failure of that worker.
//! 6. A worker that has left is done: its process gets a while to end, is then ended, and that is nobody's failure.
//! 7. A process that the kernel does not let end, not even by SIGKILL, is named and left to the kernel.

use std::time::{Duration, Instant};

use super::fleet::Place;
use super::hang::Hang;
use crate::control::Left;
use crate::event::StopSignal;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody heard how: its host was lost.
    Unknown,
}

/// The end of a worker's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// How it ended.
    pub ending: Ending,
    /// The last lines it wrote to stderr.
    pub last_lines: Vec<String>,
}

/// What a worker said before it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// When it was heard.
    pub at: Instant,
    /// Its words.
    pub message: String,
    /// It says that another rank is the cause.
    pub consequence: bool,
}

/// Everything known of one worker.
#[derive(Clone, Debug, Default)]
pub struct RankFacts {
    /// Where it runs.
    pub place: Place,
    /// It has joined.
    pub joined: bool,
    /// When it was last heard from.
    pub heard: Option<Instant>,
    /// Why it says it fails.
    pub report: Option<Report>,
    /// When it left, and what it told then.
    pub left: Option<(Instant, Left)>,
    /// When and how its process ended.
    pub exit: Option<(Instant, Exit)>,
    /// When and why `launch` gave it up while it ran: it said nothing for too long.
    pub given_up: Option<(Instant, Cause)>,
}

/// Everything known of the job.
#[derive(Clone, Debug)]
pub struct Facts {
    /// When the workers were started.
    pub started: Instant,
    /// The workers, by rank.
    pub ranks: Vec<RankFacts>,
    /// The first signal that asked `launch` to stop.
    pub stop: Option<(Instant, StopSignal)>,
    /// How many such signals came.
    pub signals: u32,
    /// The workers were told to stop after their step.
    pub asked_to_stop: bool,
    /// When SIGTERM was sent to the workers.
    pub terminated: Option<Instant>,
    /// When SIGKILL was sent to the workers.
    pub killed: Option<Instant>,
    /// Who holds the job up, and since when.
    pub hang: Option<(Instant, Hang)>,
}

impl Facts {
    /// A job whose workers were just started.
    pub fn new(started: Instant, places: Vec<Place>) -> Self {
        let ranks = places.into_iter().map(|place| RankFacts { place, ..RankFacts::default() }).collect();
        let (stop, terminated, killed, hang) = (None, None, None, None);
        Facts { started, ranks, stop, signals: 0, asked_to_stop: false, terminated, killed, hang }
    }
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// After a first failure, for others.
    pub gather: Duration,
    /// After SIGTERM, before SIGKILL.
    pub terminate: Duration,
    /// After being asked to stop, before SIGTERM.
    pub stop: Duration,
    /// For a worker to join, and between two heartbeats.
    pub silence: Duration,
}

/// How long the process of a worker that has left may take to end, and one that was sent SIGKILL.
const LINGER: Duration = Duration::from_secs(60);

/// SIGTERM again within this time of the first means nothing new.
const SAME_SIGNAL: Duration = Duration::from_secs(5);

/// Whether a signal only repeats the first one: at a time limit Slurm's daemon sends SIGTERM to every process, and `srun` hands its
/// own on to them at once. A person's second Ctrl-C always counts.
pub fn is_repetition(first: Option<(Instant, StopSignal)>, now: Instant, signal: StopSignal) -> bool {
    let soon = first.is_some_and(|(at, _)| now.saturating_duration_since(at) < SAME_SIGNAL);
    signal == StopSignal::Terminate && soon
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing before this moment, unless something happens.
    Wait(Option<Instant>),
    /// Tell the workers to finish their step, save and leave.
    AskToStop,
    /// Send SIGTERM to all that run.
    Terminate,
    /// Send SIGKILL to all that run.
    Kill,
    /// All have ended.
    Finish,
}

/// Why a rank counts as failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It said so itself.
    Reported(String),
    /// Its process ended badly without a word.
    Ended(Ending),
    /// It exited with 0 but never left the job.
    LeftSilently,
    /// It did not join in time.
    NeverJoined(Duration),
    /// It was not heard from for too long.
    Silent(Duration),
    /// Its host was lost; in words, as a sentence about the host.
    HostLost(String),
    /// It held the job up for too long; in words, as a sentence about `rank N`.
    Hung(String),
    /// The kernel does not let its process end.
    Unkillable,
}

/// One rank's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The rank.
    pub rank: u32,
    /// When it was known.
    pub at: Instant,
    /// Why.
    pub cause: Cause,
    /// Another rank's failure, or `launch` itself, brought it about.
    pub consequence: bool,
}

/// How the job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All ranks finished their work.
    Completed,
    /// It was stopped by a signal.
    Stopped(StopSignal),
    /// A rank failed.
    Failed {
        /// The cause.
        first: Failure,
        /// What else failed, in order of time.
        others: Vec<Failure>,
    },
}

/// All failures, in order of time.
pub fn failures(now: Instant, facts: &Facts, limits: &Limits) -> Vec<Failure> {
    let mut failures: Vec<Failure> =
        (0..).zip(&facts.ranks).filter_map(|(rank, it)| failure(now, rank, it, facts, limits)).collect();
    failures.sort_by_key(|failure| failure.at);
    failures
}

fn failure(now: Instant, rank: u32, it: &RankFacts, facts: &Facts, limits: &Limits) -> Option<Failure> {
    let ended_by_us = |at: Instant| facts.terminated.is_some_and(|terminated| terminated <= at);
    if let Some(Report { at, message, consequence }) = &it.report {
        let consequence = *consequence || ended_by_us(*at);
        return Some(Failure { rank, at: *at, cause: Cause::Reported(message.clone()), consequence });
    }
    if let Some((at, cause)) = &it.given_up {
        return Some(Failure { rank, at: *at, cause: cause.clone(), consequence: false });
    }
    if let Some((at, exit)) = &it.exit {
        let cause = match exit.ending {
            Ending::Code(0) if it.left.is_some() => return None,
            Ending::Signal(_) if it.left.is_some() && ended_by_us(*at) => return None,
            Ending::Code(0) => Cause::LeftSilently,
            ending => Cause::Ended(ending),
        };
        // A scheduler that stops a job signals its workers too, which may not yet know what to make of it.
        let stopped = facts.stop.is_some() && cause == Cause::Ended(Ending::Signal(libc::SIGTERM));
        return Some(Failure { rank, at: *at, cause, consequence: stopped || ended_by_us(*at) });
    }
    if let Some((since, hang)) =
        facts.hang.as_ref().filter(|(since, hang)| hang.rank == rank && now >= *since + limits.silence)
    {
        let at = *since + limits.silence;
        // The words are of when it was noticed.
        let limit = crate::format::duration(limits.silence);
        let words = format!("{}; it held the job up for {limit} in all (--timeout)", hang.words);
        return Some(Failure { rank, at, cause: Cause::Hung(words), consequence: ended_by_us(at) });
    }
    if it.left.is_some() {
        return None;
    }
    if facts.killed.is_some_and(|killed| now >= killed + LINGER) {
        return Some(Failure { rank, at: now, cause: Cause::Unkillable, consequence: true });
    }
    // It runs. Too long without a word is a failure, known from the moment at which the limit passed.
    let (since, cause) = match it.heard.filter(|_| it.joined) {
        Some(heard) => (heard, Cause::Silent(limits.silence)),
        None => (facts.started, Cause::NeverJoined(limits.silence)),
    };
    let at = since + limits.silence;
    let consequence = ended_by_us(at);
    (now >= at).then_some(Failure { rank, at, cause, consequence })
}

/// Keeps in mind which running ranks are given up for their silence: once they are terminated it would look like their
/// own end.
pub fn give_up(now: Instant, facts: &mut Facts, limits: &Limits) {
    for failure in failures(now, facts, limits) {
        if let (Cause::NeverJoined(_) | Cause::Silent(_) | Cause::Hung(_), Some(it)) =
            (&failure.cause, facts.ranks.get_mut(failure.rank as usize))
        {
            it.given_up = Some((failure.at, failure.cause));
        }
    }
}

/// What to do at `now`, and why.
pub fn decide(now: Instant, facts: &Facts, limits: &Limits) -> (Decision, &'static str) {
    let running = facts.ranks.iter().filter(|it| it.exit.is_none()).count();
    if running == 0 {
        return (Decision::Finish, "every process has ended");
    }
    if let Some(killed) = facts.killed {
        return match now >= killed + LINGER {
            true => (Decision::Finish, "the kernel does not let the rest end"),
            false => (Decision::Wait(Some(killed + LINGER)), "killed processes are about to end"),
        };
    }
    if let Some(terminated) = facts.terminated {
        let kill_at = terminated + limits.terminate;
        return match now >= kill_at || facts.signals > 2 {
            true => (Decision::Kill, "SIGTERM did not help"),
            false => (Decision::Wait(Some(kill_at)), "terminated processes are about to end"),
        };
    }
    let failures = failures(now, facts, limits);
    if let Some(first) = failures.first() {
        let gathered_at = first.at + limits.gather;
        let all = facts.ranks.iter().all(|it| it.exit.is_some() || it.report.is_some());
        return match now >= gathered_at || all {
            true => (Decision::Terminate, "a rank failed"),
            false => (Decision::Wait(Some(gathered_at)), "a rank failed; others may tell the cause"),
        };
    }
    let running = || facts.ranks.iter().filter(|it| it.exit.is_none());
    let left_at = running().map(|it| it.left.as_ref().map(|(at, _)| *at)).collect::<Option<Vec<Instant>>>();
    if let Some(left_at) = left_at.into_iter().flatten().max() {
        return match now >= left_at + LINGER || facts.signals > 1 {
            true => (Decision::Terminate, "a worker is done, but its process does not end"),
            false => (Decision::Wait(Some(left_at + LINGER)), "the last processes are about to end"),
        };
    }
    let at_work = running().filter(|it| it.left.is_none());
    let silent_at = at_work.map(|it| it.heard.unwrap_or(facts.started)).min();
    let hung_at = facts.hang.as_ref().map(|(since, _)| *since);
    let silent_at = silent_at.into_iter().chain(hung_at).min().map(|since| since + limits.silence);
    let Some((stop_at, _)) = facts.stop else {
        return (Decision::Wait(silent_at), "all is well");
    };
    if facts.signals > 1 {
        return (Decision::Terminate, "asked to stop again");
    }
    if !facts.asked_to_stop {
        return (Decision::AskToStop, "asked to stop");
    }
    let give_up_at = stop_at + limits.stop;
    match now >= give_up_at {
        true => (Decision::Terminate, "the workers did not stop in time"),
        false => (Decision::Wait(silent_at.map(|at| at.min(give_up_at))), "the workers finish their step"),
    }
}

/// How the job ended; to be asked once every process has.
pub fn verdict(now: Instant, facts: &Facts, limits: &Limits) -> Verdict {
    let mut failures = failures(now, facts, limits);
    let stopped = facts.stop.map(|(_, signal)| Verdict::Stopped(signal));
    // Without a genuine failure the earliest consequence is the best that is known.
    let first = match failures.iter().position(|failure| !failure.consequence) {
        Some(genuine) => genuine,
        None => match stopped {
            Some(stopped) if !failures.is_empty() => return stopped,
            _ if !failures.is_empty() => 0,
            Some(stopped) if facts.ranks.iter().any(|it| it.left.as_ref().is_some_and(|(_, left)| left.stopped)) => {
                return stopped;
            }
            _ => return Verdict::Completed,
        },
    };
    let first = failures.remove(first);
    Verdict::Failed { first, others: failures }
}
