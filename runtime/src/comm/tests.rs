//! Every backend against the definition of the collectives, with threads as ranks.

use super::*;
use std::sync::Arc;

/// The backends that connect several ranks on a CPU.
const BACKENDS: [Backend; 2] = [Backend::Gloo, Backend::Shm];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Gloo,
    Shm,
    Single,
}

impl Backend {
    fn connect(self, store: Arc<dyn Store>, rank: usize, world_size: usize) -> Box<dyn Collectives> {
        let limit = Duration::from_secs(30);
        match self {
            Backend::Gloo => {
                Box::new(Gloo::connect(store, rank, world_size, "127.0.0.1", limit, Arc::default()).unwrap())
            }
            Backend::Shm => Box::new(Shm::connect(store.as_ref(), rank, world_size, limit, Arc::default()).unwrap()),
            Backend::Single => Box::new(Single::new(Device::Cpu).unwrap()),
        }
    }

    /// Runs `body` on `world_size` ranks and returns what each returned.
    pub(super) fn run<T: Send>(self, world_size: usize, body: impl Fn(&dyn Collectives) -> T + Sync) -> Vec<T> {
        let store: Arc<dyn Store> = Arc::new(LocalStore::default());
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..world_size)
                .map(|rank| {
                    let (store, body) = (store.clone(), &body);
                    scope.spawn(move || {
                        let group = self.connect(store, rank, world_size);
                        let result = body(group.as_ref());
                        group.barrier().unwrap();
                        result
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }
}

/// The ranks' values in types that need not be float32.
pub(super) fn tensor(rank: usize, length: usize, kind: Kind) -> Tensor {
    let floats = Tensor::from_slice(&values(rank, length));
    // Within what a half can hold, sums of all ranks too.
    let scale = if kind == Kind::Half { 1e-6 } else { 1.0 };
    (floats * scale).to_kind(kind)
}

/// Rank `rank`'s full buffer: values whose float32 sum depends on the order of addition.
fn values(rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|i| ((rank * 7919 + i * 104_729) % 1000) as f32 * 10f32.powi((rank as i32 * 3) % 8)).collect()
}

/// The sum in rank order.
fn expected_sum(world_size: usize, length: usize) -> Vec<f32> {
    let mut sum = values(0, length);
    for rank in 1..world_size {
        sum.iter_mut().zip(values(rank, length)).for_each(|(total, value)| *total += value);
    }
    sum
}

#[test]
fn reduce_scatter_sums_in_rank_order_also_in_place() {
    for (backend, world_size) in BACKENDS.into_iter().flat_map(|backend| [1, 2, 3, 4].map(|ranks| (backend, ranks))) {
        let length = 5 * world_size;
        let expected = expected_sum(world_size, length);
        let results = backend.run(world_size, |group| {
            let full = Tensor::from_slice(&values(group.rank(), length));
            let shard = Tensor::zeros([5], (Kind::Float, Device::Cpu));
            group.reduce_scatter_into(&shard, &full).unwrap();
            let full = Tensor::from_slice(&values(group.rank(), length));
            let mine = full.narrow(0, group.rank() as i64 * 5, 5);
            group.reduce_scatter_into(&mine, &full).unwrap();
            (Vec::<f32>::try_from(&shard).unwrap(), Vec::<f32>::try_from(&mine).unwrap())
        });
        for (rank, (apart, in_place)) in results.into_iter().enumerate() {
            assert_eq!(apart, expected[rank * 5..(rank + 1) * 5], "{backend:?}, world size {world_size}, rank {rank}");
            assert_eq!(in_place, apart);
        }
    }
}

#[test]
fn two_reduce_scatters_may_be_under_way() {
    BACKENDS.into_iter().for_each(two_reduce_scatters_of);
}

fn two_reduce_scatters_of(backend: Backend) {
    let results = backend.run(3, |group| {
        let first = Tensor::from_slice(&values(group.rank(), 6));
        let second = Tensor::from_slice(&values(group.rank(), 12));
        let (shard1, shard2) =
            (Tensor::zeros([2], (Kind::Float, Device::Cpu)), Tensor::zeros([4], (Kind::Float, Device::Cpu)));
        let pending1 = group.start_reduce_scatter_into(&shard1, &first).unwrap();
        let pending2 = group.start_reduce_scatter_into(&shard2, &second).unwrap();
        pending1.wait().unwrap();
        pending2.wait().unwrap();
        (Vec::<f32>::try_from(&shard1).unwrap(), Vec::<f32>::try_from(&shard2).unwrap())
    });
    for (rank, (one, two)) in results.into_iter().enumerate() {
        assert_eq!(one, expected_sum(3, 6)[rank * 2..(rank + 1) * 2]);
        assert_eq!(two, expected_sum(3, 12)[rank * 4..(rank + 1) * 4]);
    }
}

#[test]
fn all_gather_puts_parts_in_rank_order_also_in_place() {
    let cases = [(1, Kind::Float), (2, Kind::BFloat16), (3, Kind::Double), (4, Kind::Float)];
    for (backend, (world_size, kind)) in BACKENDS.into_iter().flat_map(|backend| cases.map(|case| (backend, case))) {
        let results = backend.run(world_size, |group| {
            let shard = Tensor::full([3], group.rank() as f64 + 0.5, (kind, Device::Cpu));
            let full = Tensor::zeros([3 * world_size as i64], (kind, Device::Cpu));
            group.all_gather_into(&full, &shard).unwrap();
            let in_place = Tensor::zeros([3 * world_size as i64], (kind, Device::Cpu));
            let mut mine = in_place.narrow(0, 3 * group.rank() as i64, 3);
            mine.copy_(&shard);
            group.all_gather_into(&in_place, &mine).unwrap();
            let doubles = |tensor: &Tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).unwrap();
            (doubles(&full), doubles(&in_place))
        });
        let expected: Vec<f64> = (0..world_size).flat_map(|rank| [rank as f64 + 0.5; 3]).collect();
        for (full, in_place) in results {
            assert_eq!((full, in_place), (expected.clone(), expected.clone()));
        }
    }
}

#[test]
fn all_reduce_and_exchange() {
    BACKENDS.into_iter().for_each(all_reduce_and_exchange_of);
}

fn all_reduce_and_exchange_of(backend: Backend) {
    let results = backend.run(3, |group| {
        let divisible = Tensor::from_slice(&values(group.rank(), 6));
        group.all_reduce(&divisible).unwrap();
        let odd = Tensor::from_slice(&values(group.rank(), 7));
        group.all_reduce(&odd).unwrap();
        let exchanged = group.exchange(&[group.rank() as f64, 10.0]).unwrap();
        let floats = |tensor: &Tensor| Vec::<f32>::try_from(tensor).unwrap();
        (floats(&divisible), floats(&odd), exchanged)
    });
    for (divisible, odd, exchanged) in results {
        assert_eq!(divisible, expected_sum(3, 6));
        assert_eq!(odd, expected_sum(3, 7));
        assert_eq!(exchanged, [[0.0, 10.0], [1.0, 10.0], [2.0, 10.0]]);
    }
}

/// A grid of 2 × 3 ranks: sums along one axis and gathers along the other, each in the order of its places.
#[test]
fn axes_of_a_group_are_groups() {
    BACKENDS.into_iter().for_each(axes_of);
}

fn axes_of(backend: Backend) {
    let results = backend.run(6, |group| {
        let (row, column) = (group.rank() / 3, group.rank() % 3);
        let shard_axis = group.axis(&[3 * row, 3 * row + 1, 3 * row + 2]).unwrap();
        let replicate_axis = group.axis(&[column, column + 3]).unwrap();
        assert_eq!((shard_axis.rank(), shard_axis.world_size()), (column, 3));
        assert_eq!((replicate_axis.rank(), replicate_axis.world_size()), (row, 2));
        let value = Tensor::from_slice(&[group.rank() as f32]);
        let all = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let gather = shard_axis.start_all_gather_into(&all, &value).unwrap();
        let sum = value.copy();
        replicate_axis.all_reduce(&sum).unwrap();
        gather.wait().unwrap();
        assert!(matches!(group.axis(&[(group.rank() + 1) % 6]), Err(CommError::Axis { .. })));
        (Vec::<f32>::try_from(&all).unwrap(), sum.double_value(&[0]))
    });
    for (rank, (all, sum)) in results.into_iter().enumerate() {
        let row = rank / 3;
        assert_eq!(all, [0, 1, 2].map(|place| (3 * row + place) as f32));
        assert_eq!(sum, (2 * (rank % 3) + 3) as f64);
    }
}

/// 16-bit parts are added up in float32: their sum would not be there in 16 bits.
#[test]
fn narrow_parts_are_summed_in_float32() {
    for backend in BACKENDS {
        let results = backend.run(3, |group| {
            let full = Tensor::full([6], [256.0, 1.0, 1.0][group.rank()], (Kind::BFloat16, Device::Cpu));
            let shard = Tensor::zeros([2], (Kind::Float, Device::Cpu));
            group.reduce_scatter_into(&shard, &full).unwrap();
            Vec::<f32>::try_from(&shard).unwrap()
        });
        assert_eq!(results, vec![[258.0; 2]; 3]);
    }
}

#[test]
fn bytes_for_others_are_counted() {
    for backend in BACKENDS {
        let traffic = backend.run(2, |group| {
            let full = Tensor::zeros([8], (Kind::Float, Device::Cpu));
            group.all_gather_into(&full, &full.narrow(0, 4 * group.rank() as i64, 4)).unwrap();
            group.reduce_scatter_into(&full.narrow(0, 4 * group.rank() as i64, 4), &full).unwrap();
            let Traffic { sent_bytes, logical_bytes, .. } = group.traffic();
            (sent_bytes, logical_bytes)
        });
        assert_eq!(traffic, [(32, 64), (32, 64)], "{backend:?}");
    }
}

#[test]
fn violated_preconditions_have_errors_of_their_own() {
    let single = Single::new(Device::Cpu).unwrap();
    let four = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let doubles = Tensor::zeros([4], (Kind::Double, Device::Cpu));
    let three = Tensor::zeros([3], (Kind::Float, Device::Cpu));
    let square = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)).transpose(0, 1);
    assert!(matches!(
        single.all_gather_into(&four, &three),
        Err(CommError::Length { call: "all_gather", full: 4, shard: 3, world_size: 1 })
    ));
    assert!(matches!(
        single.reduce_scatter_into(&four, &doubles),
        Err(CommError::TypeMismatch { input: Kind::Double, output: Kind::Float, .. })
    ));
    assert!(matches!(single.all_gather_into(&four, &square), Err(CommError::NotContiguous { argument: "shard", .. })));
    assert!(matches!(single.all_gather_into(&Tensor::new(), &four), Err(CommError::Undefined { .. })));
}

#[test]
fn a_rank_that_never_comes_is_an_error_not_a_hang() {
    let store: Arc<dyn Store> = Arc::new(LocalStore::default());
    let limit = Duration::from_millis(300);
    let error = Shm::connect(store.as_ref(), 0, 2, limit, Arc::default()).err().expect("rank 1 never came");
    assert!(matches!(error, CommError::SharedMemory { call: "connect", .. }) && error.is_consequence(), "{error}");
    let result = Gloo::connect(store, 0, 2, "127.0.0.1", limit, Arc::default());
    let error = result.err().expect("rank 1 never came");
    assert!(matches!(error, CommError::Backend { call: "connect", .. }), "{error}");
}
