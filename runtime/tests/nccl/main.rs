//! The `nccl` backend and what it finds of GPUs, over the stand-in for NCCL and the driver: results, the order of calls,
//! races, errors.
//!
//!     cargo test --release -p zerofold-runtime --test nccl
//!     ZEROFOLD_WRITE_CALLS=1 cargo test --release -p zerofold-runtime --test nccl calls    writes `calls/*.txt` anew
//!
//! Ranks are processes, because the stand-in is: a test starts this program again for each rank, as the test
//! [`rank_process`] with a [`task::Task`] in its environment.

#[path = "../common/mod.rs"]
mod common;
#[path = "../matrix/store.rs"]
mod store;

mod calls;
mod collectives;
mod errors;
mod machine;
mod order;
mod races;
mod ranks;
mod task;

/// Not a test by itself: what a process does that a test has started as a rank.
#[test]
fn rank_process() {
    if let Some((rank, task)) = ranks::Rank::from_environment() {
        tch::set_num_threads(1);
        let outcome = task.run(&rank);
        rank.leave(&outcome);
    }
}
