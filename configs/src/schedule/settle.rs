//! What `lr_scheduler_type` and `lr_scheduler_kwargs` make together, and with the other keys of the schedule.

use super::parameters::{Given, KWARGS, taken};
use super::{Minimum, PlateauRule, ScheduleShape};
use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::{Reader, Setting};
use crate::training::Training;
use crate::types::{PlateauMode, Scheduler, Strategy, WarmupType};
use crate::value::FromValue;

/// Reads the parameters of the schedule, and checks what goes together with them.
///
/// # Errors
/// A parameter that the schedule does not take, is out of range, or is missing; a rate to end at above `learning_rate`; a
/// logarithmic warm-up of a schedule that has its own; one that follows evaluations of which there are none.
pub(crate) fn settle(reader: &mut Reader<'_>, training: &mut Training) -> Result<(), ConfigError> {
    let settings = reader.settings;
    let find = |key: &str| settings.find(Section::Training, key);
    let kind = find("lr_scheduler_type");
    let mut kwargs = find(KWARGS);
    // A schedule that was chosen in a higher place than the parameters leaves those of the other behind.
    if let (Some(kind), Some(given)) = (kind, kwargs)
        && kind.layer > given.layer
        && let Some(other) = settings.in_layer(Section::Training, "lr_scheduler_type", given.layer)
        && Scheduler::from_value(&other.value) != Scheduler::from_value(&kind.value)
    {
        reader
            .notes
            .push(no_effect(given, &format!("it is of another schedule than {} ({})", kind.equation(), kind.place)));
        kwargs = None;
    }
    let place = kwargs.map_or("default", |kwargs| kwargs.place.as_str());
    reader.provenance.insert(KWARGS.to_owned(), place.to_owned());
    let scheduler = training.lr_scheduler_type.scheduler();
    training.lr_scheduler_type = ScheduleShape::read(scheduler, kwargs)?;
    check_end(reader, training, kwargs)?;
    settle_plateau(reader, training)?;
    settle_direction(training, kwargs)?;
    settle_warmup(reader, training)
}

/// What is better of the figure that is followed is no choice: transformers' `mode` min of an accuracy would lower the rate whenever it rises.
fn settle_direction(training: &mut Training, kwargs: Option<&Setting>) -> Result<(), ConfigError> {
    let metric = training.metric_for_best_model;
    let ScheduleShape::ReduceLrOnPlateau(rule) = &mut training.lr_scheduler_type else { return Ok(()) };
    let right = if metric.greater_is_better() { PlateauMode::Max } else { PlateauMode::Min };
    let given = Given::of(Scheduler::ReduceLrOnPlateau, kwargs)?;
    match given.find("mode").filter(|_| rule.mode != right) {
        None => rule.mode = right,
        Some((_, setting)) => {
            let hint = format!("leave mode out, or set it to {right}: it follows from metric_for_best_model");
            return Err(setting.not_allowed(format!("metric_for_best_model is {metric}"), Some(hint)));
        }
    }
    Ok(())
}

/// A schedule that follows the held-out loss needs one, and has no warm-up, as in transformers.
fn settle_plateau(reader: &mut Reader<'_>, training: &Training) -> Result<(), ConfigError> {
    if !matches!(training.lr_scheduler_type, ScheduleShape::ReduceLrOnPlateau(_)) {
        return Ok(());
    }
    let settings = reader.settings;
    let find = |key: &str| settings.find(Section::Training, key);
    if let Some(kind) = find("lr_scheduler_type").filter(|_| training.eval_strategy == Strategy::No) {
        let hint = "set eval_strategy to steps or epoch, and eval_dataset".to_owned();
        return Err(
            kind.not_allowed("eval_strategy is no, so there is no held-out loss for the rate to follow", Some(hint))
        );
    }
    for (key, length) in [("warmup_steps", training.warmup_steps), ("warmup_ratio", training.warmup_ratio)] {
        if let Some(setting) = find(key).filter(|_| length > 0.0) {
            reader.notes.push(no_effect(setting, "reduce_lr_on_plateau has no warm-up"));
        }
    }
    Ok(())
}

