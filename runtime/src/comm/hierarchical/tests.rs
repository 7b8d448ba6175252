//! Hosts that are made up, with threads as ranks: the collectives against their definition.

use super::*;
use crate::comm::conformance::{Case, KINDS, MEMORIES, bytes};
use crate::comm::tests::tensor;
use crate::comm::{Activity, LocalStore, PeerLoss, Rendezvous, Store};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const LIMIT: Duration = Duration::from_secs(60);

/// The hosts of ranks that are in a row on each.
fn hosts(counts: &[usize]) -> Vec<usize> {
    counts.iter().enumerate().flat_map(|(host, &count)| vec![host; count]).collect()
}

/// Connects a rank that is on that host.
fn connect(store: Arc<dyn Store>, rank: usize, hosts: &[usize]) -> Rc<dyn Collectives> {
    let (interface, timeout, activity) = ("127.0.0.1", LIMIT, Arc::<Activity>::default());
    let rendezvous = Rendezvous { store, rank, world_size: hosts.len(), interface, timeout, activity };
    rendezvous.connect_from(&format!("host {}", hosts[rank])).unwrap()
}

/// Runs `body` on a rank on each of `hosts` and returns what each returned.
fn with_hosts<T: Send>(hosts: &[usize], body: impl Fn(Rc<dyn Collectives>) -> T + Sync) -> Vec<T> {
    let store: Arc<dyn Store> = Arc::new(LocalStore::default());
    std::thread::scope(|scope| {
        let start = |rank| {
            let (store, body) = (store.clone(), &body);
            scope.spawn(move || body(connect(store, rank, hosts)))
        };
        let ranks: Vec<_> = (0..hosts.len()).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// The sum of each `together` neighbours, and of these sums.
fn sum(addends: Vec<Tensor>, together: usize) -> Tensor {
    let in_order = |addends: &[Tensor]| {
        let mut total = addends[0].copy();
        addends[1..].iter().for_each(|addend| total += addend);
        total
    };
    in_order(&addends.chunks(together).map(in_order).collect::<Vec<_>>())
}

/// What [`Case::run`] gives on each of so many ranks, of which each `together` are summed first.
fn expected(case: &Case, world_size: usize, together: usize) -> Vec<Vec<Vec<u8>>> {
    let values = |length: i64| (0..world_size).map(|rank| tensor(rank, length as usize, case.kind)).collect::<Vec<_>>();
    let full = values(case.length * world_size as i64);
    let shards: Vec<Tensor> = full.iter().map(|full| full.narrow(0, 0, case.length)).collect();
    let gathered = Tensor::cat(&shards, 0);
    let total = sum(full.iter().map(Tensor::copy).collect(), together);
    let wide = matches!(case.kind, Kind::BFloat16 | Kind::Half)
        .then(|| sum(full.iter().map(|full| full.to_kind(Kind::Float)).collect(), together));
    let odd = sum(values(case.length * world_size as i64 + 1), together);
    let outputs_of = |rank: usize| {
        let mine = |total: &Tensor| total.narrow(0, rank as i64 * case.length, case.length).copy();
        let mut outputs = vec![gathered.copy(), gathered.copy(), mine(&total), mine(&total)];
        outputs.extend(wide.as_ref().map(mine));
        outputs.extend([total.copy(), odd.copy()]);
        outputs.iter().map(bytes).collect()
    };
    (0..world_size).map(outputs_of).collect()
}

fn cases(lengths: &[i64], kinds: &[Kind]) -> Vec<Case> {
    let of = |length| kinds.iter().flat_map(move |&kind| MEMORIES.map(|memory| Case { length, kind, memory }));
    lengths.iter().flat_map(|&length| of(length)).collect()
}

fn compare(hosts: &[usize], together: usize, cases: &[Case]) {
    let results = with_hosts(hosts, |comm| {
        let results: Vec<_> = cases.iter().map(|case| [case.run(comm.as_ref()), case.run(comm.as_ref())]).collect();
        comm.barrier().unwrap();
        results
    });
    for (index, case) in cases.iter().enumerate() {
        for (rank, expected) in expected(case, hosts.len(), together).into_iter().enumerate() {
            for result in &results[rank][index] {
                let differs = expected.iter().zip(result).position(|(expected, result)| expected != result);
                assert_eq!(differs, None, "hosts {hosts:?}, rank {rank}, {case:?}: this output differs");
                assert_eq!(expected.len(), result.len());
            }
        }
    }
}

const LENGTHS: [i64; 5] = [0, 1, 3, 1000, 33_001];

#[test]
fn sums_are_taken_on_each_host_and_then_host_by_host() {
    for (count, each) in [(2, 2), (2, 3), (3, 2)] {
        compare(&hosts(&vec![each; count]), each, &cases(&LENGTHS, &KINDS));
    }
}

#[test]
fn buffers_of_some_mib_too() {
    let kinds = [Kind::Float, Kind::BFloat16, Kind::Half];
    for (count, each) in [(2, 2), (2, 3), (3, 2)] {
        compare(&hosts(&vec![each; count]), each, &cases(&[(1 << 19) + 5], &kinds));
    }
}

#[test]
fn hosts_that_are_not_alike_are_one_group_in_rank_order() {
    for hosts in [vec![0, 1], vec![0, 0, 1], vec![0, 1, 0, 1], vec![0, 0, 1, 1, 0, 0], vec![0, 0, 0, 0]] {
        compare(&hosts, hosts.len(), &cases(&LENGTHS, &[Kind::Float, Kind::BFloat16, Kind::Int64]));
    }
}

#[test]
fn the_order_of_addition_can_be_seen() {
    let addends = || (0..4).map(|rank| tensor(rank, 1000, Kind::Float)).collect();
    assert!(!sum(addends(), 2).equal(&sum(addends(), 4)));
}

#[test]
fn hosts_with_equally_many_ranks_in_a_row_are_found() {
    assert_eq!(ranks_per_host(&[7, 7, 7]), Ok(3));
    assert_eq!(ranks_per_host(&[7, 7, 3, 3]), Ok(2));
    assert_eq!(ranks_per_host(&[7, 3]), Ok(1));
    assert!(ranks_per_host(&[7, 7, 3]).is_err_and(|reason| reason.contains("as many")));
    assert!(ranks_per_host(&[7, 3, 7]).is_err_and(|reason| reason.contains("in a row")));
    assert_eq!(ranks_per_host::<u8>(&[]), Ok(0));
}

/// What connects the ranks of a group; with both, how many neighbours are summed first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wire {
    Shm,
    Gloo,
    Both { together: usize },
}

/// Whether tensors of the group lie in shared memory.
fn shares_memory(comm: &dyn Collectives) -> bool {
    let tensor = comm.allocate(1000, Kind::Float).unwrap();
    let address = tensor.data_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let holds = |line: &&str| {
        let (begin, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(begin)..number(end)).contains(&address)
    };
    maps.lines().find(holds).unwrap().contains("zerofold-shm")
}

#[test]
fn memory_is_shared_where_hosts_are_alike() {
    let shared = [vec![0, 0], vec![0, 0, 1, 1], vec![0, 0, 0, 1, 1, 1]];
    let apart = [vec![0, 1], vec![0, 0, 1], vec![0, 1, 0, 1]];
    for (hosts, expected) in shared.iter().map(|hosts| (hosts, true)).chain(apart.iter().map(|hosts| (hosts, false))) {
        let found = with_hosts(hosts, |comm| {
            let found = shares_memory(comm.as_ref());
            comm.barrier().unwrap();
            found
        });
        assert_eq!(found, vec![expected; hosts.len()], "{hosts:?}");
    }
}

#[test]
fn axes_are_connected_by_what_their_ranks_allow() {
    let both = |together| Wire::Both { together };
    // How many ranks the hosts have, and axes of one kind.
    let all = [
        // Rows, columns and all of 2 × 3.
        (vec![3, 3], vec![(vec![0, 1, 2], Wire::Shm), (vec![3, 4, 5], Wire::Shm)]),
        (vec![3, 3], vec![(vec![0, 3], Wire::Gloo), (vec![1, 4], Wire::Gloo), (vec![2, 5], Wire::Gloo)]),
        (vec![3, 3], vec![((0..6).collect(), both(3))]),
        // Backwards, and each rank alone.
        (vec![2, 2], vec![(vec![3, 2, 1, 0], both(2))]),
        (vec![2, 2], (0..4).map(|rank| (vec![rank], Wire::Shm)).collect()),
        // Half of each host, and half of the hosts.
        (vec![4, 4], vec![(vec![0, 1, 4, 5], both(2)), (vec![2, 3, 6, 7], both(2))]),
        (vec![2; 4], vec![(vec![0, 1, 2, 3], both(2)), (vec![4, 5, 6, 7], both(2))]),
        // Ranks of one host in axes of different kinds.
        (vec![3, 3], vec![(vec![0, 1], Wire::Shm), (vec![2, 3], Wire::Gloo), (vec![4, 5], Wire::Shm)]),
        (vec![2; 3], vec![(vec![0, 1, 2], Wire::Gloo), (vec![3, 4, 5], Wire::Gloo)]),
        (vec![6, 6], vec![((0..4).collect(), Wire::Shm), ((4..8).collect(), both(2)), ((8..12).collect(), Wire::Shm)]),
    ];
    let cases = cases(&[1, 1000, 33_001], &[Kind::Float, Kind::BFloat16]);
    for (counts, axes) in all {
        let results = with_hosts(&hosts(&counts), |comm| {
            let (ranks, wire) = axes.iter().find(|(ranks, _)| ranks.contains(&comm.rank())).unwrap();
            let axis = comm.axis(ranks).unwrap();
            assert_eq!((ranks[axis.rank()], axis.world_size()), (comm.rank(), ranks.len()));
            assert_eq!(shares_memory(axis.as_ref()), *wire != Wire::Gloo, "{counts:?}, {ranks:?}");
            let other = (comm.rank() + 1) % comm.world_size();
            assert!(matches!(comm.axis(&[other]), Err(CommError::Axis { .. })));
            assert!(matches!(comm.axis(&[comm.rank(), comm.world_size()]), Err(CommError::Axis { .. })));
            let run = |case: &Case| {
                // All ranks are still in step.
                let all: Vec<f64> = comm.exchange(&[comm.rank() as f64]).unwrap().concat();
                assert_eq!(all, (0..comm.world_size()).map(|rank| rank as f64).collect::<Vec<_>>());
                case.run(axis.as_ref())
            };
            let results: Vec<_> = cases.iter().map(run).collect();
            comm.barrier().unwrap();
            results
        });
        for ((ranks, wire), (index, case)) in
            axes.iter().flat_map(|axis| cases.iter().enumerate().map(move |case| (axis, case)))
        {
            let together = if let Wire::Both { together } = *wire { together } else { ranks.len() };
            for (&rank, expected) in ranks.iter().zip(expected(case, ranks.len(), together)) {
                assert!(results[rank][index] == expected, "{counts:?}, rank {rank} of {ranks:?}, {case:?}");
            }
        }
    }
}

#[test]
fn collectives_may_be_waited_for_in_another_order_than_begun() {
    let sums = with_hosts(&hosts(&[2, 2, 2]), |comm| {
        let (rank, length) = (comm.rank() as i64, 40_000);
        let tensor = |value: i64| comm.allocate(6 * length, Kind::Float).unwrap().fill_(value);
        let mine = |full: &Tensor| full.narrow(0, rank * length, length);
        let (first, second, third) = (tensor(rank), tensor(rank), tensor(10 * rank));
        let pending = [
            comm.start_all_gather_into(&first, &mine(&first)).unwrap(),
            comm.start_reduce_scatter_into(&mine(&second), &second).unwrap(),
            comm.start_all_gather_into(&third, &mine(&third)).unwrap(),
        ];
        // All ranks alike.
        pending.into_iter().rev().for_each(|pending| pending.wait().unwrap());
        comm.barrier().unwrap();
        [first, mine(&second), third].map(|tensor| tensor.sum(Kind::Double).double_value(&[]) / length as f64)
    });
    assert_eq!(sums, [[15.0, 15.0, 150.0]; 6]);
}

#[test]
fn numbers_are_exchanged() {
    for count in [0, 1, 3, 100] {
        let results = with_hosts(&hosts(&[2, 2]), |comm| comm.exchange(&vec![comm.rank() as f64; count]).unwrap());
        for all in results {
            // Without numbers there is nothing to tell ranks apart by.
            let expected = (0..4).map(|rank| vec![rank as f64; count]);
            assert_eq!(all, expected.filter(|numbers| !numbers.is_empty()).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_collective_counts_once_and_is_one_span() {
    let results = with_hosts(&hosts(&[3, 3]), |comm| {
        let full = comm.allocate(60, Kind::Float).unwrap();
        let mine = full.narrow(0, 10 * comm.rank() as i64, 10);
        comm.timeline().start(SystemTime::now()).unwrap();
        comm.all_gather_into(&full, &mine).unwrap();
        comm.reduce_scatter_into(&mine, &full).unwrap();
        let spans = comm.timeline().take(true).unwrap();
        let same = comm.traffic();
        comm.reduce_scatter_into(&mine, &full.to_kind(Kind::BFloat16)).unwrap();
        let wide = comm.traffic();
        comm.barrier().unwrap();
        let collectives = spans.into_iter().filter_map(|span| span.label.transfer);
        let collectives: Vec<_> = collectives.map(|transfer| (transfer.sequence, transfer.bytes)).collect();
        assert_eq!(collectives, [(1, 240), (2, 240)]);
        assert!(same.blocked > Duration::ZERO);
        let more = [wide.sent_bytes - same.sent_bytes, wide.logical_bytes - same.logical_bytes];
        ([same.sent_bytes, same.logical_bytes], more)
    });
    // Five shards of 40 bytes to others, twice. In 16 bits two for each host inside it, and one sum in float32 to the other.
    assert_eq!(results, [([2 * 5 * 40, 2 * 240], [2 * 2 * 20 + 40, 120]); 6]);
}

#[test]
fn what_does_not_fit_is_refused() {
    with_hosts(&hosts(&[2, 2]), |comm| {
        let (eight, three) =
            (Tensor::zeros([8], (Kind::Float, Device::Cpu)), Tensor::zeros([3], (Kind::Float, Device::Cpu)));
        let refused = |result: Result<(), CommError>| assert!(matches!(result, Err(CommError::Length { .. })));
        refused(comm.all_gather_into(&eight, &three));
        refused(comm.reduce_scatter_into(&three, &eight));
        comm.barrier().unwrap();
    });
}

/// When a rank leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    BeforeStarting,
    BeforeWaiting,
}

#[test]
fn a_rank_that_leaves_is_an_error_on_all_others() {
    type Start = fn(&dyn Collectives, &Tensor) -> Result<Pending, CommError>;
    fn mine(comm: &dyn Collectives, full: &Tensor) -> Tensor {
        let length = (full.numel() / comm.world_size()) as i64;
        full.narrow(0, length * comm.rank() as i64, length)
    }
    let gather: Start = |comm, full| comm.start_all_gather_into(full, &mine(comm, full));
    let reduce: Start = |comm, full| comm.start_reduce_scatter_into(&mine(comm, full), full);
    let exchange: Start = |comm, _| comm.exchange(&[1.0]).map(|_| Pending::done());
    let moments = [Moment::BeforeStarting, Moment::BeforeWaiting];
    for (moment, length) in moments.into_iter().flat_map(|moment| [400, 400_000].map(|length| (moment, length))) {
        for (name, start) in [("gather", gather), ("reduce", reduce), ("exchange", exchange)] {
            for victim in [1, 2] {
                let began = Instant::now();
                let errors = with_hosts(&hosts(&[2, 2]), |comm| {
                    let full = comm.allocate(length, Kind::Float).unwrap();
                    // Some of what it had begun may still arrive, so it does not have to be the very next one.
                    for round in 0..10 {
                        let leaves = comm.rank() == victim && round == 3;
                        if leaves && moment == Moment::BeforeStarting {
                            return None;
                        }
                        let pending = match start(comm.as_ref(), &full) {
                            Ok(pending) => pending,
                            Err(error) => return Some(error),
                        };
                        if leaves {
                            return None;
                        }
                        if let Err(error) = pending.wait() {
                            return Some(error);
                        }
                    }
                    panic!("rank {} did not notice that {victim} left", comm.rank());
                });
                let about = format!("{name} of {length}, rank {victim} left {moment:?}");
                assert!(began.elapsed() < LIMIT / 2, "{about}: took {:?}", began.elapsed());
                for (rank, error) in errors.iter().enumerate() {
                    match error {
                        None => assert_eq!(rank, victim, "{about}"),
                        Some(error) => assert!(error.is_consequence(), "{about}, rank {rank}: {error}"),
                    }
                }
                // Who shared its memory names it as the job counts.
                let neighbour = errors[victim ^ 1].as_ref().unwrap();
                if let CommError::PeerLost { peer, loss, .. } = neighbour {
                    assert_eq!((*peer, *loss), (victim, PeerLoss::Left), "{about}");
                }
            }
        }
    }
}

/// As a benchmark of both does.
#[test]
fn gloo_may_connect_the_same_ranks_besides() {
    let (store, hosts): (Arc<dyn Store>, _) = (Arc::new(LocalStore::default()), hosts(&[2, 2]));
    std::thread::scope(|scope| {
        for rank in 0..4 {
            let (store, hosts) = (store.clone(), &hosts);
            scope.spawn(move || {
                let gloo = Gloo::connect(store.clone(), rank, 4, "127.0.0.1", LIMIT, Arc::default()).unwrap();
                let both = connect(store, rank, hosts);
                let expected: Vec<_> = (0..4).map(|rank| vec![rank as f64]).collect();
                for comm in [&gloo, both.as_ref(), &gloo as &dyn Collectives] {
                    assert_eq!(comm.exchange(&[rank as f64]).unwrap(), expected);
                }
                gloo.barrier().unwrap();
                both.barrier().unwrap();
            });
        }
    });
}

#[test]
fn a_rank_that_never_comes_is_an_error_not_a_hang() {
    let store: Arc<dyn Store> = Arc::new(LocalStore::default());
    let (timeout, activity) = (Duration::from_millis(300), Arc::default());
    let rendezvous = Rendezvous { store, rank: 0, world_size: 2, interface: "127.0.0.1", timeout, activity };
    let error = rendezvous.connect().err().expect("rank 1 never came");
    assert!(matches!(error, CommError::SharedMemory { call: "connect", .. }) && error.is_consequence(), "{error}");
}
