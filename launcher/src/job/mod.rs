//! One job: checked and prepared, then run in memberships ([`generations`]) until it is done.

mod generations;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use zerofold_checkpoint::{Found, StorageProof};
use zerofold_configs::{ColumnMapping, Resolved, Training};
use zerofold_data::{
    Batching, Classes, Collator, Columns, DataReport, Items, Prepare, Prepared, RowKind, Sampling, Sources, StepPlan,
    StepPlanOptions, TokenizedDataset, join, prepare,
};
use zerofold_plan::ModelConfig;
use zerofold_store::CheckpointStore;

use crate::checkpoint_publisher::publisher;
use crate::control::{ControlOptions, ControlPlane, Listen, Member};
use crate::error::LaunchError;
use crate::event::Event;
use crate::hosts::{Hosts, HostsService, NotGathered};
use crate::hub::{self, DataUse};
use crate::logs;
use crate::plan::{PlanRecord, Prediction};
use crate::run_folder::{Resume, RunFolder};
use crate::store::{self, Keep, Uploader};
use crate::supervise::Limits;
use crate::terminal::Terminal;
use crate::watch::{Board, ControlFile, MetricsEndpoint, Told};
use crate::worker_command::find_worker;
use crate::{
    announce, best_checkpoint, cache_folder, chat_template, classifier, initial_model, model_folder, offload_folder,
    profile, resume, signals, trained,
};

pub(crate) use generations::Restarts;

/// After a first failure, how long other ranks may still tell the cause.
const GATHER: Duration = Duration::from_secs(1);
/// From SIGTERM to SIGKILL.
const TERMINATE: Duration = Duration::from_secs(5);

/// How long to wait for what: ranks that are `silence` long not heard from, and `stop` long at work when asked to stop.
pub(crate) fn limits(silence: Duration, stop: Duration) -> Limits {
    Limits { gather: GATHER, terminate: TERMINATE, stop, silence }
}

/// Who the job is met by: where its control plane listens, and its other hosts.
pub(crate) struct Meeting<'a> {
    /// Where.
    pub(crate) listen: Listen,
    /// The other hosts, where there are some, and what serves them.
    pub(crate) hosts: Option<(Hosts, HostsService)>,
    /// What happens meanwhile.
    pub(crate) received: &'a Receiver<Event>,
}

