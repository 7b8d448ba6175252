//! Collectives: one trait, one implementation per backend.
//!
//! Every rank calls the same collectives in the same order; each call has a sequence number. Sums are taken in rank order
//! (rank 0's value first), or within each host in rank order and then host by host ([`Hierarchical`]), so a reduction gives
//! the same bits on every rank, every time, and at every ZeRO stage.

mod activity;
mod gloo;
mod hierarchical;
mod ledger;
mod local_store;
mod nccl;
mod rendezvous;
mod shm;
mod single;
mod store;

pub use activity::{Activity, Phase};
pub use gloo::Gloo;
pub use hierarchical::Hierarchical;
pub use local_store::LocalStore;
pub use nccl::{Abort, Nccl, try_nccl};
pub use rendezvous::Rendezvous;
pub use shm::{PeerLoss, Shm, ShmError};
pub use single::Single;
pub use store::Store;

use crate::gpu::GpuError;
use crate::metrics::{Label, Timeline, Track};
use crate::torch::ShimError;
use std::rc::Rc;
use std::time::Duration;
use tch::{Device, Kind, TchError, Tensor};
use thiserror::Error;

/// Why a collective failed.
#[derive(Debug, Error)]
pub enum CommError {
    /// A tensor that does not exist.
    #[error("{call}: tensor `{argument}` is undefined")]
    Undefined {
        /// The collective.
        call: &'static str,
        /// The argument.
        argument: &'static str,
    },
    /// A tensor on the wrong device.
    #[error("{call}: tensor `{argument}` is on {device:?}; this backend works on {expected:?}")]
    WrongDevice {
        /// The collective.
        call: &'static str,
        /// The argument.
        argument: &'static str,
        /// Where it is.
        device: Device,
        /// Where it should be.
        expected: Device,
    },
    /// A tensor with gaps.
    #[error("{call}: tensor `{argument}` is not contiguous")]
    NotContiguous {
        /// The collective.
        call: &'static str,
        /// The argument.
        argument: &'static str,
    },
    /// Two tensors whose types do not go together.
    #[error("{call}: input is {input:?} but output is {output:?}")]
    TypeMismatch {
        /// The collective.
        call: &'static str,
        /// The input's type.
        input: Kind,
        /// The output's type.
        output: Kind,
    },
    /// An axis that cannot be made.
    #[error("rank {rank} of {world_size} cannot be in an axis of ranks {ranks:?}")]
    Axis {
        /// This rank.
        rank: usize,
        /// Ranks of the group.
        world_size: usize,
        /// The ranks asked for.
        ranks: Vec<usize>,
    },
    /// Lengths that do not fit.
    #[error("{call}: the full tensor has {full} elements, but shard {shard} × world size {world_size} is {}", shard * world_size)]
    Length {
        /// The collective.
        call: &'static str,
        /// Elements of the full tensor.
        full: usize,
        /// Elements of the shard.
        shard: usize,
        /// Ranks.
        world_size: usize,
    },
    /// The backend failed: most often because another rank is gone.
    #[error("{call} #{sequence} with rank {peer} failed: {source}")]
    Peer {
        /// The collective.
        call: &'static str,
        /// Its sequence number.
        sequence: u64,
        /// The other rank.
        peer: usize,
        /// What the backend said.
        source: ShimError,
    },
    /// The backend could not be set up, or failed as a whole.
    #[error("{call}: {source}")]
    Backend {
        /// The collective or `connect`.
        call: &'static str,
        /// What the backend said.
        source: ShimError,
    },
    /// A rank that shares memory with this one is gone.
    #[error("{call} #{sequence} with rank {peer} failed: {loss}")]
    PeerLost {
        /// The collective or `connect`.
        call: &'static str,
        /// Its sequence number.
        sequence: u64,
        /// The other rank.
        peer: usize,
        /// What became of it.
        loss: PeerLoss,
    },
    /// Ranks called different collectives.
    #[error(
        "{call} #{sequence} over {bytes} bytes of each rank: rank {peer} called {their_call} over {their_bytes} bytes\nhint: all ranks \
         must call the same collectives in the same order, so one of them went another way; the logs of both show where"
    )]
    Mismatch {
        /// The collective that this rank called.
        call: &'static str,
        /// Its sequence number.
        sequence: u64,
        /// Bytes of this rank's input.
        bytes: usize,
        /// The other rank.
        peer: usize,
        /// The collective that it called.
        their_call: &'static str,
        /// Bytes of its input.
        their_bytes: usize,
    },
    /// Memory cannot be shared.
    #[error("{call}: {source}")]
    SharedMemory {
        /// The collective, `connect` or `allocate`.
        call: &'static str,
        /// Why.
        source: ShmError,
    },
    /// The GPU, its driver or NCCL failed.
    #[error("{call}: {source}")]
    Gpu {
        /// The collective or `connect`.
        call: &'static str,
        /// What went wrong.
        source: GpuError,
    },
    /// All communication of this rank was ended, so what collectives leave behind means nothing.
    #[error("{call}: communication was ended: {reason}")]
    Aborted {
        /// The collective that found out.
        call: &'static str,
        /// Why.
        reason: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TchError),
    /// A kernel of the shim failed.
    #[error(transparent)]
    Kernel(#[from] ShimError),
}

