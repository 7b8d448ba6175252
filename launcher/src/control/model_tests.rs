//! Store, membership and collector against models that are simple enough to be seen to be right, over any order of calls.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use zerofold_proto::v1::{HeartbeatRequest, JoinRequest, LeaveRequest};

use super::checkpoint::{CollectError, Collector, Offered};
use super::membership::{Membership, MembershipError};
use super::store::{Store, StoreError};

const RANKS: u32 = 3;

#[derive(Clone, Debug)]
enum StoreCall {
    Set(String, Vec<u8>),
    Add(String, i64),
    Delete(String),
    Check(Vec<String>),
    GetAll(Vec<String>),
}

fn store_call() -> impl Strategy<Value = StoreCall> {
    let key = || "[a-d]";
    let keys = || prop::collection::vec(key(), 0..4);
    prop_oneof![
        (key(), prop_oneof!["[0-9x-]{0,3}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..4)])
            .prop_map(|(key, value)| StoreCall::Set(key, value)),
        (key(), prop_oneof![any::<i64>(), -3..3_i64]).prop_map(|(key, amount)| StoreCall::Add(key, amount)),
        key().prop_map(StoreCall::Delete),
        keys().prop_map(StoreCall::Check),
        keys().prop_map(StoreCall::GetAll),
    ]
}

#[derive(Clone, Debug)]
enum RankCall {
    Join { pid: u32 },
    Beat { step: u64 },
    Work,
    Leave { step: u64 },
}

fn rank_call() -> impl Strategy<Value = (u32, u64, RankCall)> {
    let call = prop_oneof![
        (1..9_u32).prop_map(|pid| RankCall::Join { pid }),
        (0..9_u64).prop_map(|step| RankCall::Beat { step }),
        Just(RankCall::Work),
        (0..9_u64).prop_map(|step| RankCall::Leave { step }),
    ];
    (
        prop_oneof![4 => 0..RANKS, 1 => Just(RANKS), 1 => Just(u32::MAX)],
        prop_oneof![6 => Just(1_u64), 1 => 0..3_u64],
        call,
    )
}

/// A rank as the model knows it: its process, its furthest step, and whether it has left.
type Known = (u32, u64, bool);

fn expected(
    known: &mut HashMap<u32, Known>,
    rank: u32,
    generation: u64,
    call: &RankCall,
) -> Result<(), MembershipError> {
    if rank >= RANKS {
        return Err(MembershipError::NoSuchRank { rank, world_size: RANKS });
    }
    if generation != 1 {
        return Err(MembershipError::Generation { rank, theirs: generation, ours: 1 });
    }
    match (call, known.get_mut(&rank)) {
        (RankCall::Join { pid }, None) => drop(known.insert(rank, (*pid, 0, false))),
        (RankCall::Join { pid }, Some((first, ..))) => {
            return Err(MembershipError::Duplicate { rank, first_pid: *first, second_pid: *pid });
        }
        (_, None) => return Err(MembershipError::NotJoined { rank }),
        (RankCall::Beat { step }, Some((_, furthest, _))) => *furthest = (*furthest).max(*step),
        (RankCall::Work, Some((_, _, true))) => return Err(MembershipError::Left { rank }),
        (RankCall::Work, Some(_)) => {}
        (RankCall::Leave { .. }, Some((_, _, left))) => *left = true,
    }
    Ok(())
}

type Parts = BTreeMap<u32, Result<u64, String>>;

proptest! {
    #[test]
    fn the_store_is_a_map(calls in prop::collection::vec(store_call(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (store, mut model) = (Store::default(), HashMap::<String, Vec<u8>>::new());
        for call in calls {
            match call {
                StoreCall::Set(key, value) => {
                    prop_assert_eq!(store.set(&key, value.clone()), Ok(()));
                    model.insert(key, value);
                }
                StoreCall::Add(key, amount) => {
                    let held = model.get(&key).map_or(Some(0), |held| std::str::from_utf8(held).ok()?.parse::<i64>().ok());
                    match held.and_then(|held| held.checked_add(amount)) {
                        Some(sum) => {
                            prop_assert_eq!(store.add(&key, amount), Ok(sum));
                            model.insert(key, sum.to_string().into_bytes());
                        }
                        None => {
                            let refused = matches!(store.add(&key, amount), Err(StoreError::NotANumber { .. }));
                            prop_assert!(refused);
                        }
                    }
                }
                StoreCall::Delete(key) => prop_assert_eq!(store.delete(&key), model.remove(&key).is_some()),
                StoreCall::Check(keys) => {
                    prop_assert_eq!(store.check(&keys), Ok(keys.iter().all(|key| model.contains_key(key))));
                }
                StoreCall::GetAll(keys) => {
                    let found = runtime.block_on(store.get_all(&keys, Duration::ZERO));
                    match keys.iter().find(|key| !model.contains_key(*key)) {
                        None => prop_assert_eq!(found.unwrap(), keys.iter().map(|key| model[key].clone()).collect::<Vec<_>>()),
                        Some(missing) => {
                            let late = StoreError::DeadlineExceeded { key: missing.clone(), waited_ms: 0 };
                            prop_assert_eq!(found, Err(late));
                        }
                    }
                }
            }
            prop_assert_eq!(store.awaited(), 0);
            prop_assert_eq!(store.bytes(), model.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
        }
    }

    #[test]
    fn a_membership_is_a_list_of_who_joined_and_left(calls in prop::collection::vec(rank_call(), 0..40)) {
        let (mut membership, mut known) = (Membership::new(RANKS, 1, "1"), HashMap::new());
        for (rank, generation, call) in calls {
            let now = Instant::now();
            let got = match call {
                RankCall::Join { pid } => {
                    membership.join(now, &JoinRequest { rank, world_size: RANKS, generation, pid, version: "1".into(), nonce: 0 })
                }
                RankCall::Beat { step } => {
                    membership.heartbeat(now, &HeartbeatRequest { rank, generation, step, ..Default::default() })
                }
                RankCall::Work => membership.check_at_work(rank, generation),
                RankCall::Leave { step } => {
                    membership.leave(now, &LeaveRequest { rank, generation, step, ..Default::default() })
                }
            };
            prop_assert_eq!(got, expected(&mut known, rank, generation, &call));
            for (rank, member) in (0..).zip(membership.members()) {
                let seen = member.joined.map(|_| (member.pid, member.step, member.left.is_some()));
                prop_assert_eq!(seen, known.get(&rank).copied());
            }
        }
    }

    #[test]
    fn a_checkpoint_is_whole_when_every_rank_spoke_of_the_same(
        offers in prop::collection::vec((0..RANKS, 1..3_u64, "[de]", prop::option::weighted(0.1, "no")), 0..40),
    ) {
        let mut collector = Collector::new(RANKS);
        let mut open: Option<(u64, String, Parts)> = None;
        for (number, (rank, step, directory, failure)) in (0..).zip(offers) {
            let part = failure.map_or(Ok(number), Err);
            let got = collector.offer(rank, step, &directory, part.clone());
            let (ours, folder, mut parts) = open.take().unwrap_or_else(|| (step, directory.clone(), Parts::new()));
            if ours != step {
                prop_assert_eq!(got, Err(CollectError::Step { rank, theirs: step, ours }));
            } else if folder != directory {
                prop_assert_eq!(got, Err(CollectError::Directory { rank, step, theirs: directory, ours: folder }));
            } else if parts.insert(rank, part).is_some() {
                prop_assert_eq!(got, Err(CollectError::Duplicate { rank, step }));
            } else {
                let offered = got.unwrap();
                prop_assert_eq!(matches!(offered, Offered::Complete(_)), parts.len() == RANKS as usize);
                match offered {
                    Offered::Taken | Offered::TooLate => open = Some((ours, folder, parts)),
                    Offered::Complete(complete) => {
                        let first = parts.iter().find_map(|(rank, part)| Some(format!("rank {rank}: {}", part.as_ref().err()?)));
                        let whole = first.map_or_else(|| Ok(parts.into_values().flatten().collect()), Err);
                        prop_assert_eq!((complete.step, complete.directory, complete.parts), (ours, folder, whole));
                    }
                }
            }
        }
    }
}
