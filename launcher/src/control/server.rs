//! The tonic service: a thin shell round the store, the membership and the collector.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic::{Request, Response, Status};
use zerofold_proto::v1::control_server::Control;
use zerofold_proto::v1::*;

use super::checkpoint::{Collector, Complete, Offered};
use super::connections::Connection;
use super::limits::MAX_PART_BYTES;
use super::membership::{Left, Membership, MembershipError};
use super::records::{self, RecordError};
use super::store::{Store, StoreError};
use crate::event::Event;
use crate::format;

/// Publishes the manifest of a complete checkpoint: gets the step's folder and every rank's part (JSON, by rank), or why there
/// are none. Returns the manifest's path, or what went wrong after clearing the folder away. Called on a thread where
/// blocking is allowed.
pub type Publish = dyn Fn(&Path, Result<Vec<Vec<u8>>, String>) -> Result<String, String> + Send + Sync;

/// What came of a checkpoint.
#[derive(Clone)]
enum Outcome {
    /// The manifest's path.
    Published(String),
    /// The job goes on without it.
    Failed(String),
    /// The job is at its end.
    Over(String),
}

type Answer = Option<Outcome>;

/// What became of a rank's part.
enum Taken {
    /// Where the outcome of the checkpoint will be told, and the whole checkpoint if this part was the last.
    Waits(watch::Receiver<Answer>, Option<Complete<Vec<u8>>>),
    /// The others did not wait so long.
    TooLate,
}

/// What the service and `launch`'s main thread share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) stop: AtomicBool,
    /// That a worker was asked to end was told.
    stop_told: AtomicBool,
    /// How many checkpoints were asked for.
    pub(crate) saves: AtomicU64,
    /// How many checkpoints are being published.
    pub(crate) publishing: AtomicU64,
    membership: Mutex<Membership>,
    checkpoints: Mutex<Checkpoints>,
    publish: Arc<Publish>,
    events: Mutex<Sender<Event>>,
}

/// The collector and those who wait for its outcome, by step.
struct Checkpoints {
    collector: Collector<Vec<u8>>,
    waiting: HashMap<u64, watch::Sender<Answer>>,
    /// How long the parts of a step are waited for, from the first one.
    patience: Duration,
}

impl Checkpoints {
    /// Answers everybody who waits for `step` and forgets them.
    fn answer(&mut self, step: u64, answer: Outcome) {
        if let Some(waiting) = self.waiting.remove(&step) {
            waiting.send_replace(Some(answer));
        }
    }

