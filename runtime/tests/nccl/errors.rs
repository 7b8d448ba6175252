//! Communication that fails: every rank gets an error, soon, and none waits for ever.

use crate::common::Spec;
use crate::ranks::{Job, Rank, wait_until};
use crate::task::Task;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::rc::Rc;
use std::time::{Duration, Instant};
use zerofold_configs::Stage;
use zerofold_runtime::comm::{Collectives, CommError};
use zerofold_runtime::trainer::Requests;

/// How long ranks may wait for one that is gone.
const SOON: Duration = Duration::from_secs(2);
const REASON: &str = "the control plane is gone";

/// How a rank failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    text: String,
    /// What the error itself says of it.
    is_consequence: bool,
    is_abort: bool,
    /// From the begin of the exchange or step that failed.
    seconds: f64,
    /// Those before it.
    finished: u64,
}

pub(crate) fn exchange_until_failure(rank: &Rank, abort_in: Option<u64>) -> Value {
    let comm = rank.connect().unwrap();
    let aborting = abort_in.filter(|_| rank.rank == 0).map(|number| {
        let (abort, path) = (comm.abort_handle(), std::env::var_os("ZEROFOLD_STAND_IN_LOG").unwrap());
        std::thread::spawn(move || {
            wait_until("a blocked exchange", Duration::from_secs(60), || {
                is_blocked_in(&std::fs::read_to_string(&path).unwrap_or_default(), number)
            });
            abort.abort(REASON);
        })
    });
    let mut finished = 0;
    let (error, began) = loop {
        let began = Instant::now();
        match comm.exchange(&[rank.rank as f64]) {
            Ok(_) => finished += 1,
            Err(error) => break (error, began),
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    if let Some(thread) = aborting {
        thread.join().unwrap();
    }
    let (is_consequence, is_abort) = (error.is_consequence(), matches!(error, CommError::Aborted { .. }));
    serde_json::to_value(Failure { text: error.to_string(), is_consequence, is_abort, seconds, finished }).unwrap()
}

/// Whether libtorch's stream was made to wait for that exchange, counted from 1, and for nothing after it.
fn is_blocked_in(log: &str, number: u64) -> bool {
    let waits = log.lines().filter(|line| line.starts_with("stream_wait stream=s0 ")).count();
    waits as u64 == number && log.lines().last().is_some_and(|line| line.starts_with("stream_wait stream=s0 "))
}

pub(crate) fn train_until_failure(rank: &Rank, spec: &Spec) -> Value {
    let comm = Rc::new(rank.connect().unwrap());
    let dataset = spec.dataset();
    let mut trainer = spec.trainer(comm, rank.activity.clone());
    let mut finished = 0;
    let (error, began) = loop {
        let began = Instant::now();
        match trainer.step(finished, &spec.window(&dataset, finished, rank.rank), Requests::default()) {
            Ok(_) => finished += 1,
            Err(error) => break (error, began),
        }
    };
    let (seconds, text) = (began.elapsed().as_secs_f64(), error.to_string());
    let is_abort = format!("{error:?}").contains("Aborted");
    let is_consequence = error.is_consequence();
    serde_json::to_value(Failure { text, is_consequence, is_abort, seconds, finished }).unwrap()
}

/// Both the rank that NCCL fails on and those that it is then gone for end with a consequence: launch looks for a cause.
fn assert_all_aborted(failures: &[Failure], cause: &str) {
    assert!(failures[0].text.contains(cause), "{failures:?}");
    for failure in failures {
        assert!(failure.is_abort && failure.is_consequence, "{failure:?}");
        assert!(failure.seconds < SOON.as_secs_f64(), "{failure:?}");
    }
}

#[test]
fn an_error_behind_the_programs_back_ends_an_exchange() {
    let job = Job::new(2, Task::ExchangeUntilFailure { abort_in: None });
    let failures: Vec<Failure> = job.with_for(0, "ZEROFOLD_STAND_IN_FAIL", "async:3").run();
    assert_all_aborted(&failures, "another rank is gone or cannot be reached (ncclRemoteError)");
    assert!(failures.iter().all(|failure| failure.finished == 2), "{failures:?}");
}

#[test]
fn an_error_behind_the_programs_back_ends_a_training() {
    for stage in [Stage::Zero, Stage::Three] {
        let spec = Spec::new("matrix", "odd-llama", "clipped", stage, 2, 1);
        // In the middle of the second step or later.
        let job = Job::new(2, Task::TrainUntilFailure(spec)).with_for(0, "ZEROFOLD_STAND_IN_FAIL", "async:30");
        let failures: Vec<Failure> = job.run();
        assert_all_aborted(&failures, "communication was ended");
        assert!(failures.iter().all(|failure| failure.finished > 0), "{failures:?}");
    }
}

#[test]
fn a_blocked_rank_comes_back_when_another_thread_aborts() {
    let job = Job::new(2, Task::ExchangeUntilFailure { abort_in: Some(3) }).logged(0);
    let failures: Vec<Failure> = job.with_for(0, "ZEROFOLD_STAND_IN_FAIL", "hang:3").run();
    assert_all_aborted(&failures, REASON);
    assert!(failures.iter().all(|failure| failure.finished == 2), "{failures:?}");
}

#[test]
fn a_killed_rank_ends_the_exchange_of_the_others() {
    let job =
        Job::new(3, Task::ExchangeUntilFailure { abort_in: None }).with_for(2, "ZEROFOLD_STAND_IN_FAIL", "hang:3");
    let mut running = (0..3).fold(job, Job::logged).start();
    wait_until("ranks that are blocked in the third exchange", Duration::from_secs(60), || {
        (0..3).all(|rank| is_blocked_in(&running.log(rank), 3))
    });
    running.kill(2);
    wait_until("errors of the others", SOON, || [0, 1].iter().all(|&rank| running.outcome::<Failure>(rank).is_some()));
    for rank in [0, 1] {
        let failure: Failure = running.outcome(rank).unwrap();
        assert!(failure.is_abort && failure.is_consequence && failure.finished == 2, "{failure:?}");
        assert!(failure.text.contains("another rank is gone"), "{failure:?}");
    }
}

#[test]
fn a_failed_start_names_the_call_and_what_to_do() {
    let outcomes: Vec<Option<String>> = Job::new(1, Task::Connect).with("ZEROFOLD_STAND_IN_FAIL", "init").run();
    let words = outcomes[0].as_ref().expect("it cannot connect");
    let parts = [
        "connect: NCCL: ncclCommInitRank failed: ",
        "a call of CUDA failed (ncclUnhandledCudaError): initialization fails as told",
        "\nhint: `nvidia-smi` shows",
    ];
    assert!(parts.iter().all(|part| words.contains(part)), "{words}");
}
