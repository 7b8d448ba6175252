//! What one rank's collectives cost and when they were, over however many connections they go.

use super::{ALL_GATHER, Activity, CommError, Pending, REDUCE_SCATTER, Traffic};
use crate::metrics::{Begun, Label, Timeline, Track, Transfer};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// The account of one rank, which its connections and all of their axes share.
pub(super) struct Ledger {
    activity: Arc<Activity>,
    traffic: Cell<Traffic>,
    timeline: Timeline,
}

impl Ledger {
    /// Nothing was done yet but what `activity` counted.
    pub(super) fn new(activity: Arc<Activity>) -> Rc<Self> {
        Rc::new(Ledger { activity, traffic: Cell::default(), timeline: Timeline::default() })
    }

    /// Begins a collective over a full buffer of `bytes` bytes, and its span.
    pub(super) fn begin(self: &Rc<Self>, track: Track, bytes: usize) -> Collective {
        let bytes = bytes as u64;
        self.count(|traffic| traffic.logical_bytes += bytes);
        let operation = if track == Track::Gathers { ALL_GATHER } else { REDUCE_SCATTER };
        let sequence = self.activity.begin(operation, bytes);
        let span = self.timeline.begin_transfer(track, Transfer { sequence, bytes });
        Collective { ledger: self.clone(), sequence, span }
    }

    /// Counts payload that goes to other ranks.
    pub(super) fn sends(&self, bytes: usize) {
        self.count(|traffic| traffic.sent_bytes += bytes as u64);
    }

    /// What it cost so far.
    pub(super) fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    /// What this rank is doing.
    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The recorder.
    pub(super) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    fn count(&self, change: impl FnOnce(&mut Traffic)) {
        let mut traffic = self.traffic.get();
        change(&mut traffic);
        self.traffic.set(traffic);
    }
}

/// A collective that was begun. Its span ends when it was waited for: no backend that uses this tells of an earlier end.
pub(super) struct Collective {
    ledger: Rc<Ledger>,
    sequence: u64,
    span: Begun,
}

impl Collective {
    /// Its number, the same on all of its ranks.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Does the rest of it, for which the training thread is blocked.
    pub(super) fn finish<T>(self, rest: impl FnOnce() -> Result<T, CommError>) -> Result<T, CommError> {
        let _blocked = self.ledger.activity.block_in(self.sequence);
        let _watch = Stopwatch::start(&self.ledger);
        let result = rest()?;
        self.ledger.timeline.end(self.span);
        Ok(result)
    }

    /// It is done when `rest` is.
    pub(super) fn after(self, rest: Pending) -> Pending {
        Pending::new(move || self.finish(|| rest.wait()))
    }
}

/// Adds the time since it was made to the account, and to the timeline as a wait, when it is dropped.
struct Stopwatch<'a> {
    began: Instant,
    wait: Option<Begun>,
    ledger: &'a Ledger,
}

impl<'a> Stopwatch<'a> {
    fn start(ledger: &'a Ledger) -> Self {
        let wait = Some(ledger.timeline.begin(Track::Host, || Label::new("wait")));
        Stopwatch { began: Instant::now(), wait, ledger }
    }
}

impl Drop for Stopwatch<'_> {
    fn drop(&mut self) {
        self.ledger.count(|traffic| traffic.blocked += self.began.elapsed());
        if let Some(wait) = self.wait.take() {
            self.ledger.timeline.end(wait);
        }
    }
}
