//! Putting the file, `--set` and the flags together into a [`Resolved`].

use crate::accelerate::{self, Asked, DistributedType};
use crate::error::ConfigError;
use crate::known::{check, no_effect};
use crate::registry::{DefaultValue, Section};
use crate::resolved::Resolved;
use crate::settings::{Reader, Setting, Settings, agree, missing};
use crate::sharding::{ReshardAfterForward, Sharding, Stage};
use crate::topology::{self, Settled, Topology};
use crate::training::{KEYS, Training};
use crate::types::{DeviceKind, Strategy};
use crate::written::{ACCELERATE_HOSTS, Written};
use crate::{
    deepspeed, device, forgetting, fsdp, hub, mesh, mixing, offload, packing, precision, presets, schedule, source,
    unfreezing, units,
};
use std::collections::BTreeMap;

/// What the user gave, as written.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// `--config` (or `--config_file`): a path, or a preset's name. YAML in Accelerate's form or flat as TRL has it, or a
    /// DeepSpeed JSON.
    pub config: Option<String>,
    /// `--set`, each as `key=value`; keys may carry their section, as in `training.learning_rate`.
    pub set: Vec<String>,
    /// Flags as (name, value), without dashes in front; a switch without a value has the value `true`.
    pub flags: Vec<(String, String)>,
    /// `--nproc`: processes of one host.
    pub nproc: Option<u32>,
    /// What torchrun's variables and the scheduler's say (see [`crate::ENVIRONMENT`]).
    pub environment: BTreeMap<String, String>,
    /// The hosts that are there, once they are: they decide how many processes there are.
    pub joined: Option<Joined>,
    /// Accelerators of this machine: the default number of processes when it is not 0.
    pub devices: u32,
}

/// Hosts that have met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// How many.
    pub hosts: u32,
    /// Ranks of all of them.
    pub ranks: u32,
}

/// Decides everything: flags go before `--set`, `--set` before the file, the file before the defaults.
///
/// Where several keys speak of one thing (`mixed_precision` and `bf16`), the one in the higher place wins, and two in
/// the same place must agree.
///
/// # Errors
/// One [`ConfigError`]: a file that cannot be read, an unknown key, a value that is not allowed or not built, two that
/// disagree, or a required key that is not set.
pub fn resolve(inputs: &Inputs) -> Result<Resolved, ConfigError> {
    resolve_job(inputs).map(|(resolved, _)| resolved)
}

/// The same, and where this `launch` stands among the hosts of the job.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_job(inputs: &Inputs) -> Result<(Resolved, Topology), ConfigError> {
    let file = inputs.config.as_deref().map(presets::find).transpose()?;
    resolve_file(file.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), inputs)
}

/// The same with a file that is read already, as its name in messages and its text.
pub(crate) fn resolve_file(file: Option<(&str, &str)>, inputs: &Inputs) -> Result<(Resolved, Topology), ConfigError> {
    let (mut settings, accelerate_file) = collect(file, inputs)?;
    let settled = topology::settle(&settings, &inputs.environment)?;
    topology::add_ranks_per_node(&mut settings, inputs, &settled)?;
    let resolved = decide(&settings, accelerate_file, inputs, &settled)?;
    let topology = topology::with_ranks(settled, inputs, &resolved)?;
    Ok((resolved, topology))
}

/// Everything that was written, and the file's name where it has the Accelerate part.
fn collect<'a>(file: Option<(&'a str, &str)>, inputs: &Inputs) -> Result<(Settings, Option<&'a str>), ConfigError> {
    let mut settings = Settings::default();
    let mut accelerate_file = None;
    if let Some((name, text)) = file {
        if deepspeed::is_json(name, text) {
            deepspeed::add_json(&mut settings, name, text)?;
        } else if source::add_file(&mut settings, name, text)? {
            accelerate_file = Some(name);
        }
    }
    for text in &inputs.set {
        source::add_set(&mut settings, text)?;
    }
    for (name, value) in &inputs.flags {
        source::add_flag(&mut settings, name, value)?;
    }
    deepspeed::add_named(&mut settings, inputs.config.as_deref())?;
    topology::add_environment(&mut settings, &inputs.environment);
    Ok((settings, accelerate_file))
}

/// What was written of the hosts of the job, which a [`Resolved`] does not tell.
pub(crate) fn hosts_written(inputs: &Inputs) -> Result<Vec<Written>, ConfigError> {
    let file = inputs.config.as_deref().map(presets::find).transpose()?;
    let (settings, _) = collect(file.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), inputs)?;
    let of_hosts = |key: &str| {
        ACCELERATE_HOSTS.contains(&key) || crate::key(key).is_some_and(|known| known.group == crate::Group::Hosts)
    };
    let found = settings.effective().filter(|setting| setting.section == Section::Top && of_hosts(setting.key));
    Ok(found
        .map(|setting| Written {
            section: setting.section,
            key: setting.key,
            value: setting.value.clone(),
            source: setting.place.clone(),
            field: String::new(),
        })
        .collect())
}

