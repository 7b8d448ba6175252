//! The command `train`, from the configuration to the exit code.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use zerofold_checkpoint::publish::MANIFEST_FILE;
use zerofold_checkpoint::{Found, StorageProof};
use zerofold_configs::{Inputs, Reporter, Resolved, resolve};
use zerofold_data::{Prepare, Prepared, StepPlan, StepPlanOptions, prepare};
use zerofold_plan::ModelConfig;
use zerofold_store::CheckpointStore;

use crate::checkpoint_publisher::publisher;
use crate::control::{ControlOptions, ControlPlane};
use crate::environment as env;
use crate::error::{EXIT_FAILED, LaunchError};
use crate::event::{Event, StopSignal};
use crate::hub::{self, Extent};
use crate::logs::{self, LogFormat};
use crate::metrics::MetricsFile;
use crate::plan::{PlanRecord, Prediction};
use crate::records::Records;
use crate::run_folder::{Resume, RunFolder};
use crate::store::{self, Keep, Uploader};
use crate::supervise::{Facts, Limits, Observer, Verdict, Worker, supervise};
use crate::tensorboard::{EventFile, EventsFolder};
use crate::terminal::Terminal;
use crate::view::View;
use crate::watch::{Board, ControlFile, MetricsEndpoint, Told};
use crate::worker_command::{JobEnvironment, find_worker};
use crate::{announce, best_checkpoint, initial_model, model_folder, offload_folder, profile, report, resume, signals};

/// After a first failure, how long other ranks may still tell the cause.
const GATHER: Duration = Duration::from_secs(1);
/// From SIGTERM to SIGKILL.
const TERMINATE: Duration = Duration::from_secs(5);

/// What the command line asks of `train`.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The configuration, as written.
    pub inputs: Inputs,
    /// Go on from a checkpoint.
    pub resume: Option<Resume>,
    /// Only errors and the result.
    pub quiet: bool,
    /// How long a rank may take to join, and be silent.
    pub timeout: Duration,
    /// How long the workers may take to stop when asked.
    pub grace: Duration,
    /// The form of messages; none leaves it to the environment.
    pub log_format: Option<LogFormat>,
}

/// Runs a training job to its end; returns the exit code. Must be called on the main thread, which workers die with.
pub fn train(options: &TrainOptions, format: LogFormat, began: Instant) -> Result<u8, LaunchError> {
    let terminal = Arc::new(Terminal::with_format(options.quiet, format));
    let (events, received) = mpsc::channel();
    let mut config = initial_model::settle(resolve(&options.inputs)?)?;
    config.notes.iter().for_each(|note| terminal.say(&format!("note: {note}")));
    let earlier = options.resume.as_ref().and_then(|_| earlier(&config));
    hub::bring(&mut config, earlier.as_ref(), Extent::Whole, &terminal)?;
    let job = Job::prepare(config, None, options.resume.as_ref(), &terminal, &events)?;
    job.run(options, began, terminal, (events, received))
}

/// The configuration of the run that is gone on with, if it can be read.
fn earlier(config: &Resolved) -> Option<Resolved> {
    Resolved::read(&RunFolder::new(config.training.output_dir.clone()).config()).ok()
}

/// How long to wait for what: ranks that are `silence` long not heard from, and `stop` long at work when asked to stop.
pub(crate) fn limits(silence: Duration, stop: Duration) -> Limits {
    Limits { gather: GATHER, terminate: TERMINATE, stop, silence }
}

/// A job that is ready to be started.
pub(crate) struct Job {
    config: Resolved,
    run: RunFolder,
    resume: Option<Found>,
    plan: StepPlan,
    prediction: Option<Prediction>,
    worker: PathBuf,
    control: ControlPlane,
    uploader: Option<Arc<Uploader>>,
    generation: u64,
    board: Arc<Board>,
    /// The Prometheus endpoint, where it was asked for.
    _metrics: Option<MetricsEndpoint>,
    /// Where the job can be asked, for as long as it is there.
    _told: ControlFile,
    /// That the workers see the same folder.
    storage: StorageProof,
    /// Keeps other launches out of the run folder while the job is there.
    _lock: File,
}

