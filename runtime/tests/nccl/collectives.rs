//! Collectives against their definition, with processes as ranks.
//!
//! NCCL adds in an order of its own, so the values are whole numbers that every type can add without rounding.

use crate::ranks::{Job, Rank};
use crate::task::Task;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use zerofold_runtime::comm::{Collectives, CommError, Nccl};

/// Every type that the backend carries.
const KINDS: [Kind; 8] =
    [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half, Kind::Int64, Kind::Int, Kind::Int8, Kind::Uint8];

/// Elements of a shard: odd, and one of more than the stand-in sends at once.
const LENGTHS: [usize; 4] = [1, 5, 257, 100_003];

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Subject {
    Gathers,
    Reductions,
    AllReduce,
    AllReduceEach,
    Exchange,
    Axes,
    ManyUnderWay,
    Dropped,
    Traffic,
    Preconditions,
}

impl Subject {
    pub(crate) fn check(self, rank: &Rank) -> Value {
        let comm = rank.connect().unwrap();
        let check = match self {
            Subject::Gathers => gathers,
            Subject::Reductions => reductions,
            Subject::AllReduce => all_reduce,
            Subject::AllReduceEach => all_reduce_each,
            Subject::Exchange => exchange,
            Subject::Axes => axes,
            Subject::ManyUnderWay => many_under_way,
            Subject::Dropped => dropped,
            Subject::Traffic => traffic,
            Subject::Preconditions => preconditions,
        };
        check(&comm);
        comm.barrier().unwrap();
        Value::Bool(true)
    }
}

/// Runs the check on each of these numbers of ranks.
fn with_ranks(world_sizes: impl IntoIterator<Item = usize>, subject: Subject) {
    for world_size in world_sizes {
        let done: Vec<bool> = Job::new(world_size, Task::Collectives(subject)).run();
        assert_eq!(done, vec![true; world_size]);
    }
}

/// Rank `rank`'s element `index`: below 29, so that four of them fit into 8 bits with a sign.
fn value(rank: usize, index: usize) -> i64 {
    ((rank * 7 + index * 13) % 29) as i64
}

fn values(rank: usize, length: usize, kind: Kind) -> Tensor {
    let values: Vec<i64> = (0..length).map(|index| value(rank, index)).collect();
    Tensor::from_slice(&values).to_kind(kind)
}

/// The sum of all ranks' values.
fn sum(world_size: usize, length: usize) -> Vec<i64> {
    (0..length).map(|index| (0..world_size).map(|rank| value(rank, index)).sum()).collect()
}

fn zeros(length: usize, kind: Kind) -> Tensor {
    Tensor::zeros([length as i64], (kind, Device::Cpu))
}

fn part(full: &Tensor, place: usize, length: usize) -> Tensor {
    full.narrow(0, (place * length) as i64, length as i64)
}

fn whole_numbers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64)).unwrap()
}

fn gathers(comm: &Nccl) {
    let (place, count) = (comm.rank(), comm.world_size());
    for kind in KINDS {
        for length in LENGTHS {
            let expected: Vec<i64> = (0..count).flat_map(|rank| (0..length).map(move |at| value(rank, at))).collect();
            let (shard, apart) = (values(place, length, kind), zeros(count * length, kind));
            comm.all_gather_into(&apart, &shard).unwrap();
            let in_place = zeros(count * length, kind);
            part(&in_place, place, length).copy_(&shard);
            comm.all_gather_into(&in_place, &part(&in_place, place, length)).unwrap();
            assert!(whole_numbers(&apart) == expected, "{length} of {kind:?} apart");
            assert!(whole_numbers(&in_place) == expected, "{length} of {kind:?} in place");
        }
    }
}

fn reductions(comm: &Nccl) {
    let (place, count) = (comm.rank(), comm.world_size());
    for kind in KINDS {
        for length in LENGTHS {
            let expected = &sum(count, count * length)[place * length..(place + 1) * length];
            let apart = zeros(length, kind);
            comm.reduce_scatter_into(&apart, &values(place, count * length, kind)).unwrap();
            let in_place = values(place, count * length, kind);
            comm.reduce_scatter_into(&part(&in_place, place, length), &in_place).unwrap();
            assert!(whole_numbers(&apart) == expected, "{length} of {kind:?} apart");
            assert!(whole_numbers(&part(&in_place, place, length)) == expected, "{length} of {kind:?} in place");
            if matches!(kind, Kind::BFloat16 | Kind::Half) {
                let wider = zeros(length, Kind::Float);
                comm.reduce_scatter_into(&wider, &values(place, count * length, kind)).unwrap();
                assert!(whole_numbers(&wider) == expected, "{length} of {kind:?} into float32");
            }
        }
    }
}

