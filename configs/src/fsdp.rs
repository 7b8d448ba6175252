//! FSDP's words for what is sharded, as ZeRO stages.

use crate::error::ConfigError;
use crate::registry::Section;
use crate::settings::{Opinion, Reader, Setting, agree};
use crate::types::Stage;
use crate::value::{FromValue, text};
use serde_yaml::Value;

const STRATEGY: &str = "fsdp_sharding_strategy";
const RESHARD: &str = "fsdp_reshard_after_forward";

/// The stage that `fsdp_config` asks for, and the setting that says so; none when the default holds.
pub(crate) fn stage<'a>(reader: &mut Reader<'a>) -> Result<(Stage, Option<&'a Setting>), ConfigError> {
    let settings = reader.settings;
    let strategy = settings.find(Section::Fsdp, STRATEGY);
    let reshard = settings.find(Section::Fsdp, RESHARD);
    let held = match version(settings.find(Section::Fsdp, "fsdp_version"))? {
        1 => {
            let strategy = strategy.map(|setting| by_name(setting, "")).transpose()?;
            let reshard = reshard.map(|setting| by_name(setting, "fsdp_version: 2 takes true or false")).transpose()?;
            agree([strategy, reshard])?
        }
        _ => version_two(strategy, reshard)?,
    };
    let (stage, setting) = match held {
        Some(held) => (held.value, Some(held.setting)),
        None => (Stage::Three, None),
    };
    if let (Stage::Two, Some(setting)) = (stage, setting) {
        reader.notes.push(format!(
            "{} ({}) is trained as ZeRO stage 2: parameters stay whole between steps, where FSDP shards them",
            setting.equation(),
            setting.place
        ));
    }
    Ok((stage, setting))
}

fn version(setting: Option<&Setting>) -> Result<u8, ConfigError> {
    let Some(setting) = setting else { return Ok(1) };
    match u8::from_value(&setting.value) {
        Some(version @ (1 | 2)) => Ok(version),
        _ => Err(setting.not_allowed("it must be 1 or 2", None)),
    }
}

/// Version 1: a strategy by name or number.
fn by_name<'a>(setting: &'a Setting, other_form: &str) -> Result<Opinion<'a, Stage>, ConfigError> {
    let hint = (!other_form.is_empty()).then(|| other_form.to_owned());
    let name = match &setting.value {
        Value::Bool(_) => None,
        value => text(value).map(|text| text.to_uppercase()),
    };
    let value = match name.as_deref() {
        Some("FULL_SHARD" | "1") => Stage::Three,
        Some("SHARD_GRAD_OP" | "2") => Stage::Two,
        Some("NO_SHARD" | "3") => Stage::Zero,
        Some("HYBRID_SHARD" | "4" | "HYBRID_SHARD_ZERO2" | "5") => {
            return Err(setting.not_built("use FULL_SHARD or SHARD_GRAD_OP"));
        }
        _ => {
            let allowed = "it must be FULL_SHARD (1), SHARD_GRAD_OP (2) or NO_SHARD (3)";
            return Err(setting.not_allowed(allowed, hint));
        }
    };
    Ok(Opinion { value, setting })
}

/// Version 2: whether parameters are freed after the forward pass. A strategy beside it is a leftover of version 1 and
/// must not say otherwise.
fn version_two<'a>(
    strategy: Option<&'a Setting>,
    reshard: Option<&'a Setting>,
) -> Result<Option<Opinion<'a, Stage>>, ConfigError> {
    let reshard = reshard.map(reshard_stage).transpose()?;
    let Some(strategy) = strategy.map(|setting| by_name(setting, "")).transpose()? else {
        return Ok(reshard);
    };
    let advice = "fsdp_version: 2 is told by fsdp_reshard_after_forward alone (true: stage 3, false: stage 2)";
    match reshard {
        Some(reshard) if reshard.value != strategy.value && reshard.setting.layer == strategy.setting.layer => {
            Err(strategy.setting.conflict(reshard.setting, advice))
        }
        None if strategy.value != Stage::Three => {
            Err(strategy.setting.not_allowed("it has no meaning with fsdp_version: 2", Some(advice.to_owned())))
        }
        reshard => Ok(reshard),
    }
}

fn reshard_stage(setting: &Setting) -> Result<Opinion<'_, Stage>, ConfigError> {
    if crate::value::number(&setting.value).is_some() {
        return Err(setting.not_built("use true (freed after the forward pass) or false"));
    }
    match bool::from_value(&setting.value) {
        Some(true) => Ok(Opinion { value: Stage::Three, setting }),
        Some(false) => Ok(Opinion { value: Stage::Two, setting }),
        None => {
            let hint = "FULL_SHARD is true and SHARD_GRAD_OP is false, or use fsdp_version: 1";
            Err(setting.not_allowed("with fsdp_version: 2 it must be true or false", Some(hint.to_owned())))
        }
    }
}