impl Job {
    /// Checks what can be checked before anything is started, cheap things first, and tokenises the data unless they are
    /// given.
    pub(crate) fn prepare(
        config: Resolved,
        data: Option<&Prepared>,
        resume: Option<&Resume>,
        terminal: &Terminal,
        events: &Sender<Event>,
    ) -> Result<Job, LaunchError> {
        announce::warning(&config).iter().for_each(|text| terminal.complain(text));
        let model = check(&config)?;
        let worker = find_worker()?;
        let run = RunFolder::new(absolute(&config.training.output_dir)?);
        let complain = |line: String| terminal.complain(&line);
        let mut lock = run.lock_existing(complain)?;
        if resume.is_none() {
            run.check_fresh()?;
        }
        let store = config.training.checkpoint_store.as_ref().map(store::for_run).transpose()?;
        let stored = store.as_ref().map_or(Ok(Vec::new()), CheckpointStore::steps)?;
        let found = match (resume, &store) {
            (None, Some(store)) => store::resume::check_fresh(store, &stored).map(|()| None)?,
            (None, None) => None,
            (Some(resume), store) => {
                // A step may be fetched into it, by one launch at a time.
                if store.is_some() && lock.is_none() {
                    lock = Some(run.lock(complain)?);
                }
                Some((resume::find(&run, resume, &config, &model, store.as_ref(), terminal)?, resume))
            }
        };
        if let (None, Some(step)) = (&found, &config.initial_checkpoint) {
            zerofold_checkpoint::verify(step)?;
        }
        let generation =
            run.next_generation(found.as_ref().map(|(found, _)| found), CheckpointStore::generation(&stored));
        let keep = Keep::of(&config);
        let uploader = store.map(|store| Uploader::start(store, keep, events.clone())).transpose();
        let uploader = uploader.map_err(LaunchError::system("start a thread"))?.map(Arc::new);
        let digest = Arc::new(OnceLock::new());
        logs::at_generation(generation);
        let board = Arc::new(Board::new(run.root(), Instant::now(), generation));
        let control = ControlPlane::start(
            ControlOptions {
                port: config.main_process_port,
                world_size: config.num_processes,
                generation,
                publish: publisher(&config, digest.clone(), uploader.clone(), events.clone()),
                board: Some(board.clone()),
            },
            events.clone(),
        )?;
        let metrics = config.training.metrics_port.map(|port| MetricsEndpoint::start(port, board.clone()));
        let metrics = metrics.transpose()?;
        // A folder that is not there yet is made for the lock, so this waits until nothing can be refused any more.
        let lock = lock.map_or_else(|| run.lock(complain), Ok)?;
        let told =
            Told { address: control.address(), metrics: metrics.as_ref().map(MetricsEndpoint::address), token: None };
        let told = ControlFile::write(run.control(), &told)?;
        run.create(config.num_processes, found.is_none())?;
        run.write_generation(generation)?;
        let tokenised;
        let prepared = match data {
            Some(data) => data,
            None => {
                tokenised = prepare_data(&config, &run, terminal)?;
                &tokenised
            }
        };
        prepared.dataset.save(&run.train_data())?;
        let warning = model_folder::too_long("rows have up to", prepared.report.longest, &model);
        warning.iter().for_each(|warning| terminal.complain(&format!("warning: {warning}")));
        let rows = prepared.dataset.rows();
        let data = digest.get_or_init(|| prepared.dataset.digest());
        let (resume, plan) = match found {
            None => (None, step_plan(&config, rows)?),
            Some(found) => {
                let (found, plan) = resume::begin(&run, found, &config, &model, (rows, data), terminal)?;
                best_checkpoint::see_to(
                    &run,
                    &found,
                    &config,
                    uploader.as_ref().map(|uploader| uploader.store()),
                    terminal,
                )?;
                if let Some(uploader) = &uploader {
                    store::resume::clear_after(uploader.store(), found.manifest.step, terminal)?;
                }
                (Some(found), plan)
            }
        };
        initial_model::anywhere(&config).write(&run.config())?;
        let storage = StorageProof::write(&run.checkpoints())?;
        let prediction = Prediction::of(&config, &prepared.dataset, &plan);
        if let Some(planned) = prediction {
            PlanRecord { planned, measured: None }.write(&run.plan())?;
        }
        announce::header(&config, &run, &plan, &prepared.report).iter().for_each(|line| terminal.say(line));
        prediction.iter().for_each(|prediction| terminal.say(&prediction.words()));
        if let Some(metrics) = &metrics {
            terminal.say(&format!("watch  http://{}/metrics", metrics.address()));
        }
        let done = resume.as_ref().map_or(0, |found| found.manifest.step);
        board.planned(plan.total_steps(), done);
        if let Some(found) = &resume {
            let published = std::fs::metadata(found.directory.join(MANIFEST_FILE)).and_then(|file| file.modified());
            board.resumed_from(done, &found.directory, published.unwrap_or_else(|_| SystemTime::now()));
        }
        let warning = config.training.profile.and_then(|steps| profile::out_of_reach(steps, done, plan.total_steps()));
        warning.iter().for_each(|warning| terminal.complain(warning));
        Ok(Job {
            config,
            run,
            resume,
            plan,
            prediction,
            worker,
            control,
            uploader,
            generation,
            board,
            _metrics: metrics,
            _told: told,
            storage,
            _lock: lock,
        })
    }