fn all_reduce(comm: &Nccl) {
    let count = comm.world_size();
    for kind in KINDS {
        // Those that the ranks divide and those that they do not go different ways.
        for length in [count, 5 * count, 1, 5 * count + 1, 257] {
            let tensor = values(comm.rank(), length, kind);
            comm.all_reduce(&tensor).unwrap();
            assert!(whole_numbers(&tensor) == sum(count, length), "{length} of {kind:?}");
        }
    }
}

fn all_reduce_each(comm: &Nccl) {
    let sizes = [(1, Kind::Float), (257, Kind::Double), (6, Kind::BFloat16), (100_003, Kind::Float)];
    let tensors = sizes.map(|(length, kind)| values(comm.rank(), length, kind));
    comm.all_reduce_each(&tensors).unwrap();
    for (tensor, (length, kind)) in tensors.iter().zip(sizes) {
        assert!(whole_numbers(tensor) == sum(comm.world_size(), length), "{length} of {kind:?}");
    }
    comm.all_reduce_each(&[]).unwrap();
}

fn exchange(comm: &Nccl) {
    for round in 0..3 {
        let mine = [comm.rank() as f64 + 0.1, f64::from(round), f64::MIN_POSITIVE, -1e300];
        let expected: Vec<_> = (0..comm.world_size())
            .map(|rank| [rank as f64 + 0.1, f64::from(round), f64::MIN_POSITIVE, -1e300])
            .collect();
        assert_eq!(comm.exchange(&mine).unwrap(), expected);
    }
}

/// A grid of 2 × 2 ranks, used along both axes and as a whole at once.
fn axes(comm: &Nccl) {
    let (row, column) = (comm.rank() / 2, comm.rank() % 2);
    let along_row = comm.axis(&[2 * row, 2 * row + 1]).unwrap();
    let along_column = comm.axis(&[column, column + 2]).unwrap();
    assert_eq!((along_row.rank(), along_row.world_size()), (column, 2));
    assert_eq!((along_column.rank(), along_column.world_size()), (row, 2));
    let (all, mine) = (zeros(10, Kind::Float), values(comm.rank(), 5, Kind::Float));
    let gathering = along_row.start_all_gather_into(&all, &mine).unwrap();
    let (sums, full) = (zeros(3, Kind::Float), values(comm.rank(), 6, Kind::Float));
    let reducing = along_column.start_reduce_scatter_into(&sums, &full).unwrap();
    assert_eq!(comm.exchange(&[comm.rank() as f64]).unwrap(), [[0.0], [1.0], [2.0], [3.0]]);
    gathering.wait().unwrap();
    reducing.wait().unwrap();
    let neighbours = [2 * row, 2 * row + 1];
    assert_eq!(whole_numbers(&all), neighbours.map(|rank| [0, 1, 2, 3, 4].map(|at| value(rank, at))).concat());
    let column_sum = [0, 1, 2].map(|at| value(column, 3 * row + at) + value(column + 2, 3 * row + at));
    assert_eq!(whole_numbers(&sums), column_sum);
    let refused = comm.axis(&[(comm.rank() + 1) % 4]);
    assert!(matches!(refused, Err(CommError::Axis { .. })));
}

/// Gathers and reductions under way at once, waited for in another order than they were started.
fn many_under_way(comm: &Nccl) {
    let (place, count) = (comm.rank(), comm.world_size());
    let mut started = Vec::new();
    for length in [3, 1001, 7, 50_001] {
        let (full, shard) = (zeros(count * length, Kind::Float), values(place, length, Kind::Float));
        let gathering = comm.start_all_gather_into(&full, &shard).unwrap();
        let (result, terms) = (zeros(length, Kind::Double), values(place, count * length, Kind::Double));
        let reducing = comm.start_reduce_scatter_into(&result, &terms).unwrap();
        started.push((length, full, gathering, result, reducing));
    }
    for (length, full, gathering, result, reducing) in started.into_iter().rev() {
        reducing.wait().unwrap();
        gathering.wait().unwrap();
        let expected: Vec<i64> = (0..count).flat_map(|rank| (0..length).map(move |at| value(rank, at))).collect();
        assert!(whole_numbers(&full) == expected, "a gather of {length}");
        assert!(whole_numbers(&result) == sum(count, count * length)[place * length..(place + 1) * length]);
    }
}

