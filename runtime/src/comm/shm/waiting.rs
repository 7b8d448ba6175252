//! Waiting for other ranks.
//!
//! A rank that waits looks again and again for a moment, where every rank has a processor of its own, and then sleeps until
//! the other one rings. Every [`SLICE`] it wakes up to see whether all processes are still there.

use super::connect::Peer;
use super::control::{Control, Deed};
use super::error::PeerLoss;
use crate::comm::CommError;
use std::time::{Duration, Instant};

/// How long a rank sleeps at most before it looks whether the others live.
pub(super) const SLICE: Duration = Duration::from_millis(50);
/// How long it looks before it sleeps: less than putting a processor to sleep and waking it costs, twice.
const SPIN: Duration = Duration::from_micros(50);
/// Looks between two readings of the clock.
const LOOKS: u32 = 64;

/// How ranks are waited for.
pub(super) struct Patience {
    spins: bool,
    /// A rank that does nothing for so long is given up.
    limit: Duration,
}

/// Who waits for whom in which collective.
pub(super) struct Wait<'a> {
    pub(super) call: &'static str,
    pub(super) sequence: u64,
    /// All ranks; `None` stands for this one.
    pub(super) peers: &'a [Option<Peer>],
    /// Those that take part.
    pub(super) ranks: &'a [usize],
}

impl Patience {
    /// For so many ranks on this host.
    pub(super) fn new(world_size: usize, limit: Duration) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Patience { spins: world_size <= processors, limit }
    }

    /// Waits until `is_done` for `peer`.
    pub(super) fn wait_for(
        &self,
        wait: &Wait<'_>,
        peer: usize,
        is_done: impl Fn(&Control) -> bool,
    ) -> Result<(), CommError> {
        let Some(other) = &wait.peers[peer] else { return Ok(()) };
        let control = other.segment.control();
        if is_done(control) {
            return Ok(());
        }
        let began = Instant::now();
        while self.spins && began.elapsed() < SPIN {
            for _ in 0..LOOKS {
                if is_done(control) {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            // Somebody else may need the processor; perhaps the very rank that is waited for.
            std::thread::yield_now();
        }
        loop {
            let rings = control.rings();
            if is_done(control) {
                return Ok(());
            }
            // What it did before it left still counts.
            if control.has(Deed::Left) && !is_done(control) {
                return Err(wait.lost(other, PeerLoss::Left));
            }
            if began.elapsed() >= self.limit {
                return Err(wait.lost(other, PeerLoss::Silent(self.limit)));
            }
            if !control.sleep(rings, SLICE.min(self.limit)) {
                wait.look_for_losses(&is_done)?;
            }
        }
    }
}

impl Wait<'_> {
    fn lost(&self, peer: &Peer, loss: PeerLoss) -> CommError {
        CommError::PeerLost { call: self.call, sequence: self.sequence, peer: peer.rank, loss }
    }

    /// Whoever is waited for may itself wait for a rank that is gone.
    fn look_for_losses(&self, is_done: impl Fn(&Control) -> bool) -> Result<(), CommError> {
        for (peer, other) in self.peers.iter().enumerate() {
            let Some(other) = other else { continue };
            let control = other.segment.control();
            if other.is_lost() && !is_done(control) {
                return Err(self.lost(other, PeerLoss::Ended));
            }
            if self.ranks.contains(&peer) && control.has(Deed::Left) && !is_done(control) {
                return Err(self.lost(other, PeerLoss::Left));
            }
        }
        Ok(())
    }
}