    fn run(
        self,
        options: &TrainOptions,
        began: Instant,
        terminal: Arc<Terminal>,
        (events, received): (Sender<Event>, Receiver<Event>),
    ) -> Result<u8, LaunchError> {
        let done = self.resume.as_ref().map_or(0, |found| found.manifest.step);
        let path = self.run.metrics();
        let metrics = if self.resume.is_some() { MetricsFile::resume(&path, done) } else { MetricsFile::create(&path) };
        let cannot_write = || LaunchError::system(format!("write {}", path.display()));
        let mut metrics = metrics.map_err(cannot_write())?;
        if let Some(model) = &self.config.hub_model {
            metrics.model(done, model).map_err(cannot_write())?;
        }
        let records = Records::new(terminal.clone(), metrics, self.event_file(done, &terminal)?);
        signals::listen(events.clone()).map_err(LaunchError::system("listen for signals"))?;
        let steps = (self.plan.total_steps(), done);
        let (board, logging_steps) = (self.board.clone(), self.config.training.logging_steps);
        let mut view = View::new(terminal.clone(), records, board, began, steps, logging_steps);
        let limits = limits(options.timeout, options.grace);
        let ended = self.supervise(&limits, &terminal, (&events, &received), &mut view);
        let mut signal = None;
        if let (Some(uploader), Ok((_, facts))) = (&self.uploader, &ended) {
            let shown: (&mut dyn Observer, &ControlPlane) = (&mut view, &self.control);
            signal = store::wait_for_uploads(uploader, facts, limits.stop, &received, shown);
        }
        let story = view.finish();
        let (verdict, facts) = ended?;
        let arguments: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let members = self.control.members();
        let record = self
            .prediction
            .map(|planned| PlanRecord { planned, measured: report::measured(&facts, story.last.as_ref()) });
        if let Some(Err(error)) = record.filter(|it| it.measured.is_some()).map(|it| it.write(&self.run.plan())) {
            terminal.complain(&format!("warning: {error}"));
        }
        let ended = report::Ended { time: began.elapsed(), facts: &facts, members: &members, plan: record.as_ref() };
        Ok(match verdict {
            Verdict::Completed => {
                terminal.say(&report::summary(&story, &ended));
                self.put_profile_together(&terminal);
                report::result(&facts).iter().for_each(|line| terminal.result(line));
                signal.map_or(0, StopSignal::exit_code)
            }
            Verdict::Stopped(signal) => {
                terminal.say(&report::summary(&story, &ended));
                self.put_profile_together(&terminal);
                terminal.complain(&report::stopped(&story, &self.run, &arguments));
                signal.exit_code()
            }
            Verdict::Failed { first, others } => {
                let (first, others, run) = (&first, &others[..], &self.run);
                let (facts, story, arguments) = (&facts, &story, &arguments[..]);
                terminal.complain(&report::failure(&report::Failed { first, others, facts, story, run, arguments }));
                EXIT_FAILED
            }
        })
    }

    /// TensorBoard's, where it was asked for.
    fn event_file(&self, done: u64, terminal: &Terminal) -> Result<Option<EventFile>, LaunchError> {
        let training = &self.config.training;
        let Some(Reporter::Tensorboard) = training.report_to else { return Ok(None) };
        let folder = match &training.logging_dir {
            Some(folder) => EventsFolder::at(folder.clone()),
            None => EventsFolder::within(&self.run.events(), self.resume.is_some()),
        };
        let shown = folder.path().display();
        let file = EventFile::create(&folder, done);
        let file = file.map_err(LaunchError::system(format!("write TensorBoard's events to {shown}")))?;
        let parent = training.logging_dir.clone().unwrap_or_else(|| self.run.events());
        terminal.say(&format!("events tensorboard --logdir {}", parent.display()));
        Ok(Some(file))
    }

    /// Starts the workers and watches over them until the last one has ended.
    pub(crate) fn supervise(
        &self,
        limits: &Limits,
        terminal: &Arc<Terminal>,
        (events, received): (&Sender<Event>, &Receiver<Event>),
        observer: &mut dyn Observer,
    ) -> Result<(Verdict, Facts), LaunchError> {
        let mut workers = self.spawn(terminal, events)?;
        Ok(supervise(&mut workers, &self.control, received, limits, observer))
    }

