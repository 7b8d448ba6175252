//! What this rank is doing right now, readable from the control thread.

use super::{ALL_GATHER, NUMBERS};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use zerofold_proto::v1::Phase;
use zerofold_proto::v1::{Call, Doing, PhaseTime};

/// How many of the last collectives are told.
const CALLS: usize = 16;
/// How many are remembered: more than are ever begun before the first of them is waited for.
const KEPT: usize = 1024;
/// How many of a phase's last visits its usual length is the median of.
const VISITS: usize = 32;

/// Phase, step and collectives of a rank. Written by the training thread, read by the control thread.
#[derive(Debug)]
pub struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    phase: Phase,
    /// When the phase was entered.
    entered: Instant,
    /// Of the time since then, what was spent blocked.
    blocked_in_phase: Duration,
    /// Of the rest, what was handed out by [`Activity::take_times`].
    told: Duration,
    step: u64,
    about: String,
    calls: VecDeque<Begun>,
    /// The collectives that the thread is blocked in, the outermost first, each with the moment since when.
    blocked: Vec<(u64, Instant)>,
    times: Vec<Times>,
}

/// A collective that was begun.
#[derive(Debug)]
struct Begun {
    sequence: u64,
    operation: &'static str,
    about: String,
    bytes: u64,
}

impl Begun {
    fn call(&self) -> Call {
        let (operation, about) = (self.operation.to_owned(), self.about.clone());
        Call { sequence: self.sequence, operation, about, bytes: self.bytes }
    }

    /// What a rank does that is blocked in it.
    fn phase(&self) -> Phase {
        match (self.operation, self.about.as_str()) {
            (_, NUMBERS) => Phase::Exchange,
            (ALL_GATHER, _) => Phase::Gather,
            _ => Phase::Reduce,
        }
    }
}

/// Of one phase.
#[derive(Debug, Default)]
struct Times {
    /// Not yet handed out.
    spent: Duration,
    /// The last visits.
    visits: VecDeque<Duration>,
}

impl Default for Activity {
    fn default() -> Self {
        Activity(Mutex::new(State {
            phase: Phase::Starting,
            entered: Instant::now(),
            blocked_in_phase: Duration::ZERO,
            told: Duration::ZERO,
            step: 0,
            about: String::new(),
            calls: VecDeque::new(),
            blocked: Vec::new(),
            times: Vec::new(),
        }))
    }
}

/// The training thread is blocked until this is dropped.
#[must_use = "the thread counts as blocked until this is dropped"]
pub struct Blocked<'a>(&'a Activity);

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.0.state().unblock();
    }
}

impl Activity {
    fn state(&self) -> MutexGuard<'_, State> {
        // What it guards is valid between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what begins now.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.state();
        let (now, before) = (Instant::now(), state.phase);
        let (visit, told) = (state.own_time(now), state.told);
        let times = state.times(before);
        times.spent += visit.saturating_sub(told);
        if times.visits.len() == VISITS {
            times.visits.pop_front();
        }
        times.visits.push_back(visit);
        (state.phase, state.entered, state.blocked_in_phase, state.told) = (phase, now, Duration::ZERO, Duration::ZERO);
    }

    /// Notes how many optimizer steps are finished.
    pub fn finished_steps(&self, step: u64) {
        self.state().step = step;
    }

    /// Notes what the collectives that follow are about.
    pub fn about(&self, name: &str) {
        name.clone_into(&mut self.state().about);
    }

    /// Counts a collective over `bytes` bytes and returns its sequence number, from 1.
    pub fn begin(&self, operation: &'static str, bytes: u64) -> u64 {
        let mut state = self.state();
        let sequence = state.calls.back().map_or(0, |call| call.sequence) + 1;
        if state.calls.len() == KEPT {
            state.calls.pop_front();
        }
        let about = state.about.clone();
        state.calls.push_back(Begun { sequence, operation, about, bytes });
        sequence
    }

    /// From now on the training thread waits in the collective with that number.
    pub fn block_in(&self, sequence: u64) -> Blocked<'_> {
        self.state().blocked.push((sequence, Instant::now()));
        Blocked(self)
    }

    /// From now on the training thread waits for all that was begun.
    pub fn block(&self) -> Blocked<'_> {
        let newest = self.state().calls.back().map_or(0, |call| call.sequence);
        self.block_in(newest)
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Optimizer steps finished.
    pub fn step(&self) -> u64 {
        self.state().step
    }

    /// What the training thread is doing now.
    pub fn doing(&self) -> Doing {
        let state = self.state();
        let now = Instant::now();
        let blocked = state.blocked.first();
        let call = blocked.and_then(|(sequence, _)| state.call(*sequence));
        Doing {
            phase: state.phase.into(),
            seconds: state.own_time(now).as_secs_f64(),
            usual_seconds: state.usual(state.phase).as_secs_f64(),
            blocked_in: call.map(Begun::call),
            blocked_seconds: blocked.map_or(0.0, |(_, since)| (now - *since).as_secs_f64()),
            calls: state.calls.iter().skip(state.calls.len().saturating_sub(CALLS)).map(Begun::call).collect(),
        }
    }

    /// Where the time went since this was asked last.
    pub fn take_times(&self) -> Vec<PhaseTime> {
        let mut state = self.state();
        let now = Instant::now();
        // What the current visit has had so far counts now, and not again.
        let so_far = state.own_time(now);
        let untold = so_far.saturating_sub(state.told);
        state.told = so_far;
        let phase = state.phase;
        state.times(phase).spent += untold;
        let mut taken = Vec::new();
        for (number, times) in (0i32..).zip(&mut state.times) {
            let spent = std::mem::take(&mut times.spent);
            if !spent.is_zero() {
                taken.push(PhaseTime { phase: number, seconds: spent.as_secs_f64() });
            }
        }
        taken
    }
}

