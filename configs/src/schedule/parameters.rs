//! `lr_scheduler_kwargs`: what each schedule takes, and reading it.

use super::Minimum;
use crate::error::ConfigError;
use crate::registry::{Allowed, DefaultValue, Group, Key, Kind, Section, nearest};
use crate::settings::{Original, Reader, Setting};
use crate::types::{Curve, PlateauMode, Scheduler, ThresholdMode};
use crate::value::{FromValue, text};
use serde_yaml::{Mapping, Value};

/// What `lr_scheduler_kwargs` was given: names and values, not yet looked at.
pub(crate) struct SchedulerKwargs(Mapping);

impl SchedulerKwargs {
    /// What it has to be, to follow "it must be".
    pub(crate) const WORDS: &'static str = "a mapping as {NAME: VALUE}, such as {num_cycles: 2}";
}

impl FromValue for SchedulerKwargs {
    const KIND: Kind = Kind::Parameters;

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Mapping(mapping) => Some(SchedulerKwargs(mapping.clone())),
            // A flag has it as text, YAML or JSON.
            Value::String(text) if text.trim_start().starts_with('{') => {
                serde_yaml::from_str(text).ok().map(SchedulerKwargs)
            }
            _ => None,
        }
    }
}

pub(super) const KWARGS: &str = "lr_scheduler_kwargs";

const fn parameter(name: &'static str, kind: Kind, allowed: Allowed, help: &'static str) -> Key {
    let default = DefaultValue::Unset;
    Key { name, section: Section::Training, kind, default, allowed, group: Group::Optimizer, help }
}

const SHARE: Allowed = Allowed::Between(0.0, 1.0);
const STEPS: Allowed = Allowed::AtLeast(0.0);
const CURVE: Kind = Kind::Choice(Curve::NAMES);

/// Every parameter of a schedule.
pub(crate) const PARAMETERS: &[Key] = &[
    parameter(
        "num_cycles",
        Kind::Number,
        Allowed::Above(0.0),
        "Waves of the cosine; with restarts, how often it falls",
    ),
    parameter("min_lr", Kind::Number, Allowed::AtLeast(0.0), "The lowest rate: the cosine ends at it"),
    parameter("min_lr_rate", Kind::Number, SHARE, "Where the cosine ends, as a share of the highest rate"),
    parameter("warmup_lr_rate", Kind::Number, SHARE, "Where the warm-up begins, as a share of the highest rate"),
    parameter("lr_end", Kind::Number, Allowed::AtLeast(0.0), "The rate that the polynomial ends at"),
    parameter("power", Kind::Number, Allowed::Above(0.0), "The power of the polynomial"),
    parameter("timescale", Kind::Integer, Allowed::AtLeast(1.0), "Steps after which the rate is divided by √2"),
    parameter("num_stable_steps", Kind::Integer, STEPS, "Steps at the highest rate; what warm-up and decay leave"),
    parameter("num_decay_steps", Kind::Integer, STEPS, "Steps of the decay"),
    parameter("warmup_type", CURVE, Allowed::Any, "How the rate rises in the warm-up"),
    parameter("decay_type", CURVE, Allowed::Any, "How it falls in the decay"),
    parameter("min_lr_ratio", Kind::Number, SHARE, "Where both begin and end, as a share of the highest rate"),
    parameter("mode", Kind::Choice(PlateauMode::NAMES), Allowed::Any, "Which held-out losses are better"),
    parameter("factor", Kind::Number, Allowed::HalfOpen(0.0, 1.0), "What the rate is multiplied by on a plateau"),
    parameter("patience", Kind::Integer, STEPS, "Evaluations in a row that may be no better before the rate falls"),
    parameter("threshold", Kind::Number, Allowed::AtLeast(0.0), "By how much a held-out loss has to be better"),
    parameter(
        "threshold_mode",
        Kind::Choice(ThresholdMode::NAMES),
        Allowed::Any,
        "Whether that is a share of the best",
    ),
    parameter("cooldown", Kind::Integer, STEPS, "Evaluations after a fall in which none counts"),
    parameter("eps", Kind::Number, Allowed::AtLeast(0.0), "A fall of the rate by no more than this is left out"),
];
/// Restarts are counted.
const RESTARTS: Key = parameter("num_cycles", Kind::Integer, Allowed::AtLeast(1.0), "");