impl CommError {
    /// True when the cause is most likely another rank's failure, which has its own error.
    pub fn is_consequence(&self) -> bool {
        match self {
            CommError::Peer { .. } | CommError::PeerLost { .. } => true,
            CommError::Backend { .. } | CommError::Aborted { .. } => true,
            CommError::SharedMemory { source, .. } => source.is_consequence(),
            _ => false,
        }
    }
}

/// What communication cost this rank so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes of payload this rank sent to other ranks.
    pub sent_bytes: u64,
    /// Bytes of the full buffers it gathered and reduced, which is what theory counts: a ring or a pairwise exchange
    /// sends (N − 1)/N of it.
    pub logical_bytes: u64,
    /// Time its training thread was blocked in collectives.
    pub blocked: Duration,
}

/// A collective that was started. Until [`Pending::wait`] returns its tensors must not be touched, and dropping it
/// instead leaves its output undefined.
#[must_use = "the output is undefined until wait() returns"]
pub struct Pending {
    finish: Option<Box<dyn FnOnce() -> Result<(), CommError>>>,
}

impl Pending {
    /// Already finished.
    pub fn done() -> Self {
        Pending { finish: None }
    }

    /// Finishes with `finish`.
    pub fn new(finish: impl FnOnce() -> Result<(), CommError> + 'static) -> Self {
        Pending { finish: Some(Box::new(finish)) }
    }

    /// Blocks until the output is there.
    pub fn wait(mut self) -> Result<(), CommError> {
        match self.finish.take() {
            Some(finish) => finish(),
            None => Ok(()),
        }
    }
}

/// The collectives of one rank in one group of `world_size` ranks.
///
/// Tensors are contiguous and on the backend's device. `full` has `world_size` times the elements of `shard`, and rank r's
/// part is the r-th; `shard` may be that very part of `full`.
pub trait Collectives {
    /// This rank's place in the group, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks in the group.
    fn world_size(&self) -> usize;

    /// Where its tensors lie.
    fn device(&self) -> Device {
        Device::Cpu
    }

    /// The group of those `ranks` of this group, in this order; this rank is one of them. Every rank makes its axes in
    /// the same order, and the axes of one kind cut the group into disjoint parts.
    fn axis(&self, ranks: &[usize]) -> Result<Rc<dyn Collectives>, CommError>;

    /// Starts to gather every rank's `shard` into `full`.
    fn start_all_gather_into(&self, full: &Tensor, shard: &Tensor) -> Result<Pending, CommError>;

    /// Starts to sum every rank's `full` and give this rank its part in `shard`, whose type is that of `full` or, for
    /// a 16-bit `full`, float32; sums are taken in the type of `shard`. `full`'s content is lost.
    fn start_reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<Pending, CommError>;

    /// What communication cost so far, over all axes of this backend. On a device that runs behind the host, as of the last
    /// [`Collectives::settle`].
    fn traffic(&self) -> Traffic;

    /// The recorder of this rank, which all axes of this backend share.
    fn timeline(&self) -> &Timeline;

    /// What this rank is doing, which all axes of this backend share.
    fn activity(&self) -> &Activity;

    /// Tells what the collectives that follow are about.
    fn about(&self, name: &str) {
        self.timeline().about(name);
        self.activity().about(name);
    }

    /// A flat tensor of zeros for use in collectives, where this backend is at its fastest with it. It lies there until its
    /// last view is gone, with or without the group.
    fn allocate(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        Ok(Tensor::f_zeros([numel], (kind, self.device()))?)
    }

    /// The same for one collective, with any content.
    fn scratch(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        Ok(Tensor::f_empty([numel], (kind, self.device()))?)
    }

    /// Tells of a buffer that will be used in collectives again and again, and outlives the group.
    fn register(&self, _buffer: &Tensor) {}

    /// To be called after the host waited for the device: fails if a collective failed meanwhile.
    fn settle(&self, _call: &'static str) -> Result<(), CommError> {
        Ok(())
    }

    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<(), CommError> {
        self.exchange(&[0.0]).map(|_| ())
    }

    /// Gathers every rank's `shard` into `full`.
    fn all_gather_into(&self, full: &Tensor, shard: &Tensor) -> Result<(), CommError> {
        self.start_all_gather_into(full, shard)?.wait()
    }

    /// Sums every rank's `full` and gives this rank its part in `shard`. `full`'s content is lost.
    fn reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<(), CommError> {
        self.start_reduce_scatter_into(shard, full)?.wait()
    }

    /// Sums `tensor` over all ranks, in place: a reduce-scatter and a gather where the length allows it.
    fn all_reduce(&self, tensor: &Tensor) -> Result<(), CommError> {
        all_reduce_by_groups(self, tensor, self.world_size())
    }

