//! Who holds the job up, decided from what the ranks told last.
//!
//! 1. Waiting for others is no fault: the culprit is a rank that is silent, that does not take part in what others wait in, or
//!    that called another collective than the others.
//! 2. How long is too long depends on what the culprit does: five times as long as its phase takes as a rule, and never less
//!    than [`FLOOR`]; before a rank's first step, when it still loads and compiles, in a phase that it never was in before, and
//!    while it saves, evaluates or exports, [`FIRST_STEP`].
//! 3. Times are the ranks' own: each tells how long it has been where it is, so that clocks need not agree.
//! 4. A rank that has left is nobody's culprit.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use zerofold_proto::v1::{Call, Phase};

use crate::control::Member;
use crate::format;

/// Less is never called a hang.
pub const FLOOR: Duration = Duration::from_secs(10);
/// The same before a rank's first step.
pub const FIRST_STEP: Duration = Duration::from_secs(60);
/// What is not more than so many times the usual is not called a hang.
const TIMES_USUAL: f64 = 5.0;

/// Somebody holds the job up.
#[derive(Clone, Debug, PartialEq)]
pub struct Hang {
    /// The culprit; where there is none, as when a network is cut, the lowest rank that waits.
    pub rank: u32,
    /// What is known of it, as a sentence about `rank N`.
    pub words: String,
    /// For how long.
    pub lasts: Duration,
    /// What is wrong, to tell one hang from another.
    pub kind: HangKind,
}

/// Kinds of hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HangKind {
    /// Its process says nothing.
    Silent,
    /// It does something else while others wait.
    Absent,
    /// It has not joined.
    NotJoined,
    /// It waits in an earlier collective than the others.
    Behind,
    /// Ranks called different collectives.
    Mismatch,
    /// All wait in the same collective.
    Network,
    /// Nobody waits, and it does not go on.
    Slow,
}

/// A rank as it is seen now.
struct Seen<'a> {
    rank: u32,
    member: &'a Member,
    /// Since it was heard.
    age: Duration,
}

impl Seen<'_> {
    fn phase(&self) -> Phase {
        self.member.doing.phase()
    }

    fn blocked_in(&self) -> Option<&Call> {
        self.member.doing.blocked_in.as_ref()
    }

    fn blocked_for(&self) -> Duration {
        seconds(self.member.doing.blocked_seconds) + self.age
    }

    fn in_phase_for(&self) -> Duration {
        seconds(self.member.doing.seconds) + self.age
    }

    /// The number of the collective that it began last.
    fn begun(&self) -> u64 {
        self.member.doing.calls.last().map_or(0, |call| call.sequence)
    }

    fn call(&self, sequence: u64) -> Option<&Call> {
        self.member.doing.calls.iter().find(|call| call.sequence == sequence)
    }

    /// How long it may do what it does.
    fn patience(&self) -> Duration {
        let usual = self.member.doing.usual_seconds;
        let takes_its_time =
            matches!(self.phase(), Phase::Loading | Phase::Checkpoint | Phase::Evaluation | Phase::Export);
        let least = if self.member.step == 0 || usual <= 0.0 || takes_its_time { FIRST_STEP } else { FLOOR };
        least.max(seconds(TIMES_USUAL * usual))
    }

    fn phase_words(&self) -> String {
        let usual = match self.member.doing.usual_seconds {
            usual if usual > 0.0 => format!(" (usually {})", format::duration(seconds(usual))),
            _ => String::new(),
        };
        format!("{} in {}{usual}", format::duration(self.in_phase_for()), phase_name(self.phase()))
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}

/// A phase as a person reads it.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "start-up",
        Phase::Loading => "loading",
        Phase::Data => "data loading",
        Phase::Forward => "forward",
        Phase::Backward => "backward",
        Phase::Optimizer => "optimizer",
        Phase::Evaluation => "evaluation",
        Phase::Checkpoint => "checkpoint",
        Phase::Export => "export",
        Phase::Gather => "gather",
        Phase::Reduce => "reduce",
        Phase::Exchange => "exchange",
        Phase::Meeting => "meeting the others",
    }
}

/// A collective as a person reads it.
pub fn call_words(call: &Call) -> String {
    let Call { sequence, operation, about, .. } = call;
    if about.is_empty() { format!("{operation} #{sequence}") } else { format!("{operation} #{sequence} ({about})") }
}

