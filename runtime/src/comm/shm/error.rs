//! Why ranks cannot share memory.

use std::fmt;
use std::io;
use std::time::Duration;
use thiserror::Error;

/// What became of a rank that was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerLoss {
    /// Its process is no more.
    Ended,
    /// It closed its side.
    Left,
    /// It is alive and did nothing for this long.
    Silent(Duration),
}

impl fmt::Display for PeerLoss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerLoss::Ended => write!(formatter, "its process ended"),
            PeerLoss::Left => write!(formatter, "it closed the connection"),
            PeerLoss::Silent(limit) => write!(formatter, "it did not come for {} s", limit.as_secs_f64()),
        }
    }
}

/// Why memory cannot be shared, or not be used as it should.
#[derive(Debug, Error)]
pub enum ShmError {
    /// The system refused.
    #[error(
        "{what}: {source}\nhint: `ulimit -v` and `ulimit -f` must be unlimited and memory files allowed; use backend: gloo otherwise"
    )]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// There is no room in the memory of this rank that others see.
    #[error(
        "no room for {bytes} bytes in the {size} bytes of shared memory of this rank\n\
         hint: a higher zero_stage or a smaller per_device_train_batch_size need less; `launch plan` tells how much"
    )]
    Full {
        /// The room asked for.
        bytes: usize,
        /// All of it.
        size: usize,
    },
    /// The other rank's memory cannot be reached.
    #[error(
        "the memory of rank {peer} (process {process}) cannot be opened: {source}\n\
         hint: ranks must run as one user and see each other's processes; use backend: gloo where they do not"
    )]
    Unreachable {
        /// The other rank.
        peer: usize,
        /// Its process.
        process: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The other rank's card in the store is not what it should be.
    #[error("what rank {peer} told of its memory cannot be read: {problem}\nhint: all ranks must run the same version")]
    Card {
        /// The other rank.
        peer: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The store failed, most often because another rank is gone.
    #[error("the store: {0}")]
    Store(String),
    /// More collectives were started than the ranks keep account of.
    #[error("more than {0} collectives are under way at once, or one of them was given up")]
    TooMany(usize),
}

impl ShmError {
    /// True when another rank's failure is the most likely cause.
    pub(crate) fn is_consequence(&self) -> bool {
        matches!(self, ShmError::Store(_))
    }
}
