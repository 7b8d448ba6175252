//! This rank's side of the control plane: everything that is said to `launch`, and the store that Gloo bootstraps
//! through.
//!
//! A tokio runtime with one thread of its own carries all of it; the training thread and Gloo's threads block on single
//! calls, each with a deadline. Heartbeats go out every second and after each step; their answer carries the directive.
//! When `launch` stays silent for [`SILENCE`] the process ends, so that no rank outlives its job.

mod checkpoint;
mod store;
mod termination;

pub use checkpoint::CheckpointClient;
pub use store::ControlStore;

use crate::comm::Activity;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::Notify;
use tonic::{Code, Status};
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_proto::v1::{
    Directive, EvaluationRecord, FailRequest, HeartbeatRequest, JoinRequest, LeaveRequest, StepRecord,
};
use zerofold_trust::{Token, Wire};

/// How often a rank reports.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long `launch` may be unreachable before a rank gives up.
const SILENCE: Duration = Duration::from_secs(20);
/// How long what is done before this process ends itself may take.
const LAST_ACTS: Duration = Duration::from_secs(2);
/// How long to wait before joining is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// Deadline of calls that are answered at once.
const PROMPT: Duration = Duration::from_secs(30);

/// Why the control plane did not do what was asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The address is not one.
    #[error("the control plane's address {address:?} is not valid: {reason}")]
    Address {
        /// As given.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The runtime could not be started.
    #[error("the control thread could not be started: {0}")]
    Runtime(std::io::Error),
    /// A call failed.
    #[error("{call}: {}", status.message())]
    Call {
        /// The call.
        call: &'static str,
        /// The answer.
        status: Box<Status>,
    },
}

impl ControlError {
    /// True when `launch` itself is gone or has given up on the job.
    pub fn is_consequence(&self) -> bool {
        match self {
            ControlError::Call { status, .. } => {
                matches!(status.code(), Code::Unavailable | Code::Aborted | Code::Cancelled)
            }
            _ => false,
        }
    }
}

/// Who this rank is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// This rank, from 0.
    pub rank: u32,
    /// The number of ranks.
    pub world_size: u32,
    /// The membership of the job that it belongs to.
    pub generation: u64,
}

/// What is to be done before the process ends itself; told why.
type LastAct = Box<dyn Fn(&str) + Send>;

/// What the training thread and the heartbeat share.
#[derive(Default)]
struct Reports {
    last_acts: Mutex<Vec<LastAct>>,
    steps: Mutex<Vec<StepRecord>>,
    evaluations: Mutex<Vec<EvaluationRecord>>,
    changed: Notify,
    stop: AtomicBool,
    asked_to_end: AtomicBool,
    saves: AtomicU64,
}

/// The connection to the control plane.
pub struct Control {
    runtime: tokio::runtime::Runtime,
    client: ControlClient<Wire>,
    identity: Identity,
    reports: Arc<Reports>,
}

