//! Gloo, out of `libtorch_cpu.so`: processes on CPU, on one host or several.
//!
//! Gathers and reduce-scatters are pairwise exchanges over Gloo's unbound buffers: every rank sends each other rank just
//! what that one needs, straight from and into the flat buffers, and sums arrive parts in rank order. That sends the
//! (N − 1)/N of the buffer that a ring would, copies nothing besides, and fixes the order of additions.

use super::store::Context;
use super::{
    Activity, Collectives, CommError, Pending, Stopwatch, Store, Traffic, check_pair, check_tensor, element_size,
};
use crate::torch::{self, ShimError, checked, handle};
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_int, c_void};
use std::sync::Arc;
use std::time::Duration;
use tch::{Kind, Tensor};

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

/// A group of ranks connected by Gloo.
pub struct Gloo {
    raw: *mut c_void,
    rank: usize,
    world_size: usize,
    activity: Arc<Activity>,
    traffic: Cell<Traffic>,
    /// Where a reduce-scatter receives the other ranks' parts, while none is under way.
    spare: RefCell<Option<Tensor>>,
    // Dropped after `raw` is freed: Gloo may call the store until then.
    _context: Box<Context>,
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
        // SAFETY: the callbacks' context is boxed and kept in the returned value until the group is freed.
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
        Ok(Gloo {
            raw,
            rank,
            world_size,
            activity,
            traffic: Cell::default(),
            spare: RefCell::default(),
            _context: context,
        })
    }

    fn send(&self, call: &'static str, sequence: u64, tensor: &Tensor, peer: usize) -> Result<Work, CommError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: group and tensor are live; Gloo holds its own reference to the tensor.
        let status = unsafe { torch::zf_gloo_send(self.raw, handle(tensor), peer as c_int, tag(sequence), &mut raw) };
        checked(status).map_err(|source| CommError::Peer { call, sequence, peer, source })?;
        let mut traffic = self.traffic.get();
        traffic.sent_bytes += (tensor.numel() * element_size(tensor)) as u64;
        self.traffic.set(traffic);
        Ok(Work { raw, peer })
    }

    fn receive(&self, call: &'static str, sequence: u64, tensor: &Tensor, peer: usize) -> Result<Work, CommError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: group and tensor are live; Gloo holds its own reference to the tensor.
        let status =
            unsafe { torch::zf_gloo_receive(self.raw, handle(tensor), peer as c_int, tag(sequence), &mut raw) };
        checked(status).map_err(|source| CommError::Peer { call, sequence, peer, source })?;
        Ok(Work { raw, peer })
    }

    /// The other ranks, beginning with the next one, so that not all send to rank 0 first.
    fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, world_size) = (self.rank, self.world_size);
        (1..world_size).map(move |distance| (rank + distance) % world_size)
    }

    /// Takes space for at least `count` elements of `kind`: that of the last call, if it fits and is not in use.
    fn take_space(&self, count: i64, kind: Kind) -> Result<Tensor, CommError> {
        match self.spare.borrow_mut().take() {
            Some(space) if space.kind() == kind && space.numel() as i64 >= count => Ok(space),
            _ => Ok(Tensor::f_empty([count], (kind, tch::Device::Cpu))?),
        }
    }

    fn finish(
        &self,
        works: Vec<Work>,
        call: &'static str,
        sequence: u64,
        then: impl FnOnce() -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        let _watch = Stopwatch::start(&self.traffic);
        for work in works {
            work.wait(call, sequence)?;
        }
        then()
    }
}

/// Messages between two ranks are matched by tag.
fn tag(sequence: u64) -> c_int {
    (sequence % (1 << 30)) as c_int
}

impl Drop for Gloo {
    fn drop(&mut self) {
        // SAFETY: made by zf_gloo_new and freed once.
        unsafe { torch::zf_gloo_free(self.raw) }
    }
}