impl State {
    fn times(&mut self, phase: Phase) -> &mut Times {
        let index = phase as usize;
        if self.times.len() <= index {
            self.times.resize_with(index + 1, Times::default);
        }
        &mut self.times[index]
    }

    fn call(&self, sequence: u64) -> Option<&Begun> {
        self.calls.iter().rev().find(|call| call.sequence == sequence)
    }

    /// Time in the current phase without what was spent blocked.
    fn own_time(&self, now: Instant) -> Duration {
        let blocked = self.blocked.first().map_or(Duration::ZERO, |(_, since)| now - *since.max(&self.entered));
        (now - self.entered).saturating_sub(self.blocked_in_phase + blocked)
    }

    fn usual(&self, phase: Phase) -> Duration {
        let Some(times) = self.times.get(phase as usize) else { return Duration::ZERO };
        let mut visits: Vec<Duration> = times.visits.iter().copied().collect();
        visits.sort_unstable();
        visits.get(visits.len() / 2).copied().unwrap_or_default()
    }

    fn unblock(&mut self) {
        // One wait may lie in another; the outermost has the whole time.
        let Some((sequence, since)) = self.blocked.pop() else { return };
        if !self.blocked.is_empty() {
            return;
        }
        let now = Instant::now();
        let (all, here) = (now - since, now - since.max(self.entered));
        self.blocked_in_phase += here;
        let phase = self.call(sequence).map_or(Phase::Exchange, Begun::phase);
        self.times(phase).spent += all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(times: &[PhaseTime], phase: Phase) -> f64 {
        times.iter().find(|time| time.phase() == phase).map_or(0.0, |time| time.seconds)
    }

    #[test]
    fn collectives_are_numbered_and_the_last_ones_kept() {
        let activity = Activity::default();
        activity.about("layer 3");
        for number in 1..=CALLS as u64 + 4 {
            assert_eq!(activity.begin(ALL_GATHER, 64), number);
        }
        let doing = activity.doing();
        assert_eq!(doing.calls.len(), CALLS);
        let last = Call { sequence: 20, operation: "all_gather".into(), about: "layer 3".into(), bytes: 64 };
        assert_eq!(doing.calls.last(), Some(&last));
        assert_eq!((doing.blocked_in, doing.blocked_seconds), (None, 0.0));
        {
            let _long_ago = activity.block_in(2);
            assert_eq!(activity.doing().blocked_in.unwrap().sequence, 2, "begun before those that are told");
        }
        let outer = activity.block_in(19);
        {
            let _inner = activity.block_in(20);
            assert_eq!(activity.doing().blocked_in.unwrap().sequence, 19, "the outermost wait counts");
        }
        assert!(activity.doing().blocked_in.is_some());
        drop(outer);
        assert_eq!(activity.doing().blocked_in, None);
    }

    #[test]
    fn time_is_the_phases_or_that_of_what_blocks_it_and_told_once() {
        let activity = Activity::default();
        let began = Instant::now();
        activity.enter(Phase::Forward);
        let sequence = activity.begin("reduce_scatter", 8);
        let pause = Duration::from_millis(20);
        std::thread::sleep(pause);
        {
            let _blocked = activity.block_in(sequence);
            std::thread::sleep(pause);
            assert!(activity.doing().seconds < activity.doing().blocked_seconds + pause.as_secs_f64() * 2.0);
        }
        activity.enter(Phase::Optimizer);
        let times = activity.take_times();
        let all: f64 = times.iter().map(|time| time.seconds).sum();
        assert!(seconds(&times, Phase::Forward) >= pause.as_secs_f64(), "{times:?}");
        assert!(seconds(&times, Phase::Reduce) >= pause.as_secs_f64(), "{times:?}");
        assert!(all <= began.elapsed().as_secs_f64() + 0.1, "nothing is counted twice: {times:?}");
        let again = activity.take_times();
        assert_eq!(seconds(&again, Phase::Forward) + seconds(&again, Phase::Reduce), 0.0, "{again:?}");
        activity.enter(Phase::Forward);
        assert!(activity.doing().usual_seconds >= pause.as_secs_f64(), "the visit before is what is usual");
    }
}
