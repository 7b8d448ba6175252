//! Worker processes that do one training after another, over real Gloo, over shared memory, over NCCL's
//! stand-in, or on a GPU.

use crate::common::{Spec, bits, stand_in};
use crate::delay::{Delayed, Point};
use crate::memory::MemorySpec;
use crate::store::FolderStore;
use crate::timeline;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tch::Device;
use zerofold_runtime::comm::{Activity, Collectives, Gloo, Nccl, Shm, Single};
use zerofold_runtime::gpu;

/// The variables by which a process of this program knows that it is a rank.
const RANK: &str = "MATRIX_RANK";
const WORLD_SIZE: &str = "MATRIX_WORLD_SIZE";
const STORE: &str = "MATRIX_STORE";
const WIRE: &str = "MATRIX_WIRE";

/// What carries the collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Gloo,
    /// The memory of this host.
    Shm,
    /// The `nccl` backend on tensors of the CPU.
    NcclStandIn,
    /// One process on a GPU.
    Gpu,
}

/// What a worker is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// A training; perhaps with a rank that is late somewhere.
    Train { spec: Spec, late: Option<(usize, Point)> },
    /// A training whose timeline is recorded in this folder.
    Record { spec: Spec, folder: PathBuf },
    /// A job whose memory is measured.
    Memory(MemorySpec),
}

/// What came of it on rank 0; the other ranks' bits were the same.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Curve {
    /// Losses and gradient norms as bits.
    pub(crate) bits: Vec<(u64, u64)>,
    /// The loss scale of each step.
    pub(crate) loss_scales: Vec<f64>,
    /// Steps that were skipped, from 1.
    pub(crate) skipped: Vec<u64>,
    /// How often this rank was late.
    pub(crate) delays: u32,
    /// Live bytes of tensors at some points of a step; of memory measurements only.
    pub(crate) live: Vec<u64>,
    /// And at its peak.
    pub(crate) live_peak: u64,
}

impl Curve {
    pub(crate) fn losses(&self) -> impl Iterator<Item = f64> {
        self.bits.iter().map(|(loss, _)| f64::from_bits(*loss))
    }

    pub(crate) fn grad_norms(&self) -> impl Iterator<Item = f64> {
        self.bits.iter().map(|(_, norm)| f64::from_bits(*norm))
    }
}

/// Does what the controlling process says, as the rank that the environment names; false when it names none.
pub(crate) fn serve() -> bool {
    let Ok(rank) = std::env::var(RANK) else { return false };
    let rank: usize = rank.parse().unwrap();
    let world_size: usize = std::env::var(WORLD_SIZE).unwrap().parse().unwrap();
    zerofold_runtime::torch::count_memory();
    tch::set_num_threads(1);
    let store = Arc::new(FolderStore(std::env::var(STORE).unwrap().into()));
    let activity = Arc::new(Activity::default());
    let limit = Duration::from_secs(3600);
    let claim = || {
        let claimed = gpu::claim(&gpu::facts().unwrap(), rank, true).unwrap();
        // Current for as long as the process lives.
        std::mem::forget(claimed);
    };
    let comm: Rc<dyn Collectives> = match std::env::var(WIRE).as_deref() {
        Err(_) => Rc::new(Gloo::connect(store, rank, world_size, "127.0.0.1", limit, activity.clone()).unwrap()),
        Ok("shm") => Rc::new(Shm::connect(store.as_ref(), rank, world_size, limit, activity.clone()).unwrap()),
        Ok("gpu") => {
            claim();
            zerofold_runtime::torch::use_cuda(rank).unwrap();
            Rc::new(Single::new(Device::Cuda(rank)).unwrap())
        }
        Ok(_) => {
            gpu::require_nccl().unwrap();
            claim();
            Rc::new(Nccl::connect(store, rank, world_size, Device::Cpu, limit, activity.clone()).unwrap())
        }
    };
    for line in std::io::stdin().lock().lines() {
        let task: Task = serde_json::from_str(&line.unwrap()).unwrap();
        activity.finished_steps(0);
        let curve = match task {
            Task::Train { spec, late } => train(&spec, late, comm.clone(), activity.clone()),
            Task::Record { spec, folder } => timeline::record(&spec, &folder, comm.clone(), activity.clone()),
            Task::Memory(spec) => spec.measure(comm.clone(), activity.clone()),
        };
        println!("{}", serde_json::to_string(&curve).unwrap());
    }
    true
}

