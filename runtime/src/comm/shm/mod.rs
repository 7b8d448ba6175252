//! Shared memory: the ranks of one host.
//!
//! Every rank has a [`segment`] that all others map. A collective is a *turn*: each rank posts where its input lies, reads the
//! inputs of the others as they come, and says so. Tensors from [`Collectives::allocate`] lie in the segment, so others read
//! them where they are: a gather is one copy, a reduce-scatter one pass over all parts. Any other tensor is copied there
//! first, and so is a short one. Nothing runs in the background: the work is done by whoever waits, so while a rank computes
//! nobody takes its processor away.
//!
//! Collectives whose tensors are read in place are waited for in the same order by all ranks, since a wait lasts until the
//! others have read.

mod arena;
mod connect;
mod control;
mod error;
mod link;
mod process;
mod reduce;
mod segment;
mod spread;
mod waiting;

pub use error::{PeerLoss, ShmError};

use super::ledger::Ledger;
use super::{
    ALL_GATHER, Activity, Collectives, CommError, NUMBERS, Pending, REDUCE_SCATTER, Store, Traffic, bytes_of,
    check_pair, exchange_by_gather,
};
use crate::metrics::{Timeline, Track};
use control::INLINE;
use link::{Input, Link, Turn};
use reduce::Instructions;
use spread::{Address, spread};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use waiting::Patience;

/// Inputs shorter than this are copied even if they lie in shared memory: that takes less time than to wait until the others
/// have read them.
const SHORT: usize = 128 << 10;

/// A group of ranks that share memory: all of a job, those of one host, or an axis of its mesh.
#[derive(Clone)]
pub struct Shm {
    link: Rc<Link>,
    /// The group's ranks by their place in it, as the link counts them.
    ranks: Rc<[usize]>,
    /// This rank's place.
    place: usize,
}

impl Shm {
    /// Connects rank `rank` of `world_size` through `store`; blocks until all ranks are there, at most `timeout`, which
    /// then bounds every wait for another rank.
    ///
    /// # Errors
    /// A rank does not come, or its memory cannot be reached: it is on another host, for one.
    pub fn connect(
        store: &dyn Store,
        rank: usize,
        world_size: usize,
        timeout: Duration,
        activity: Arc<Activity>,
    ) -> Result<Self, CommError> {
        Shm::among(store, rank, 0..world_size, 1, timeout, Ledger::new(activity))
    }

    /// Connects the job's rank `rank` to those `ranks` of the job, of which it is one, for collectives that have up to `turns`
    /// parts.
    pub(super) fn among(
        store: &dyn Store,
        rank: usize,
        ranks: Range<usize>,
        turns: usize,
        timeout: Duration,
        ledger: Rc<Ledger>,
    ) -> Result<Self, CommError> {
        let connected = connect::connect(store, rank, ranks.clone(), timeout)?;
        let link = Link::new(connected, Patience::new(ranks.len(), timeout), turns, ledger);
        Ok(Shm { link: Rc::new(link), ranks: (0..ranks.len()).collect(), place: rank - ranks.start })
    }

    /// The group of those `ranks` of this group.
    pub(super) fn part(&self, ranks: &[usize]) -> Result<Self, CommError> {
        let wrong = || CommError::Axis { rank: self.place, world_size: self.ranks.len(), ranks: ranks.to_vec() };
        let place = ranks.iter().position(|&rank| rank == self.place).ok_or_else(wrong)?;
        let ranks = ranks.iter().map(|&rank| self.ranks.get(rank).copied().ok_or_else(wrong));
        Ok(Shm { link: self.link.clone(), ranks: ranks.collect::<Result<_, _>>()?, place })
    }

