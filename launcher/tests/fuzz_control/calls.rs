//! Calls that are well formed and make no sense: absurd values, any order, given up midway.

use tonic::Status;
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_proto::v1::*;

use zerofold_trust::Wire;

use crate::dice::Dice;

/// Who is said to call.
#[derive(Clone, Copy)]
pub(crate) enum Caller {
    /// Nobody of a job with so many ranks at generation 1.
    Stranger(u32),
    /// A rank of a job with so many ranks, at this generation.
    Insider(u32, u64),
}

impl Caller {
    fn identity(self, dice: &mut Dice) -> (u32, u64) {
        match self {
            Caller::Stranger(world_size) if dice.once_in(2) => {
                (dice.below(u64::from(world_size)) as u32, dice.one_of(&[0, 2, 3, u64::MAX]))
            }
            Caller::Stranger(world_size) => (world_size + dice.one_of(&[0, 1, u32::MAX - world_size]), 1),
            Caller::Insider(world_size, generation) => (dice.below(u64::from(world_size)) as u32, generation),
        }
    }

    fn world_size(self, dice: &mut Dice) -> u32 {
        let (Caller::Stranger(right) | Caller::Insider(right, _)) = self;
        dice.one_of(&[right, right, right, 0, 1, u32::MAX])
    }
}

/// Makes one call.
pub(crate) async fn call(client: &mut ControlClient<Wire>, caller: Caller, dice: &mut Dice) {
    // That it is answered, and everybody else too, is what counts.
    let _ = any(client, caller, dice).await;
}

async fn any(client: &mut ControlClient<Wire>, caller: Caller, dice: &mut Dice) -> Result<(), Status> {
    let (rank, generation) = caller.identity(dice);
    match dice.below(12) {
        0 => {
            let version = dice.one_of(&[env!("CARGO_PKG_VERSION"), "", "0.0.0"]).to_owned();
            let (world_size, pid) = (caller.world_size(dice), dice.count() as u32);
            client.join(JoinRequest { rank, world_size, generation, pid, version, nonce: 0 }).await?;
        }
        1 | 2 => drop(client.heartbeat(heartbeat(rank, generation, dice)).await?),
        3 | 4 => drop(client.checkpoint_written(part(rank, generation, dice)).await?),
        5 => drop(client.leave(leave(rank, generation, dice)).await?),
        6 => {
            let request = FailRequest { rank, generation, message: dice.text(), consequence: dice.once_in(2) };
            client.fail(request).await?;
        }
        7 => {
            let value = vec![0; dice.one_of(&[0, 1, 100, 2 << 20])];
            client.store_set(StoreSetRequest { key: key(dice), value }).await?;
        }
        8 => {
            let amount = dice.count() as i64;
            client.store_add(StoreAddRequest { key: key(dice), amount }).await?;
        }
        9 => {
            let (keys, timeout_ms) = (keys(dice), dice.count());
            match dice.below(3) {
                0 => drop(client.store_wait(StoreWaitRequest { keys, timeout_ms }).await?),
                1 => drop(client.store_get_all(StoreGetAllRequest { keys, timeout_ms }).await?),
                _ => drop(client.store_check(StoreCheckRequest { keys }).await?),
            }
        }
        10 => drop(client.store_delete(StoreDeleteRequest { key: key(dice) }).await?),
        _ => drop(client.store_get(StoreGetRequest { key: key(dice), timeout_ms: dice.count() }).await?),
    }
    Ok(())
}

/// Few different ones, none of which honest workers have.
fn key(dice: &mut Dice) -> String {
    let number = dice.below(50);
    if dice.once_in(20) { dice.text() } else { format!("stranger/{number}") }
}

fn keys(dice: &mut Dice) -> Vec<String> {
    let count = dice.one_of(&[0, 1, 3, 1000, 70_000]);
    match count {
        0..=3 => (0..count).map(|_| key(dice)).collect(),
        _ => vec![key(dice); count],
    }
}

fn heartbeat(rank: u32, generation: u64, dice: &mut Dice) -> HeartbeatRequest {
    let call = |dice: &mut Dice| {
        let (operation, about) = (dice.text(), dice.text());
        Call { sequence: dice.count(), operation, about, bytes: dice.count() }
    };
    let calls = dice.one_of(&[0, 0, 2, 100]);
    let doing = Doing {
        phase: dice.below(20) as i32 - 4,
        seconds: dice.number(),
        usual_seconds: dice.number(),
        blocked_in: dice.once_in(2).then(|| call(dice)),
        blocked_seconds: dice.number(),
        calls: (0..calls).map(|_| Call { sequence: dice.count(), ..Default::default() }).collect(),
    };
    let steps = dice.one_of(&[0, 0, 0, 1, 3]);
    let evaluations = dice.one_of(&[0, 0, 0, 1]);
    HeartbeatRequest {
        rank,
        generation,
        step: dice.count(),
        doing: dice.once_in(2).then_some(doing),
        stop: dice.once_in(4),
        memory_bytes: dice.count(),
        peak_memory_bytes: dice.count(),
        steps: (0..steps).map(|_| step(dice)).collect(),
        evaluations: (0..evaluations)
            .map(|_| EvaluationRecord {
                step: dice.count(),
                loss: dice.number(),
                seconds: dice.number(),
                ..Default::default()
            })
            .collect(),
    }
}

fn step(dice: &mut Dice) -> StepRecord {
    StepRecord {
        step: dice.count(),
        epoch: dice.number(),
        loss: dice.number(),
        grad_norm: dice.number(),
        tokens: dice.count(),
        seconds: dice.number(),
        communication_seconds: dice.number(),
        skipped: if dice.once_in(4) { dice.text() } else { String::new() },
        phases: vec![PhaseTime { phase: dice.below(20) as i32, seconds: dice.number() }],
        ..Default::default()
    }
}

fn part(rank: u32, generation: u64, dice: &mut Dice) -> CheckpointPart {
    CheckpointPart {
        rank,
        generation,
        step: dice.one_of(&[1, 1, 1, 2, u64::MAX]),
        directory: if dice.once_in(6) { dice.text() } else { "folder".to_owned() },
        part: dice.bytes(1000),
        failure: if dice.once_in(6) { dice.text() } else { String::new() },
    }
}

fn leave(rank: u32, generation: u64, dice: &mut Dice) -> LeaveRequest {
    LeaveRequest {
        rank,
        generation,
        step: dice.count(),
        stopped: dice.once_in(2),
        model_directory: dice.text(),
        state: Some(StateBytes { parameters: dice.count(), masters: dice.count(), ..Default::default() }),
        model_step: dice.count(),
    }
}
