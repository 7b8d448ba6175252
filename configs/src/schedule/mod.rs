//! The shape of the learning rate over the optimizer steps: a schedule of transformers, with what `lr_scheduler_kwargs`
//! says of it.

mod parameters;
mod plateau;
mod settle;

pub(crate) use parameters::{PARAMETERS, SchedulerKwargs};
pub use plateau::PlateauRule;
pub(crate) use settle::settle;

use crate::error::ConfigError;
use crate::registry::{Kind, Section};
use crate::settings::{Layer, Setting};
use crate::types::{Curve, Scheduler};
use crate::value::FromValue;
use parameters::{Given, KWARGS};
use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

/// A schedule with its parameters. Variants are those of [`Scheduler`]; fields have transformers' names and meanings
/// (docs/schedules.md).
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Told", into = "Told")]
pub enum ScheduleShape {
    Linear,
    Cosine {
        num_cycles: f64,
    },
    CosineWithRestarts {
        num_cycles: u64,
    },
    CosineWithMinLr {
        num_cycles: f64,
        minimum: Minimum,
    },
    CosineWarmupWithMinLr {
        num_cycles: f64,
        minimum: Minimum,
        warmup_lr_rate: Option<f64>,
    },
    Polynomial {
        lr_end: f64,
        power: f64,
    },
    Constant,
    ConstantWithWarmup,
    InverseSqrt {
        timescale: Option<u64>,
    },
    WarmupStableDecay {
        num_stable_steps: Option<u64>,
        num_decay_steps: u64,
        warmup_type: Curve,
        decay_type: Curve,
        min_lr_ratio: f64,
        num_cycles: f64,
    },
    ReduceLrOnPlateau(PlateauRule),
}

/// The rate that a cosine ends at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Minimum {
    /// `min_lr`: this rate.
    Rate(f64),
    /// `min_lr_rate`: this share of the highest.
    Share(f64),
}

impl Minimum {
    /// As a share of `peak`, the highest rate.
    pub fn share(self, peak: f64) -> f64 {
        match self {
            Minimum::Share(share) => share,
            Minimum::Rate(rate) if rate < peak => rate / peak,
            Minimum::Rate(_) => 1.0,
        }
    }
}

/// How it is written: by its name, and where there is more to say with its parameters.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Told {
    Name(Scheduler),
    Whole { name: Scheduler, parameters: Mapping },
}

impl From<ScheduleShape> for Told {
    fn from(shape: ScheduleShape) -> Self {
        let (name, parameters) = (shape.scheduler(), shape.parameters());
        if parameters.is_empty() { Told::Name(name) } else { Told::Whole { name, parameters } }
    }
}

impl TryFrom<Told> for ScheduleShape {
    type Error = ConfigError;

    fn try_from(told: Told) -> Result<Self, ConfigError> {
        match told {
            Told::Name(name) => ScheduleShape::read(name, None),
            Told::Whole { name, parameters } => {
                let setting = Setting {
                    section: Section::Training,
                    key: KWARGS,
                    value: Value::Mapping(parameters),
                    layer: Layer::File,
                    place: "lr_scheduler_type".to_owned(),
                    original: None,
                    column: None,
                };
                ScheduleShape::read(name, Some(&setting))
            }
        }
    }
}

impl std::fmt::Display for ScheduleShape {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.scheduler().fmt(formatter)
    }
}

/// What has no default in the schedules that fall by themselves.
const REQUIRED: [&str; 3] = ["num_decay_steps", "min_lr", "min_lr_rate"];
/// transformers' default of `num_cycles`: half a wave, from the top to the bottom.
const HALF: f64 = 0.5;