    /// The other places of the group, beginning with the next one, so that not all read from the first at once.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (place, count) = (self.place, self.ranks.len());
        (1..count).map(move |distance| (place + distance) % count)
    }

    /// An all-gather as that part of the collective with that sequence number; its tensors fit.
    pub(super) fn gather(&self, part: (u64, usize), full: &Tensor, shard: &Tensor) -> Result<Pending, CommError> {
        let (bytes, count) = (bytes_of(shard), self.ranks.len());
        self.link.ledger.sends(bytes * (count - 1));
        let mut turn = self.link.take_turn(ALL_GATHER, part, &self.ranks)?;
        let all = pointer(full);
        let own = all.wrapping_add(self.place * bytes);
        // SAFETY: `full` has room for as many shards as there are ranks; this one is at its place there, or apart.
        unsafe { copy(pointer(shard), own, 0..bytes) };
        // The shard may lie where others see it, or else its place in `full` may.
        let shared = self.link.shared(pointer(shard), bytes).is_some();
        let source = if shared { pointer(shard) } else { own };
        let input = self.input(&turn, ALL_GATHER, source, bytes, bytes..bytes)?;
        turn.post(input, bytes, vec![full.shallow_clone(), shard.shallow_clone()]);
        let (others, ranks) = (self.others(), self.ranks.clone());
        Ok(Pending::new(move || {
            for place in others {
                let theirs = turn.input_of(ranks[place], bytes)?;
                // SAFETY: the turn keeps `full` alive, and others' memory is apart from it.
                unsafe { copy(theirs, all.wrapping_add(place * bytes), 0..bytes) };
            }
            turn.finish()
        }))
    }

    /// A reduce-scatter as that part of the collective with that sequence number; its tensors fit.
    pub(super) fn reduce(&self, part: (u64, usize), shard: &Tensor, full: &Tensor) -> Result<Pending, CommError> {
        let (bytes, count, place) = (bytes_of(full), self.ranks.len(), self.place);
        let length = bytes / count;
        self.link.ledger.sends(length * (count - 1));
        let mut turn = self.link.take_turn(REDUCE_SCATTER, part, &self.ranks)?;
        // Nobody else needs this rank's own part.
        let input = self.input(&turn, REDUCE_SCATTER, pointer(full), bytes, place * length..(place + 1) * length)?;
        turn.post(input, bytes, vec![full.shallow_clone(), shard.shallow_clone()]);
        let (full, shard, ranks) = (full.shallow_clone(), shard.shallow_clone(), self.ranks.clone());
        let instructions = self.link.instructions;
        Ok(Pending::new(move || {
            let mut parts = Vec::with_capacity(count);
            for (other, &rank) in ranks.iter().enumerate() {
                let all = if other == place { pointer(&full).cast_const() } else { turn.input_of(rank, bytes)? };
                parts.push(all.wrapping_add(place * length));
            }
            sum(instructions, &shard, full.kind(), &parts)?;
            turn.finish()
        }))
    }

    /// Where others find the `bytes` bytes at `pointer`, which `tensors` keep alive.
    fn input(
        &self,
        turn: &Turn,
        call: &'static str,
        pointer: *const u8,
        bytes: usize,
        left_out: Range<usize>,
    ) -> Result<Input, CommError> {
        let (target, input) = if bytes <= INLINE {
            (turn.inline(), Input::Inline)
        } else if bytes >= SHORT
            && let Some(offset) = self.link.shared(pointer, bytes)
        {
            return Ok(Input::InPlace(offset));
        } else {
            let block = self.link.take_room(call, bytes)?;
            (block.pointer(), Input::Copied(block))
        };
        for range in [0..left_out.start, left_out.end..bytes] {
            // SAFETY: the ranges lie inside the input and its copy, which nobody reads before it is posted.
            unsafe { copy(pointer, target, range) };
        }
        Ok(input)
    }
}

/// Copies a range of bytes from one place to another.
///
/// # Safety
/// The range lies inside both, which are apart or the same.
unsafe fn copy(from: *const u8, to: *mut u8, range: Range<usize>) {
    if range.is_empty() || std::ptr::eq(from, to) {
        return;
    }
    let (from, to) = (Address(from.wrapping_add(range.start).cast_mut()), Address(to.wrapping_add(range.start)));
    spread(range.len(), 1, |part| {
        // SAFETY: the caller's promise; no other thread has this part.
        unsafe { std::ptr::copy_nonoverlapping(from.get().add(part.start), to.get().add(part.start), part.len()) };
    });
}

fn pointer(tensor: &Tensor) -> *mut u8 {
    tensor.data_ptr().cast()
}

impl Collectives for Shm {
    fn rank(&self) -> usize {
        self.place
    }

