//! What ranks tell each other: one page for each rank, which it alone writes and all others watch.
//!
//! Every collective has one *turn* or several, numbered by its sequence number, which all ranks count alike, and every turn has a
//! slot in each rank's page. There a rank posts where its input lies (or the input itself, if it is small), and later that it
//! has read the inputs of others. A slot's turns only grow, so it can be used again once every rank of the turn has read.

use rustix::io::Errno;
use rustix::thread::futex;
use rustix::time::Timespec;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Turns that may be under way at once.
pub(super) const SLOTS: usize = 1024;
/// Bytes of an input that travels in the slot itself.
pub(super) const INLINE: usize = 224;

/// What a rank did once and for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Deed {
    /// It mapped all others.
    Joined = 1,
    /// It will do nothing more.
    Left = 2,
}

/// Which collective a rank takes a turn in: it must be the same on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deal {
    /// A reduce-scatter, not an all-gather.
    pub(super) reduces: bool,
    /// Bytes of each rank's input.
    pub(super) bytes: usize,
}

impl Deal {
    fn packed(self) -> u64 {
        (self.bytes as u64) << 1 | u64::from(self.reduces)
    }

    fn unpacked(packed: u64) -> Self {
        Deal { reduces: packed & 1 == 1, bytes: (packed >> 1) as usize }
    }
}

/// One turn of one rank.
#[repr(C, align(128))]
struct Slot {
    posted: AtomicU64,
    read: AtomicU64,
    offset: AtomicU64,
    deal: AtomicU64,
    inline: UnsafeCell<[u8; INLINE]>,
}

/// All that a rank tells.
#[repr(C)]
pub(super) struct Control {
    token: AtomicU64,
    deeds: AtomicU32,
    bell: Bell,
    slots: [Slot; SLOTS],
}

// SAFETY: what is not atomic is written by the rank that posts before it posts, and read by others after that.
unsafe impl Sync for Control {}

/// What a rank rings after each change, on cache lines of its own.
#[repr(C, align(128))]
struct Bell {
    rings: AtomicU32,
    sleepers: AtomicU32,
}

impl Control {
    /// Bytes of it.
    pub(super) const BYTES: usize = size_of::<Control>();

    fn slot(&self, turn: u64) -> &Slot {
        &self.slots[(turn % SLOTS as u64) as usize]
    }

    /// Sets what proves to others that they have the right file.
    pub(super) fn sign(&self, token: u64) {
        self.token.store(token, Ordering::Release);
    }

    /// True when it was signed so.
    pub(super) fn is_signed(&self, token: u64) -> bool {
        self.token.load(Ordering::Acquire) == token
    }

    /// Tells what this rank did.
    pub(super) fn tell(&self, deed: Deed) {
        self.deeds.fetch_or(deed as u32, Ordering::Release);
        self.ring();
    }

    /// Whether the rank did that.
    pub(super) fn has(&self, deed: Deed) -> bool {
        self.deeds.load(Ordering::Acquire) & deed as u32 != 0
    }

    /// Where small inputs of a turn lie: written before [`Control::post`], read after [`Control::has_posted`].
    pub(super) fn inline(&self, turn: u64) -> *mut u8 {
        self.slot(turn).inline.get().cast()
    }

    /// Where the input of a turn lies in the rank's segment, after [`Control::has_posted`].
    pub(super) fn offset(&self, turn: u64) -> usize {
        self.slot(turn).offset.load(Ordering::Relaxed) as usize
    }

    /// Which collective a turn is to the rank, after [`Control::has_posted`].
    pub(super) fn deal(&self, turn: u64) -> Deal {
        Deal::unpacked(self.slot(turn).deal.load(Ordering::Relaxed))
    }

    /// Tells where the input of a turn lies, and of which collective it is.
    pub(super) fn post(&self, turn: u64, offset: usize, deal: Deal) {
        let slot = self.slot(turn);
        slot.deal.store(deal.packed(), Ordering::Relaxed);
        slot.offset.store(offset as u64, Ordering::Relaxed);
        slot.posted.store(turn, Ordering::Release);
        self.ring();
    }

    /// Whether the rank's input of a turn is there.
    pub(super) fn has_posted(&self, turn: u64) -> bool {
        self.slot(turn).posted.load(Ordering::Acquire) >= turn
    }

    /// Tells that this rank needs no input of that turn any more.
    pub(super) fn mark_read(&self, turn: u64) {
        self.slot(turn).read.store(turn, Ordering::Release);
        self.ring();
    }

    /// Whether the rank has read all inputs of a turn.
    pub(super) fn has_read(&self, turn: u64) -> bool {
        self.slot(turn).read.load(Ordering::Acquire) >= turn
    }

    /// Wakes whoever sleeps until this rank changes something.
    fn ring(&self) {
        self.bell.rings.fetch_add(1, Ordering::SeqCst);
        if self.bell.sleepers.load(Ordering::SeqCst) > 0 {
            let _woken = futex::wake(&self.bell.rings, futex::Flags::empty(), i32::MAX as u32);
        }
    }

    /// How often the rank has rung: to be read before looking for what [`Control::sleep`] would wait for.
    pub(super) fn rings(&self) -> u32 {
        self.bell.rings.load(Ordering::SeqCst)
    }

    /// Sleeps until the rank rings once more than `rings`, at most `limit`; false when nothing happened for so long.
    pub(super) fn sleep(&self, rings: u32, limit: Duration) -> bool {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        // The bell is rung before sleepers are looked for, and here it is the other way round: one of both sees the other.
        self.bell.sleepers.fetch_add(1, Ordering::SeqCst);
        let result = futex::wait(&self.bell.rings, futex::Flags::empty(), rings, Some(&limit));
        self.bell.sleepers.fetch_sub(1, Ordering::SeqCst);
        !matches!(result, Err(Errno::TIMEDOUT))
    }
}
