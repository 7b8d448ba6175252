//! Packing, and the order of rows: what one key makes of another.

use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::{Opinion, Reader, agree};
use crate::training::Training;
use crate::types::{PackingStrategy, Sampling};

/// Settles the keys that depend on each other: packs are never padded, as TRL has it, and not grouped by length.
///
/// # Errors
/// `group_by_length` and another `train_sampling_strategy` in one place.
pub(crate) fn settle(reader: &mut Reader<'_>, training: &mut Training) -> Result<(), ConfigError> {
    settle_order(reader, training)?;
    let settings = reader.settings;
    let find = |key: &str| settings.find(Section::Training, key);
    let packing = find("packing").map_or("the default", |setting| setting.place.as_str());
    if training.packing {
        if let Some(setting) = find("padding_free").filter(|_| !training.padding_free) {
            reader.notes.push(no_effect(setting, &format!("packs are never padded, and packing is true ({packing})")));
        }
        training.padding_free = true;
        reader.provenance.insert("padding_free".to_owned(), format!("packing ({packing})"));
    } else if let Some(setting) = find("packing_strategy")
        && !training.eval_packing
        && training.packing_strategy != PackingStrategy::Bfd
    {
        reader.notes.push(no_effect(setting, &format!("packing is false ({packing})")));
    }
    if training.packing && training.train_sampling_strategy == Sampling::GroupByLength {
        if let Some(setting) = find("group_by_length").or_else(|| find("train_sampling_strategy")) {
            let reason =
                format!("packs are of like length anyway, and packing is true ({packing}): the order is random");
            reader.notes.push(no_effect(setting, &reason));
        }
        training.train_sampling_strategy = Sampling::Random;
        reader.provenance.insert("train_sampling_strategy".to_owned(), format!("packing ({packing})"));
    }
    Ok(())
}

/// `group_by_length: true` is the trainers' older word for `train_sampling_strategy: group_by_length`.
fn settle_order(reader: &mut Reader<'_>, training: &mut Training) -> Result<(), ConfigError> {
    let switch = Reader::key("packing");
    let group = reader.opinion_of::<bool>(Section::Training, "group_by_length", switch)?;
    let group = group.filter(|group| group.value);
    let group = group.map(|group| Opinion { value: Sampling::GroupByLength, setting: group.setting });
    if let Some(held) = agree([reader.opinion("train_sampling_strategy")?, group])? {
        training.train_sampling_strategy = reader.settle("train_sampling_strategy", Some(held), Sampling::Random);
    }
    Ok(())
}
