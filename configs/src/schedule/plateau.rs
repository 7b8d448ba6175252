//! What `reduce_lr_on_plateau` takes: the parameters of PyTorch's `ReduceLROnPlateau`, by its names.

use super::parameters::Given;
use crate::error::ConfigError;
use crate::types::{PlateauMode, ThresholdMode};
use serde_yaml::Value;

/// When the rate falls, and how far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlateauRule {
    /// Which losses are better.
    pub mode: PlateauMode,
    /// What the rate is multiplied by.
    pub factor: f64,
    /// Evaluations in a row that may be no better before it falls.
    pub patience: u64,
    /// By how much a loss has to be better.
    pub threshold: f64,
    /// Whether that is a share of the best loss or a difference from it.
    pub threshold_mode: ThresholdMode,
    /// Evaluations after a fall in which none counts.
    pub cooldown: u64,
    /// The lowest rate.
    pub min_lr: f64,
    /// A fall by no more than this is left out.
    pub eps: f64,
}

impl Default for PlateauRule {
    fn default() -> Self {
        PlateauRule {
            mode: PlateauMode::Min,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Relative,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
        }
    }
}

impl PlateauRule {
    /// The defaults with what was given in their place.
    pub(super) fn read(given: &Given) -> Result<Self, ConfigError> {
        let mut rule = PlateauRule::default();
        let PlateauRule { mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps } = &mut rule;
        given.put("mode", mode)?;
        given.put("factor", factor)?;
        given.put("patience", patience)?;
        given.put("threshold", threshold)?;
        given.put("threshold_mode", threshold_mode)?;
        given.put("cooldown", cooldown)?;
        given.put("min_lr", min_lr)?;
        given.put("eps", eps)?;
        Ok(rule)
    }

    /// Every parameter by its name.
    pub(super) fn parameters(self) -> Vec<(&'static str, Value)> {
        let PlateauRule { mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps } = self;
        vec![
            ("mode", mode.name().into()),
            ("factor", factor.into()),
            ("patience", patience.into()),
            ("threshold", threshold.into()),
            ("threshold_mode", threshold_mode.name().into()),
            ("cooldown", cooldown.into()),
            ("min_lr", min_lr.into()),
            ("eps", eps.into()),
        ]
    }
}