    /// The most memory that the process of a rank had, of the rank that had most.
    pub(crate) fn most_process_memory(&self) -> u64 {
        self.control.members().iter().map(|member| member.peak_memory_bytes).max().unwrap_or(0)
    }

    /// Where it runs.
    pub(crate) fn folder(&self) -> &RunFolder {
        &self.run
    }

    /// The timeline, where one was asked for. After a failure the ranks' parts stay as they are.
    fn put_profile_together(&self, terminal: &Terminal) {
        let Some(steps) = self.config.training.profile else { return };
        match profile::put_together(&self.config, &self.run) {
            Ok(Some(path)) => {
                terminal.say(&format!("timeline: {} (open it at https://ui.perfetto.dev)", path.display()))
            }
            Ok(None) => terminal.complain(&format!("warning: no timeline: none of the steps {steps} was taken")),
            Err(error) => terminal.complain(&format!("warning: {error}")),
        }
    }

    fn spawn(&self, terminal: &Arc<Terminal>, events: &Sender<Event>) -> Result<Vec<Worker>, LaunchError> {
        let config = self.run.config();
        let environment = JobEnvironment {
            worker: &self.worker,
            world_size: self.config.num_processes,
            device: self.config.device,
            gpu_ids: self.config.gpu_ids.as_deref(),
            control: self.control.address(),
            generation: self.generation,
            config: Some(&config),
            resume: self.resume.as_ref().map(|found| found.directory.as_path()),
        };
        let spawn = |rank| {
            let mut command = environment.command("train", rank);
            command.env(env::STORAGE, self.storage.token());
            command.env(env::LOG_FORMAT, terminal.format().name());
            Worker::spawn(rank, &mut command, &self.run.log(rank), terminal.clone(), events.clone())
        };
        // A rank that cannot be started ends the job: those before it are killed as their handles are dropped.
        Ok((0..self.config.num_processes).map(spawn).collect::<Result<Vec<_>, _>>()?)
    }
}

/// Checks the folders that a job reads from; returns the model's sizes.
pub(crate) fn check(config: &Resolved) -> Result<ModelConfig, LaunchError> {
    let folder = &config.training.model_name_or_path;
    model_folder::check(folder)?;
    let model = ModelConfig::read(folder)?;
    model_folder::check_layer_classes(config, &model)?;
    offload_folder::check(config)?;
    Ok(model)
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, LaunchError> {
    std::path::absolute(path).map_err(LaunchError::system(format!("find {}", path.display())))
}

/// Tokenises training and held-out rows once, before the ranks wait on each other. The held-out ones are saved.
fn prepare_data(config: &Resolved, run: &RunFolder, terminal: &Terminal) -> Result<Prepared, LaunchError> {
    let prepared = tokenise(config, &config.training.dataset, terminal)?;
    announce::example(&prepared.report).iter().for_each(|line| terminal.say(line));
    if let Some(dataset) = &config.training.eval_dataset {
        tokenise(config, dataset, terminal)?.dataset.save(&run.eval_data())?;
    }
    Ok(prepared)
}

/// Tokenises one file and tells what it holds.
pub(crate) fn tokenise(config: &Resolved, dataset: &Path, terminal: &Terminal) -> Result<Prepared, LaunchError> {
    let training = &config.training;
    let began = Instant::now();
    let prepared = prepare(&Prepare {
        model_directory: &training.model_name_or_path,
        dataset,
        max_length: training.max_length,
        assistant_only_loss: training.assistant_only_loss,
    })?;
    announce::data(&prepared.report, began.elapsed()).iter().for_each(|line| terminal.say(line));
    for warning in &prepared.report.warnings {
        terminal.complain(&format!("warning: {}: {warning}", dataset.display()));
    }
    Ok(prepared)
}

/// Which rows are trained on when.
pub(crate) fn step_plan(config: &Resolved, rows: usize) -> Result<StepPlan, LaunchError> {
    let training = &config.training;
    Ok(StepPlan::new(StepPlanOptions {
        rows,
        world_size: config.num_processes,
        per_device_batch: training.per_device_train_batch_size,
        accumulation: config.gradient_accumulation_steps,
        epochs: training.num_train_epochs,
        max_steps: training.max_steps,
        seed: training.seed,
        data_seed: training.data_seed,
        sampling: match training.train_sampling_strategy {
            zerofold_configs::Sampling::Random => zerofold_data::Sampling::Random,
            zerofold_configs::Sampling::Sequential => zerofold_data::Sampling::Sequential,
        },
    })?)
}
