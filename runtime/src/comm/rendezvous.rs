//! Where the ranks of a job are, and what connects them best.

use super::hierarchical::{Hierarchical, ranks_per_host};
use super::shm::{Shm, ShmError};
use super::store::Prefixed;
use super::{Activity, Collectives, CommError, Gloo, Store};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// One rank, as it comes to meet the others.
pub struct Rendezvous<'a> {
    /// What all ranks of the job see.
    pub store: Arc<dyn Store>,
    /// This rank.
    pub rank: usize,
    /// All ranks.
    pub world_size: usize,
    /// The name or address of the interface that other hosts reach this one by.
    pub interface: &'a str,
    /// How long any rank is waited for, now and in collectives.
    pub timeout: Duration,
    /// What this rank does.
    pub activity: Arc<Activity>,
}

impl Rendezvous<'_> {
    /// Connects this rank by shared memory to those of its host, and to those of others by Gloo. That takes as many ranks on each
    /// host, in a row, and more than one; else Gloo connects them all.
    ///
    /// # Errors
    /// A rank does not come, or the system refuses what a connection takes.
    pub fn connect(self) -> Result<Rc<dyn Collectives>, CommError> {
        let place = own_place().map_err(|source| failed(ShmError::System { what: "looking up this host", source }))?;
        self.connect_from(&place)
    }

    /// The same for a rank that says it is at `place`: equal for ranks that can share memory.
    pub(super) fn connect_from(self, place: &str) -> Result<Rc<dyn Collectives>, CommError> {
        let places = self.places(place)?;
        let per_host = ranks_per_host(&places);
        let Rendezvous { store, rank, world_size, interface, timeout, activity } = self;
        if per_host == Ok(world_size) {
            return Ok(Rc::new(Shm::connect(store.as_ref(), rank, world_size, timeout, activity)?));
        }
        // Somebody else may be connected by Gloo through this store.
        let own = Arc::new(Prefixed { store: store.clone(), prefix: "hosts" });
        let gloo = Gloo::connect(own, rank, world_size, interface, timeout, activity)?;
        let count = match per_host {
            Ok(1) => Err("each is on a host of its own"),
            other => other,
        };
        match count {
            Err(reason) => {
                tracing::warn!("Gloo connects all ranks, and no memory is shared: {reason}");
                Ok(Rc::new(gloo))
            }
            Ok(count) => {
                let hosts = world_size / count;
                tracing::info!("{hosts} hosts with {count} ranks each: shared memory on each, Gloo between them");
                let first = rank - rank % count;
                let (ranks, ledger) = (first..first + count, gloo.ledger().clone());
                let inner = Shm::among(store.as_ref(), rank, ranks, hosts, timeout, ledger)?;
                Ok(Rc::new(Hierarchical::new(gloo, inner)?))
            }
        }
    }

    /// Where each rank is.
    fn places(&self, own: &str) -> Result<Vec<Vec<u8>>, CommError> {
        let key = |rank: usize| format!("place/{rank}");
        let stored = |error| failed(ShmError::Store(error));
        self.store.set(&key(self.rank), own.as_bytes()).map_err(stored)?;
        let keys: Vec<String> = (0..self.world_size).map(key).collect();
        self.store.get_all(&keys, self.timeout).map_err(stored)
    }
}

fn failed(source: ShmError) -> CommError {
    CommError::SharedMemory { call: "connect", source }
}

/// The running system, and the list of processes that this one sees.
fn own_place() -> std::io::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let processes = std::fs::read_link("/proc/self/ns/pid")?;
    Ok(format!("{} {}", boot.trim(), processes.display()))
}
