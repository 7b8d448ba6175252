//! The processes of one membership on all hosts: this one's and the agents'.

use std::sync::Arc;

use super::registry::Registry;
use crate::supervise::{Fleet, Place, Worker};

/// The processes of one membership. Dropped, it kills what still runs, here and there.
pub(crate) struct HostsFleet {
    pub(super) local: Vec<Worker>,
    pub(super) registry: Arc<Registry>,
    pub(super) places: Vec<Place>,
}

impl Fleet for HostsFleet {
    fn places(&self) -> Vec<Place> {
        self.places.clone()
    }

    fn signal(&self, signal: libc::c_int) {
        self.local.signal(signal);
        self.registry.signal(signal);
    }

    fn reap(&mut self, rank: u32) {
        // Those of host 0 come first.
        self.local.reap(rank);
    }

    fn leave_behind(&mut self, rank: u32) {
        // The agent of another host sees to its own.
        self.local.leave_behind(rank);
    }

    fn last_line(&self, rank: u32) -> Option<String> {
        match (rank as usize) < self.local.len() {
            true => self.local.last_line(rank),
            false => self.registry.state(rank).map(|(line, _)| line).filter(|line| !line.is_empty()),
        }
    }

    fn state(&self, rank: u32) -> Option<String> {
        match (rank as usize) < self.local.len() {
            true => self.local.state(rank),
            false => self.registry.state(rank).map(|(_, state)| state).filter(|state| !state.is_empty()),
        }
    }
}

impl Drop for HostsFleet {
    fn drop(&mut self) {
        self.registry.signal(libc::SIGKILL);
    }
}
