//! What only shared memory does: which inputs are copied, what is kept, and what happens to what is given up.

use super::*;
use crate::comm::LocalStore;

/// Runs `body` on ranks that are threads.
fn with_ranks<T: Send>(world_size: usize, body: impl Fn(&Shm) -> T + Sync) -> Vec<T> {
    let store = LocalStore::default();
    std::thread::scope(|scope| {
        let connect = |rank| {
            let limit = Duration::from_secs(30);
            Shm::connect(&store, rank, world_size, limit, Arc::default()).unwrap()
        };
        let body = &body;
        let ranks: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || body(&connect(rank)))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Long enough to be read in place.
const LENGTH: i64 = SHORT as i64 / 4 + 1;

fn any(numel: i64) -> Tensor {
    Tensor::ones([numel], (Kind::Float, Device::Cpu))
}

#[test]
fn allocated_tensors_are_read_in_place_and_others_copied() {
    let copies = with_ranks(2, |group| {
        let allocated = |numel| group.allocate(numel, Kind::Float).unwrap();
        let copies_after = |full: &Tensor, shard: &Tensor| {
            group.link.retired_copies();
            group.all_gather_into(full, shard).unwrap();
            let gathered = group.link.retired_copies();
            group.reduce_scatter_into(shard, full).unwrap();
            (gathered, group.link.retired_copies())
        };
        let (place, full) = (group.rank() as i64 * LENGTH, allocated(2 * LENGTH));
        [
            copies_after(&any(2 * LENGTH), &any(LENGTH)),
            copies_after(&any(2 * LENGTH), &allocated(LENGTH)),
            copies_after(&full, &any(LENGTH)),
            copies_after(&full, &full.narrow(0, place, LENGTH)),
        ]
    });
    // A shard may lie where others see it, or its place in the gathered tensor may.
    assert_eq!(copies, [[(1, 1), (0, 1), (0, 0), (0, 0)]; 2]);
    let short = with_ranks(2, |group| {
        let full = group.allocate(2000, Kind::Float).unwrap();
        group.all_gather_into(&full, &full.narrow(0, 1000 * group.rank() as i64, 1000)).unwrap();
        group.link.retired_copies()
    });
    assert_eq!(short, [1, 1]);
}

#[test]
fn small_inputs_travel_in_the_slot_and_many_turns_may_be_under_way() {
    with_ranks(3, |group| {
        let rank = group.rank() as i64;
        for round in 0..3 {
            let fulls: Vec<Tensor> = (0..control::SLOTS).map(|_| any(3)).collect();
            let started: Vec<Pending> = fulls
                .iter()
                .enumerate()
                .map(|(index, full)| {
                    let shard = Tensor::full([1], rank * 10_000 + index as i64 + round, (Kind::Float, Device::Cpu));
                    group.start_all_gather_into(full, &shard).unwrap()
                })
                .collect();
            let error = group.start_all_gather_into(&any(3), &any(1)).err().expect("one too many");
            assert!(error.to_string().contains("more than 1024 collectives"), "{error}");
            started.into_iter().for_each(|pending| pending.wait().unwrap());
            for (index, full) in fulls.iter().enumerate() {
                let expected = [0, 1, 2].map(|rank| (rank * 10_000 + index as i64 + round) as f32);
                assert_eq!(Vec::<f32>::try_from(full).unwrap(), expected);
            }
            assert_eq!(group.link.retired_copies(), 0);
        }
    });
}

#[test]
fn what_is_given_up_stays_where_others_may_read_it() {
    let values = with_ranks(2, |group| {
        let full = group.allocate(2 * LENGTH, Kind::Float).unwrap();
        let place = group.rank() as i64 * LENGTH;
        let _filled = full.narrow(0, place, LENGTH).fill_(group.rank() as f64 + 1.0);
        let pending = group.start_all_gather_into(&full, &full.narrow(0, place, LENGTH)).unwrap();
        if group.rank() == 0 {
            drop(pending);
            drop(full);
            // It would lie where the other rank reads.
            let other = group.allocate(2 * LENGTH, Kind::Float).unwrap();
            group.barrier().unwrap();
            drop(other);
            return 0.0;
        }
        group.barrier().unwrap();
        // The other rank is gone or will be, and does not read: an error, but no wrong numbers.
        let error = pending.wait().unwrap_err();
        assert!(matches!(error, CommError::PeerLost { loss: PeerLoss::Left, .. }), "{error}");
        full.sum(Kind::Float).double_value(&[])
    });
    assert_eq!(values[1], 3.0 * LENGTH as f64);
}

/// Several threads of a rank copy and sum what is large.
#[test]
fn large_tensors_are_worked_on_by_all_threads() {
    let threads = tch::get_num_threads();
    tch::set_num_threads(3);
    let length = (9 << 20) / 4 + 7;
    let sums = with_ranks(2, |group| {
        let full = group.allocate(2 * length, Kind::Float).unwrap();
        let values = Tensor::arange(2 * length, (Kind::Float, Device::Cpu)) + group.rank() as f64;
        full.shallow_clone().copy_(&values);
        group.all_reduce(&full).unwrap();
        let expected = (Tensor::arange(2 * length, (Kind::Float, Device::Cpu)))
            + (Tensor::arange(2 * length, (Kind::Float, Device::Cpu)) + 1.0);
        full.equal(&expected)
    });
    tch::set_num_threads(threads);
    assert_eq!(sums, [true, true]);
}

#[test]
fn a_group_of_many_connects_where_addresses_are_scarce() {
    let ranks = 12;
    let sums = with_ranks(ranks, |group| {
        let full = Tensor::ones([12 * 100], (Kind::Float, Device::Cpu));
        group.all_reduce(&full).unwrap();
        full.sum(Kind::Float).double_value(&[])
    });
    assert_eq!(sums, [12.0 * 1200.0; 12]);
}
