//! What is known of the job as a whole, kept where other threads can read it.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use zerofold_checkpoint::Found;
use zerofold_checkpoint::publish::MANIFEST_FILE;
use zerofold_proto::v1::{
    CheckpointStatus, EvaluationRecord, EvaluationStatus, JobStatus, RankStatus, StatusReply, StepRecord, StepStatus,
};

use crate::control::Member;
use crate::event::Event;
use crate::metrics::{loss_by_source, phase_name, phase_seconds, rate, seconds_of};
use crate::records::in_the_run_folder;

/// Over so many steps the time left is estimated.
const RECENT_STEPS: usize = 20;

/// Tells what the ranks' heartbeats told last.
type Members = Box<dyn Fn() -> Vec<Member> + Send + Sync>;

/// The job as it is now, for everybody who asks.
pub struct Board {
    run: String,
    began: Instant,
    host: String,
    job: Mutex<Job>,
    members: Mutex<Option<Members>>,
}

/// What happened so far.
#[derive(Clone, Debug, Default)]
struct Job {
    generation: u64,
    restarts: u64,
    last_restart: Option<String>,
    hang: Option<String>,
    /// Of each rank, where the job has several.
    hosts: Vec<String>,
    starting: bool,
    /// Between two memberships: what it waits for.
    waiting_for: Option<String>,
    stopping: bool,
    step: u64,
    total_steps: u64,
    last_step: Option<StepRecord>,
    recent: VecDeque<f64>,
    last_evaluation: Option<EvaluationRecord>,
    checkpoint: Option<Checkpoint>,
    tokens: u64,
    sent_bytes: u64,
    skipped_steps: u64,
    evaluations: u64,
    checkpoints: u64,
    failed_checkpoints: u64,
}

#[derive(Clone, Debug)]
struct Checkpoint {
    step: u64,
    directory: String,
    published: SystemTime,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes guard is valid between any two statements, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// Of a job in this run folder, whose `launch` began at `began`.
    pub fn new(run: &Path, began: Instant, generation: u64) -> Board {
        let job = Job { generation, starting: true, ..Job::default() };
        let run = run.display().to_string();
        Board { run, began, host: host_name(), job: Mutex::new(job), members: Mutex::new(None) }
    }

    /// From now on `members` tells of the ranks.
    pub(crate) fn follow(&self, members: impl Fn() -> Vec<Member> + Send + Sync + 'static) {
        *lock(&self.members) = Some(Box::new(members));
    }

    /// A membership of the job begins, after the step of this checkpoint.
    pub(crate) fn begin(&self, generation: u64, total_steps: u64, from: Option<&Found>) {
        let checkpoint = from.map(|found| Checkpoint {
            step: found.manifest.step,
            directory: found.directory.display().to_string(),
            published: published(&found.directory),
        });
        let mut job = lock(&self.job);
        (job.generation, job.total_steps) = (generation, total_steps);
        job.step = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        job.checkpoint = checkpoint;
        (job.starting, job.hang, job.waiting_for) = (true, None, None);
    }

    /// The ranks run on these hosts, by rank; an empty name is this one.
    pub fn run_on(&self, hosts: Vec<String>) {
        lock(&self.job).hosts = hosts;
    }

    /// A membership is over for this reason, and there will be another one.
    pub fn restart(&self, reason: &str) {
        let mut job = lock(&self.job);
        job.restarts += 1;
        job.last_restart = Some(reason.to_owned());
        (job.hang, job.waiting_for) = (None, Some("the next try".to_owned()));
    }

    /// The next membership waits for something; told of one that runs, it changes nothing.
    pub fn wait_for(&self, what: &str) {
        lock(&self.job).waiting_for.iter_mut().for_each(|waiting| what.clone_into(waiting));
    }

    /// Who holds the job up, if anybody does.
    pub fn hang(&self, words: Option<&str>) {
        lock(&self.job).hang = words.map(str::to_owned);
    }

