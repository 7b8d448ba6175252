//! What the keys against forgetting make together.

use crate::data::Dataset;
use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::Reader;
use crate::training::Training;

/// What `ewc_samples` is where nobody says it.
const SAMPLES: u32 = 200;

/// Checks what goes together.
///
/// # Errors
/// Elastic weight consolidation without data to estimate on, or with weights of their sources.
pub(crate) fn settle(reader: &mut Reader<'_>, training: &Training) -> Result<(), ConfigError> {
    let settings = reader.settings;
    let find = |key: &str| settings.find(Section::Training, key);
    if training.estimates_fisher() {
        if training.ewc_dataset.is_none() {
            let hint = "ewc_lambda is more than 0: pass --ewc_dataset PATH, data like those whose knowledge is to stay, or set \
                        training.ewc_dataset";
            return Err(ConfigError::Missing { keys: "ewc_dataset".to_owned(), hint: hint.to_owned() });
        }
        if let Some(setting) = find("ewc_dataset")
            && training.ewc_dataset.as_ref().and_then(Dataset::weights).is_some()
        {
            let hint = "ewc_samples rows are taken evenly from all of them: leave out the weights";
            return Err(setting.not_allowed("its sources have weights", Some(hint.to_owned())));
        }
        return Ok(());
    }
    let place = find("ewc_lambda").map_or("default", |setting| setting.place.as_str());
    for (key, set) in
        [("ewc_dataset", training.ewc_dataset.is_some()), ("ewc_samples", training.ewc_samples != SAMPLES)]
    {
        if let Some(setting) = find(key).filter(|_| set) {
            reader.notes.push(no_effect(setting, &format!("ewc_lambda is 0 ({place})")));
        }
    }
    Ok(())
}

impl Training {
    /// Whether elastic weight consolidation needs the Fisher information.
    pub fn estimates_fisher(&self) -> bool {
        self.ewc_lambda > 0.0
    }

    /// Whether weights are mixed with those that the model came with.
    pub fn mixes(&self) -> bool {
        self.mixout_probability > 0.0
    }

    /// Whether the weights that the model came with are kept: to draw training toward them, or to mix them in.
    pub fn keeps_pretrained(&self) -> bool {
        self.l2_toward_pretrained > 0.0 || self.estimates_fisher() || self.mixes()
    }
}