impl Collectives for Gloo {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn start_all_gather_into(&self, full: &Tensor, shard: &Tensor) -> Result<Pending<'_>, CommError> {
        const CALL: &str = "all_gather";
        check_pair(CALL, full, shard, self.world_size)?;
        let sequence = self.activity.next_collective();
        let (full, length) = (full.f_view([-1])?, shard.numel() as i64);
        let part = |rank: usize| full.f_narrow(0, rank as i64 * length, length);
        let mut mine = part(self.rank)?;
        if mine.data_ptr() != shard.data_ptr() {
            mine.f_copy_(&shard.f_view([-1])?)?;
        }
        let mut works = Vec::with_capacity(2 * self.world_size);
        for peer in self.peers() {
            works.push(self.receive(CALL, sequence, &part(peer)?, peer)?);
            works.push(self.send(CALL, sequence, &mine, peer)?);
        }
        Ok(Pending::new(move || self.finish(works, CALL, sequence, || Ok(()))))
    }

    fn start_reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<Pending<'_>, CommError> {
        const CALL: &str = "reduce_scatter";
        check_pair(CALL, full, shard, self.world_size)?;
        let sequence = self.activity.next_collective();
        let (full, shard, length) = (full.f_view([-1])?, shard.f_view([-1])?, shard.numel() as i64);
        let received = self.take_space(length * (self.world_size as i64 - 1), shard.kind())?;
        let mut works = Vec::with_capacity(2 * self.world_size);
        // Other ranks' parts lie in `received` by rank, this rank's left out.
        let slot = |peer: usize| (peer - usize::from(peer > self.rank)) as i64;
        for peer in self.peers() {
            let space = received.f_narrow(0, slot(peer) * length, length)?;
            works.push(self.receive(CALL, sequence, &space, peer)?);
            works.push(self.send(CALL, sequence, &full.f_narrow(0, peer as i64 * length, length)?, peer)?);
        }
        Ok(Pending::new(move || {
            self.finish(works, CALL, sequence, || {
                let mine = full.f_narrow(0, self.rank as i64 * length, length)?;
                let part = |rank: usize| {
                    if rank == self.rank {
                        Ok(mine.shallow_clone())
                    } else {
                        received.f_narrow(0, slot(rank) * length, length)
                    }
                };
                // `shard` may be `mine`, so it is written by the last addition only.
                let mut sum = part(0)?;
                for rank in 1..self.world_size - 1 {
                    sum = sum.f_add_(&part(rank)?)?;
                }
                if self.world_size > 1 {
                    let _written = sum.f_add_out(&shard, &part(self.world_size - 1)?)?;
                } else if shard.data_ptr() != sum.data_ptr() {
                    shard.shallow_clone().f_copy_(&sum)?;
                }
                *self.spare.borrow_mut() = Some(received.shallow_clone());
                Ok(())
            })
        }))
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), CommError> {
        const CALL: &str = "broadcast";
        check_tensor(CALL, "tensor", tensor)?;
        let sequence = self.activity.next_collective();
        let mut raw = std::ptr::null_mut();
        // SAFETY: group and tensor are live; Gloo holds its own reference to the tensor.
        let status = unsafe { torch::zf_gloo_broadcast(self.raw, handle(tensor), root as c_int, &mut raw) };
        checked(status).map_err(|source| CommError::Backend { call: CALL, source })?;
        self.finish(vec![Work { raw, peer: root }], CALL, sequence, || Ok(()))
    }

    fn barrier(&self) -> Result<(), CommError> {
        const CALL: &str = "barrier";
        let sequence = self.activity.next_collective();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the group is live.
        let status = unsafe { torch::zf_gloo_barrier(self.raw, &mut raw) };
        checked(status).map_err(|source| CommError::Backend { call: CALL, source })?;
        self.finish(vec![Work { raw, peer: 0 }], CALL, sequence, || Ok(()))
    }

    fn traffic(&self) -> Traffic {
        self.traffic.get()
    }
}
