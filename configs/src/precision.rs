//! The element types of a job: what is computed in, what masters are, what gradients are added up and sent in.

use crate::error::ConfigError;
use crate::registry::Section;
use crate::settings::{Opinion, Reader, Setting, agree};
use crate::types::{ElementType, Precision, StateType};

/// The types, decided.
pub(crate) struct Types {
    pub mixed_precision: Precision,
    pub master: ElementType,
    pub reduce: ElementType,
    pub accumulate: ElementType,
}

/// Settles all of them.
pub(crate) fn types(reader: &mut Reader<'_>) -> Result<Types, ConfigError> {
    let dtype = dtype(reader)?;
    let (mixed_precision, mixed_setting) = mixed_precision(reader, dtype.as_ref())?;
    let master = reader.opinion::<StateType>("master_dtype")?;
    let reduce = reader.opinion::<ElementType>("reduce_dtype")?;
    let accumulate = reader.opinion::<StateType>("grad_accum_dtype")?;
    if let (Some(master), Precision::Fp16, Some(mixed)) = (&master, mixed_precision, mixed_setting)
        && master.value == StateType::Bfloat16
    {
        let hint = "float16 needs float32 masters: use mixed_precision: bf16, or master_dtype: float32";
        return Err(master.setting.conflict(mixed, hint));
    }
    if let Some(reduce) = &reduce
        && reduce.value == ElementType::Float16
        && mixed_precision != Precision::Fp16
    {
        let hint = "only with float16's loss scale do gradients fit its range: use bfloat16 or float32, or \
            mixed_precision: fp16";
        let allowed = format!("it goes with mixed_precision: fp16, and mixed_precision is {mixed_precision}");
        return Err(reduce.setting.not_allowed(allowed, Some(hint.to_owned())));
    }
    // Pure bf16 means bfloat16 throughout, unless something else is said.
    let pure = master.as_ref().is_some_and(|master| master.value == StateType::Bfloat16);
    let (state, element) = match pure {
        true => (StateType::Bfloat16, ElementType::Bfloat16),
        false => (StateType::Float32, ElementType::Float32),
    };
    if let (Some(dtype), false) = (dtype, pure) {
        let computing = match mixed_precision {
            Precision::No => "float32",
            Precision::Bf16 => "bfloat16",
            Precision::Fp16 => "float16",
        };
        reader.notes.push(format!(
            "{} ({}): computing is in {computing} and masters stay float32, where TRL would keep and update the weights \
             themselves in {}",
            dtype.setting.equation(),
            dtype.setting.place,
            match dtype.value {
                Precision::Fp16 => "float16, which is not built",
                _ => "bfloat16; master_dtype: bfloat16 does that",
            }
        ));
    }
    Ok(Types {
        mixed_precision,
        master: reader.settle("master_dtype", master, StateType::Float32).into(),
        reduce: reader.settle("reduce_dtype", reduce, element),
        accumulate: reader.settle("grad_accum_dtype", accumulate, state).into(),
    })
}

/// TRL's `dtype`, the type that it loads a model in, where that is not float32 or the files' own.
fn dtype<'a>(reader: &Reader<'a>) -> Result<Option<Opinion<'a, Precision>>, ConfigError> {
    let Some(setting) = reader.settings.find(Section::Training, "dtype") else { return Ok(None) };
    let name = crate::value::text(&setting.value).unwrap_or_default().to_lowercase();
    let value = match name.strip_prefix("torch.").unwrap_or(&name) {
        "auto" | "none" | "" | "float32" | "fp32" | "float" => return Ok(None),
        "bfloat16" | "bf16" => Precision::Bf16,
        "float16" | "fp16" | "half" => Precision::Fp16,
        _ => return Err(setting.not_allowed("it must be one of auto, float32, bfloat16, float16", None)),
    };
    Ok(Some(Opinion { value, setting }))
}

/// Settles `mixed_precision` and where it was said. `bf16: false` speaks against bf16 alone, not for float32:
/// `bf16: false` beside `fp16: true` is what trainers' files hold.
///
/// Where nothing says, it is the type that a model is to be loaded in.
fn mixed_precision<'a>(
    reader: &mut Reader<'a>,
    dtype: Option<&Opinion<'a, Precision>>,
) -> Result<(Precision, Option<&'a Setting>), ConfigError> {
    let named = reader.opinion::<Precision>("mixed_precision")?;
    let switches = [
        (Precision::Bf16, reader.opinion::<bool>("bf16")?),
        (Precision::Fp16, reader.opinion::<bool>("fp16")?),
        (Precision::Fp16, reader.opinion_of::<bool>(Section::Top, "fp16", Reader::key("fp16"))?),
    ];
    let (mut wanted, mut refused) = (vec![named], Vec::new());
    for (value, switch) in switches {
        let Some(switch) = switch else { continue };
        let opinion = Opinion { value, setting: switch.setting };
        if switch.value { wanted.push(Some(opinion)) } else { refused.push(opinion) }
    }
    let held = agree(wanted)?;
    let place = |opinion: &Opinion<'_, Precision>| opinion.setting.layer;
    let against = match &held {
        Some(held) => refused.into_iter().filter(|refused| refused.value == held.value).max_by_key(place),
        None => refused.into_iter().max_by_key(place),
    };
    let held = match (held, against) {
        (Some(held), Some(against)) if held.setting.layer == against.setting.layer => {
            return Err(held.setting.conflict(against.setting, "keep one of the two, or make them agree"));
        }
        (Some(held), Some(against)) if held.setting.layer > against.setting.layer => Some(held),
        (_, Some(against)) => Some(Opinion { value: Precision::No, setting: against.setting }),
        (held, None) => held,
    };
    let held = held.or(dtype.map(|dtype| Opinion { value: dtype.value, setting: dtype.setting }));
    let setting = held.as_ref().map(|held| held.setting);
    Ok((reader.settle("mixed_precision", held, Precision::No), setting))
}