    fn answer_all(&mut self, error: &str) {
        for (_, waiting) in self.waiting.drain() {
            waiting.send_replace(Some(Outcome::Over(error.to_owned())));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes guard is valid between any two statements, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// `patience` is how long the parts of a checkpoint are waited for, from the first one.
    pub(crate) fn new(
        membership: Membership,
        publish: Arc<Publish>,
        patience: Duration,
        events: Sender<Event>,
    ) -> Self {
        let collector = Collector::new(membership.world_size());
        Shared {
            store: Store::default(),
            stop: AtomicBool::new(false),
            stop_told: AtomicBool::new(false),
            saves: AtomicU64::new(0),
            publishing: AtomicU64::new(0),
            membership: Mutex::new(membership),
            checkpoints: Mutex::new(Checkpoints { collector, waiting: HashMap::new(), patience }),
            publish,
            events: Mutex::new(events),
        }
    }

    pub(crate) fn membership(&self) -> MutexGuard<'_, Membership> {
        lock(&self.membership)
    }

    /// Begins another membership of the job: nothing of the one before counts any more.
    /// To be called when no checkpoint is being published any more.
    pub(crate) fn begin(&self, generation: u64, world_size: u32) {
        self.membership().begin(generation, world_size);
        // What was asked of the ranks before was done, or is asked again.
        self.saves.store(0, Ordering::Release);
        self.stop_told.store(false, Ordering::Release);
        let mut checkpoints = lock(&self.checkpoints);
        checkpoints.answer_all("the job was begun again");
        checkpoints.collector = Collector::new(world_size);
        self.store.clear();
    }

    pub(crate) fn rank_gone(&self, rank: u32, reason: &str) {
        let mut checkpoints = lock(&self.checkpoints);
        let error = checkpoints.collector.rank_gone(rank, reason);
        checkpoints.answer_all(&error.to_string());
    }

    fn tell(&self, event: Event) {
        // Nobody listens any more once the job is over.
        let _ = lock(&self.events).send(event);
    }

    fn take_part(&self, part: CheckpointPart) -> Result<Taken, String> {
        let mut checkpoints = lock(&self.checkpoints);
        let own = if part.failure.is_empty() { Ok(part.part) } else { Err(part.failure) };
        match checkpoints.collector.offer(part.rank, part.step, &part.directory, own) {
            Ok(Offered::TooLate) => Ok(Taken::TooLate),
            Ok(offered) => {
                let waiting = checkpoints.waiting.entry(part.step).or_insert_with(|| watch::Sender::new(None));
                let complete = match offered {
                    Offered::Complete(complete) => Some(complete),
                    _ => None,
                };
                Ok(Taken::Waits(waiting.subscribe(), complete))
            }
            Err(error) => {
                checkpoints.answer_all(&error.to_string());
                Err(error.to_string())
            }
        }
    }

    /// Waits for what comes of the checkpoint of `step`, and for the ranks that it lacks no longer than the patience lasts.
    async fn outcome(&self, step: u64, answer: &mut watch::Receiver<Answer>) -> Answer {
        let patience = lock(&self.checkpoints).patience;
        if tokio::time::timeout(patience, answer.wait_for(Option::is_some)).await.is_err() {
            self.give_up(step, patience);
        }
        // Given up, or complete and being published.
        answer.wait_for(Option::is_some).await.map_or(None, |outcome| outcome.clone())
    }

    /// Ends the save of `step` for those who wait, if parts of it are missing. Its folder stays: who is late still writes there.
    fn give_up(&self, step: u64, patience: Duration) {
        let mut checkpoints = lock(&self.checkpoints);
        let Some(missing) = checkpoints.collector.give_up(step) else { return };
        let reason = format!("no part came from {} within {}", format::ranks(&missing), format::duration(patience));
        checkpoints.answer(step, Outcome::Failed(reason.clone()));
        drop(checkpoints);
        self.tell(Event::CheckpointFailed { step, reason });
    }

    /// Publishes on a thread of its own and answers every rank, even when the caller's connection is gone by then.
    fn publish(self: Arc<Self>, complete: Complete<Vec<u8>>) {
        self.publishing.fetch_add(1, Ordering::AcqRel);
        tokio::task::spawn_blocking(move || {
            let step = complete.step;
            let Complete { directory, parts, .. } = complete;
            let answer = match (self.publish)(Path::new(&directory), parts) {
                Ok(manifest) => {
                    self.tell(Event::Checkpoint { step, directory });
                    Outcome::Published(manifest)
                }
                Err(reason) => {
                    self.tell(Event::CheckpointFailed { step, reason: reason.clone() });
                    Outcome::Failed(reason)
                }
            };
            lock(&self.checkpoints).answer(step, answer);
            self.publishing.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// The service.
#[derive(Clone)]
pub(crate) struct ControlService(pub(crate) Arc<Shared>);

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::DeadlineExceeded { .. } => Status::deadline_exceeded(message),
            StoreError::Full { .. } => Status::resource_exhausted(message),
            _ => Status::invalid_argument(message),
        }
    }
}

impl From<RecordError> for Status {
    fn from(error: RecordError) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

impl From<MembershipError> for Status {
    fn from(error: MembershipError) -> Self {
        let message = error.to_string();
        match error {
            MembershipError::Duplicate { .. } => Status::already_exists(message),
            _ => Status::failed_precondition(message),
        }
    }
}

/// A request, and the connection that it came on.
fn parts<T>(request: Request<T>) -> (Option<Connection>, T) {
    (request.extensions().get().cloned(), request.into_inner())
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let (connection, request) = parts(request);
        self.0.membership().join(Instant::now(), &request)?;
        connection.iter().for_each(Connection::is_member);
        tracing::debug!(rank = request.rank, pid = request.pid, "joined");
        self.0.tell(Event::Joined { rank: request.rank });
        Ok(Response::new(JoinReply {}))
    }

    async fn store_set(&self, request: Request<StoreSetRequest>) -> Result<Response<StoreSetReply>, Status> {
        let request = request.into_inner();
        self.0.store.set(&request.key, request.value)?;
        Ok(Response::new(StoreSetReply {}))
    }

    async fn store_get(&self, request: Request<StoreGetRequest>) -> Result<Response<StoreGetReply>, Status> {
        let request = request.into_inner();
        let value = self.0.store.get(&request.key, Duration::from_millis(request.timeout_ms)).await?;
        Ok(Response::new(StoreGetReply { value }))
    }

    async fn store_get_all(&self, request: Request<StoreGetAllRequest>) -> Result<Response<StoreGetAllReply>, Status> {
        let request = request.into_inner();
        let values = self.0.store.get_all(&request.keys, Duration::from_millis(request.timeout_ms)).await?;
        Ok(Response::new(StoreGetAllReply { values }))
    }

    async fn store_wait(&self, request: Request<StoreWaitRequest>) -> Result<Response<StoreWaitReply>, Status> {
        let request = request.into_inner();
        self.0.store.wait(&request.keys, Duration::from_millis(request.timeout_ms)).await?;
        Ok(Response::new(StoreWaitReply {}))
    }

    async fn store_add(&self, request: Request<StoreAddRequest>) -> Result<Response<StoreAddReply>, Status> {
        let request = request.into_inner();
        let value = self.0.store.add(&request.key, request.amount)?;
        Ok(Response::new(StoreAddReply { value }))
    }

    async fn store_check(&self, request: Request<StoreCheckRequest>) -> Result<Response<StoreCheckReply>, Status> {
        let present = self.0.store.check(&request.into_inner().keys)?;
        Ok(Response::new(StoreCheckReply { present }))
    }

    async fn store_delete(&self, request: Request<StoreDeleteRequest>) -> Result<Response<StoreDeleteReply>, Status> {
        let deleted = self.0.store.delete(&request.into_inner().key);
        Ok(Response::new(StoreDeleteReply { deleted }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatReply>, Status> {
        let (connection, request) = parts(request);
        records::check_heartbeat(&request)?;
        self.0.membership().heartbeat(Instant::now(), &request)?;
        connection.iter().for_each(Connection::is_member);
        if request.stop && !self.0.stop_told.swap(true, Ordering::AcqRel) {
            self.0.tell(Event::StopAsked { rank: request.rank });
        }
        if !request.steps.is_empty() {
            self.0.tell(Event::Steps(request.steps));
        }
        if !request.evaluations.is_empty() {
            self.0.tell(Event::Evaluations(request.evaluations));
        }
        let stop = self.0.stop.load(Ordering::Acquire);
        let directive = if stop { Directive::Stop } else { Directive::Continue };
        let saves = self.0.saves.load(Ordering::Acquire);
        Ok(Response::new(HeartbeatReply { directive: directive.into(), saves }))
    }

    async fn checkpoint_written(
        &self,
        request: Request<CheckpointPart>,
    ) -> Result<Response<CheckpointOutcome>, Status> {
        let CheckpointPart { rank, generation, step, directory, part, failure } = request.into_inner();
        self.0.membership().check_at_work(rank, generation)?;
        records::check_path(rank, &directory)?;
        if part.len() > MAX_PART_BYTES {
            let bytes = part.len();
            let message = format!(
                "rank {rank} sent a part of a checkpoint with {bytes} bytes; at most {MAX_PART_BYTES} are allowed"
            );
            return Err(Status::invalid_argument(format!("{message}\nhint: more ranks have smaller parts")));
        }
        let failure = records::shortened(failure);
        let part = CheckpointPart { rank, generation, step, directory, part, failure };
        let (mut answer, complete) = match self.0.take_part(part).map_err(Status::failed_precondition)? {
            Taken::Waits(answer, complete) => (answer, complete),
            Taken::TooLate => {
                let failure = format!("rank {rank} was too late: the others had given the checkpoint up");
                return Ok(Response::new(CheckpointOutcome { manifest: String::new(), failure }));
            }
        };
        if let Some(complete) = complete {
            self.0.clone().publish(complete);
        }
        match self.0.outcome(step, &mut answer).await {
            Some(Outcome::Published(manifest)) => {
                Ok(Response::new(CheckpointOutcome { manifest, failure: String::new() }))
            }
            Some(Outcome::Failed(failure)) => Ok(Response::new(CheckpointOutcome { manifest: String::new(), failure })),
            Some(Outcome::Over(message)) => Err(Status::aborted(message)),
            None => Err(Status::aborted("the control plane closed before the checkpoint was published")),
        }
    }

    async fn fail(&self, request: Request<FailRequest>) -> Result<Response<FailReply>, Status> {
        let FailRequest { rank, generation, message, consequence } = request.into_inner();
        self.0.membership().check_joined(rank, generation)?;
        let message = records::shortened(message);
        self.0.tell(Event::Failed { rank, message, consequence });
        self.0.rank_gone(rank, "failed");
        Ok(Response::new(FailReply {}))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let request = request.into_inner();
        records::check_leave(&request)?;
        self.0.membership().leave(Instant::now(), &request)?;
        let left = Left {
            step: request.step,
            stopped: request.stopped,
            model_directory: request.model_directory,
            model_step: request.model_step,
            state: request.state.unwrap_or_default(),
        };
        self.0.tell(Event::Left { rank: request.rank, left });
        Ok(Response::new(LeaveReply {}))
    }
}
