//! NCCL: processes on NVIDIA GPUs, of one host or several.
//!
//! Gathers and reductions have a stream of high priority each, and the host waits for neither. A collective begins when
//! libtorch's own stream has done what was given to it before (an event), and libtorch's stream goes on behind
//! [`Pending::wait`] when the collective is done (another event). How many are under way is bounded by the buffers that the
//! engine hands out.
//!
//! Sums are NCCL's: in the type that is sent, in an order that is the same from run to run for the same ranks, lengths and
//! algorithm. Reductions leave this rank's part in its place of the full buffer, so nothing is allocated.
//!
//! What no test without a card reaches is one line: which stream is libtorch's ([`crate::torch::current_stream`]). On the
//! CPU it is the null stream, which the tests' stand-in takes for the host.

mod communicator;
mod name;

pub use communicator::Abort;

use super::{
    ALL_GATHER, ALL_REDUCE, Activity, Collectives, CommError, Pending, REDUCE_SCATTER, Store, Traffic, check_pair,
    check_tensor, element_size,
};
use crate::gpu::{Event, Events, GpuError, Stream};
use crate::metrics::{Timeline, Track, Transfer};
use communicator::{Communicator, Group, Operation, Watchdog};
use name::short;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Tensor};

/// A wait of libtorch's stream: the moments when it had nothing else to do, and when it went on.
struct Wait {
    from: Event,
    to: Event,
}

/// What all axes of a rank share.
struct Link {
    device: Device,
    /// libtorch's own stream.
    compute: Stream,
    gathers: Stream,
    reductions: Stream,
    events: Events,
    activity: Arc<Activity>,
    traffic: Cell<Traffic>,
    timeline: Timeline,
    /// Waits that are not yet counted in `traffic`.
    waits: RefCell<Vec<Wait>>,
    /// By the ranks that they connect.
    communicators: RefCell<HashMap<Vec<usize>, Rc<Communicator>>>,
    store: Arc<dyn Store>,
    timeout: Duration,
    // After the communicators.
    watchdog: Watchdog,
}

impl Link {
    /// The communicator of `ranks`, in which this rank has the given place.
    fn communicator(&self, ranks: &[usize], place: usize) -> Result<Rc<Communicator>, GpuError> {
        if let Some(known) = self.communicators.borrow().get(ranks) {
            return Ok(known.clone());
        }
        let key = format!("nccl/{}", short(ranks));
        let meeting = (place, ranks.len());
        let made = Rc::new(Communicator::meet(&self.watchdog, self.store.as_ref(), &key, meeting, self.timeout)?);
        self.communicators.borrow_mut().insert(ranks.to_vec(), made.clone());
        Ok(made)
    }

    /// Fails once communication was aborted: what collectives leave behind then means nothing.
    fn healthy(&self, call: &'static str) -> Result<(), CommError> {
        match self.watchdog.failure() {
            Some(reason) => Err(CommError::Aborted { call, reason }),
            None => Ok(()),
        }
    }

    /// A failed call of NCCL: where communication has ended, that is why.
    fn cause(&self, call: &'static str, source: GpuError) -> CommError {
        self.healthy(call).err().unwrap_or(CommError::Gpu { call, source })
    }

    /// Counts a collective in which all of `full` goes round among the ranks so many times.
    fn begin(&self, call: &'static str, full: &Tensor, ranks: usize, rounds: u64) -> Transfer {
        let bytes = (full.numel() * element_size(full)) as u64;
        let mut traffic = self.traffic.get();
        traffic.logical_bytes += rounds * bytes;
        traffic.sent_bytes += rounds * bytes / ranks as u64 * (ranks as u64 - 1);
        self.traffic.set(traffic);
        Transfer { sequence: self.activity.begin(call, bytes), bytes }
    }

    /// The stream of an operation, and where it stands in the timeline.
    fn stream_of(&self, operation: Operation) -> (&Stream, Track) {
        match operation {
            Operation::AllGather => (&self.gathers, Track::Gathers),
            Operation::ReduceScatter | Operation::AllReduce => (&self.reductions, Track::Reductions),
        }
    }

    /// Lets `stream` begin after what libtorch's stream was given so far.
    fn follow_compute(&self, stream: &Stream) -> Result<(), GpuError> {
        stream.wait(&self.compute.record(&self.events)?)
    }

    /// Lets libtorch's stream go on after `done`, and notes how long it waits.
    fn compute_follows(&self, done: &Event) -> Result<(), GpuError> {
        let from = self.compute.record(&self.events)?;
        self.compute.wait(done)?;
        let to = self.compute.record(&self.events)?;
        self.waits.borrow_mut().push(Wait { from, to });
        Ok(())
    }