fn decide(
    settings: &Settings,
    accelerate_file: Option<&str>,
    inputs: &Inputs,
    hosts: &Settled,
) -> Result<Resolved, ConfigError> {
    let mut reader = Reader::new(settings);
    reader.notes = settings.notes.clone();
    reader.notes.extend(check(settings)?);
    reader.notes.extend_from_slice(&hosts.notes);
    check_required(settings, inputs)?;
    let distributed = DistributedType::read(&reader)?;
    let mut asked = accelerate::asked(&mut reader, &distributed, accelerate_file)?;
    let device = device::device(&mut reader, &distributed, inputs.devices)?;
    let gpu_ids = device::gpu_ids(&mut reader, device)?;
    let devices = match (device, &gpu_ids) {
        (DeviceKind::Cpu, _) => 0,
        (DeviceKind::Cuda, Some(ids)) => ids.len() as u32,
        (DeviceKind::Cuda, None) => inputs.devices,
    };
    let launches = hosts.topology.nodes.max;
    let written = accelerate::num_processes(&mut reader, &distributed, devices.max(1).saturating_mul(launches))?;
    let ranks = match inputs.joined {
        Some(joined) => {
            reader.provenance.insert("num_processes".to_owned(), format!("the {} hosts that joined", joined.hosts));
            mesh::Ranks { all: joined.ranks, hosts: joined.hosts }
        }
        None => mesh::Ranks { all: written, hosts: hosts.hosts() },
    };
    let num_processes = ranks.all;
    let replicas = mesh::lay_out(&mut reader, &distributed, &mut asked, ranks)?;
    let (units, layer_classes) = units::units(&mut reader, &distributed)?;
    let sharding = Sharding {
        stage: asked.strategy.stage,
        reshard_after_forward: reshard(&mut reader, &asked),
        replicas,
        units,
        backward_prefetch: units::backward_prefetch(&mut reader, &distributed)?,
    };
    let offload_optimizer = offload::optimizer(&mut reader, &distributed, &asked, device)?;
    let state_dict_type = fsdp::state_dict_type(&mut reader, &distributed)?;
    let types = precision::types(&mut reader)?;
    let gradient_accumulation_steps =
        shared(&mut reader, "gradient_accumulation_steps", "gradient_accumulation_steps")?;
    let max_grad_norm = shared(&mut reader, "max_grad_norm", "gradient_clipping")?;
    let gradient_checkpointing = gradient_checkpointing(&mut reader)?;
    let gradient_checkpointing_every = checkpointing_every(&mut reader, gradient_checkpointing)?;
    let nonfinite_gradients = reader.read("nonfinite_gradients")?;
    let backend = device::backend(&mut reader, device, num_processes)?;
    let tf32 = device::tf32(&mut reader, device)?;
    let share_gpus = device::share_gpus(&mut reader, device)?;
    let main_process_port = reader.read::<Option<u16>>("main_process_port")?.filter(|port| *port != 0);
    let training = training(&mut reader)?;
    let mut resolved = Resolved {
        num_processes,
        device,
        gpu_ids,
        share_gpus,
        tf32,
        backend,
        main_process_port,
        sharding,
        sharding_as_written: asked.setting.map(Setting::equation),
        mixed_precision: types.mixed_precision,
        master_dtype: types.master,
        reduce_dtype: types.reduce,
        layer_classes,
        grad_accum_dtype: types.accumulate,
        nonfinite_gradients,
        max_grad_norm,
        gradient_accumulation_steps,
        gradient_checkpointing,
        gradient_checkpointing_every,
        offload_optimizer,
        state_dict_type,
        export_model: true,
        hub_model: None,
        hub_data: Vec::new(),
        initial_checkpoint: None,
        chat_template: None,
        template_date: None,
        training,
        provenance: reader.provenance,
        notes: reader.notes,
    };
    if let Some(later) = &settings.deepspeed {
        let notes = later.settle(settings, &mut resolved)?;
        resolved.notes.extend(notes);
    }
    Ok(resolved)
}

