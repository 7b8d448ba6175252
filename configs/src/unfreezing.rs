//! What the keys of `freeze`, `parameter_groups`, gradual unfreezing and the rates of layers make together.

use crate::error::ConfigError;
use crate::freezing::Freeze;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::Reader;
use crate::training::Training;
use crate::types::{Strategy, UnfreezingStart};

/// Checks what goes together.
///
/// # Errors
/// A decay of rates by layer of 0; unfreezing by steps that does not say by how many; unfreezing of what is frozen for good;
/// rates of groups where the job's is 0.
pub(crate) fn settle(reader: &mut Reader<'_>, training: &Training) -> Result<(), ConfigError> {
    let settings = reader.settings;
    let find = |key: &str| settings.find(Section::Training, key);
    let key = "layer_wise_learning_rate_decay";
    if let Some(setting) = find(key).filter(|_| training.layer_wise_learning_rate_decay == 0.0) {
        let hint = "all layers but the top one would stay as they are: freeze says that, and saves time and memory";
        return Err(setting.not_allowed("it must be more than 0", Some(hint.to_owned())));
    }
    if let Some(setting) = find("parameter_groups")
        && training.learning_rate == 0.0
        && training.groups().iter().any(|rule| rule.learning_rate.is_some_and(|rate| rate > 0.0))
    {
        let hint = "a group's rate follows the job's schedule, whose learning_rate is 0: give it the highest of them";
        return Err(setting.not_allowed("learning_rate is 0", Some(hint.to_owned())));
    }
    let strategy = find("gradual_unfreezing").filter(|_| training.gradual_unfreezing != Strategy::No);
    if let Some(strategy) = strategy {
        if let Some(freeze) = find("freeze").filter(|_| training.freeze == Some(Freeze::AllButHead)) {
            return Err(strategy.conflict(freeze, "gradual unfreezing begins with the head by itself: remove freeze"));
        }
        if training.gradual_unfreezing == Strategy::Steps && training.gradual_unfreezing_steps.is_none() {
            let hint = "gradual_unfreezing is steps: pass --gradual_unfreezing_steps N, the steps between two openings";
            let keys = "gradual_unfreezing_steps".to_owned();
            return Err(ConfigError::Missing { keys, hint: hint.to_owned() });
        }
    }
    let place = find("gradual_unfreezing").map_or("default", |setting| setting.place.as_str());
    let mut unread = |key: &str, set: bool, reason: &str| {
        if let Some(setting) = find(key).filter(|_| set) {
            reader.notes.push(no_effect(setting, &format!("{reason} ({place})")));
        }
    };
    let off = training.gradual_unfreezing == Strategy::No;
    if off {
        unread("gradual_unfreezing_start", training.gradual_unfreezing_start != UnfreezingStart::TopLayer, OFF);
        unread("gradual_unfreezing_embeddings", training.gradual_unfreezing_embeddings, OFF);
    }
    let by_steps = training.gradual_unfreezing == Strategy::Steps;
    let reason = if off { OFF } else { "gradual_unfreezing is epoch" };
    unread("gradual_unfreezing_steps", !by_steps && training.gradual_unfreezing_steps.is_some(), reason);
    Ok(())
}

const OFF: &str = "gradual_unfreezing is no";

impl Training {
    /// The entries of `parameter_groups`.
    pub fn groups(&self) -> &[crate::freezing::GroupRule] {
        self.parameter_groups.as_ref().map_or(&[], |groups| groups.rules())
    }

    /// How often gradual unfreezing has opened something by the step that follows `steps` finished ones and belongs to
    /// `epoch`; both count from 0.
    pub fn openings(&self, epoch: u64, steps: u64) -> u32 {
        let openings = match self.gradual_unfreezing {
            Strategy::No => 0,
            Strategy::Epoch => epoch,
            Strategy::Steps => steps / u64::from(self.gradual_unfreezing_steps.unwrap_or(u32::MAX).max(1)),
        };
        u32::try_from(openings).unwrap_or(u32::MAX)
    }
}