    /// Notes what happened.
    pub fn event(&self, event: &Event) {
        let mut job = lock(&self.job);
        match event {
            Event::Steps(records) => records.iter().for_each(|record| job.add(record)),
            Event::Evaluations(records) => {
                job.evaluations += records.len() as u64;
                if let Some(record) = records.last() {
                    job.last_evaluation = Some(record.clone());
                }
            }
            Event::Checkpoint { step, directory } => {
                job.checkpoints += 1;
                let directory = Path::new(&self.run).join(in_the_run_folder(Path::new(directory)));
                let (directory, published) = (directory.display().to_string(), SystemTime::now());
                job.checkpoint = Some(Checkpoint { step: *step, directory, published });
            }
            Event::CheckpointFailed { .. } => job.failed_checkpoints += 1,
            Event::Signal(_) | Event::StopAsked { .. } | Event::StopAskedByHost { .. } => job.stopping = true,
            _ => {}
        }
    }

    /// How long the job will still take, by its recent steps.
    pub fn remaining(&self) -> Option<Duration> {
        lock(&self.job).remaining()
    }

    /// Everything, as it is now.
    pub fn status(&self) -> StatusReply {
        let job = lock(&self.job).clone();
        // What the ranks of a membership that is over said last is nobody's state now.
        let ranks_there = job.waiting_for.is_none();
        let members = lock(&self.members).as_ref().filter(|_| ranks_there).map_or_else(Vec::new, |members| members());
        let now = Instant::now();
        let host = |rank: u32| job.hosts.get(rank as usize).filter(|host| !host.is_empty()).unwrap_or(&self.host);
        let ranks = members.iter().zip(0..).map(|(member, rank)| rank_status(now, rank, member, host(rank)));
        let ranks = ranks.collect();
        StatusReply {
            job: Some(job.status(&self.run, now.saturating_duration_since(self.began), SystemTime::now())),
            ranks,
        }
    }
}

impl Job {
    fn add(&mut self, record: &StepRecord) {
        if self.recent.len() == RECENT_STEPS {
            self.recent.pop_front();
        }
        self.recent.push_back(record.seconds);
        self.step = record.step;
        self.starting = false;
        self.tokens += record.tokens;
        self.sent_bytes += record.sent_bytes;
        self.skipped_steps += u64::from(!record.skipped.is_empty());
        self.last_step = Some(record.clone());
    }

    fn remaining(&self) -> Option<Duration> {
        let left = self.total_steps.saturating_sub(self.step);
        let mean = self.recent.iter().sum::<f64>() / self.recent.len() as f64;
        Duration::try_from_secs_f64(mean * left as f64).ok().filter(|_| left > 0)
    }

    fn status(self, run: &str, elapsed: Duration, now: SystemTime) -> JobStatus {
        let state = match (self.stopping, &self.waiting_for, self.starting) {
            (true, ..) => "stopping",
            (false, Some(_), _) => "waiting",
            (false, None, false) => "training",
            (false, None, true) => "starting",
        };
        JobStatus {
            run: run.to_owned(),
            state: state.to_owned(),
            generation: self.generation,
            restarts: self.restarts,
            verdict: self.hang.clone(),
            step: self.step,
            total_steps: self.total_steps,
            elapsed_seconds: elapsed.as_secs_f64(),
            remaining_seconds: self.remaining().map(|left| left.as_secs_f64()),
            last_restart: self.last_restart,
            last_step: self.last_step.as_ref().map(step_status),
            last_evaluation: self.last_evaluation.as_ref().map(|record| EvaluationStatus {
                step: record.step,
                eval_loss: record.loss,
                eval_seconds: record.seconds,
                eval_loss_by_source: loss_by_source(&record.sources),
                eval_figures: figures_of(record),
            }),
            last_checkpoint: self.checkpoint.map(|Checkpoint { step, directory, published }| CheckpointStatus {
                step,
                directory,
                time: seconds_of(published),
                age_seconds: now.duration_since(published).unwrap_or_default().as_secs_f64(),
            }),
            tokens: self.tokens,
            sent_bytes: self.sent_bytes,
            skipped_steps: self.skipped_steps,
            evaluations: self.evaluations,
            checkpoints: self.checkpoints,
            failed_checkpoints: self.failed_checkpoints,
            waiting_for: self.waiting_for,
        }
    }
}