/// What becomes of gathered parameters after the forward pass; below stage 3 there are none.
fn reshard(reader: &mut Reader<'_>, asked: &Asked<'_>) -> ReshardAfterForward {
    let sharded = asked.strategy.stage == Stage::Three;
    let told = asked.setting.filter(|setting| sharded && setting.section == Section::Fsdp);
    let place = told.map_or("default", |setting| setting.place.as_str());
    reader.provenance.insert("reshard_after_forward".to_owned(), place.to_owned());
    if sharded { asked.strategy.reshard } else { ReshardAfterForward::Always(true) }
}

fn check_required(settings: &Settings, inputs: &Inputs) -> Result<(), ConfigError> {
    let required = KEYS.iter().filter(|key| key.default == DefaultValue::Required);
    let absent: Vec<_> = required.filter(|key| settings.find(key.section, key.name).is_none()).collect();
    if absent.is_empty() {
        return Ok(());
    }
    Err(match missing(&absent) {
        ConfigError::Missing { keys, hint } if inputs.config.is_none() => {
            ConfigError::Missing { keys, hint: format!("{hint}; --config zero3.yaml is a preset that has all of them") }
        }
        error => error,
    })
}

/// A value that `training` and `deepspeed_config` both may set, under these two names.
fn shared<T>(reader: &mut Reader<'_>, name: &str, deepspeed_name: &str) -> Result<T, ConfigError>
where
    T: crate::value::FromValue + PartialEq,
{
    let ours = reader.opinion::<T>(name)?;
    let theirs = reader.opinion_of::<T>(Section::DeepSpeed, deepspeed_name, Reader::key(name))?;
    match agree([ours, theirs])? {
        Some(held) => {
            reader.provenance.insert(name.to_owned(), held.setting.place.clone());
            Ok(held.value)
        }
        None => reader.read(name),
    }
}

fn gradient_checkpointing(reader: &mut Reader<'_>) -> Result<bool, ConfigError> {
    let ours = reader.opinion::<bool>("gradient_checkpointing")?;
    // `false` in fsdp_config only says that FSDP does not do it; the trainer still may.
    let key = Reader::key("gradient_checkpointing");
    let fsdp =
        reader.opinion_of::<bool>(Section::Fsdp, "fsdp_activation_checkpointing", key)?.filter(|opinion| opinion.value);
    match agree([ours, fsdp])? {
        Some(held) => Ok(reader.settle("gradient_checkpointing", Some(held), true)),
        None => reader.read("gradient_checkpointing"),
    }
}

fn checkpointing_every(reader: &mut Reader<'_>, checkpointing: bool) -> Result<u32, ConfigError> {
    let every = reader.read("gradient_checkpointing_every")?;
    if let (false, true, Some(setting)) =
        (checkpointing, every > 1, reader.settings.find(Section::Training, "gradient_checkpointing_every"))
    {
        let place = reader.provenance.get("gradient_checkpointing").cloned().unwrap_or_default();
        reader.notes.push(no_effect(setting, &format!("gradient_checkpointing is false ({place})")));
    }
    Ok(every)
}

fn training(reader: &mut Reader<'_>) -> Result<Training, ConfigError> {
    if let Some(setting) = reader.settings.null(Section::Training, "max_length") {
        return Err(setting.not_built("rows are always cut somewhere: set a number"));
    }
    let mut training = Training::read(reader)?;
    packing::settle(reader, &mut training)?;
    hub::settle(reader, &mut training);
    mixing::settle(reader, &training)?;
    schedule::settle(reader, &mut training)?;
    unfreezing::settle(reader, &training)?;
    forgetting::settle(reader, &training)?;
    let settings = reader.settings;
    let find = |key: &str| settings.find(Section::Training, key);
    settle_warmup(&mut training, find("warmup_steps"), find("warmup_ratio"))?;
    let mut unread = |key: &str, because: &str, reason: String| {
        if let Some(setting) = find(key) {
            let place = find(because).map_or("the default", |because| because.place.as_str());
            reader.notes.push(no_effect(setting, &format!("{reason} ({place})")));
        }
    };
    if training.max_steps > 0 {
        unread(
            "num_train_epochs",
            "max_steps",
            format!("max_steps is {}; set it to -1 to train by epochs", training.max_steps),
        );
    }
    if training.eval_strategy != Strategy::Steps {
        unread("eval_steps", "eval_strategy", format!("eval_strategy is {}", training.eval_strategy));
    }
    if training.save_strategy != Strategy::Steps {
        unread("save_steps", "save_strategy", format!("save_strategy is {}", training.save_strategy));
    }
    if training.report_to.is_none() {
        unread("logging_dir", "report_to", "report_to is none".to_owned());
    }
    check_evaluation(&training, settings)?;
    check_best(&training, find("load_best_model_at_end"))?;
    check_early_stopping(&training, find("early_stopping_patience"))?;
    check_direction(&training, find("greater_is_better"))?;
    if training.early_stopping_patience.is_none()
        && training.early_stopping_threshold > 0.0
        && let Some(setting) = find("early_stopping_threshold")
    {
        reader.notes.push(no_effect(setting, "without early_stopping_patience training does not end early"));
    }
    if training.save_total_limit.unwrap_or(0) == 0
        && let Some(setting) = find("save_keep_every")
    {
        reader.notes.push(no_effect(setting, "without save_total_limit every checkpoint is kept"));
    }
    Ok(training)
}

/// The best checkpoint can only be found where each one is evaluated.
fn check_best(training: &Training, setting: Option<&Setting>) -> Result<(), ConfigError> {
    let Some(setting) = setting.filter(|_| training.load_best_model_at_end) else { return Ok(()) };
    let Training { eval_strategy, save_strategy, eval_steps, save_steps, .. } = training;
    let refuse = |allowed: String, hint: &str| Err(setting.not_allowed(&allowed, Some(hint.to_owned())));
    if *eval_strategy == Strategy::No || eval_strategy != save_strategy {
        let allowed = format!("eval_strategy is {eval_strategy} and save_strategy is {save_strategy}");
        return refuse(allowed, "checkpoints are compared by their evaluations: give both the same, steps or epoch");
    }
    if *save_strategy == Strategy::Steps && !save_steps.is_multiple_of(*eval_steps) {
        let allowed = format!("eval_steps is {eval_steps} and save_steps is {save_steps}");
        return refuse(allowed, "each checkpoint needs its evaluation: make save_steps a multiple of eval_steps");
    }
    Ok(())
}

/// Evaluations are what is counted.
fn check_early_stopping(training: &Training, setting: Option<&Setting>) -> Result<(), ConfigError> {
    match setting.filter(|_| training.early_stopping_patience.is_some() && training.eval_strategy == Strategy::No) {
        None => Ok(()),
        Some(setting) => {
            let hint = "set eval_strategy to steps or epoch, and eval_dataset".to_owned();
            Err(setting.not_allowed("eval_strategy is no, so there is no evaluation to count", Some(hint)))
        }
    }
}

/// Which way a figure is better is no choice.
fn check_direction(training: &Training, setting: Option<&Setting>) -> Result<(), ConfigError> {
    let metric = training.metric_for_best_model;
    match setting.filter(|_| training.greater_is_better.is_some_and(|greater| greater != metric.greater_is_better())) {
        None => Ok(()),
        Some(setting) => {
            let way = if metric.greater_is_better() { "more" } else { "less" };
            let hint = Some("leave greater_is_better out: it follows from metric_for_best_model".to_owned());
            Err(setting.not_allowed(format!("metric_for_best_model is {metric}, of which {way} is better"), hint))
        }
    }
}

/// Refuses an evaluation that was asked for without data to evaluate on.
fn check_evaluation(training: &Training, settings: &Settings) -> Result<(), ConfigError> {
    let (key, value) = match training.eval_strategy {
        Strategy::No if training.eval_on_start => ("eval_on_start", "true"),
        Strategy::No => return Ok(()),
        strategy => ("eval_strategy", strategy.name()),
    };
    if training.eval_dataset.is_some() {
        return Ok(());
    }
    let place = settings.find(Section::Training, key).map_or("default", |setting| setting.place.as_str());
    let hint =
        format!("{key} is {value} ({place}): pass --eval_dataset PATH, set training.eval_dataset, or set {key} to no");
    Err(ConfigError::Missing { keys: "eval_dataset".to_owned(), hint })
}

/// Leaves one of `warmup_steps` and `warmup_ratio`: the one in the higher place.
fn settle_warmup(training: &mut Training, steps: Option<&Setting>, ratio: Option<&Setting>) -> Result<(), ConfigError> {
    if let Some(steps) = steps
        && training.warmup_steps > 1.0
        && training.warmup_steps.fract() != 0.0
    {
        return Err(steps.not_allowed("it must be a whole number of steps, or a share below 1", None));
    }
    let (Some(steps), Some(ratio)) = (steps, ratio) else {
        return Ok(());
    };
    match steps.layer.cmp(&ratio.layer) {
        std::cmp::Ordering::Greater => training.warmup_ratio = 0.0,
        std::cmp::Ordering::Less => training.warmup_steps = 0.0,
        std::cmp::Ordering::Equal if training.warmup_steps > 0.0 && training.warmup_ratio > 0.0 => {
            return Err(steps.conflict(ratio, "both say how long the warm-up is: keep one"));
        }
        std::cmp::Ordering::Equal => {}
    }
    Ok(())
}
