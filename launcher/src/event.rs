//! What the control plane, the children and the terminal tell the main thread, which alone decides.

use std::time::Duration;

use zerofold_proto::v1::{EvaluationRecord, StepRecord};

use crate::control::Left;
use crate::supervise::Exit;

/// A signal that `launch` itself received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM, as schedulers and `kill` send it.
    Terminate,
    /// SIGHUP: the terminal was closed.
    Hangup,
}

impl StopSignal {
    /// The exit code by which a shell knows that the program ended by this signal.
    pub fn exit_code(self) -> u8 {
        match self {
            StopSignal::Interrupt => 130,
            StopSignal::Terminate => 143,
            StopSignal::Hangup => 129,
        }
    }

    /// As a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            StopSignal::Interrupt => "Ctrl-C",
            StopSignal::Terminate => "SIGTERM",
            StopSignal::Hangup => "SIGHUP",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker runs and speaks.
    Joined {
        /// Its rank.
        rank: u32,
    },
    /// Rank 0 finished optimizer steps.
    Steps(Vec<StepRecord>),
    /// Rank 0 finished passes over the held-out rows.
    Evaluations(Vec<EvaluationRecord>),
    /// A checkpoint was published.
    Checkpoint {
        /// After this step.
        step: u64,
        /// Its folder.
        directory: String,
    },
    /// A checkpoint could not be written or published; the job goes on.
    CheckpointFailed {
        /// It would have been that of this step.
        step: u64,
        /// Why there is none.
        reason: String,
    },
    /// A checkpoint is in the store.
    Stored {
        /// After this step.
        step: u64,
        /// Where.
        url: String,
        /// Bytes of its files.
        bytes: u64,
        /// How long that took.
        time: Duration,
    },
    /// A checkpoint could not be put into the store; the job goes on.
    StoreFailed {
        /// After this step.
        step: u64,
        /// Where it would have been.
        url: String,
        /// Why it is not.
        reason: String,
    },
    /// A checkpoint will not be put into the store, since a newer one is to be.
    StoreSkipped {
        /// After this step.
        step: u64,
    },
    /// A worker tells why it is about to exit with an error.
    Failed {
        /// Its rank.
        rank: u32,
        /// Its own words.
        message: String,
        /// Another rank's failure is the cause.
        consequence: bool,
    },
    /// A worker is done.
    Left {
        /// Its rank.
        rank: u32,
        /// What it told.
        left: Left,
    },
    /// A worker's process ended; comes once for each.
    Exited {
        /// Its rank.
        rank: u32,
        /// How.
        exit: Exit,
    },
    /// `launch` was asked to stop.
    Signal(StopSignal),
    /// Somebody sent a worker SIGTERM: the job is to stop.
    StopAsked {
        /// Its rank.
        rank: u32,
    },
    /// `launch` was asked for a checkpoint.
    SaveAsked,
    /// The launch of another host was asked to stop.
    StopAskedByHost {
        /// Its name.
        host: String,
        /// By this signal.
        signal: StopSignal,
    },
    /// Another host came or went.
    HostsChanged,
    /// Another host is gone, and with it what ran there.
    HostLost {
        /// Its name.
        host: String,
        /// Its ranks that had not ended.
        ranks: Vec<u32>,
        /// How it went, as the rest of a sentence about it.
        how: String,
    },
}
