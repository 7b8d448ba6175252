//! Uses of a tensor before its collective is done: they have to be seen, or no test here would show that the engine waits.

use crate::ranks::{Job, Rank, wait_until};
use crate::task::Task;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use zerofold_runtime::comm::{Collectives, CommError};

/// Ranks go in step here by telling each other, so that what is too early is too early every time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Race {
    /// Rank 0 reads what it gathers before rank 1 has sent its part.
    ReadTooEarly,
    /// Rank 0 changes what it will send, while an earlier collective waits for rank 1.
    ChangedTooEarly,
}

impl Race {
    pub(crate) fn run(self, rank: &Rank) -> Value {
        match self {
            Race::ReadTooEarly => read_too_early(rank),
            Race::ChangedTooEarly => change_too_early(rank),
        }
    }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor).unwrap()
}

fn read_too_early(rank: &Rank) -> Value {
    let comm = rank.connect().unwrap();
    let full = Tensor::full([6], 5.0, (Kind::Float, Device::Cpu));
    let shard = Tensor::full([3], rank.rank as f64 + 1.0, (Kind::Float, Device::Cpu));
    if rank.rank == 1 {
        rank.hear("rank 0 has read");
    }
    let pending = comm.start_all_gather_into(&full, &shard).unwrap();
    let early = floats(&full);
    rank.tell("rank 0 has read");
    pending.wait().unwrap();
    let late = floats(&full);
    comm.barrier().unwrap();
    json!({ "early": early.iter().map(|value| value.is_nan()).collect::<Vec<_>>(), "late": late })
}

/// The first error that settling gives, with whether it is told as a consequence.
fn change_too_early(rank: &Rank) -> Value {
    let comm = rank.connect().unwrap();
    let new = || Tensor::ones([6], (Kind::Float, Device::Cpu));
    let (first, mut second, result) = (new(), new(), Tensor::zeros([3], (Kind::Float, Device::Cpu)));
    if rank.rank == 1 {
        rank.hear("rank 0 has changed its input");
    }
    let part = |full: &Tensor| full.narrow(0, rank.rank as i64 * 3, 3);
    let before = comm.start_reduce_scatter_into(&part(&first), &first).unwrap();
    let pending = comm.start_reduce_scatter_into(&result, &second).unwrap();
    if rank.rank == 0 {
        let _changed = second.fill_(7.0);
        rank.tell("rank 0 has changed its input");
    }
    before.wait().unwrap();
    pending.wait().unwrap();
    if rank.rank == 1 {
        rank.hear("rank 0 has failed");
        return Value::Null;
    }
    let mut failure = None;
    wait_until("the end of communication", Duration::from_secs(2), || {
        failure = comm.settle("a later call").err();
        failure.is_some()
    });
    rank.tell("rank 0 has failed");
    let failure = failure.unwrap();
    assert!(matches!(failure, CommError::Aborted { call: "a later call", .. }), "{failure}");
    let next = comm.exchange(&[1.0]).unwrap_err();
    json!([failure.to_string(), next.to_string()])
}

#[test]
fn reading_before_the_wait_gives_nan() {
    let outcomes: Vec<Value> = Job::new(2, Task::Race(Race::ReadTooEarly)).run();
    assert_eq!(outcomes[0]["early"], json!(vec![true; 6]));
    for outcome in &outcomes {
        assert_eq!(outcome["late"], json!([1.0, 1.0, 1.0, 2.0, 2.0, 2.0]));
    }
}

#[test]
fn changing_what_is_sent_before_the_wait_ends_communication() {
    let mut running = Job::new(2, Task::Race(Race::ChangedTooEarly)).start();
    running.wait_for_ends();
    let report = "stand-in: the input of reduce_scatter #2 was changed before it was sent";
    assert!(running.words(0).contains(report), "{}", running.words(0));
    assert!(!running.words(1).contains("was changed"), "{}", running.words(1));
    let [settling, next]: [String; 2] = running.outcome(0).unwrap();
    for words in [&settling, &next] {
        assert!(words.contains("communication was ended") && words.contains("ncclInvalidUsage"), "{words}");
        assert!(words.contains("was changed before it was sent"), "{words}");
    }
}