/// Who holds the job up at `now`, if anybody does for too long. `awake` is since when `launch` itself has been at work without
/// a break: what was not heard before that says nothing about the ranks.
pub fn diagnose(now: Instant, awake: Instant, members: &[Member]) -> Option<Hang> {
    let ranks: Vec<Seen<'_>> = (0..).zip(members).filter_map(|(rank, member)| seen(now, awake, rank, member)).collect();
    let found = silent(&ranks).or_else(|| absent(&ranks)).or_else(|| not_met(&ranks));
    found.or_else(|| not_joined(now, members)).or_else(|| all_wait(&ranks)).or_else(|| slow(&ranks))
}

fn seen(now: Instant, awake: Instant, rank: u32, member: &Member) -> Option<Seen<'_>> {
    let heard = member.heard.filter(|_| member.left.is_none())?;
    Some(Seen { rank, member, age: now.saturating_duration_since(heard.max(awake)) })
}

fn silent(ranks: &[Seen<'_>]) -> Option<Hang> {
    let culprit = ranks.iter().filter(|rank| rank.age >= FLOOR).max_by_key(|rank| rank.age)?;
    let lasts = culprit.age;
    let last = match culprit.blocked_in() {
        Some(call) => format!("waiting in {}", call_words(call)),
        None => format!("in {}", phase_name(culprit.phase())),
    };
    let words = format!(
        "rank {} has not been heard from for {}; it was {last}{}",
        culprit.rank,
        format::duration(lasts),
        after_step(culprit)
    );
    Some(Hang { rank: culprit.rank, words, lasts, kind: HangKind::Silent })
}

/// Others wait in a collective, and somebody is not among them.
fn absent(ranks: &[Seen<'_>]) -> Option<Hang> {
    let (waiting, busy): (Vec<&Seen<'_>>, Vec<&Seen<'_>>) = ranks.iter().partition(|rank| rank.blocked_in().is_some());
    let first = waiting.iter().min_by_key(|rank| rank.blocked_in().map(|call| call.sequence))?;
    let awaited = first.blocked_in()?;
    let culprit = busy.iter().min_by_key(|rank| (rank.begun(), std::cmp::Reverse(rank.in_phase_for())))?;
    let lasts = waiting.iter().map(|rank| rank.blocked_for()).max()?;
    if lasts < culprit.patience() {
        return None;
    }
    let lacks = match culprit.begun() < awaited.sequence {
        true => format!("has not entered {}", call_words(awaited)),
        false => format!("does not go on with {}", call_words(awaited)),
    };
    let words = format!(
        "rank {} {lacks}, in which {} for {}: {}{}",
        culprit.rank,
        who_waits(&waiting),
        format::duration(lasts),
        culprit.phase_words(),
        after_step(culprit)
    );
    Some(Hang { rank: culprit.rank, words, lasts, kind: HangKind::Absent })
}

/// Others wait to be connected with somebody who does not come.
fn not_met(ranks: &[Seen<'_>]) -> Option<Hang> {
    let waits = |rank: &&Seen<'_>| rank.phase() == Phase::Meeting;
    let waiting: Vec<&Seen<'_>> = ranks.iter().filter(waits).collect();
    let absent = |rank: &&Seen<'_>| rank.begun() == 0 && matches!(rank.phase(), Phase::Starting | Phase::Loading);
    let culprit = ranks.iter().filter(absent).max_by_key(|rank| rank.in_phase_for())?;
    let lasts = waiting.iter().map(|rank| rank.in_phase_for()).max().filter(|lasts| *lasts >= FIRST_STEP)?;
    let words = format!(
        "rank {} has not come to meet the others, for whom {} for {}: {}",
        culprit.rank,
        who_waits(&waiting),
        format::duration(lasts),
        culprit.phase_words()
    );
    Some(Hang { rank: culprit.rank, words, lasts, kind: HangKind::Absent })
}

/// Others have joined, and somebody has not.
fn not_joined(now: Instant, members: &[Member]) -> Option<Hang> {
    let first = members.iter().filter_map(|member| member.joined).min()?;
    let lasts = now.saturating_duration_since(first);
    let missing = members.iter().position(|member| member.joined.is_none())?;
    if lasts < FIRST_STEP {
        return None;
    }
    let rank = missing as u32;
    let words = format!("rank {rank} has not joined the job, {} after the first one did", format::duration(lasts));
    Some(Hang { rank, words, lasts, kind: HangKind::NotJoined })
}

/// Everybody waits: in different collectives, in differently many, or in the same.
fn all_wait(ranks: &[Seen<'_>]) -> Option<Hang> {
    let first = ranks.iter().filter(|rank| rank.blocked_in().is_some()).min_by_key(|rank| rank.begun())?;
    if ranks.len() < 2 || ranks.iter().any(|rank| rank.blocked_in().is_none()) {
        return None;
    }
    let lasts = ranks.iter().map(Seen::blocked_for).min()?;
    if lasts < first.patience() {
        return None;
    }
    if let Some((rank, words)) = mismatch(ranks) {
        return Some(Hang { rank, words, lasts, kind: HangKind::Mismatch });
    }
    let awaited = first.blocked_in()?;
    let others: Vec<&Seen<'_>> = ranks.iter().filter(|rank| rank.begun() > first.begun()).collect();
    if !others.is_empty() {
        let words = format!(
            "rank {} waits in {} for {}, while {} in a later one{}",
            first.rank,
            call_words(awaited),
            format::duration(lasts),
            who_waits(&others),
            after_step(first)
        );
        return Some(Hang { rank: first.rank, words, lasts, kind: HangKind::Behind });
    }
    let words = format!(
        "rank {} and all others wait in {} for {}: what connects them does not deliver{}",
        first.rank,
        call_words(awaited),
        format::duration(lasts),
        after_step(first)
    );
    Some(Hang { rank: first.rank, words, lasts, kind: HangKind::Network })
}

/// The first collective that is not the same on all ranks, told of the rank whose own is the rarest.
fn mismatch(ranks: &[Seen<'_>]) -> Option<(u32, String)> {
    let newest = ranks.iter().map(Seen::begun).min()?;
    let oldest = ranks.iter().filter_map(|rank| rank.member.doing.calls.first()).map(|call| call.sequence).max()?;
    for sequence in oldest..=newest {
        let calls: Vec<(u32, &Call)> =
            ranks.iter().filter_map(|rank| Some((rank.rank, rank.call(sequence)?))).collect();
        let mut alike_calls = HashMap::new();
        calls.iter().for_each(|(_, call)| *alike_calls.entry((&call.operation, call.bytes)).or_insert(0) += 1);
        let same = |call: &Call| alike_calls.get(&(&call.operation, call.bytes)).copied().unwrap_or(0);
        let Some((rank, odd)) = calls.iter().rev().min_by_key(|(_, call)| same(call)) else { continue };
        let Some((_, usual)) = calls.iter().find(|(_, call)| !alike(call, odd)) else { continue };
        let others: Vec<u32> = calls.iter().filter(|(_, call)| !alike(call, odd)).map(|(rank, _)| *rank).collect();
        let size = |call: &Call| format!("{}, {}", call_words(call), format::bytes(call.bytes));
        let words = format!(
            "rank {rank} called another collective than the others: {} where {} called {}",
            size(odd),
            format::ranks(&others),
            size(usual)
        );
        return Some((*rank, words));
    }
    None
}

fn alike(one: &Call, other: &Call) -> bool {
    (&one.operation, one.bytes) == (&other.operation, other.bytes)
}

/// Nobody waits, and somebody has been at it for too long. Saving, evaluating, exporting and loading take their time.
fn slow(ranks: &[Seen<'_>]) -> Option<Hang> {
    let of_step = |rank: &&Seen<'_>| {
        matches!(rank.phase(), Phase::Data | Phase::Forward | Phase::Backward | Phase::Optimizer)
            && rank.blocked_in().is_none()
    };
    let culprit = ranks.iter().filter(of_step).max_by_key(|rank| rank.in_phase_for())?;
    let lasts = culprit.in_phase_for();
    // Somebody waits for it: then that is what counts.
    if lasts < culprit.patience() || ranks.iter().any(|rank| rank.blocked_in().is_some()) {
        return None;
    }
    let words = format!("rank {} does not go on: {}{}", culprit.rank, culprit.phase_words(), after_step(culprit));
    Some(Hang { rank: culprit.rank, words, lasts, kind: HangKind::Slow })
}

fn who_waits(waiting: &[&Seen<'_>]) -> String {
    let ranks: Vec<u32> = waiting.iter().map(|rank| rank.rank).collect();
    format!("{} {}", format::ranks(&ranks), if ranks.len() == 1 { "waits" } else { "wait" })
}

fn after_step(rank: &Seen<'_>) -> String {
    match rank.member.step {
        0 => " (before its first step)".to_owned(),
        step => format!(" (after step {step})"),
    }
}