    fn world_size(&self) -> usize {
        self.ranks.len()
    }

    fn axis(&self, ranks: &[usize]) -> Result<Rc<dyn Collectives>, CommError> {
        Ok(Rc::new(self.part(ranks)?))
    }

    fn start_all_gather_into(&self, full: &Tensor, shard: &Tensor) -> Result<Pending, CommError> {
        check_pair(ALL_GATHER, full, shard, self.ranks.len(), Device::Cpu)?;
        let collective = self.link.ledger.begin(Track::Gathers, bytes_of(full));
        let gather = self.gather((collective.sequence(), 0), full, shard)?;
        Ok(collective.after(gather))
    }

    fn start_reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<Pending, CommError> {
        check_pair(REDUCE_SCATTER, full, shard, self.ranks.len(), Device::Cpu)?;
        let collective = self.link.ledger.begin(Track::Reductions, bytes_of(full));
        let reduction = self.reduce((collective.sequence(), 0), shard, full)?;
        Ok(collective.after(reduction))
    }

    fn exchange(&self, numbers: &[f64]) -> Result<Vec<Vec<f64>>, CommError> {
        let (bytes, count) = (size_of_val(numbers), self.ranks.len());
        if bytes > INLINE {
            return exchange_by_gather(self, numbers);
        }
        self.about(NUMBERS);
        let collective = self.link.ledger.begin(Track::Gathers, bytes * count);
        self.link.ledger.sends(bytes * (count - 1));
        let mut turn = self.link.take_turn(ALL_GATHER, (collective.sequence(), 0), &self.ranks)?;
        let input = self.input(&turn, ALL_GATHER, numbers.as_ptr().cast(), bytes, bytes..bytes)?;
        turn.post(input, bytes, Vec::new());
        collective.finish(|| {
            let mut all = vec![vec![0.0; numbers.len()]; count];
            for (&rank, numbers) in self.ranks.iter().zip(&mut all) {
                let theirs = turn.input_of(rank, bytes)?;
                // SAFETY: a slot has room for so many bytes, which were posted; the vector is as long.
                unsafe { copy(theirs, numbers.as_mut_ptr().cast(), 0..bytes) };
            }
            turn.finish()?;
            Ok(all)
        })
    }

    fn allocate(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        let mut tensor = self.scratch(numel, kind)?;
        let _zeroed = tensor.f_zero_()?;
        Ok(tensor)
    }

    fn scratch(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        let numel = usize::try_from(numel).unwrap_or_default();
        let block = self.link.arena().take(numel * kind.elt_size_in_bytes());
        let block = block.map_err(|source| CommError::SharedMemory { call: "allocate", source })?;
        block.into_tensor(numel, kind).map_err(|source| CommError::Backend { call: "allocate", source })
    }

    fn traffic(&self) -> Traffic {
        self.link.ledger.traffic()
    }

    fn timeline(&self) -> &Timeline {
        self.link.ledger.timeline()
    }

    fn activity(&self) -> &Activity {
        self.link.ledger.activity()
    }
}

/// Writes the sum of all ranks' parts, in their order, to `shard`, which may be this rank's part.
fn sum(instructions: Instructions, shard: &Tensor, kind: Kind, parts: &[*const u8]) -> Result<(), CommError> {
    let (count, kinds) = (shard.numel(), (kind, shard.kind()));
    if count == 0 {
        return Ok(());
    }
    // SAFETY: every part is as long as the shard and posted, so nobody writes to it until all have read; the processor has
    // these instructions.
    if unsafe { reduce::sum(instructions, kinds, parts, pointer(shard), count) } {
        return Ok(());
    }
    // Types that gradients do not have.
    let tensors = parts.iter().map(|&part| {
        // SAFETY: as above; the tensor is gone before this returns.
        unsafe { Tensor::f_from_blob(part, &[count as i64], &[1], kind, Device::Cpu) }
    });
    let mut total: Option<Tensor> = None;
    for part in tensors {
        total = Some(match total {
            Some(mut total) => total.f_add_(&part?)?,
            None => part?.f_detach_copy()?,
        });
    }
    if let Some(total) = total {
        shard.f_view([-1])?.f_copy_(&total)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
