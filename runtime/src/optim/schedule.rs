//! Learning-rate schedules, by the formulas of transformers' `get_scheduler`, and the warm-up of DeepSpeed's.

use super::OptimError;
use std::f64::consts::PI;
use zerofold_configs::{Curve, Minimum, ScheduleShape, WarmupType};

/// A learning rate for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub shape: ScheduleShape,
    /// The highest rate.
    pub peak: f64,
    /// Steps in which the rate rises to it.
    pub warmup_steps: u64,
    /// How it rises, where the shape has no warm-up of its own.
    pub warmup: WarmupType,
    /// Steps in all.
    pub total_steps: u64,
}

/// `inverse_sqrt` without a warm-up has this time scale.
const TIMESCALE: f64 = 10_000.0;

impl Schedule {
    /// The rate of the step after `finished` finished ones. As in transformers the first step of a warm-up has rate 0, but for
    /// shapes that have a warm-up of their own.
    ///
    /// # Errors
    /// A rate below 0, or none at all, which would spoil the weights in silence. No value that a configuration accepts makes one.
    pub fn rate(&self, finished: u64) -> Result<f64, OptimError> {
        let rate = self.peak * self.share(finished as f64);
        match rate.is_finite() && rate >= 0.0 {
            true => Ok(rate),
            false => Err(OptimError::Rate { schedule: self.shape.scheduler(), step: finished + 1, rate }),
        }
    }

    /// The rate as a share of the highest one.
    fn share(&self, now: f64) -> f64 {
        let (total, warmup) = (self.total_steps as f64, self.warmed_up());
        let rest = (total - warmup).max(1.0);
        match self.shape {
            // What becomes of it on a plateau no step tells.
            ScheduleShape::Constant | ScheduleShape::ReduceLrOnPlateau(_) => 1.0,
            ScheduleShape::WarmupStableDecay { .. } => self.stable(now),
            ScheduleShape::CosineWarmupWithMinLr { num_cycles, minimum, warmup_lr_rate } => match warmup_lr_rate {
                None if now < warmup => (now + 1.0) / warmup,
                Some(first) if now < warmup => first + (1.0 - first) * now / (warmup - 1.0).max(1.0),
                _ => above(minimum.share(self.peak), wave(num_cycles, (now - warmup + 1.0) / rest)),
            },
            _ if now < warmup => self.rising(now),
            ScheduleShape::ConstantWithWarmup => 1.0,
            ScheduleShape::Linear => ((total - now) / rest).max(0.0),
            ScheduleShape::Cosine { num_cycles } => wave(num_cycles, (now - warmup) / rest),
            ScheduleShape::CosineWithRestarts { num_cycles } => match (now - warmup) / rest {
                done if done >= 1.0 => 0.0,
                done => 0.5 * (1.0 + (PI * ((num_cycles as f64 * done) % 1.0)).cos()),
            },
            ScheduleShape::CosineWithMinLr { num_cycles, minimum } => {
                above(minimum.share(self.peak), wave(num_cycles, (now - warmup) / rest))
            }
            ScheduleShape::Polynomial { lr_end, power } => {
                let left = (1.0 - (now - warmup) / rest).max(0.0);
                above(Minimum::Rate(lr_end).share(self.peak), left.powf(power))
            }
            ScheduleShape::InverseSqrt { timescale } => {
                let plain = if warmup > 0.0 { warmup } else { TIMESCALE };
                let timescale = timescale.map_or(plain, |steps| steps as f64);
                (timescale / (now - warmup + timescale)).sqrt()
            }
        }
    }

    /// Steps of the warm-up.
    fn warmed_up(&self) -> f64 {
        match (self.warmup, self.warmup_steps) {
            // A warm-up of one step would be divided by the logarithm of 1.
            (WarmupType::Log, 1) => 2.0,
            (_, steps) => steps as f64,
        }
    }

    /// The share in the warm-up.
    fn rising(&self, now: f64) -> f64 {
        let warmup = self.warmed_up();
        match self.warmup {
            WarmupType::Linear => now / warmup,
            WarmupType::Log => (now + 1.0).ln() / warmup.ln(),
        }
    }

    /// The share of `warmup_stable_decay`: warm-up and decay are between the lowest rate and the highest.
    fn stable(&self, now: f64) -> f64 {
        let ScheduleShape::WarmupStableDecay {
            num_stable_steps,
            num_decay_steps,
            warmup_type,
            decay_type,
            min_lr_ratio,
            num_cycles,
        } = self.shape
        else {
            return 1.0;
        };
        let (total, warmup, decay) = (self.total_steps as f64, self.warmup_steps as f64, num_decay_steps as f64);
        // Below 0 where warm-up and decay are more than all steps: the decay then has begun in the warm-up.
        let decay_from = warmup + num_stable_steps.map_or(total - warmup - decay, |steps| steps as f64);
        if now < warmup {
            let done = now / warmup;
            above(
                min_lr_ratio,
                match warmup_type {
                    Curve::Linear => done,
                    Curve::Cosine => 0.5 * (1.0 - (PI * done).cos()),
                    Curve::OneMinusSqrt => 1.0 - (1.0 - done).sqrt(),
                },
            )
        } else if now < decay_from {
            1.0
        } else if now < decay_from + decay {
            let done = (now - decay_from) / decay;
            above(
                min_lr_ratio,
                match decay_type {
                    Curve::Linear => 1.0 - done,
                    Curve::Cosine => wave(num_cycles, done),
                    Curve::OneMinusSqrt => 1.0 - done.sqrt(),
                },
            )
        } else {
            min_lr_ratio
        }
    }
}

/// So many waves of a cosine, from 1 on: half a wave ends at 0.
fn wave(cycles: f64, done: f64) -> f64 {
    (0.5 * (1.0 + (PI * cycles * 2.0 * done).cos())).max(0.0)
}

/// What goes from 0 to 1, from `lowest` to 1.
fn above(lowest: f64, share: f64) -> f64 {
    share * (1.0 - lowest) + lowest
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
