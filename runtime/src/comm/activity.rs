//! What this rank is doing right now, readable from the control thread.

use std::sync::atomic::{AtomicU64, Ordering};

pub use zerofold_proto::v1::Phase;

/// Phase, step and last collective of a rank. Written by the training thread, read by the control thread.
#[derive(Debug, Default)]
pub struct Activity {
    phase: AtomicU64,
    step: AtomicU64,
    collective: AtomicU64,
}

impl Activity {
    /// Notes what begins now.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u64, Ordering::Relaxed);
    }

    /// Notes how many optimizer steps are finished.
    pub fn finished_steps(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Counts a collective and returns its sequence number, from 1.
    pub fn next_collective(&self) -> u64 {
        self.collective.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        Phase::try_from(self.phase.load(Ordering::Relaxed) as i32).unwrap_or(Phase::Starting)
    }

    /// Optimizer steps finished.
    pub fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    /// Sequence number of the last collective entered; 0 before the first.
    pub fn collective(&self) -> u64 {
        self.collective.load(Ordering::Relaxed)
    }
}