impl Control {
    /// Connects to `address` (such as `http://127.0.0.1:29500`), joins the job and starts the heartbeat.
    pub fn join(
        address: &str,
        token: &Token,
        identity: Identity,
        activity: Arc<Activity>,
    ) -> Result<Self, ControlError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .enable_all()
            .build()
            .map_err(ControlError::Runtime)?;
        let endpoint = zerofold_trust::endpoint(address, token, PROMPT)
            .map_err(|reason| ControlError::Address { address: address.to_string(), reason })?;
        // Before joining, so that a scheduler's SIGTERM at a start stops the job and is no failure of this rank.
        let reports = Arc::<Reports>::default();
        termination::listen(reports.clone()).map_err(ControlError::Runtime)?;
        let request = JoinRequest {
            rank: identity.rank,
            world_size: identity.world_size,
            generation: identity.generation,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            // A hasher of the standard library begins with a random state.
            nonce: RandomState::new().build_hasher().finish() | 1,
        };
        let enter = async || {
            let channel = endpoint.connect().await.map_err(|error| {
                let text = format!("launch cannot be reached at {address}: {}", zerofold_trust::reason(&error));
                ControlError::Call { call: "connect", status: Box::new(Status::unavailable(text)) }
            })?;
            let mut client = ControlClient::new(zerofold_trust::wire(channel, token));
            let failed = |status| ControlError::Call { call: "join", status: Box::new(status) };
            let joined = tokio::time::timeout(PROMPT, client.join(request.clone())).await;
            joined
                .unwrap_or_else(|_| Err(Status::unavailable(format!("no answer within {PROMPT:?}"))))
                .map_err(failed)?;
            Ok::<_, ControlError>(client)
        };
        // A connection may be lost in a crowd of others; `launch` knows who asks again.
        let deadline = Instant::now() + PROMPT;
        let client = loop {
            match runtime.block_on(enter()) {
                Err(error) if error.is_consequence() && Instant::now() < deadline => std::thread::sleep(AGAIN),
                entered => break entered?,
            }
        };
        let control = Control { runtime, client, identity, reports };
        let beat = heartbeat(control.client.clone(), control.identity.clone(), activity, control.reports.clone());
        control.runtime.spawn(beat);
        Ok(control)
    }

    /// Who this rank is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The store, for backends to bootstrap through.
    pub fn store(&self) -> ControlStore {
        ControlStore::new(self.client.clone(), self.runtime.handle().clone(), self.identity.generation)
    }

    fn call<T>(
        &self,
        call: &'static str,
        deadline: Duration,
        future: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, ControlError> {
        call_on(self.runtime.handle(), call, deadline, future)
    }

    /// Does `act` before this process ends itself because `launch` refused it or went silent.
    pub fn before_giving_up(&self, act: impl Fn(&str) + Send + 'static) {
        self.reports.last_acts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(Box::new(act));
    }

    /// True once `launch` asked for a stop.
    pub fn stop_requested(&self) -> bool {
        self.reports.stop.load(Ordering::Relaxed)
    }

    /// How many checkpoints a person asked for so far.
    pub fn saves_requested(&self) -> u64 {
        self.reports.saves.load(Ordering::Relaxed)
    }

    /// Hands a finished step to the next heartbeat, which goes out at once.
    pub fn report_step(&self, record: StepRecord) {
        self.reports.steps.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(record);
        self.reports.changed.notify_one();
    }

    /// Hands an evaluation to the next heartbeat, which goes out at once.
    pub fn report_evaluation(&self, record: EvaluationRecord) {
        self.reports.evaluations.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(record);
        self.reports.changed.notify_one();
    }

    /// What saves tell `launch` through, from threads of their own.
    pub fn checkpoints(&self) -> CheckpointClient {
        CheckpointClient::new(self.client.clone(), self.runtime.handle().clone(), self.identity.clone())
    }

    /// Tells why this rank is about to exit with an error; what was reported before is delivered first.
    pub fn fail(&self, message: String, consequence: bool) -> Result<(), ControlError> {
        if let Err(error) = self.deliver_reports() {
            tracing::warn!("the last steps could not be reported: {error}");
        }
        let Identity { rank, generation, .. } = self.identity;
        let mut client = self.client.clone();
        let request = FailRequest { rank, generation, message, consequence };
        self.call("fail", PROMPT, async move { client.fail(request).await }).map(|_| ())
    }

    /// Tells that this rank is done; what was reported before is delivered first.
    pub fn leave(&self, mut request: LeaveRequest) -> Result<(), ControlError> {
        request.rank = self.identity.rank;
        request.generation = self.identity.generation;
        self.deliver_reports()?;
        let mut client = self.client.clone();
        self.call("leave", PROMPT, async move { client.leave(request).await }).map(|_| ())
    }

    /// A heartbeat with everything not yet delivered, if there is anything.
    fn deliver_reports(&self) -> Result<(), ControlError> {
        let mut request = request_of(&self.identity, &Activity::default(), &self.reports);
        let steps = request.steps.iter().map(|record| record.step);
        let Some(step) = steps.chain(request.evaluations.iter().map(|record| record.step)).max() else { return Ok(()) };
        request.step = step;
        let mut client = self.client.clone();
        self.call("heartbeat", PROMPT, async move { client.heartbeat(request).await }).map(|_| ())
    }
}