fn step_status(record: &StepRecord) -> StepStatus {
    StepStatus {
        step: record.step,
        epoch: record.epoch,
        loss: record.loss,
        grad_norm: record.grad_norm,
        learning_rate: record.learning_rate,
        tokens_per_second: rate(record.tokens, record.seconds),
        step_seconds: record.seconds,
        communication_seconds: record.communication_seconds,
        live_peak_bytes: record.live_peak_bytes,
        phase_seconds: phase_seconds(record),
        loss_by_source: loss_by_source(&record.sources),
        penalties: [("l2_toward_pretrained", record.l2_toward_pretrained), ("ewc_penalty", record.ewc_penalty)]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect(),
    }
}

/// Everything that an evaluation tells of held-out rows but the loss.
fn figures_of(record: &EvaluationRecord) -> BTreeMap<String, f64> {
    let accuracy = Some(record.mean_token_accuracy).filter(|share| !share.is_nan());
    let accuracy = accuracy.map(|share| ("mean_token_accuracy".to_owned(), share));
    record.figures.iter().map(|figure| (figure.name.clone(), figure.value)).chain(accuracy).collect()
}

/// When a checkpoint was published: its manifest comes last.
fn published(directory: &Path) -> SystemTime {
    let manifest = std::fs::metadata(directory.join(MANIFEST_FILE));
    manifest.and_then(|file| file.modified()).unwrap_or_else(|_| SystemTime::now())
}

fn rank_status(now: Instant, rank: u32, member: &Member, host: &str) -> RankStatus {
    let phase = match (&member.joined, &member.left) {
        (None, _) => "not joined".to_owned(),
        (_, Some(_)) => "left".to_owned(),
        _ => phase_name(member.doing.phase()),
    };
    let works = member.joined.is_some() && member.left.is_none();
    let doing = &member.doing;
    let call = doing.blocked_in.as_ref().or(doing.calls.last());
    // What it told of its times was true when it was heard. Who waits for others is in its phase all the same.
    let told = doing.seconds + doing.blocked_seconds;
    let in_phase = member.heard.filter(|_| works).map(|heard| told + age(now, heard));
    RankStatus {
        rank,
        host: host.to_owned(),
        pid: member.pid,
        phase,
        phase_seconds: in_phase,
        step: member.step,
        collective: call.map_or(0, |call| call.sequence),
        collective_name: call.map(|call| format!("{} {}", call.operation, call.about)).unwrap_or_default(),
        memory_bytes: member.memory_bytes,
        peak_memory_bytes: member.peak_memory_bytes,
        heard_seconds: member.heard.map(|heard| age(now, heard)),
    }
}

fn age(now: Instant, then: Instant) -> f64 {
    now.saturating_duration_since(then).as_secs_f64()
}

