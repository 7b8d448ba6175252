//! Workers without work: each has a connection of its own and says to a control plane what a real one says.

// Each program uses a part of it.
#![allow(dead_code, unreachable_pub)]

use std::time::{Duration, Instant};

use tonic::{Code, Status};
use zerofold_launcher::control::Listen;
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_proto::v1::*;
use zerofold_trust::{Token, Wire, connect};

/// The token of every job here.
pub fn token() -> Token {
    Token::parse(&"5a".repeat(32)).expect("a token")
}

/// A control plane on any port of loopback that asks for it.
pub fn listen() -> Listen {
    Listen { address: ([127, 0, 0, 1], 0).into(), token: token(), tls: false }
}

/// How the ranks find each other through the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// As NCCL's: rank 0 leaves an id, all others get it.
    Id,
    /// As Gloo's: each rank leaves its address and gets those of all others one by one.
    Each,
    /// The same in one call.
    All,
}

/// One rank of a job.
pub struct Simulated {
    /// From 0.
    pub rank: u32,
    world_size: u32,
    generation: u64,
    client: ControlClient<Wire>,
}

impl Simulated {
    /// Connects to the control plane at `address`, such as `http://127.0.0.1:29500`.
    pub async fn connect(address: &str, rank: u32, world_size: u32) -> Result<Self, Status> {
        let wire = connect(address, &token(), Duration::from_secs(30)).await;
        let wire = wire.map_err(|error| Status::unavailable(format!("rank {rank} cannot connect: {error}")))?;
        Ok(Simulated { rank, world_size, generation: 1, client: ControlClient::new(wire) })
    }

    /// Connects and joins as a rank of that generation, as real workers do: again where the connection was lost in a crowd.
    pub async fn enter(address: &str, rank: u32, world_size: u32, generation: u64) -> Result<Self, Status> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let entered = async {
                let mut worker = Simulated::connect(address, rank, world_size).await?.of(generation);
                worker.join().await.map(|()| worker)
            };
            match entered.await {
                Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                entered => return entered,
            }
        }
    }

    /// Of that generation of the job; the first, if nothing is said.
    pub fn of(self, generation: u64) -> Self {
        Simulated { generation, ..self }
    }

    /// Joins the job.
    pub async fn join(&mut self) -> Result<(), Status> {
        let (rank, world_size) = (self.rank, self.world_size);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let generation = self.generation;
        let request =
            JoinRequest { rank, world_size, generation, pid: std::process::id(), version, nonce: u64::from(rank) + 1 };
        self.client.join(request).await.map(|_| ())
    }

    /// Meets the others; fails after `limit`, or when what is found is not what they left.
    pub async fn meet(&mut self, how: Meeting, limit: Duration) -> Result<(), Status> {
        let timeout_ms = limit.as_millis() as u64;
        match how {
            Meeting::Id if self.rank == 0 => self.set("id", vec![7; 128]).await,
            Meeting::Id => {
                let request = StoreGetRequest { key: "id".to_owned(), timeout_ms };
                expect(self.rank, self.client.store_get(request).await?.into_inner().value == [7; 128])
            }
            Meeting::Each => {
                self.set(&key(self.rank), place(self.rank)).await?;
                for peer in 0..self.world_size {
                    let request = StoreGetRequest { key: key(peer), timeout_ms };
                    let value = self.client.store_get(request).await?.into_inner().value;
                    expect(self.rank, value == place(peer))?;
                }
                Ok(())
            }
            Meeting::All => {
                self.set(&key(self.rank), place(self.rank)).await?;
                let request = StoreGetAllRequest { keys: (0..self.world_size).map(key).collect(), timeout_ms };
                let values = self.client.store_get_all(request).await?.into_inner().values;
                expect(self.rank, values.into_iter().eq((0..self.world_size).map(place)))
            }
        }
    }

    async fn set(&mut self, key: &str, value: Vec<u8>) -> Result<(), Status> {
        self.client.store_set(StoreSetRequest { key: key.to_owned(), value }).await.map(|_| ())
    }

    /// One heartbeat; rank 0 reports a step with it. Returns how long the answer took.
    pub async fn beat(&mut self, step: u64) -> Result<Duration, Status> {
        let steps =
            if self.rank == 0 { vec![StepRecord { step, loss: 1.5, ..Default::default() }] } else { Vec::new() };
        let request = HeartbeatRequest {
            rank: self.rank,
            generation: self.generation,
            step,
            doing: Some(doing(step)),
            memory_bytes: 3 << 30,
            peak_memory_bytes: 4 << 30,
            steps,
            ..Default::default()
        };
        let began = Instant::now();
        self.client.heartbeat(request).await?;
        Ok(began.elapsed())
    }

    /// Sends a part of `bytes` of the checkpoint of `step` and waits for the manifest.
    pub async fn save(&mut self, step: u64, bytes: usize) -> Result<String, Status> {
        let part = CheckpointPart {
            rank: self.rank,
            generation: self.generation,
            step,
            directory: format!("step-{step:08}"),
            part: vec![b'x'; bytes],
            failure: String::new(),
        };
        self.client.checkpoint_written(part).await.map(|outcome| outcome.into_inner().manifest)
    }

    /// Leaves the job.
    pub async fn leave(&mut self, step: u64) -> Result<(), Status> {
        let request = LeaveRequest { rank: self.rank, generation: self.generation, step, ..Default::default() };
        self.client.leave(request).await.map(|_| ())
    }
}

/// As much as a real rank tells of what it does.
fn doing(step: u64) -> Doing {
    let call = |sequence| {
        let (operation, about) = ("all_gather".to_owned(), "layer 17".to_owned());
        Call { sequence, operation, about, bytes: 28 << 20 }
    };
    let calls: Vec<Call> = (40 * step..40 * step + 16).map(call).collect();
    Doing {
        phase: Phase::Gather.into(),
        seconds: 0.02,
        usual_seconds: 0.03,
        blocked_in: calls.last().cloned(),
        blocked_seconds: 0.02,
        calls,
    }
}

fn key(rank: u32) -> String {
    format!("place/{rank}")
}

/// As long as what a real rank tells of where it is.
fn place(rank: u32) -> Vec<u8> {
    format!("4f0c34c2-9a57-44b5-8dc6-{rank:012} pid:[4026531836]").into_bytes()
}

fn expect(rank: u32, right: bool) -> Result<(), Status> {
    if right { Ok(()) } else { Err(Status::data_loss(format!("rank {rank} found what nobody left"))) }
}