/// A logarithmic warm-up is nothing for a schedule that has a warm-up of its own: where the schedule was chosen in a higher place it
/// is left behind, elsewhere the two disagree.
fn settle_warmup(reader: &mut Reader<'_>, training: &mut Training) -> Result<(), ConfigError> {
    let scheduler = training.lr_scheduler_type.scheduler();
    let own = matches!(scheduler, Scheduler::CosineWarmupWithMinLr | Scheduler::WarmupStableDecay);
    let settings = reader.settings;
    let find = |key: &str| settings.find(Section::Training, key);
    if let Some(setting) = find("warmup_type") {
        let none = [Scheduler::Constant, Scheduler::ReduceLrOnPlateau].contains(&scheduler);
        let warms = !none && (training.warmup_steps > 0.0 || training.warmup_ratio > 0.0);
        // DeepSpeed's default goes with its own schedulers alone.
        let other = find("lr_scheduler_type").filter(|kind| kind.layer > setting.layer);
        if let Some(other) = other.filter(|_| setting.is_deepspeeds_default()) {
            training.warmup_type = WarmupType::Linear;
            reader.provenance.insert("warmup_type".to_owned(), format!("default, by {}", other.place));
        } else if training.warmup_type == WarmupType::Log && !own && !warms && !setting.is_deepspeeds_default() {
            reader.notes.push(no_effect(setting, "there is no warm-up"));
        }
    }
    let logarithmic = find("warmup_type").filter(|_| own && training.warmup_type == WarmupType::Log);
    let (Some(setting), Some(kind)) = (logarithmic, find("lr_scheduler_type")) else { return Ok(()) };
    let reason = format!("{scheduler} has a warm-up of its own");
    if kind.layer > setting.layer {
        reader.notes.push(no_effect(setting, &format!("{} ({}), and {reason}", kind.equation(), kind.place)));
        training.warmup_type = WarmupType::Linear;
        return Ok(());
    }
    let hint = format!("remove warmup_type; {scheduler} takes {} in {KWARGS}", taken(scheduler).join(", "));
    Err(setting.not_allowed(format!("lr_scheduler_type is {scheduler}, and {reason}"), Some(hint)))
}

/// A schedule falls from `learning_rate`, and so does not end above it.
fn check_end(reader: &Reader<'_>, training: &Training, kwargs: Option<&Setting>) -> Result<(), ConfigError> {
    let peak = training.learning_rate;
    let (name, end, below) = match training.lr_scheduler_type {
        ScheduleShape::Polynomial { lr_end, .. } => ("lr_end", lr_end, lr_end < peak),
        ScheduleShape::CosineWithMinLr { minimum: Minimum::Rate(rate), .. }
        | ScheduleShape::CosineWarmupWithMinLr { minimum: Minimum::Rate(rate), .. } => ("min_lr", rate, rate <= peak),
        ScheduleShape::ReduceLrOnPlateau(PlateauRule { min_lr, .. }) => ("min_lr", min_lr, min_lr <= peak),
        _ => return Ok(()),
    };
    if below {
        return Ok(());
    }
    let place = reader.provenance.get("learning_rate").map_or("default", String::as_str);
    let at_most = if name == "lr_end" { "below" } else { "at most" };
    let written = Given::of(training.lr_scheduler_type.scheduler(), kwargs)?;
    match written.find(name) {
        Some((_, setting)) => {
            Err(setting.not_allowed(format!("it must be {at_most} learning_rate, which is {peak} ({place})"), None))
        }
        // The default of `lr_end` is above a very small learning rate.
        None => {
            let hint = format!("set a lower one: --{KWARGS} '{{{name}: 0}}', or raise learning_rate above {end:e}");
            let keys = format!("{name} of {KWARGS}, whose default {end:e} is not below learning_rate {peak} ({place})");
            Err(ConfigError::Missing { keys, hint })
        }
    }
}
