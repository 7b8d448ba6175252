//! How the model is cut into units, and when backward gathers ahead: FSDP's words for both.

use crate::accelerate::DistributedType;
use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::{Opinion, Reader, Setting, agree};
use crate::sharding::{BackwardPrefetch, UnitPolicy};
use crate::types::WrapPolicy;
use crate::value::text;
use serde_yaml::Value;

const POLICY: &str = "fsdp_auto_wrap_policy";
const CLASSES: &str = "fsdp_transformer_layer_cls_to_wrap";
const LEAST: &str = "fsdp_min_num_params";
const PREFETCH: &str = "fsdp_backward_prefetch";
const OLD_PREFETCH: &str = "fsdp_backward_prefetch_policy";

/// Settles the units. The second is the layer classes as written, to be checked against the model.
///
/// Without a policy, units are decoder blocks: Accelerate would then make one unit of the whole model, which holds more
/// at a time and computes the same.
pub(crate) fn units(
    reader: &mut Reader<'_>,
    distributed: &DistributedType<'_>,
) -> Result<(UnitPolicy, Vec<String>), ConfigError> {
    let policy = distributed.find(reader, Section::Fsdp, POLICY);
    let policy = match policy {
        Some(setting) => Some(Opinion { value: setting.read::<WrapPolicy>(Reader::key(POLICY))?, setting }),
        None => None,
    };
    let classes = distributed.find(reader, Section::Fsdp, CLASSES);
    let least = distributed.find(reader, Section::Fsdp, LEAST);
    let kind = policy.as_ref().map_or(WrapPolicy::TransformerBased, |policy| policy.value);
    let mut unread = |setting: Option<&Setting>, reads: WrapPolicy| {
        let Some(setting) = setting.filter(|setting| !is_nothing(&setting.value)) else { return };
        let because = match &policy {
            Some(policy) => format!("{} ({})", policy.setting.equation(), policy.setting.place),
            None => format!("it is for {POLICY}: {reads}"),
        };
        reader.notes.push(no_effect(setting, &because));
    };
    if kind != WrapPolicy::TransformerBased {
        unread(classes, WrapPolicy::TransformerBased);
    }
    if kind != WrapPolicy::SizeBased {
        unread(least, WrapPolicy::SizeBased);
    }
    let mut place = policy.map(|policy| policy.setting);
    let mut names = Vec::new();
    let units = match kind {
        WrapPolicy::NoWrap => UnitPolicy::Whole,
        WrapPolicy::SizeBased => {
            place = least.or(place);
            min_parameters(reader, least)?
        }
        WrapPolicy::TransformerBased => {
            let classes = classes.filter(|setting| !is_nothing(&setting.value));
            place = classes.or(place);
            let written = match classes {
                Some(setting) => by_classes(setting)?,
                None => (UnitPolicy::Blocks, Vec::new()),
            };
            names = written.1;
            written.0
        }
    };
    let named = classes.filter(|_| !names.is_empty());
    for (field, setting) in [("units", place), ("layer_classes", named)] {
        let place = setting.map_or("default", |setting| setting.place.as_str());
        reader.provenance.insert(field.to_owned(), place.to_owned());
    }
    Ok((units, names))
}

/// What files write for "not set".
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Sequence(entries) => entries.is_empty(),
        scalar => {
            text(scalar).is_some_and(|text| ["", "none", "no", "false", "0"].contains(&text.to_lowercase().as_str()))
        }
    }
}

fn min_parameters(reader: &mut Reader<'_>, setting: Option<&Setting>) -> Result<UnitPolicy, ConfigError> {
    // The default of `accelerate launch`.
    let Some(setting) = setting else { return Ok(UnitPolicy::MinParameters(100_000_000)) };
    let least: u64 = setting.read(Reader::key(LEAST))?;
    if least == 0 {
        reader.notes.push(format!("{} ({}) makes one unit of the whole model", setting.equation(), setting.place));
        return Ok(UnitPolicy::Whole);
    }
    Ok(UnitPolicy::MinParameters(least))
}

/// Classes of Hugging Face's model code: each decoder layer a unit, or each attention and each MLP.
fn by_classes(setting: &Setting) -> Result<(UnitPolicy, Vec<String>), ConfigError> {
    let names: Option<Vec<String>> = match &setting.value {
        Value::Sequence(entries) => entries.iter().map(|entry| entry.as_str().map(str::to_owned)).collect(),
        Value::String(text) => Some(text.split(',').map(str::to_owned).collect()),
        _ => None,
    };
    let names: Option<Vec<String>> = names.map(|names| names.iter().map(|name| name.trim().to_owned()).collect());
    let hint = "name the model's class of layers (LlamaDecoderLayer, GPT2Block), or of attention and MLP together \
                (LlamaAttention,LlamaMLP)";
    let Some(names) = names.filter(|names| names.iter().all(|name| !name.is_empty())) else {
        return Err(setting.not_allowed("it must be names of classes with commas between them", Some(hint.to_owned())));
    };
    let has = |ending: &str| names.iter().any(|name| name.ends_with(ending));
    // Which classes a model has is looked at once it is known.
    let (layer, attention, mlp) = (has("Layer") || has("Block"), has("Attention"), has("MLP"));
    let ends = |name: &&String| ["Layer", "Block", "Attention", "MLP"].iter().any(|ending| name.ends_with(ending));
    let complaint = match names.iter().find(|name| !ends(name)) {
        Some(other) => format!("units are decoder layers or their halves, and {other} is neither"),
        None if attention != mlp => {
            let (one, other) = if attention { ("attention", "MLP") } else { ("MLP", "attention") };
            format!("the {one} is a unit of its own only where the {other} is one too")
        }
        None if attention => return Ok((UnitPolicy::BlockHalves, names)),
        None if layer => return Ok((UnitPolicy::Blocks, names)),
        None => "no class is named".to_owned(),
    };
    Err(setting.not_allowed(complaint, Some(hint.to_owned())))
}

/// Settles when backward gathers the next unit.
pub(crate) fn backward_prefetch<'a>(
    reader: &mut Reader<'a>,
    distributed: &DistributedType<'a>,
) -> Result<BackwardPrefetch, ConfigError> {
    let opinion = |key: &str| match distributed.find(reader, Section::Fsdp, key) {
        Some(setting) => {
            let value: BackwardPrefetch = setting.read(Reader::key(PREFETCH))?;
            Ok(Some(Opinion { value, setting }))
        }
        None => Ok(None),
    };
    let mut held = agree([opinion(PREFETCH)?, opinion(OLD_PREFETCH)?])?;
    if crate::fsdp::version(reader, distributed)? == Some(2)
        && let Some(other) = held.take_if(|held| held.value != BackwardPrefetch::Pre)
    {
        let because = "with fsdp_version: 2 the next unit is always gathered before (BACKWARD_PRE)";
        reader.notes.push(no_effect(other.setting, because));
    }
    Ok(reader.settle("backward_prefetch", held, BackwardPrefetch::Pre))
}