/// Nobody waits for a collective: its tensors stay until it is done, and what comes after comes after.
fn dropped(comm: &Nccl) {
    let (place, count) = (comm.rank(), comm.world_size());
    for length in [1001, 50_001] {
        let (full, shard) = (zeros(count * length, Kind::Float), values(place, length, Kind::Float));
        drop(comm.start_all_gather_into(&full, &shard).unwrap());
        let expected: Vec<i64> = (0..count).flat_map(|rank| (0..length).map(move |at| value(rank, at))).collect();
        assert!(whole_numbers(&full) == expected, "libtorch's stream went on before the gather was done");
        // Here the tensors go first: memory that is handed out anew is not written to any more.
        let pending = {
            let terms = values(place, count * length, Kind::Float);
            comm.start_reduce_scatter_into(&part(&terms, place, length), &terms).unwrap()
        };
        let anew: Vec<Tensor> = (0..8).map(|_| zeros(count * length, Kind::Float)).collect();
        drop(pending);
        comm.barrier().unwrap();
        assert!(anew.iter().all(|tensor| tensor.count_nonzero(None::<i64>).int64_value(&[]) == 0));
    }
    comm.settle("the end").unwrap();
}

fn traffic(comm: &Nccl) {
    let count = comm.world_size() as u64;
    let before = comm.traffic();
    let full = zeros(8 * comm.world_size(), Kind::Float);
    comm.all_gather_into(&full, &part(&full, comm.rank(), 8)).unwrap();
    comm.reduce_scatter_into(&part(&full, comm.rank(), 8), &full).unwrap();
    comm.all_reduce_each(&[full]).unwrap();
    comm.settle("traffic").unwrap();
    let now = comm.traffic();
    // A gather, a reduction, and an all-reduce, which is both.
    assert_eq!(now.logical_bytes - before.logical_bytes, 4 * 32 * count);
    assert_eq!(now.sent_bytes - before.sent_bytes, 4 * 32 * (count - 1));
    // The stand-in sleeps in each of the three, while the host waits.
    assert!(now.blocked - before.blocked >= std::time::Duration::from_millis(3 * 20), "{:?}", now.blocked);
}

fn preconditions(comm: &Nccl) {
    let (four, three, booleans) = (zeros(4, Kind::Float), zeros(3, Kind::Float), zeros(4, Kind::Bool));
    let lengths = comm.all_gather_into(&four, &three);
    assert!(matches!(lengths, Err(CommError::Length { call: "all_gather", full: 4, shard: 3, world_size: 1 })));
    let types = comm.reduce_scatter_into(&four, &zeros(4, Kind::Double));
    assert!(matches!(types, Err(CommError::TypeMismatch { input: Kind::Double, output: Kind::Float, .. })));
    let gaps = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)).transpose(0, 1);
    assert!(matches!(comm.all_gather_into(&four, &gaps), Err(CommError::NotContiguous { argument: "shard", .. })));
    assert!(matches!(comm.all_gather_into(&Tensor::new(), &four), Err(CommError::Undefined { .. })));
    let unknown = comm.all_gather_into(&booleans, &zeros(4, Kind::Bool)).unwrap_err();
    assert!(unknown.to_string().contains("does not know the type Bool"), "{unknown}");
    let spoiled = comm.all_reduce_each(&[four.shallow_clone(), gaps]);
    assert!(matches!(spoiled, Err(CommError::NotContiguous { call: "all_reduce", .. })));
    // None of it left anything behind.
    assert_eq!(comm.exchange(&[1.5]).unwrap(), [[1.5]]);
}

#[test]
fn gathers_put_parts_in_rank_order() {
    with_ranks(1..=4, Subject::Gathers);
}

#[test]
fn reductions_give_each_rank_its_part_of_the_sum() {
    with_ranks(1..=4, Subject::Reductions);
}

#[test]
fn all_reduce_sums_any_length() {
    with_ranks(1..=4, Subject::AllReduce);
}

#[test]
fn several_tensors_are_summed_in_one_group() {
    with_ranks([1, 2, 3, 4], Subject::AllReduceEach);
}

#[test]
fn exchange_gives_every_ranks_numbers() {
    with_ranks(1..=4, Subject::Exchange);
}

#[test]
fn axes_of_a_grid_are_groups() {
    with_ranks([4], Subject::Axes);
}

#[test]
fn several_collectives_may_be_under_way() {
    with_ranks([2, 3], Subject::ManyUnderWay);
}

#[test]
fn a_collective_that_nobody_waits_for_leaves_no_race() {
    let slow = Job::new(2, Task::Collectives(Subject::Dropped)).with("ZEROFOLD_STAND_IN_DELAY_US", "20000");
    assert_eq!(slow.run::<bool>(), [true, true]);
}

#[test]
fn traffic_is_counted() {
    let slow = Job::new(2, Task::Collectives(Subject::Traffic)).with("ZEROFOLD_STAND_IN_DELAY_US", "20000");
    assert_eq!(slow.run::<bool>(), [true, true]);
}

#[test]
fn violated_preconditions_have_errors_of_their_own() {
    with_ranks([1], Subject::Preconditions);
}