/// A job that is ready to be started.
pub(crate) struct Job {
    /// The other hosts, where there are some. Dropped before the control plane, through which they hear of it.
    hosts: Option<Hosts>,
    config: Resolved,
    model: ModelConfig,
    /// What there is to train on: rows, or packs.
    items: Items,
    /// What tells them from others; there once they are tokenised.
    digest: Arc<OnceLock<String>>,
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
        mut config: Resolved,
        data: Option<&Prepared>,
        resume: Option<&Resume>,
        meeting: Meeting<'_>,
        (terminal, events): (&Terminal, &Sender<Event>),
    ) -> Result<Job, LaunchError> {
        announce::warning(&config).iter().for_each(|text| terminal.complain(text));
        let model = check(&config)?;
        model_folder::check_metric(&config, &model)?;
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
        if let Some((found, _)) = &found {
            chat_template::keep_date(&mut config, &found.manifest);
        }
        if let (None, Some(step)) = (&found, &config.initial_checkpoint) {
            zerofold_checkpoint::verify(step)?;
        }
        let generation =
            run.next_generation(found.as_ref().map(|(found, _)| found), CheckpointStore::generation(&stored));
        let keep = Keep::of(&config);
        let uploader = store.map(|store| Uploader::start(store, keep, events.clone())).transpose();
        let uploader = uploader.map_err(LaunchError::system("start a thread"))?.map(Arc::new);
        let digest = Arc::new(OnceLock::new());
        let (hosts, service) = meeting.hosts.unzip();
        logs::at_generation(generation);
        let board = Arc::new(Board::new(run.root(), Instant::now(), generation));
        if hosts.is_some() {
            // Other hosts wait for this one: they are told when it is stopped before anything runs.
            signals::listen(events.clone()).map_err(LaunchError::system("listen for signals"))?;
        }
        let control = ControlPlane::start(
            ControlOptions {
                board: Some(board.clone()),
                hosts: service,
                ..ControlOptions::new(
                    meeting.listen,
                    config.num_processes,
                    generation,
                    publisher(&config, digest.clone(), uploader.clone(), events.clone()),
                )
            },
            events.clone(),
        )?;
        // Bound after the control plane, so that on an error the hosts hear of it before it is gone.
        let mut hosts = hosts;
        if let Some(hosts) = &mut hosts {
            let gathered = hosts.gather(&config, meeting.received, (terminal, &board), &mut |_| {});
            config = gathered.map_err(|not| match not {
                NotGathered::Stopped(signal) => LaunchError::Stopped(signal),
                NotGathered::Failed(error) => error,
            })?;
            control.begin(generation, config.num_processes);
        }
        let metrics = config.training.metrics_port.map(|port| MetricsEndpoint::start(port, board.clone()));
        let metrics = metrics.transpose()?;
        // A folder that is not there yet is made for the lock, so this waits until nothing can be refused any more.
        let lock = lock.map_or_else(|| run.lock(complain), Ok)?;
        let told = Told::of(control.contact(), metrics.as_ref().map(MetricsEndpoint::address), hosts.is_none());
        let told = ControlFile::write(run.control(), &told)?;
        run.create(config.num_processes, found.is_none())?;
        classifier::keep(&mut config, &run, found.is_some())?;
        run.write_generation(generation)?;
        let tokenised;
        let prepared = match data {
            Some(data) => data,
            None => {
                let work = || prepare_data(&config, &run, found.is_none(), terminal);
                tokenised = match &hosts {
                    Some(hosts) => hosts.unless_stopped(meeting.received, terminal, || told.remove(), work)?,
                    None => work()?,
                };
                &tokenised
            }
        };
        prepared.put(&run.train_data()).map_err(cache_folder::putting)?;
        let longest = longest_document(&config.training, prepared);
        model_folder::check_positions("training rows", longest, &model)?;
        let warning = model_folder::too_long("rows have up to", longest, &model);
        warning.iter().for_each(|warning| terminal.complain(&format!("warning: {warning}")));
        let (collator, items) = collated(&config, &prepared.dataset)?;
        let data = digest.get_or_init(|| prepared.digest.clone());
        let (resume, plan) = match found {
            None => (None, step_plan(&config, items.clone())?),
            Some((found, asked)) => {
                let (found, plan) = resume::begin(&run, (found, asked), &config, &model, (&items, data), terminal)?;
                let store = uploader.as_ref().map(|uploader| uploader.store());
                best_checkpoint::see_to(&run, &found, &config, store, terminal)?;
                if let Some(store) = store {
                    store::resume::clear_after(store, found.manifest.step, terminal)?;
                }
                (Some(found), plan)
            }
        };
        initial_model::anywhere(&config).write(&run.config())?;
        let storage = StorageProof::write(&run.checkpoints())?;
        let prediction = Prediction::of(&config, (&prepared.dataset, &collator), &plan);
        if let Some(planned) = prediction {
            PlanRecord { planned, measured: None }.write(&run.plan())?;
        }
        announce::packs(&config.training, &collator).iter().for_each(|line| terminal.say(line));
        announce::mixture(&config.training, &items, &plan).iter().for_each(|line| terminal.say(line));
        let on_machine = hosts.as_ref().map_or(config.num_processes, |hosts| hosts.own_ranks().on_machine);
        let header = announce::header((&config, on_machine), &run, &plan, (&prepared.dataset, &collator));
        header.iter().for_each(|line| terminal.say(line));
        let last = plan.total_steps().saturating_sub(1);
        let warmup = zerofold_configs::endless_warmup(&config.training, plan.total_steps());
        warmup.iter().for_each(|text| terminal.complain(&format!("warning: {text}")));
        trained::lines(&config, &model, Some((plan.epoch_at(last), last))).iter().for_each(|line| terminal.say(line));
        prediction.iter().for_each(|prediction| terminal.say(&prediction.words()));
        if let Some(metrics) = &metrics {
            terminal.say(&format!("watch  http://{}/metrics", metrics.address()));
        }
        let done = resume.as_ref().map_or(0, |found| found.manifest.step);
        board.begin(generation, plan.total_steps(), resume.as_ref());
        let warning = config.training.profile.and_then(|steps| profile::out_of_reach(steps, done, plan.total_steps()));
        warning.iter().for_each(|warning| terminal.complain(warning));
        Ok(Job {
            hosts,
            config,
            model,
            items,
            digest,
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

    /// The most memory that the process of a rank had, of the rank that had most.
    pub(crate) fn most_process_memory(&self) -> u64 {
        self.control.members().iter().map(|member| member.peak_memory_bytes).max().unwrap_or(0)
    }

    /// Where it runs.
    pub(crate) fn folder(&self) -> &RunFolder {
        &self.run
    }

    /// What is known of every rank now.
    pub(crate) fn members(&self) -> Vec<Member> {
        self.control.members()
    }

    /// What came of the plan: what the ranks measured beside it.
    pub(crate) fn prediction(&self) -> Option<Prediction> {
        self.prediction
    }

    /// What it was resolved to.
    pub(crate) fn config(&self) -> &Resolved {
        &self.config
    }

    /// The steps of the whole run, and how many of them lie behind.
    pub(crate) fn steps(&self) -> (u64, u64) {
        (self.plan.total_steps(), self.resume.as_ref().map_or(0, |found| found.manifest.step))
    }

    /// What uploads checkpoints, where they are to be.
    pub(crate) fn uploader(&self) -> Option<&Arc<Uploader>> {
        self.uploader.as_ref()
    }

    /// Tells the other hosts how the job ended.
    pub(crate) fn end(&self, code: u8, reason: &str) {
        self.hosts.iter().for_each(|hosts| hosts.end(code, reason));
    }

    /// What those who watch it are told.
    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Which membership it is at.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether it goes on from a checkpoint.
    pub(crate) fn goes_on(&self) -> bool {
        self.resume.is_some()
    }

    /// What serves its ranks.
    pub(crate) fn control(&self) -> &ControlPlane {
        &self.control
    }
}

/// Checks the folders that a job reads from; returns the model's sizes.
pub(crate) fn check(config: &Resolved) -> Result<ModelConfig, LaunchError> {
    let folder = &config.training.model_name_or_path;
    model_folder::check(folder)?;
    let model = classifier::model(config)?;
    model_folder::check_layer_classes(config, &model)?;
    model_folder::check_groups(config, &model)?;
    offload_folder::check(config)?;
    Ok(model)
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, LaunchError> {
    std::path::absolute(path).map_err(LaunchError::system(format!("find {}", path.display())))
}

/// Tokenises rows once, before the ranks wait on each other. Those that are not trained on are saved. A run that goes on from a
/// checkpoint has the Fisher information from there.
fn prepare_data(
    config: &Resolved,
    run: &RunFolder,
    begins: bool,
    terminal: &Terminal,
) -> Result<Prepared, LaunchError> {
    let training = &config.training;
    let prepared = tokenise(config, (DataUse::Training, training.packing), None, terminal)?;
    announce::example(&prepared.report).iter().for_each(|line| terminal.say(line));
    announce::cautions(config, prepared.report.rows).iter().for_each(|text| terminal.complain(text));
    if training.eval_dataset.is_some() {
        let of_held_out = (DataUse::HeldOut, training.eval_packing);
        let held_out = tokenise(config, of_held_out, Some(&prepared.report), terminal)?;
        let model = ModelConfig::read(&training.model_name_or_path)?;
        model_folder::check_positions("held-out rows", longest_document(training, &held_out), &model)?;
        held_out.put(&run.eval_data()).map_err(cache_folder::putting)?;
    }
    if training.estimates_fisher() && begins {
        let rows = tokenise(config, (DataUse::Fisher, false), Some(&prepared.report), terminal)?;
        let model = ModelConfig::read(&training.model_name_or_path)?;
        model_folder::check_positions("rows of ewc_dataset", longest_document(training, &rows), &model)?;
        rows.put(&run.ewc_data()).map_err(cache_folder::putting)?;
        let rows = crate::format::plural((training.ewc_samples as usize).min(rows.report.rows) as u64, "row");
        terminal.say(&format!("ewc    the Fisher information of {rows} of them is estimated before the first step"));
    }
    Ok(prepared)
}

/// How the columns of data are called: as they say themselves, or as the job says.
pub(crate) fn columns(config: &Resolved, own: Option<&ColumnMapping>) -> Result<Columns, LaunchError> {
    let training = &config.training;
    let mapping = own.or(training.column_mapping.as_ref());
    let mapping = mapping.map(ColumnMapping::pairs).cloned().unwrap_or_default();
    let columns = Columns::new(mapping, training.dataset_text_field.as_deref())?;
    Ok(if classifier::is_wanted(config) { columns.of_classifier() } else { columns })
}

/// How the job's rows, which are then packed or not, become tokens.
pub(crate) fn preparation<'a>(
    config: &'a Resolved,
    (sources, packing): (&'a Sources, bool),
    (columns, classes): (&'a Columns, Option<&'a Classes>),
    cache: &'a Path,
) -> Prepare<'a> {
    let training = &config.training;
    Prepare {
        model_directory: &training.model_name_or_path,
        sources,
        columns,
        max_length: Batching::longest_row(training, packing),
        assistant_only_loss: training.assistant_only_loss,
        chat_template: config.chat_template.as_deref(),
        template_date: config.template_date.as_deref(),
        eos_token: training.eos_token.as_deref(),
        completion_only_loss: training.completion_only_loss,
        classes,
        cache,
    }
}

/// Tokenises a data set that is then packed or not, or finds it tokenised, and tells what each of its sources holds, but for
/// warnings that were `told` of other rows.
pub(crate) fn tokenise(
    config: &Resolved,
    (which, packing): (DataUse, bool),
    told: Option<&DataReport>,
    terminal: &Terminal,
) -> Result<Prepared, LaunchError> {
    let (cache, note) = cache_folder::datasets(&config.training.output_dir);
    note.iter().for_each(|note| terminal.complain(note));
    let (mut parts, classes) = (Vec::new(), classifier::classes(config));
    for source in which.data_sources(&config.training) {
        let began = Instant::now();
        let (sources, columns) =
            (hub::sources(source, config, which)?, columns(config, source.column_mapping.as_ref())?);
        let prepared = prepare(&preparation(config, (&sources, packing), (&columns, classes.as_ref()), &cache));
        let prepared = prepared.map_err(cache_folder::tokenising)?;
        if let Some(words) = no_assistant(config, &prepared.report) {
            terminal.complain(&format!("warning: {}: {words}", sources.written()));
        }
        announce::data(&prepared, began.elapsed()).iter().for_each(|line| terminal.say(line));
        for warning in announce::warnings(&prepared.report, which, told) {
            terminal.complain(&format!("warning: {}: {warning}", sources.written()));
        }
        parts.push(prepared);
    }
    join(parts, &cache).map_err(cache_folder::tokenising)
}

/// What is to be told where `assistant_only_loss: true` was said and rows have no assistant: it has no effect then. TRL refuses that; here a
/// run's own configuration says it of every data set.
fn no_assistant(config: &Resolved, report: &DataReport) -> Option<String> {
    let place = config.provenance.get("assistant_only_loss").filter(|place| *place != "default")?;
    let has_assistant = matches!(report.kind, RowKind::Conversations | RowKind::Exchanges);
    (config.training.assistant_only_loss && !has_assistant).then(|| {
        let kind = report.kind.words();
        format!("assistant_only_loss is true ({place}) and has no effect: {kind} have no assistant")
    })
}

/// The tokens that attend to each other at most.
pub(crate) fn longest_document(training: &Training, prepared: &Prepared) -> usize {
    prepared.report.longest.min(training.max_length as usize)
}

/// How the training rows come together, and what a step plan makes of them.
pub(crate) fn collated(config: &Resolved, dataset: &TokenizedDataset) -> Result<(Collator, Items), LaunchError> {
    let training = &config.training;
    let collator = Collator::new(dataset, Batching::of(training, training.packing))?;
    let items = collator.items(dataset, Sampling::of(training));
    Ok((collator, items))
}

/// Which rows, or packs, are trained on when.
pub(crate) fn step_plan(config: &Resolved, items: Items) -> Result<StepPlan, LaunchError> {
    Ok(StepPlan::new(StepPlanOptions::of(config, items))?)
}
