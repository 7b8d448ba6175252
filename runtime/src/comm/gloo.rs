//! Gloo, out of `libtorch_cpu.so`: processes on CPU, on one host or several.
//!
//! Gathers and reduce-scatters are pairwise exchanges over Gloo's unbound buffers: every rank sends each other rank just
//! what that one needs, straight from and into the flat buffers, and sums arrive parts in rank order. That sends the
//! (N − 1)/N of the buffer that a ring would, copies nothing besides, and fixes the order of additions.

use super::ledger::Ledger;
use super::store::Context;
use super::{
    ALL_GATHER, Activity, Collectives, CommError, Pending, REDUCE_SCATTER, Store, Traffic, bytes_of, check_pair, cut,
};
use crate::metrics::{Timeline, Track};
use crate::torch::{self, ShimError, add, checked, handle};
use std::cell::RefCell;
use std::ffi::{CString, c_int, c_void};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// A started send or receive. Gloo keeps the tensor alive until it is done.
struct Work {
    raw: *mut c_void,
    peer: usize,
}

impl Work {
    fn wait(self, call: &'static str, sequence: u64) -> Result<(), CommError> {
        // SAFETY: `raw` is a work made by the shim and not yet freed.
        checked(unsafe { torch::zf_work_wait(self.raw) }).map_err(|source| CommError::Peer {
            call,
            sequence,
            peer: self.peer,
            source,
        })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: `raw` was made by the shim and is freed once.
        unsafe { torch::zf_work_free(self.raw) }
    }
}

/// The connection of one rank to all others, which all of its axes share.
struct Link {
    raw: *mut c_void,
    ledger: Rc<Ledger>,
    /// Where reduce-scatters receive the other ranks' parts: as many as were ever under way at once.
    spare: RefCell<Vec<Tensor>>,
    // Dropped after `raw` is freed: Gloo may call the store until then.
    _context: Box<Context>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // SAFETY: made by zf_gloo_new and freed once.
        unsafe { torch::zf_gloo_free(self.raw) }
    }
}

impl Link {
    fn send(&self, call: &'static str, sequence: u64, tensor: &Tensor, peer: usize) -> Result<Work, CommError> {
        let (mut raw, tag) = (std::ptr::null_mut(), tag(call, sequence, bytes_of(tensor)));
        // SAFETY: group and tensor are live; Gloo holds its own reference to the tensor.
        let status = unsafe { torch::zf_gloo_send(self.raw, handle(tensor), peer as c_int, tag, &mut raw) };
        checked(status).map_err(|source| CommError::Peer { call, sequence, peer, source })?;
        self.ledger.sends(bytes_of(tensor));
        Ok(Work { raw, peer })
    }

    fn receive(&self, call: &'static str, sequence: u64, tensor: &Tensor, peer: usize) -> Result<Work, CommError> {
        let (mut raw, tag) = (std::ptr::null_mut(), tag(call, sequence, bytes_of(tensor)));
        // SAFETY: group and tensor are live; Gloo holds its own reference to the tensor.
        let status = unsafe { torch::zf_gloo_receive(self.raw, handle(tensor), peer as c_int, tag, &mut raw) };
        checked(status).map_err(|source| CommError::Peer { call, sequence, peer, source })?;
        Ok(Work { raw, peer })
    }

    /// Takes space for at least `count` elements of `kind`: a spare one that is large enough and not much larger, which
    /// another reduction may need meanwhile, else a new one, in place of one that is a little too small.
    fn take_space(&self, count: i64, kind: Kind) -> Result<Tensor, CommError> {
        let mut spare = self.spare.borrow_mut();
        let between = |least: i64, most: i64| {
            move |space: &Tensor| space.kind() == kind && (least..=most).contains(&(space.numel() as i64))
        };
        if let Some(index) = spare.iter().position(between(count, 2 * count)) {
            return Ok(spare.swap_remove(index));
        }
        if let Some(index) = spare.iter().position(between(count / 2, count)) {
            drop(spare.swap_remove(index));
        }
        Ok(Tensor::f_empty([count], (kind, Device::Cpu))?)
    }

    fn finish(&self, works: Vec<Work>, call: &'static str, sequence: u64) -> Result<(), CommError> {
        works.into_iter().try_for_each(|work| work.wait(call, sequence))
    }
}