impl ScheduleShape {
    /// Its name.
    pub fn scheduler(self) -> Scheduler {
        match self {
            ScheduleShape::Linear => Scheduler::Linear,
            ScheduleShape::Cosine { .. } => Scheduler::Cosine,
            ScheduleShape::CosineWithRestarts { .. } => Scheduler::CosineWithRestarts,
            ScheduleShape::CosineWithMinLr { .. } => Scheduler::CosineWithMinLr,
            ScheduleShape::CosineWarmupWithMinLr { .. } => Scheduler::CosineWarmupWithMinLr,
            ScheduleShape::Polynomial { .. } => Scheduler::Polynomial,
            ScheduleShape::Constant => Scheduler::Constant,
            ScheduleShape::ConstantWithWarmup => Scheduler::ConstantWithWarmup,
            ScheduleShape::InverseSqrt { .. } => Scheduler::InverseSqrt,
            ScheduleShape::WarmupStableDecay { .. } => Scheduler::WarmupStableDecay,
            ScheduleShape::ReduceLrOnPlateau(_) => Scheduler::ReduceLrOnPlateau,
        }
    }

    /// The schedule of this name with its defaults; what has none is 0.
    fn plain(scheduler: Scheduler) -> Self {
        let (num_cycles, minimum) = (HALF, Minimum::Share(0.0));
        match scheduler {
            Scheduler::Linear => ScheduleShape::Linear,
            Scheduler::Cosine => ScheduleShape::Cosine { num_cycles },
            Scheduler::CosineWithRestarts => ScheduleShape::CosineWithRestarts { num_cycles: 1 },
            Scheduler::CosineWithMinLr => ScheduleShape::CosineWithMinLr { num_cycles, minimum },
            Scheduler::CosineWarmupWithMinLr => {
                ScheduleShape::CosineWarmupWithMinLr { num_cycles, minimum, warmup_lr_rate: None }
            }
            Scheduler::Polynomial => ScheduleShape::Polynomial { lr_end: 1e-7, power: 1.0 },
            Scheduler::Constant => ScheduleShape::Constant,
            Scheduler::ConstantWithWarmup => ScheduleShape::ConstantWithWarmup,
            Scheduler::InverseSqrt => ScheduleShape::InverseSqrt { timescale: None },
            Scheduler::WarmupStableDecay => ScheduleShape::WarmupStableDecay {
                num_stable_steps: None,
                num_decay_steps: 0,
                warmup_type: Curve::Linear,
                decay_type: Curve::Cosine,
                min_lr_ratio: 0.0,
                num_cycles,
            },
            Scheduler::ReduceLrOnPlateau => ScheduleShape::ReduceLrOnPlateau(PlateauRule::default()),
        }
    }

    /// The schedule of this name with what `kwargs` says of it.
    fn read(scheduler: Scheduler, kwargs: Option<&Setting>) -> Result<Self, ConfigError> {
        let given = Given::of(scheduler, kwargs)?;
        let mut shape = Self::plain(scheduler);
        match &mut shape {
            ScheduleShape::Linear | ScheduleShape::Constant | ScheduleShape::ConstantWithWarmup => {}
            ScheduleShape::Cosine { num_cycles } => given.put("num_cycles", num_cycles)?,
            ScheduleShape::CosineWithRestarts { num_cycles } => given.put("num_cycles", num_cycles)?,
            ScheduleShape::CosineWithMinLr { num_cycles, minimum } => {
                given.put("num_cycles", num_cycles)?;
                *minimum = given.minimum()?;
            }
            ScheduleShape::CosineWarmupWithMinLr { num_cycles, minimum, warmup_lr_rate } => {
                given.put("num_cycles", num_cycles)?;
                *minimum = given.minimum()?;
                *warmup_lr_rate = given.get("warmup_lr_rate")?;
            }
            ScheduleShape::Polynomial { lr_end, power } => {
                given.put("lr_end", lr_end)?;
                given.put("power", power)?;
            }
            ScheduleShape::InverseSqrt { timescale } => *timescale = given.get("timescale")?,
            ScheduleShape::WarmupStableDecay {
                num_stable_steps,
                num_decay_steps,
                warmup_type,
                decay_type,
                min_lr_ratio,
                num_cycles,
            } => {
                *num_stable_steps = given.get("num_stable_steps")?;
                *num_decay_steps = given.get("num_decay_steps")?.ok_or_else(|| {
                    let hint = "'{num_decay_steps: 100}'; 10 to 20 % of the steps are usual";
                    given.missing("num_decay_steps", hint)
                })?;
                given.put("warmup_type", warmup_type)?;
                given.put("decay_type", decay_type)?;
                given.put("min_lr_ratio", min_lr_ratio)?;
                given.put("num_cycles", num_cycles)?;
            }
            ScheduleShape::ReduceLrOnPlateau(rule) => *rule = PlateauRule::read(&given)?,
        }
        Ok(shape)
    }