    /// Sums each of `tensors` over all ranks, in place.
    fn all_reduce_each(&self, tensors: &[Tensor]) -> Result<(), CommError> {
        tensors.iter().try_for_each(|tensor| self.all_reduce(tensor))
    }

    /// Every rank's small vector of numbers, by rank. The host waits for them.
    fn exchange(&self, numbers: &[f64]) -> Result<Vec<Vec<f64>>, CommError> {
        exchange_by_gather(self, numbers)
    }
}

/// Sums `tensor` over all ranks, in place: first over each group of `together` neighbours, then over the groups, as the
/// reduce-scatters of `comm` do.
fn all_reduce_by_groups<C: Collectives + ?Sized>(comm: &C, tensor: &Tensor, together: usize) -> Result<(), CommError> {
    let (numel, world_size) = (tensor.numel(), comm.world_size());
    if numel % world_size == 0 {
        let part = (numel / world_size) as i64;
        let mine = tensor.view([-1]).narrow(0, comm.rank() as i64 * part, part);
        comm.reduce_scatter_into(&mine, tensor)?;
        return comm.all_gather_into(tensor, &mine);
    }
    let all = Tensor::f_zeros([(numel * world_size) as i64], (tensor.kind(), tensor.device()))?;
    comm.all_gather_into(&all, tensor)?;
    let mut sums = cut(&all, world_size)?;
    for index in (0..world_size).filter(|index| index % together != 0) {
        let _sum = sums[index - index % together].f_add_(&all.f_narrow(0, (index * numel) as i64, numel as i64)?)?;
    }
    let mut groups = sums.into_iter().step_by(together);
    let Some(mut total) = groups.next() else { return Ok(()) };
    for group in groups {
        total = total.f_add_(&group)?;
    }
    tensor.view([-1]).f_copy_(&total)?;
    Ok(())
}

/// An exchange of numbers as a gather of tensors.
fn exchange_by_gather<C: Collectives + ?Sized>(comm: &C, numbers: &[f64]) -> Result<Vec<Vec<f64>>, CommError> {
    let mine = Tensor::from_slice(numbers).f_to_device(comm.device())?;
    let all = Tensor::f_zeros([(numbers.len() * comm.world_size()) as i64], (Kind::Double, comm.device()))?;
    comm.about(NUMBERS);
    comm.all_gather_into(&all, &mine)?;
    // On a device this is where the host waits.
    let _blocked = comm.activity().block();
    let wait = comm.timeline().begin(Track::Host, || Label::new("wait"));
    let flat = Vec::<f64>::try_from(&all.f_to_device(Device::Cpu)?)?;
    comm.timeline().end(wait);
    comm.settle("exchange")?;
    Ok(flat.chunks(numbers.len().max(1)).map(<[f64]>::to_vec).collect())
}

fn check_tensor(
    call: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    expected: Device,
) -> Result<(), CommError> {
    if !tensor.defined() {
        return Err(CommError::Undefined { call, argument });
    }
    if tensor.device() != expected {
        return Err(CommError::WrongDevice { call, argument, device: tensor.device(), expected });
    }
    if !tensor.is_contiguous() {
        return Err(CommError::NotContiguous { call, argument });
    }
    Ok(())
}

/// Checks the tensors of an all-gather or a reduce-scatter, which may sum into float32.
fn check_pair(
    call: &'static str,
    full: &Tensor,
    shard: &Tensor,
    world_size: usize,
    device: Device,
) -> Result<(), CommError> {
    check_tensor(call, "full", full, device)?;
    check_tensor(call, "shard", shard, device)?;
    let gathers = call == ALL_GATHER;
    let widens = !gathers && shard.kind() == Kind::Float && matches!(full.kind(), Kind::BFloat16 | Kind::Half);
    if full.kind() != shard.kind() && !widens {
        let (input, output) = if gathers { (shard, full) } else { (full, shard) };
        return Err(CommError::TypeMismatch { call, input: input.kind(), output: output.kind() });
    }
    if full.numel() != shard.numel() * world_size {
        return Err(CommError::Length { call, full: full.numel(), shard: shard.numel(), world_size });
    }
    Ok(())
}

const ALL_GATHER: &str = "all_gather";
const REDUCE_SCATTER: &str = "reduce_scatter";
const ALL_REDUCE: &str = "all_reduce";

/// What an exchange of numbers is about.
const NUMBERS: &str = "numbers";

fn element_size(tensor: &Tensor) -> usize {
    tensor.kind().elt_size_in_bytes()
}

fn bytes_of(tensor: &Tensor) -> usize {
    tensor.numel() * element_size(tensor)
}

/// Cuts a tensor into `count` parts of the same length, flat.
fn cut(tensor: &Tensor, count: usize) -> Result<Vec<Tensor>, TchError> {
    let (flat, length) = (tensor.f_view([-1])?, (tensor.numel() / count) as i64);
    (0..count).map(|part| flat.f_narrow(0, part as i64 * length, length)).collect()
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;
