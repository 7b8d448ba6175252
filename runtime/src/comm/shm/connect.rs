//! How ranks find each other's memory.
//!
//! Each rank puts a card into the store that names its process and the descriptor of its segment there, and opens the others'
//! through /proc/PROCESS/fd/DESCRIPTOR. Once all have joined, the descriptors are closed.

use super::arena::Arena;
use super::control::Deed;
use super::error::{PeerLoss, ShmError};
use super::process::Process;
use super::segment::{self, NAME, Segment};
use crate::comm::{CommError, Store};
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a rank tells of its segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Card {
    process: u32,
    began: u64,
    descriptor: i32,
    length: usize,
    /// The segment is signed with it.
    token: u64,
}

/// Another rank.
pub(super) struct Peer {
    /// As the job counts.
    pub(super) rank: usize,
    pub(super) segment: Segment,
    process: Process,
}

impl Peer {
    /// Whether it ended without a word.
    pub(super) fn is_lost(&self) -> bool {
        !self.process.lives() && !self.segment.control().has(Deed::Left)
    }
}

/// This rank's own segment, which it leaves when this is dropped.
pub(super) struct Own(pub(super) Arc<Arena>);

impl Drop for Own {
    fn drop(&mut self) {
        self.0.segment().control().tell(Deed::Left);
    }
}

fn key(rank: usize) -> String {
    format!("shm/{rank}")
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> ShmError {
    move |source| ShmError::System { what, source }
}

/// A number that no other segment is signed with.
fn token() -> u64 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish() | 1
}

/// Makes the segment of the job's rank `rank` and maps those of the other `ranks`; `None` stands for this rank.
pub(super) fn connect(
    store: &dyn Store,
    rank: usize,
    ranks: Range<usize>,
    timeout: Duration,
) -> Result<(Own, Vec<Option<Peer>>), CommError> {
    let failed = |source| CommError::SharedMemory { call: "connect", source };
    let deadline = Instant::now() + timeout;
    let length = segment::size(ranks.len()).map_err(system("reading the size of the memory")).map_err(failed)?;
    let (segment, file) =
        Segment::create(length).map_err(system("reserving addresses for shared memory")).map_err(failed)?;
    let process = Process::own().map_err(system("looking up this process")).map_err(failed)?;
    let card =
        Card { process: process.number, began: process.began, descriptor: file.as_raw_fd(), length, token: token() };
    segment.control().sign(card.token);
    let own = Own(Arc::new(Arena::new(segment)));
    let text = serde_json::json!(card).to_string();
    store.set(&key(rank), text.as_bytes()).map_err(ShmError::Store).map_err(failed)?;
    let meet = |peer| if peer == rank { Ok(None) } else { meet(store, peer, deadline).map(Some) };
    let peers = ranks.map(meet).collect::<Result<Vec<_>, _>>()?;
    own.0.segment().control().tell(Deed::Joined);
    peers.iter().flatten().try_for_each(|peer| wait_until_joined(peer, deadline, timeout))?;
    Ok((own, peers))
}

/// Maps another rank's segment as soon as that is known.
fn meet(store: &dyn Store, peer: usize, deadline: Instant) -> Result<Peer, CommError> {
    let failed = |source| CommError::SharedMemory { call: "connect", source };
    let left = deadline.saturating_duration_since(Instant::now());
    let bytes = store.get(&key(peer), left).map_err(ShmError::Store).map_err(failed)?;
    let card: Card =
        serde_json::from_slice(&bytes).map_err(|error| failed(ShmError::Card { peer, problem: error.to_string() }))?;
    let process = Process { number: card.process, began: card.began };
    match open(&card) {
        Ok(segment) => Ok(Peer { rank: peer, segment, process }),
        Err(_) if !process.lives() => Err(lost(peer, PeerLoss::Ended)),
        Err(source) => Err(failed(ShmError::Unreachable { peer, process: card.process, source })),
    }
}

fn lost(peer: usize, loss: PeerLoss) -> CommError {
    CommError::PeerLost { call: "connect", sequence: 0, peer, loss }
}

fn open(card: &Card) -> std::io::Result<Segment> {
    let path = format!("/proc/{}/fd/{}", card.process, card.descriptor);
    // Anything else is not to be opened: that alone may do something.
    let other = || std::io::Error::other(format!("{path} is something else"));
    if !std::fs::read_link(&path)?.to_string_lossy().starts_with(&format!("/memfd:{NAME}")) {
        return Err(other());
    }
    let file = std::fs::File::options().read(true).write(true).open(&path)?;
    if file.metadata()?.len() != card.length as u64 || card.length <= segment::TENSORS {
        return Err(other());
    }
    let segment = Segment::map(&file, card.length, false)?;
    if !segment.control().is_signed(card.token) {
        return Err(other());
    }
    Ok(segment)
}

fn wait_until_joined(peer: &Peer, deadline: Instant, timeout: Duration) -> Result<(), CommError> {
    let control = peer.segment.control();
    loop {
        let rings = control.rings();
        if control.has(Deed::Joined) {
            return Ok(());
        }
        if control.has(Deed::Left) {
            return Err(lost(peer.rank, PeerLoss::Left));
        }
        if Instant::now() >= deadline {
            return Err(lost(peer.rank, PeerLoss::Silent(timeout)));
        }
        if !control.sleep(rings, super::waiting::SLICE) && peer.is_lost() {
            return Err(lost(peer.rank, PeerLoss::Ended));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::LocalStore;

    fn meet_card(change: impl Fn(&mut Card)) -> CommError {
        let (segment, file) = Segment::create(segment::TENSORS + segment::HUGE_PAGE).unwrap();
        segment.control().sign(7);
        let process = Process::own().unwrap();
        let mut card = Card {
            process: process.number,
            began: process.began,
            descriptor: file.as_raw_fd(),
            length: segment.length(),
            token: 7,
        };
        let store = LocalStore::default();
        change(&mut card);
        store.set(&key(1), serde_json::json!(card).to_string().as_bytes()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(1);
        let result = meet(&store, 1, deadline);
        result.err().unwrap_or_else(|| lost(9, PeerLoss::Left))
    }

    #[test]
    fn only_the_very_segment_is_mapped() {
        assert!(matches!(meet_card(|_| ()), CommError::PeerLost { peer: 9, .. }), "as it is, it can be mapped");
        let unreachable = |error: CommError| {
            let text = error.to_string();
            assert!(text.contains("the memory of rank 1 (process") && text.contains("hint: "), "{text}");
        };
        unreachable(meet_card(|card| card.token = 8));
        unreachable(meet_card(|card| card.length *= 2));
        unreachable(meet_card(|card| card.descriptor = 0));
        let ended = meet_card(|card| (card.process, card.descriptor) = (u32::MAX - 1, 0));
        assert!(matches!(ended, CommError::PeerLost { loss: PeerLoss::Ended, .. }), "{ended}");
    }
}
