//! FSDP's words for what is sharded: the strategies of version 1, and `fsdp_reshard_after_forward` of version 2.

use crate::accelerate::DistributedType;
use crate::error::ConfigError;
use crate::registry::Section;
use crate::settings::{Opinion, Reader, Setting, agree};
use crate::sharding::{ReshardAfterForward, Stage};
use crate::types::{FsdpStrategy, StateDictType};
use crate::value::{FromValue, number};

const STRATEGY: &str = "fsdp_sharding_strategy";
const RESHARD: &str = "fsdp_reshard_after_forward";
const VERSION: &str = "fsdp_version";
const STATE_DICT: &str = "fsdp_state_dict_type";

/// What one of the keys above asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strategy {
    pub stage: Stage,
    pub reshard: ReshardAfterForward,
    /// Whether several copies of everything sharded were asked for (HYBRID_SHARD), or one alone (FULL_SHARD);
    /// `None` when the key says nothing of it.
    pub hybrid: Option<bool>,
}

impl Strategy {
    /// `stage` as DeepSpeed has it.
    pub(crate) fn of(stage: Stage) -> Self {
        Strategy { stage, reshard: ReshardAfterForward::Always(true), hybrid: None }
    }
}

impl From<FsdpStrategy> for Strategy {
    fn from(name: FsdpStrategy) -> Self {
        // FSDP keeps parameters as shards between steps with SHARD_GRAD_OP too: that is not DeepSpeed's stage 2.
        let (stage, reshard, hybrid) = match name {
            FsdpStrategy::FullShard => (Stage::Three, true, false),
            FsdpStrategy::ShardGradOp => (Stage::Three, false, false),
            FsdpStrategy::NoShard => (Stage::Zero, true, false),
            FsdpStrategy::HybridShard => (Stage::Three, true, true),
            FsdpStrategy::HybridShardZero2 => (Stage::Three, false, true),
        };
        Strategy { stage, reshard: ReshardAfterForward::Always(reshard), hybrid: Some(hybrid) }
    }
}

/// The strategy that the keys which count ask for; `None` when they say nothing.
pub(crate) fn strategy<'a>(
    reader: &Reader<'a>,
    distributed: &DistributedType<'a>,
) -> Result<Option<Opinion<'a, Strategy>>, ConfigError> {
    let strategy = distributed.find(reader, Section::Fsdp, STRATEGY);
    let reshard = distributed.find(reader, Section::Fsdp, RESHARD);
    // Only version 2 has true and false, so they need not say which version they are of.
    let switch = reshard.is_some_and(|setting| number(&setting.value).is_none() && switch(setting).is_some());
    match version(reader, distributed)? {
        Some(2) => version_two(strategy, reshard),
        None if switch => version_two(strategy, reshard),
        _ => agree([strategy.map(by_name).transpose()?, reshard.map(reshard_by_name).transpose()?]),
    }
}

/// `fsdp_version`, when it is set and counts.
pub(crate) fn version<'a>(reader: &Reader<'a>, distributed: &DistributedType<'a>) -> Result<Option<u8>, ConfigError> {
    let Some(setting) = distributed.find(reader, Section::Fsdp, VERSION) else { return Ok(None) };
    match u8::from_value(&setting.value) {
        Some(version @ (1 | 2)) => Ok(Some(version)),
        _ => Err(setting.not_allowed("it must be 1 or 2", None)),
    }
}

/// What a save writes. Version 2 has two of the names.
pub(crate) fn state_dict_type<'a>(
    reader: &mut Reader<'a>,
    distributed: &DistributedType<'a>,
) -> Result<StateDictType, ConfigError> {
    let held = match distributed.find(reader, Section::Fsdp, STATE_DICT) {
        Some(setting) => {
            let value: StateDictType = setting.read(Reader::key(STATE_DICT))?;
            if value == StateDictType::Local && version(reader, distributed)? == Some(2) {
                let allowed = "with fsdp_version: 2 it must be FULL_STATE_DICT or SHARDED_STATE_DICT";
                return Err(setting.not_allowed(allowed, None));
            }
            Some(Opinion { value, setting })
        }
        None => None,
    };
    Ok(reader.settle("state_dict_type", held, StateDictType::Sharded))
}

