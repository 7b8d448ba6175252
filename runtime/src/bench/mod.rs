//! What a machine reaches, measured by as many ranks as a job would have, all of them busy at the same time.
//!
//! [`compute`] times matrix products and copies, [`collectives`] times gathers and reductions. Rank 0 writes the answer.

mod collectives;
mod compute;

use crate::comm::{Activity, Collectives, CommError};
use crate::control::Control;
use crate::device::{self, Wanted};
use crate::gpu::{self, Stream};
use crate::torch;
use crate::worker::{Environment, WorkerError, connect};
use std::rc::Rc;
use std::sync::Arc;
use tch::Device;
use zerofold_configs::{Backend, BenchRequest, DeviceKind, ElementType, Rates};
use zerofold_proto::v1::LeaveRequest;

/// What is measured on: a device, and the ranks that are busy with it.
struct Bench {
    comm: Rc<dyn Collectives>,
    /// libtorch's own stream.
    stream: Stream,
    quick: bool,
}

impl Bench {
    fn device(&self) -> Device {
        self.comm.device()
    }

    /// Waits until the device has done what it was given.
    fn settle(&self) -> Result<(), CommError> {
        match self.device() {
            Device::Cuda(_) => {
                self.stream.synchronize().map_err(|source| CommError::Gpu { call: "bench", source })?;
                self.comm.settle("bench")
            }
            _ => Ok(()),
        }
    }
}

/// Measures as one rank. An error is told to `launch` before it is returned.
///
/// # Errors
/// The device cannot be used, or another rank is gone.
pub fn run(request: &BenchRequest) -> Result<(), WorkerError> {
    let environment = Environment::read()?;
    tch::set_num_threads(environment.threads.max(1));
    let backend = match request.device {
        _ if environment.identity.world_size == 1 => Backend::Single,
        DeviceKind::Cpu => Backend::Gloo,
        DeviceKind::Cuda => Backend::Nccl,
    };
    if backend == Backend::Nccl {
        // May start this program again, so it comes before the others hear of this rank.
        gpu::require_nccl()?;
    }
    let activity = Arc::new(Activity::default());
    let control =
        Control::join(&environment.control, &environment.token, environment.identity.clone(), activity.clone())?;
    let result = measure(&environment, request, backend, &control, activity);
    match result {
        Ok(rates) => {
            control.leave(LeaveRequest::default())?;
            if environment.identity.rank == 0 {
                println!("{}", serde_json::json!(rates));
            }
            Ok(())
        }
        Err(error) => {
            if let Err(unheard) = control.fail(error.to_string(), error.is_consequence()) {
                tracing::warn!("the error could not be told to launch: {unheard}");
            }
            Err(error)
        }
    }
}

fn measure(
    environment: &Environment,
    request: &BenchRequest,
    backend: Backend,
    control: &Control,
    activity: Arc<Activity>,
) -> Result<Rates, WorkerError> {
    let wanted = Wanted {
        device: request.device,
        compute: ElementType::Float32,
        tf32: false,
        share: false,
        nccl: backend == Backend::Nccl,
    };
    // Held for as long as this rank measures.
    let device = device::claim(&wanted, environment.local_rank)?;
    let comm = connect(environment, backend, control, device.torch(), activity.clone())?;
    let mut wires = vec![(backend, comm.clone())];
    if backend == Backend::Gloo {
        wires.extend(shared_memory(environment, &comm, control, activity)?.map(|shm| (Backend::Shm, shm)));
    }
    let stream = Stream::borrowed(torch::current_stream(device.torch())?);
    let bench = Bench { comm, stream, quick: request.quick };
    Ok(Rates {
        device: request.device,
        backend,
        ranks: environment.identity.world_size,
        threads: environment.threads.max(1).unsigned_abs(),
        products: compute::products(&bench)?,
        copy: compute::copy(&bench)?,
        collectives: collectives::collectives(&bench, &wires)?,
    })
}

/// Shared memory between the ranks, if all of them have it.
fn shared_memory(
    environment: &Environment,
    comm: &Rc<dyn Collectives>,
    control: &Control,
    activity: Arc<Activity>,
) -> Result<Option<Rc<dyn Collectives>>, CommError> {
    let shm = connect(environment, Backend::Shm, control, Device::Cpu, activity);
    if let Err(error) = &shm {
        tracing::warn!("shared memory is not measured: {error}");
    }
    let all = comm.exchange(&[f64::from(u8::from(shm.is_ok()))])?;
    Ok(shm.ok().filter(|_| all.iter().all(|rank| rank == &[1.0])))
}

/// The middle value; the later of the two in the middle. 0 without values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
