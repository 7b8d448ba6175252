//! Processes that do one collective after another as they are told.

use crate::store::FolderStore;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use zerofold_runtime::comm::{Collectives, CommError, Shm};

const RANK: &str = "SHM_RANK";
const WORLD_SIZE: &str = "SHM_WORLD_SIZE";
const STORE: &str = "SHM_STORE";
const LIMIT: &str = "SHM_LIMIT_MS";

/// Elements of a shard: too many for a slot.
const LENGTH: i64 = 50_000;

/// A collective, and where its tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    AllGather,
    AllGatherInPlace,
    ReduceScatter,
    ReduceScatterInPlace,
    AllReduce,
    Barrier,
    Exchange,
}

impl Call {
    pub(crate) const ALL: [Call; 7] = [
        Call::AllGather,
        Call::AllGatherInPlace,
        Call::ReduceScatter,
        Call::ReduceScatterInPlace,
        Call::AllReduce,
        Call::Barrier,
        Call::Exchange,
    ];

    /// Whether ranks wait until others have read.
    pub(crate) fn reads_in_place(self) -> bool {
        matches!(self, Call::AllGatherInPlace | Call::ReduceScatterInPlace)
    }

    fn tensor(self, comm: &dyn Collectives, numel: i64) -> Tensor {
        match self.reads_in_place() {
            true => comm.allocate(numel, Kind::Float).unwrap(),
            false => Tensor::zeros([numel], (Kind::Float, Device::Cpu)),
        }
    }

    /// All of it; `between` runs between its start and its wait, where it has two halves.
    fn run(self, comm: &dyn Collectives, between: impl FnOnce()) -> Result<(), CommError> {
        let full = self.tensor(comm, LENGTH * comm.world_size() as i64);
        let shard = full.narrow(0, LENGTH * comm.rank() as i64, LENGTH);
        match self {
            Call::AllGather | Call::AllGatherInPlace => {
                let pending = comm.start_all_gather_into(&full, &shard)?;
                between();
                pending.wait()
            }
            Call::ReduceScatter | Call::ReduceScatterInPlace => {
                let pending = comm.start_reduce_scatter_into(&shard, &full)?;
                between();
                pending.wait()
            }
            Call::AllReduce => {
                let pending = comm.start_reduce_scatter_into(&shard, &full)?;
                between();
                pending.wait()?;
                comm.all_gather_into(&full, &shard)
            }
            Call::Barrier => {
                between();
                comm.barrier()
            }
            Call::Exchange => {
                between();
                comm.exchange(&[1.0; 10]).map(|_| ())
            }
        }
    }
}

/// Where rank 1 stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Moment {
    BeforeStarting,
    BeforeWaiting,
    Never,
}

pub(crate) const MOMENTS: [Moment; 2] = [Moment::BeforeStarting, Moment::BeforeWaiting];

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Run(Call, Moment),
    Finish,
}

/// What came of a call, or what is left of the group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum End {
    /// The rank is about to begin, or stands where it was told to stop.
    Here,
    Done,
    Failed {
        consequence: bool,
        text: String,
    },
    Left(Vec<String>),
}

fn say(end: &End) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(end).unwrap()).and_then(|()| out.flush()).unwrap();
}

/// What this process has of shared memory: descriptors, and mappings.
fn open_memory() -> Vec<String> {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let names = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let mappings = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = mappings.lines().map(str::to_owned).collect::<Vec<_>>();
    let all = names.map(|name| name.display().to_string()).chain(mapped);
    all.filter(|line| line.contains("zerofold-shm")).collect()
}

