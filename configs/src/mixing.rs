//! Several sources of rows: what goes together with their weights.

use crate::data::Dataset;
use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::Reader;
use crate::training::Training;
use crate::types::StoppingStrategy;

/// Checks what is said of how sources are mixed.
///
/// # Errors
/// Weights of held-out sources; weights beside a temperature.
pub(crate) fn settle(reader: &mut Reader<'_>, training: &Training) -> Result<(), ConfigError> {
    let settings = reader.settings;
    let find = |key: &str| settings.find(Section::Training, key);
    let weighted = training.dataset.weights().is_some();
    if let Some(setting) = find("eval_dataset")
        && training.eval_dataset.as_ref().and_then(Dataset::weights).is_some()
    {
        let hint = "held-out rows are all evaluated, whatever source they are of: leave out the weights";
        return Err(setting.not_allowed("its sources have weights", Some(hint.to_owned())));
    }
    let several = training.dataset.sources().len() > 1;
    if let Some(setting) = find("dataset").filter(|_| weighted && !several) {
        reader
            .notes
            .push(format!("{} ({}): the weight has no effect: there is one source", setting.key, setting.place));
    }
    if let Some(setting) = find("mixing_temperature") {
        if weighted {
            let place = find("dataset").map_or("default", |setting| setting.place.as_str());
            let hint = "both say how much of each source there is: keep one of the two".to_owned();
            return Err(setting.not_allowed(format!("the sources of dataset have weights ({place})"), Some(hint)));
        }
        if !several {
            reader.notes.push(no_effect(setting, "dataset has one source"));
        }
    }
    if let Some(setting) = find("stopping_strategy")
        && training.stopping_strategy != StoppingStrategy::FirstExhausted
        && (!several || !weighted && training.mixing_temperature.is_none())
    {
        reader.notes.push(no_effect(setting, "without weights or mixing_temperature an epoch has every row once"));
    }
    Ok(())
}
