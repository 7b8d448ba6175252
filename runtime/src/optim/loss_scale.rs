//! Dynamic loss scaling for float16 (Micikevicius et al., "Mixed Precision Training", 2018), by DeepSpeed's rules and
//! defaults.
//!
//! Small gradients vanish in float16, so the loss is multiplied by a power of two before backward and gradients are divided
//! by it before the optimizer. When they overflow, the step is skipped on every rank and the scale is halved; after a
//! window of steps without overflow it is doubled.

use serde::{Deserialize, Serialize};

/// The scale that a run starts with.
const INITIAL: f64 = 65536.0;
/// Steps without overflow after which the scale is doubled.
const WINDOW: u64 = 1000;
/// How many overflows it takes to halve the scale, until it is doubled again.
const HYSTERESIS: u32 = 2;
/// The scale is never below this.
const MINIMUM: f64 = 1.0;

/// The scale and what it depends on; part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// What the loss is multiplied by.
    pub scale: f64,
    /// Overflows left until the scale is halved, at least 1.
    hysteresis: u32,
    /// Steps since the last overflow, or since the start.
    steps_without_overflow: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale::new(INITIAL)
    }
}

impl LossScale {
    /// Begins at `scale`, a power of two.
    pub fn new(scale: f64) -> Self {
        LossScale { scale, hysteresis: HYSTERESIS, steps_without_overflow: 0 }
    }

    /// The scale for the step after one that overflowed.
    pub fn after_overflow(self) -> Self {
        let (scale, hysteresis) = match self.hysteresis {
            0 | 1 => ((self.scale / 2.0).max(MINIMUM), 1),
            more => (self.scale, more - 1),
        };
        LossScale { scale, hysteresis, steps_without_overflow: 0 }
    }

    /// The scale for the step after one that was taken.
    pub fn after_step(self) -> Self {
        let steps_without_overflow = self.steps_without_overflow + 1;
        if steps_without_overflow.is_multiple_of(WINDOW) {
            return LossScale { scale: self.scale * 2.0, hysteresis: HYSTERESIS, steps_without_overflow };
        }
        LossScale { steps_without_overflow, ..self }
    }

    /// Whether another overflow could be mended by a smaller scale.
    pub fn can_fall(self) -> bool {
        self.scale > MINIMUM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_overflow_halves_the_scale_and_so_does_every_later_one() {
        let mut state = LossScale::default();
        let scales: Vec<f64> = (0..4)
            .map(|_| {
                state = state.after_overflow().after_step();
                state.scale
            })
            .collect();
        assert_eq!(scales, [65536.0, 32768.0, 16384.0, 8192.0]);
    }

    #[test]
    fn a_window_without_overflow_doubles_it_and_restores_the_hysteresis() {
        let mut state = LossScale::default().after_overflow().after_overflow();
        assert_eq!(state.scale, 32768.0);
        for _ in 0..WINDOW - 1 {
            state = state.after_step();
        }
        assert_eq!(state.scale, 32768.0);
        state = state.after_step();
        assert_eq!(state.scale, 65536.0);
        assert_eq!(state.after_overflow().scale, 65536.0);
        assert_eq!(state.after_overflow().after_overflow().scale, 32768.0);
    }

    #[test]
    fn it_never_falls_below_the_minimum() {
        let mut state = LossScale::default();
        for _ in 0..40 {
            state = state.after_overflow();
        }
        assert_eq!(state.scale, MINIMUM);
        assert!(!state.can_fall());
    }
}