/// The names of what a schedule takes.
pub(super) fn taken(scheduler: Scheduler) -> &'static [&'static str] {
    match scheduler {
        Scheduler::Linear | Scheduler::Constant | Scheduler::ConstantWithWarmup => &[],
        Scheduler::Cosine | Scheduler::CosineWithRestarts => &["num_cycles"],
        Scheduler::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
        Scheduler::CosineWarmupWithMinLr => &["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"],
        Scheduler::Polynomial => &["lr_end", "power"],
        Scheduler::InverseSqrt => &["timescale"],
        Scheduler::WarmupStableDecay => {
            &["num_stable_steps", "num_decay_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"]
        }
        Scheduler::ReduceLrOnPlateau => {
            &["mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"]
        }
    }
}

/// Parameters that were given, each one that the schedule takes.
pub(super) struct Given {
    scheduler: Scheduler,
    settings: Vec<(Key, Setting)>,
}

impl Given {
    pub(super) fn of(scheduler: Scheduler, kwargs: Option<&Setting>) -> Result<Self, ConfigError> {
        let mut settings = Vec::new();
        let Some(kwargs) = kwargs else { return Ok(Given { scheduler, settings }) };
        let mapping =
            kwargs.read::<Option<SchedulerKwargs>>(Reader::key(KWARGS))?.map(|SchedulerKwargs(mapping)| mapping);
        for (name, value) in mapping.unwrap_or_default() {
            let name = text(&name).unwrap_or_default();
            let known = PARAMETERS.iter().find(|known| known.name == name && taken(scheduler).contains(&known.name));
            let Some(known) = known.copied() else { return Err(unknown(scheduler, &name, kwargs)) };
            let known = if scheduler == Scheduler::CosineWithRestarts { RESTARTS } else { known };
            let path = format!("{}.{name}", kwargs.path());
            let original = Some(Original { path, value: None });
            // Null leaves it to the default, as None does in transformers.
            if !value.is_null() {
                settings.push((known, Setting { key: known.name, value, original, ..kwargs.clone() }));
            }
        }
        Ok(Given { scheduler, settings })
    }

    pub(super) fn find(&self, name: &str) -> Option<&(Key, Setting)> {
        self.settings.iter().find(|(known, _)| known.name == name)
    }

    pub(super) fn get<T: FromValue>(&self, name: &str) -> Result<Option<T>, ConfigError> {
        self.find(name).map(|(known, setting)| setting.read(known)).transpose()
    }

    /// Puts a parameter in the place of its default where it was given.
    pub(super) fn put<T: FromValue>(&self, name: &str, place: &mut T) -> Result<(), ConfigError> {
        if let Some(value) = self.get(name)? {
            *place = value;
        }
        Ok(())
    }

    pub(super) fn minimum(&self) -> Result<Minimum, ConfigError> {
        if let (Some((_, rate)), Some((_, share))) = (self.find("min_lr"), self.find("min_lr_rate")) {
            return Err(rate.conflict(share, "both say where the cosine ends: keep one"));
        }
        let share = self.get("min_lr_rate")?.map(Minimum::Share);
        let minimum = self.get("min_lr")?.map(Minimum::Rate).or(share);
        minimum.ok_or_else(|| self.missing("min_lr or min_lr_rate", "'{min_lr_rate: 0.1}'"))
    }

    pub(super) fn missing(&self, names: &str, example: &str) -> ConfigError {
        let hint = format!("lr_scheduler_type {} needs it: for example --{KWARGS} {example}", self.scheduler);
        ConfigError::Missing { keys: format!("{names} of {KWARGS}"), hint }
    }
}

fn unknown(scheduler: Scheduler, name: &str, kwargs: &Setting) -> ConfigError {
    let takes = match taken(scheduler) {
        [] => format!("{scheduler} takes none: remove {KWARGS}, or set it to null"),
        names => format!("{scheduler} takes {}", names.join(", ")),
    };
    let others = Scheduler::ALL.iter().filter(|other| taken(**other).contains(&name)).map(|other| other.name());
    let others = others.collect::<Vec<_>>().join(", ");
    let meant = match nearest(name, taken(scheduler).iter().copied()) {
        Some(near) => format!("did you mean {near}? "),
        None if !others.is_empty() => format!("{name} is of {others}; "),
        None => String::new(),
    };
    ConfigError::UnknownKey {
        key: crate::value::quoted(name),
        place: kwargs.exact_place(),
        section: format!(" in {KWARGS} of {scheduler}"),
        hint: format!("{meant}{takes}"),
    }
}