/// This host, as the network knows it.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StopSignal;
    use zerofold_proto::v1::{Call, Doing, Phase};

    fn step(step: u64, skipped: &str) -> StepRecord {
        let skipped = skipped.to_owned();
        StepRecord { step, loss: 2.0, tokens: 100, seconds: 0.5, sent_bytes: 7, skipped, ..StepRecord::default() }
    }

    #[test]
    fn what_happens_is_on_the_board() {
        let board = Board::new(Path::new("runs/x"), Instant::now(), 3);
        board.begin(3, 10, None);
        let job = board.status().job.unwrap();
        assert_eq!((job.state.as_str(), job.step, job.total_steps, job.generation), ("starting", 0, 10, 3));
        assert_eq!((job.last_step, job.remaining_seconds), (None, None));
        board.event(&Event::Steps(vec![step(3, ""), step(4, "overflow")]));
        board.event(&Event::Evaluations(vec![EvaluationRecord { step: 4, loss: 3.0, ..Default::default() }]));
        board.event(&Event::Checkpoint { step: 4, directory: "runs/x/checkpoints/step-00000004".to_owned() });
        board.event(&Event::CheckpointFailed { step: 3, reason: "full".to_owned() });
        let job = board.status().job.unwrap();
        assert_eq!((job.state.as_str(), job.step, job.remaining_seconds), ("training", 4, Some(3.0)));
        assert_eq!((job.tokens, job.sent_bytes, job.skipped_steps), (200, 14, 1));
        assert_eq!((job.evaluations, job.checkpoints, job.failed_checkpoints), (1, 1, 1));
        assert_eq!(job.last_step.unwrap().tokens_per_second, 200.0);
        assert_eq!(job.last_evaluation.unwrap().eval_loss, 3.0);
        let saved = job.last_checkpoint.unwrap();
        assert!(saved.step == 4 && saved.age_seconds < 60.0, "{saved:?}");
        assert_eq!(board.remaining(), Some(Duration::from_secs(3)));
        board.event(&Event::Steps(vec![step(10, "")]));
        assert_eq!(board.remaining(), None, "nothing is left");
        board.hang(Some("rank 1 is silent"));
        assert_eq!(board.status().job.unwrap().verdict(), "rank 1 is silent");
        board.hang(None);
        board.wait_for("hosts");
        assert_eq!(board.status().job.unwrap().waiting_for, None, "it runs");
        board.follow(|| vec![Member::default()]);
        board.restart("rank 1 was killed");
        board.wait_for("hosts, 1 of 2 are here");
        let waiting = board.status();
        assert!(waiting.ranks.is_empty(), "they have ended");
        let job = waiting.job.unwrap();
        assert_eq!((job.state.as_str(), job.waiting_for()), ("waiting", "hosts, 1 of 2 are here"));
        assert_eq!((job.restarts, job.last_restart()), (1, "rank 1 was killed"));
        board.begin(4, 10, None);
        let job = board.status().job.unwrap();
        assert_eq!((job.state.as_str(), job.step, job.generation, job.restarts), ("starting", 0, 4, 1));
        assert_eq!((job.verdict, job.last_restart.as_deref()), (None, Some("rank 1 was killed")));
        assert_eq!((job.waiting_for, board.status().ranks.len()), (None, 1));
        board.event(&Event::Signal(StopSignal::Interrupt));
        assert_eq!(board.status().job.unwrap().state, "stopping");
    }

    #[test]
    fn ranks_are_told_as_they_were_last_heard() {
        let board = Board::new(Path::new("runs/x"), Instant::now(), 1);
        assert!(board.status().ranks.is_empty(), "nobody was started");
        let now = Instant::now();
        let joined = Member { pid: 7, joined: Some(now), heard: Some(now), ..Member::default() };
        let call = Call { sequence: 7, operation: "all_gather".to_owned(), about: "layer 3".to_owned(), bytes: 1 };
        let (seconds, blocked_seconds) = (2.0, 19.0);
        let doing =
            Doing { phase: Phase::Gather.into(), seconds, blocked_in: Some(call), blocked_seconds, ..Doing::default() };
        let works = Member { doing, step: 5, ..joined.clone() };
        let left = Member { left: Some(Default::default()), ..joined };
        let members = vec![Member::default(), works, left];
        board.follow(move || members.clone());
        let ranks = board.status().ranks;
        let phases: Vec<&str> = ranks.iter().map(|rank| rank.phase.as_str()).collect();
        assert_eq!(phases, ["not joined", "gather", "left"]);
        assert_eq!((ranks[1].rank, ranks[1].pid, ranks[1].step), (1, 7, 5));
        assert_eq!((ranks[1].collective, ranks[1].collective_name.as_str()), (7, "all_gather layer 3"));
        assert!(ranks[1].phase_seconds.is_some_and(|seconds| seconds >= 21.0) && ranks[2].phase_seconds.is_none());
        board.run_on(vec![String::new(), "node-b".to_owned()]);
        let hosts: Vec<String> = board.status().ranks.into_iter().map(|rank| rank.host).collect();
        assert_eq!(hosts, [host_name(), "node-b".to_owned(), host_name()]);
        assert!(ranks[0].heard_seconds.is_none() && ranks[1].heard_seconds.is_some());
    }
}