    /// Adds up the waits that are over.
    fn count_waits(&self) -> Result<(), GpuError> {
        let mut waits = self.waits.borrow_mut();
        let mut blocked = Duration::ZERO;
        let mut open = Vec::new();
        for wait in waits.drain(..) {
            if wait.to.happened()? {
                let time = wait.to.since(&wait.from)?;
                blocked += time;
                self.timeline.waited((wait.from, wait.to), time);
            } else {
                open.push(wait);
            }
        }
        *waits = open;
        let mut traffic = self.traffic.get();
        traffic.blocked += blocked;
        self.traffic.set(traffic);
        Ok(())
    }
}

/// A collective that a stream was given. Its tensors are kept until libtorch's stream waits for it, which happens at the
/// latest when this is dropped: memory that is still written to is never handed out again.
struct UnderWay {
    link: Rc<Link>,
    done: Option<Event>,
    _tensors: [Tensor; 2],
}

impl UnderWay {
    fn finish(&mut self) -> Result<(), GpuError> {
        match self.done.take() {
            Some(done) => self.link.compute_follows(&done),
            None => Ok(()),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!("a collective that nobody waited for: {error}");
        }
    }
}

/// What NCCL can do for one rank without others: make an id under which ranks meet, and a communicator. NCCL was required
/// ([`crate::gpu::require_nccl`]).
pub fn try_nccl() -> [Result<(), GpuError>; 2] {
    [communicator::unique_id().map(|_id| ()), communicator::meet_nobody()]
}

/// A group of ranks connected by NCCL: all of a job, or an axis of its mesh.
pub struct Nccl {
    link: Rc<Link>,
    communicator: Rc<Communicator>,
    /// The group's ranks by their place in it, as the job counts them.
    ranks: Vec<usize>,
    /// This rank's place.
    place: usize,
}

impl Nccl {
    /// Connects all ranks of a job. `device` is current, and NCCL and the driver were required
    /// ([`crate::gpu::require_nccl`]). The ranks meet through `store`, which belongs to one membership of the job.
    ///
    /// # Errors
    /// What NCCL and the driver say.
    pub fn connect(
        store: Arc<dyn Store>,
        rank: usize,
        world_size: usize,
        device: Device,
        timeout: Duration,
        activity: Arc<Activity>,
    ) -> Result<Self, CommError> {
        let failed = |source| CommError::Gpu { call: "connect", source };
        let current = crate::torch::current_stream(device);
        let current = current.map_err(|source| CommError::Backend { call: "connect", source })?;
        let events = Events::default();
        let link = Rc::new(Link {
            device,
            compute: Stream::borrowed(current),
            gathers: Stream::of_high_priority().map_err(failed)?,
            reductions: Stream::of_high_priority().map_err(failed)?,
            timeline: Timeline::on_stream(Stream::borrowed(current), events.clone()),
            events,
            activity,
            traffic: Cell::default(),
            waits: RefCell::default(),
            communicators: RefCell::default(),
            store,
            timeout,
            watchdog: Watchdog::start(),
        });
        let ranks: Vec<usize> = (0..world_size).collect();
        let communicator = link.communicator(&ranks, rank).map_err(failed)?;
        Ok(Nccl { link, communicator, ranks, place: rank })
    }

    /// By which another thread ends all communication of this process.
    pub fn abort_handle(&self) -> Abort {
        self.link.watchdog.abort_handle()
    }

    /// Gives one collective to its stream, behind what libtorch's stream was given before.
    fn start(
        &self,
        call: &'static str,
        operation: Operation,
        (output, input): (&Tensor, &Tensor),
        transfer: Transfer,
    ) -> Result<UnderWay, CommError> {
        let (stream, track) = self.link.stream_of(operation);
        let timeline = &self.link.timeline;
        let start = || {
            self.link.follow_compute(stream)?;
            let span = timeline.begin_transfer_on(stream, track, transfer);
            // SAFETY: types and lengths were checked by the caller; the tensors are kept until libtorch's stream waits.
            unsafe { self.communicator.enqueue(operation, (output, input), stream) }?;
            timeline.end_on(stream, span);
            stream.record(&self.link.events)
        };
        let done = start().map_err(|source| self.link.cause(call, source))?;
        let tensors = [output.shallow_clone(), input.shallow_clone()];
        Ok(UnderWay { link: self.link.clone(), done: Some(done), _tensors: tensors })
    }