/// Does what the controlling process says, as the rank that the environment names; false when it names none.
pub(crate) fn serve() -> bool {
    let Ok(rank) = std::env::var(RANK) else { return false };
    let rank: usize = rank.parse().unwrap();
    zerofold_runtime::torch::count_memory();
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let store = FolderStore(std::env::var(STORE).unwrap().into());
    let limit = Duration::from_millis(number(LIMIT));
    let world_size = number(WORLD_SIZE) as usize;
    let comm = Shm::connect(&store, rank, world_size, limit, Default::default()).unwrap();
    // Once all have joined, nobody needs a descriptor.
    assert!(open_memory().iter().all(|line| !line.starts_with("/memfd")), "{:?}", open_memory());
    let live = || zerofold_runtime::torch::memory(Device::Cpu).live;
    let before = live();
    let view = comm.allocate(1000, Kind::Float).unwrap().narrow(0, 5, 1);
    assert_eq!(live() - before, 4000, "the memory of tensors is counted, wherever it lies");
    drop(view);
    assert_eq!(live(), before);
    let mut comm = Some(comm);
    let mut input = std::io::stdin().lock().lines();
    while let Some(line) = input.next() {
        match serde_json::from_str(&line.unwrap()).unwrap() {
            Order::Run(call, moment) => {
                let group = comm.as_ref().unwrap();
                let mut stop = |here: Moment| {
                    if rank == 1 && moment == here {
                        say(&End::Here);
                        // Until it is killed, or told to leave.
                        let _order = input.next();
                        true
                    } else {
                        false
                    }
                };
                if stop(Moment::BeforeStarting) {
                    drop(comm.take());
                    continue;
                }
                if rank != 1 {
                    say(&End::Here);
                }
                let result = call.run(group, || {
                    stop(Moment::BeforeWaiting);
                });
                match result {
                    Ok(()) => say(&End::Done),
                    Err(error) => {
                        say(&End::Failed { consequence: error.is_consequence(), text: error.to_string() });
                        drop(comm.take());
                    }
                }
            }
            Order::Finish => {
                drop(comm.take());
                say(&End::Left(open_memory()));
                return true;
            }
        }
    }
    true
}

/// The processes of one group.
pub(crate) struct Workers {
    ranks: Vec<(Child, ChildStdin, BufReader<ChildStdout>)>,
    killed: Option<usize>,
    _store: tempfile::TempDir,
}

impl Workers {
    pub(crate) fn start(world_size: usize, limit: Duration) -> Self {
        let store = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let start = |rank: usize| {
            let mut child = Command::new(&program)
                .env(RANK, rank.to_string())
                .env(WORLD_SIZE, world_size.to_string())
                .env(STORE, store.path())
                .env(LIMIT, limit.as_millis().to_string())
                .env("OMP_NUM_THREADS", "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            (child, input, BufReader::new(output))
        };
        Workers { ranks: (0..world_size).map(start).collect(), killed: None, _store: store }
    }

    fn order(&mut self, rank: usize, order: &Order) {
        let input = &mut self.ranks[rank].1;
        writeln!(input, "{}", serde_json::to_string(order).unwrap()).and_then(|()| input.flush()).unwrap();
    }

    /// Lets all ranks begin; returns when rank 1 stands where it stops and the others are about to begin.
    pub(crate) fn begin(&mut self, call: Call, moment: Moment) {
        for rank in 0..self.ranks.len() {
            self.order(rank, &Order::Run(call, moment));
        }
        for rank in 0..self.ranks.len() {
            if rank != 1 || moment != Moment::Never {
                assert_eq!(self.end_of(rank), End::Here, "rank {rank}");
            }
        }
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self, rank: usize) {
        self.ranks[rank].0.kill().unwrap();
        self.killed = Some(rank);
    }

    /// Lets a rank that stopped close its side.
    pub(crate) fn leave(&mut self, rank: usize) {
        self.order(rank, &Order::Finish);
    }

    /// What the rank says next.
    pub(crate) fn end_of(&mut self, rank: usize) -> End {
        let mut line = String::new();
        self.ranks[rank].2.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("rank {rank}: {error}: {line:?}"))
    }

    /// Ends the group; what is left of it in the ranks that live.
    pub(crate) fn finish(mut self) -> Vec<Vec<String>> {
        let rest: Vec<usize> = (0..self.ranks.len()).filter(|rank| Some(*rank) != self.killed).collect();
        let end = |rank: usize| {
            self.order(rank, &Order::Finish);
            match self.end_of(rank) {
                End::Left(left) => left,
                other => panic!("rank {rank}: {other:?}"),
            }
        };
        rest.into_iter().map(end).collect()
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