/// Makes a call on the control thread, and waits for its answer at most `deadline`.
fn call_on<T>(
    handle: &tokio::runtime::Handle,
    call: &'static str,
    deadline: Duration,
    future: impl Future<Output = Result<T, Status>>,
) -> Result<T, ControlError> {
    let answer = handle.block_on(async { tokio::time::timeout(deadline, future).await });
    answer
        .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("launch did not answer within {deadline:?}"))))
        .map_err(|status| ControlError::Call { call, status: Box::new(status) })
}

fn request_of(identity: &Identity, activity: &Activity, reports: &Reports) -> HeartbeatRequest {
    HeartbeatRequest {
        rank: identity.rank,
        generation: identity.generation,
        step: activity.step(),
        doing: Some(activity.doing()),
        stop: reports.asked_to_end.load(Ordering::Relaxed),
        memory_bytes: crate::metrics::memory_bytes(),
        peak_memory_bytes: crate::metrics::peak_memory_bytes(),
        steps: std::mem::take(&mut *reports.steps.lock().unwrap_or_else(|poisoned| poisoned.into_inner())),
        evaluations: std::mem::take(&mut *reports.evaluations.lock().unwrap_or_else(|poisoned| poisoned.into_inner())),
    }
}

/// Ends the process: the training thread may be blocked where nothing else wakes it.
fn give_up(reports: &Reports, reason: &str) -> ! {
    tracing::error!("{reason}");
    let acts = std::mem::take(&mut *reports.last_acts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    let (done, acted) = std::sync::mpsc::channel();
    let reason = reason.to_owned();
    std::thread::spawn(move || {
        acts.iter().for_each(|act| act(&reason));
        let _heard = done.send(());
    });
    // Whatever an act may be stuck in, this process ends.
    let _in_time = acted.recv_timeout(LAST_ACTS);
    // SAFETY: ends the process at once. What libraries do at an ordinary exit could wait for the device.
    unsafe { libc::_exit(1) }
}

/// Reports for as long as the process lives.
async fn heartbeat(
    mut client: ControlClient<Wire>,
    identity: Identity,
    activity: Arc<Activity>,
    reports: Arc<Reports>,
) {
    let mut heard = Instant::now();
    loop {
        let request = request_of(&identity, &activity, &reports);
        match tokio::time::timeout(SILENCE, client.heartbeat(request.clone())).await {
            Ok(Ok(reply)) => {
                heard = Instant::now();
                let reply = reply.into_inner();
                reports.saves.fetch_max(reply.saves, Ordering::Relaxed);
                if reply.directive() == Directive::Stop {
                    reports.stop.store(true, Ordering::Relaxed);
                }
            }
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                give_up(&reports, &format!("launch refused this rank: {}", status.message()));
            }
            _ => {
                // Not delivered: keep the records, in order, for the next try.
                let keep = |list: &Mutex<Vec<_>>, old: Vec<_>| {
                    list.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).splice(0..0, old);
                };
                keep(&reports.steps, request.steps);
                reports
                    .evaluations
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner())
                    .splice(0..0, request.evaluations);
                if heard.elapsed() > SILENCE {
                    let (silence, rank) = (SILENCE.as_secs(), identity.rank);
                    give_up(&reports, &format!("launch has been silent for {silence} s; rank {rank} ends"));
                }
            }
        }
        let _woken_or_time = tokio::time::timeout(HEARTBEAT, reports.changed.notified()).await;
    }
}