/// A strategy by name or number.
fn by_name(setting: &Setting) -> Result<Opinion<'_, Strategy>, ConfigError> {
    let name: FsdpStrategy = setting.read(Reader::key(STRATEGY))?;
    Ok(Opinion { value: name.into(), setting })
}

/// Version 1: a strategy by name, under the key that Accelerate's wizard writes. A number would be a group's size in
/// version 2, so none is taken here.
fn reshard_by_name(setting: &Setting) -> Result<Opinion<'_, Strategy>, ConfigError> {
    let other_version = "fsdp_version: 2 takes true or false, or the size of a group";
    match (number(&setting.value), switch(setting)) {
        (None, None) => {
            let name: FsdpStrategy = setting.read(Reader::key(STRATEGY))?;
            Ok(Opinion { value: name.into(), setting })
        }
        _ => {
            let names = FsdpStrategy::NAMES.join(", ");
            let allowed = format!("with fsdp_version: 1 it must be one of {names}");
            Err(setting.not_allowed(allowed, Some(other_version.to_owned())))
        }
    }
}

/// Version 2: what becomes of the parameters after the forward pass. A strategy beside it is a leftover of version 1
/// and must not say otherwise.
fn version_two<'a>(
    strategy: Option<&'a Setting>,
    reshard: Option<&'a Setting>,
) -> Result<Option<Opinion<'a, Strategy>>, ConfigError> {
    let reshard = reshard.map(reshard_by_value).transpose()?;
    let Some(strategy) = strategy.map(by_name).transpose()? else {
        return Ok(reshard);
    };
    let advice = "fsdp_version: 2 is told by fsdp_reshard_after_forward alone (true: FULL_SHARD, false: SHARD_GRAD_OP), \
        copies by parallelism_config_dp_replicate_size";
    let kept = |strategy: &Strategy| strategy.reshard == ReshardAfterForward::Always(false);
    let Some(mut reshard) = reshard else {
        return match strategy.value.stage == Stage::Three && !kept(&strategy.value) {
            true => Ok(Some(Opinion {
                value: Strategy { hybrid: version_two_hybrid(&strategy), ..strategy.value },
                ..strategy
            })),
            false => {
                Err(strategy.setting.not_allowed("it has no meaning with fsdp_version: 2", Some(advice.to_owned())))
            }
        };
    };
    let same = strategy.value.stage == Stage::Three && kept(&strategy.value) == kept(&reshard.value);
    if !same && strategy.setting.layer >= reshard.setting.layer {
        return Err(strategy.setting.conflict(reshard.setting, advice));
    }
    reshard.value.hybrid = version_two_hybrid(&strategy).filter(|_| same);
    Ok(Some(reshard))
}

/// A leftover FULL_SHARD says nothing of copies: version 2 has them from `parallelism_config`.
fn version_two_hybrid(strategy: &Opinion<'_, Strategy>) -> Option<bool> {
    strategy.value.hybrid.filter(|hybrid| *hybrid)
}

fn switch(setting: &Setting) -> Option<bool> {
    bool::from_value(&setting.value)
}

fn reshard_by_value(setting: &Setting) -> Result<Opinion<'_, Strategy>, ConfigError> {
    let reshard = match (number(&setting.value), u32::from_value(&setting.value), switch(setting)) {
        // Whether the size fits is known once the ranks of one copy are.
        (Some(_), Some(ranks), _) => ReshardAfterForward::Group(ranks),
        (None, _, Some(always)) => ReshardAfterForward::Always(always),
        _ => {
            let hint = "FULL_SHARD is true and SHARD_GRAD_OP is false, or use fsdp_version: 1";
            let allowed = "with fsdp_version: 2 it must be true, false, or the size of a group of ranks";
            return Err(setting.not_allowed(allowed, Some(hint.to_owned())));
        }
    };
    Ok(Opinion { value: Strategy { reshard, ..Strategy::of(Stage::Three) }, setting })
}