fn train(spec: &Spec, late: Option<(usize, Point)>, comm: Rc<dyn Collectives>, activity: Arc<Activity>) -> Curve {
    let delays = Rc::new(Cell::new(0));
    let comm = match late {
        Some((rank, point)) if rank == comm.rank() => {
            Rc::new(Delayed::new(comm, point, activity.clone(), delays.clone())) as Rc<dyn Collectives>
        }
        _ => comm,
    };
    let (outcomes, _) = spec.train(comm, activity);
    Curve {
        bits: bits(&outcomes),
        loss_scales: outcomes.iter().map(|outcome| outcome.loss_scale).collect(),
        skipped: outcomes.iter().filter(|outcome| outcome.skipped.is_some()).map(|outcome| outcome.step).collect(),
        delays: delays.get(),
        ..Curve::default()
    }
}

/// The processes of one world size.
pub(crate) struct Workers {
    ranks: Vec<(Child, ChildStdin, BufReader<ChildStdout>)>,
    pub(crate) wire: Wire,
    _store: tempfile::TempDir,
}

impl Workers {
    pub(crate) fn start(world_size: usize, wire: Wire) -> Self {
        Workers::start_with(world_size, wire, &[])
    }

    /// With these variables in the processes' environment.
    pub(crate) fn start_with(world_size: usize, wire: Wire, variables: &[(&str, &str)]) -> Self {
        let store = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let ranks = (0..world_size)
            .map(|rank| {
                let mut command = Command::new(&program);
                match wire {
                    Wire::Gloo => {}
                    Wire::Shm => {
                        command.env(WIRE, "shm");
                    }
                    Wire::NcclStandIn => {
                        command.env(WIRE, "nccl").env("LD_LIBRARY_PATH", stand_in::folder());
                        command.env("ZEROFOLD_STAND_IN_DIR", store.path());
                    }
                    Wire::Gpu => {
                        command.env(WIRE, "gpu");
                    }
                }
                let mut child = command
                    .envs(variables.iter().copied())
                    .env(RANK, rank.to_string())
                    .env(WORLD_SIZE, world_size.to_string())
                    .env(STORE, store.path())
                    .env("OMP_NUM_THREADS", "1")
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
                (child, input, BufReader::new(output))
            })
            .collect();
        Workers { ranks, wire, _store: store }
    }

    /// Does a task; all ranks must agree to the bit.
    pub(crate) fn run(&mut self, task: &Task) -> Result<Curve, String> {
        let line = serde_json::to_string(task).unwrap();
        for (_, input, _) in &mut self.ranks {
            writeln!(input, "{line}").and_then(|()| input.flush()).map_err(|error| error.to_string())?;
        }
        let mut curves = Vec::new();
        for (rank, (_, _, output)) in self.ranks.iter_mut().enumerate() {
            let mut line = String::new();
            output.read_line(&mut line).map_err(|error| error.to_string())?;
            let curve: Curve =
                serde_json::from_str(&line).map_err(|_| format!("rank {rank} died (its words are above)"))?;
            curves.push(curve);
        }
        let delays = curves.iter().map(|curve| curve.delays).sum();
        let first = curves[0].clone();
        match curves.iter().position(|curve| curve.bits != first.bits || curve.skipped != first.skipped) {
            Some(rank) => Err(format!("rank {rank} has other losses, norms or skipped steps than rank 0")),
            None => Ok(Curve { delays, ..first }),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (child, _, _) in &mut self.ranks {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