    /// Its parameters but for those that are what they would be if nobody had written them.
    pub fn parameters(self) -> Mapping {
        let plain = Self::plain(self.scheduler()).every_parameter();
        let told = |(name, value): &(&'static str, Value)| {
            !value.is_null() && (self.requires(name) || !plain.contains(&(*name, value.clone())))
        };
        self.every_parameter().into_iter().filter(told).map(|(name, value)| (Value::from(name), value)).collect()
    }

    /// Whether a parameter has no default, and is therefore always told.
    fn requires(self, name: &str) -> bool {
        REQUIRED.contains(&name) && !matches!(self, ScheduleShape::ReduceLrOnPlateau(_))
    }

    fn every_parameter(self) -> Vec<(&'static str, Value)> {
        let of_minimum = |minimum: Minimum| match minimum {
            Minimum::Rate(rate) => ("min_lr", Value::from(rate)),
            Minimum::Share(share) => ("min_lr_rate", Value::from(share)),
        };
        match self {
            ScheduleShape::Linear | ScheduleShape::Constant | ScheduleShape::ConstantWithWarmup => Vec::new(),
            ScheduleShape::Cosine { num_cycles } => vec![("num_cycles", num_cycles.into())],
            ScheduleShape::CosineWithRestarts { num_cycles } => vec![("num_cycles", num_cycles.into())],
            ScheduleShape::CosineWithMinLr { num_cycles, minimum } => {
                vec![("num_cycles", num_cycles.into()), of_minimum(minimum)]
            }
            ScheduleShape::CosineWarmupWithMinLr { num_cycles, minimum, warmup_lr_rate } => vec![
                ("num_cycles", num_cycles.into()),
                of_minimum(minimum),
                ("warmup_lr_rate", warmup_lr_rate.map_or(Value::Null, Value::from)),
            ],
            ScheduleShape::Polynomial { lr_end, power } => vec![("lr_end", lr_end.into()), ("power", power.into())],
            ScheduleShape::InverseSqrt { timescale } => {
                vec![("timescale", timescale.map_or(Value::Null, Value::from))]
            }
            ScheduleShape::WarmupStableDecay {
                num_stable_steps,
                num_decay_steps,
                warmup_type,
                decay_type,
                min_lr_ratio,
                num_cycles,
            } => vec![
                ("num_stable_steps", num_stable_steps.map_or(Value::Null, Value::from)),
                ("num_decay_steps", num_decay_steps.into()),
                ("warmup_type", warmup_type.name().into()),
                ("decay_type", decay_type.name().into()),
                ("min_lr_ratio", min_lr_ratio.into()),
                ("num_cycles", num_cycles.into()),
            ],
            ScheduleShape::ReduceLrOnPlateau(rule) => rule.parameters(),
        }
    }
}

/// By its name alone; [`settle`] adds the parameters.
impl FromValue for ScheduleShape {
    const KIND: Kind = Scheduler::KIND;

    fn from_value(value: &Value) -> Option<Self> {
        Scheduler::from_value(value).map(ScheduleShape::plain)
    }
}