    /// This rank's part of a full tensor.
    fn own_part(&self, full: &Tensor, length: usize) -> Result<Tensor, CommError> {
        Ok(full.f_view([-1])?.f_narrow(0, (self.place * length) as i64, length as i64)?)
    }
}

impl Collectives for Nccl {
    fn rank(&self) -> usize {
        self.place
    }

    fn world_size(&self) -> usize {
        self.ranks.len()
    }

    fn device(&self) -> Device {
        self.link.device
    }

    fn axis(&self, ranks: &[usize]) -> Result<Rc<dyn Collectives>, CommError> {
        let wrong = || CommError::Axis { rank: self.place, world_size: self.ranks.len(), ranks: ranks.to_vec() };
        let place = ranks.iter().position(|&rank| rank == self.place).ok_or_else(wrong)?;
        let ranks = ranks.iter().map(|&rank| self.ranks.get(rank).copied().ok_or_else(wrong));
        let ranks = ranks.collect::<Result<Vec<_>, _>>()?;
        let communicator = self.link.communicator(&ranks, place);
        let communicator = communicator.map_err(|source| CommError::Gpu { call: "axis", source })?;
        Ok(Rc::new(Nccl { link: self.link.clone(), communicator, ranks, place }))
    }

    fn start_all_gather_into(&self, full: &Tensor, shard: &Tensor) -> Result<Pending, CommError> {
        check_pair(ALL_GATHER, full, shard, self.ranks.len(), self.link.device)?;
        self.link.healthy(ALL_GATHER)?;
        let transfer = self.link.begin(ALL_GATHER, full, self.ranks.len(), 1);
        let mut under_way = self.start(ALL_GATHER, Operation::AllGather, (full, shard), transfer)?;
        Ok(Pending::new(move || under_way.finish().map_err(|source| CommError::Gpu { call: ALL_GATHER, source })))
    }

    fn start_reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<Pending, CommError> {
        check_pair(REDUCE_SCATTER, full, shard, self.ranks.len(), self.link.device)?;
        self.link.healthy(REDUCE_SCATTER)?;
        let transfer = self.link.begin(REDUCE_SCATTER, full, self.ranks.len(), 1);
        let part = self.own_part(full, shard.numel())?;
        let mut under_way = self.start(REDUCE_SCATTER, Operation::ReduceScatter, (&part, full), transfer)?;
        let mut shard = shard.f_view([-1])?;
        Ok(Pending::new(move || {
            under_way.finish().map_err(|source| CommError::Gpu { call: REDUCE_SCATTER, source })?;
            if shard.data_ptr() != part.data_ptr() {
                shard.f_copy_(&part)?;
            }
            Ok(())
        }))
    }

    fn all_reduce_each(&self, tensors: &[Tensor]) -> Result<(), CommError> {
        let failed = |source| self.link.cause(ALL_REDUCE, source);
        self.link.healthy(ALL_REDUCE)?;
        let (stream, track) = self.link.stream_of(Operation::AllReduce);
        self.link.follow_compute(stream).map_err(failed)?;
        let mut whole = Transfer { sequence: 0, bytes: 0 };
        for tensor in tensors {
            check_tensor(ALL_REDUCE, "tensor", tensor, self.link.device)?;
            // Once to be added, once to be told.
            let Transfer { sequence, bytes } = self.link.begin(ALL_REDUCE, tensor, self.ranks.len(), 2);
            whole = Transfer { sequence, bytes: whole.bytes + bytes };
        }
        // NCCL carries all of them out as one, so they are one span.
        let span = self.link.timeline.begin_transfer_on(stream, track, whole);
        let grouped = || {
            let group = Group::start()?;
            for tensor in tensors {
                // SAFETY: one tensor, in place; libtorch's stream waits below, and the caller keeps it until then.
                unsafe { self.communicator.enqueue(Operation::AllReduce, (tensor, tensor), stream) }?;
            }
            group.end()
        };
        // What went wrong is asked for when the group is closed.
        grouped().map_err(failed)?;
        self.link.timeline.end_on(stream, span);
        let done = stream.record(&self.link.events).map_err(failed)?;
        self.link.compute_follows(&done).map_err(failed)
    }

    fn register(&self, buffer: &Tensor) {
        self.communicator.register(buffer);
    }

    fn settle(&self, call: &'static str) -> Result<(), CommError> {
        self.link.healthy(call)?;
        self.link.count_waits().map_err(|source| CommError::Gpu { call, source })
    }

    fn traffic(&self) -> Traffic {
        self.link.traffic.get()
    }

    fn timeline(&self) -> &Timeline {
        &self.link.timeline
    }

    fn activity(&self) -> &Activity {
        &self.link.activity
    }
}