/// Messages between two ranks are matched by tag. What is sent and how much is part of it: ranks that call different
/// collectives then wait for each other, which `launch` sees and tells, where Gloo would end the process at a length that does
/// not fit.
fn tag(call: &'static str, sequence: u64, bytes: usize) -> c_int {
    let kind = if call == ALL_GATHER { 1 } else { 0 };
    let fingerprint = (bytes as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50 << 1 | kind;
    ((sequence % (1 << 15)) << 15 | fingerprint) as c_int
}

/// A group of ranks connected by Gloo: all of a job, or an axis of its mesh.
#[derive(Clone)]
pub struct Gloo {
    link: Rc<Link>,
    /// The group's ranks by their place in it, as the link counts them.
    ranks: Vec<usize>,
    /// This rank's place.
    place: usize,
}

impl Gloo {
    /// Connects rank `rank` of `world_size` through `store`; blocks until all ranks are there, at most `timeout`, which
    /// then bounds every collective. `host` is the name or address of the interface to bind.
    pub fn connect(
        store: Arc<dyn Store>,
        rank: usize,
        world_size: usize,
        host: &str,
        timeout: Duration,
        activity: Arc<Activity>,
    ) -> Result<Self, CommError> {
        let backend = |source| CommError::Backend { call: "connect", source };
        let host = CString::new(host).map_err(|error| backend(ShimError(error.to_string())))?;
        let context = Box::new(Context(store));
        let mut raw = std::ptr::null_mut();
        // SAFETY: the callbacks' context is boxed and kept in the link until the group is freed.
        checked(unsafe {
            torch::zf_gloo_new(
                &context.callbacks(),
                rank as c_int,
                world_size as c_int,
                host.as_ptr(),
                timeout.as_millis() as u64,
                &mut raw,
            )
        })
        .map_err(backend)?;
        let link = Link { raw, ledger: Ledger::new(activity), spare: RefCell::default(), _context: context };
        Ok(Gloo { link: Rc::new(link), ranks: (0..world_size).collect(), place: rank })
    }

    /// The account that this connection keeps.
    pub(super) fn ledger(&self) -> &Rc<Ledger> {
        &self.link.ledger
    }

    /// The group of those `ranks` of this group.
    pub(super) fn part(&self, ranks: &[usize]) -> Result<Self, CommError> {
        let wrong = || CommError::Axis { rank: self.place, world_size: self.ranks.len(), ranks: ranks.to_vec() };
        let place = ranks.iter().position(|&rank| rank == self.place).ok_or_else(wrong)?;
        let ranks = ranks.iter().map(|&rank| self.ranks.get(rank).copied().ok_or_else(wrong));
        Ok(Gloo { link: self.link.clone(), ranks: ranks.collect::<Result<_, _>>()?, place })
    }

    /// The other places of the group, beginning with the next one, so that not all send to the first at once.
    fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let (place, count) = (self.place, self.ranks.len());
        (1..count).map(move |distance| (place + distance) % count)
    }

    /// The messages of the all-gather with that number: every rank's part, one for each rank, of which this rank has its own.
    pub(super) fn gather(&self, sequence: u64, parts: &[Tensor]) -> Result<Pending, CommError> {
        let mut works = Vec::with_capacity(2 * self.ranks.len());
        for peer in self.peers() {
            works.push(self.link.receive(ALL_GATHER, sequence, &parts[peer], self.ranks[peer])?);
            works.push(self.link.send(ALL_GATHER, sequence, &parts[self.place], self.ranks[peer])?);
        }
        let link = self.link.clone();
        Ok(Pending::new(move || link.finish(works, ALL_GATHER, sequence)))
    }

    /// The messages and sums of the reduce-scatter with that number: this rank's addends, one for each rank, whose contents are
    /// lost. `shard` may be this rank's own.
    pub(super) fn reduce(&self, sequence: u64, shard: &Tensor, addends: Vec<Tensor>) -> Result<Pending, CommError> {
        let (count, place) = (self.ranks.len(), self.place);
        let (shard, length) = (shard.f_view([-1])?, shard.numel() as i64);
        let received = self.link.take_space(length * (count as i64 - 1), addends[place].kind())?;
        let mut works = Vec::with_capacity(2 * count);
        // Other ranks' parts lie in `received` by place, this rank's left out.
        let slot = move |peer: usize| (peer - usize::from(peer > place)) as i64;
        for peer in self.peers() {
            let space = received.f_narrow(0, slot(peer) * length, length)?;
            works.push(self.link.receive(REDUCE_SCATTER, sequence, &space, self.ranks[peer])?);
            works.push(self.link.send(REDUCE_SCATTER, sequence, &addends[peer], self.ranks[peer])?);
        }
        let link = self.link.clone();
        Ok(Pending::new(move || {
            link.finish(works, REDUCE_SCATTER, sequence)?;
            let parts = (0..count).map(|peer| match peer == place {
                true => Ok(addends[place].shallow_clone()),
                false => received.f_narrow(0, slot(peer) * length, length),
            });
            sum_in_order(&shard, parts.collect::<Result<Vec<_>, _>>()?)?;
            link.spare.borrow_mut().push(received);
            Ok(())
        }))
    }
}

impl Collectives for Gloo {
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
        let mut parts = cut(full, self.ranks.len())?;
        let mine = &mut parts[self.place];
        if mine.data_ptr() != shard.data_ptr() {
            mine.f_copy_(&shard.f_view([-1])?)?;
        }
        let gather = self.gather(collective.sequence(), &parts)?;
        Ok(collective.after(gather))
    }

    fn start_reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<Pending, CommError> {
        check_pair(REDUCE_SCATTER, full, shard, self.ranks.len(), Device::Cpu)?;
        let collective = self.link.ledger.begin(Track::Reductions, bytes_of(full));
        let reduction = self.reduce(collective.sequence(), shard, cut(full, self.ranks.len())?)?;
        Ok(collective.after(reduction))
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

/// Writes the sum of `parts`, taken in their order and in the type of `shard`, into `shard`, which may be one of them. The
/// parts' contents are lost.
fn sum_in_order(shard: &Tensor, parts: Vec<Tensor>) -> Result<(), CommError> {
    let mut target = shard.shallow_clone();
    let Some((last, rest)) = parts.split_last() else { return Ok(()) };
    let Some((first, middle)) = rest.split_first() else {
        if target.data_ptr() != last.data_ptr() {
            target.f_copy_(last)?;
        }
        return Ok(());
    };
    if first.kind() != target.kind() {
        // The parts are narrower, so none of them is the shard.
        target.f_copy_(first)?;
        for part in middle.iter().chain([last]) {
            add(&target, part)?;
        }
        return Ok(());
    }
    // The shard may be any of the parts, so it is written by the last addition only.
    let mut sum = first.shallow_clone();
    for part in middle {
        sum = sum.f_add_(part)?;
    }
    let _written = sum.f_add_out(&target, last)?;
    Ok(())
}
