//! SmolLM3: a Llama some of whose layers know no positions.

use super::{DEFAULTS, Defaults, Family, File, ModelConfig, ModelConfigError};
use crate::model::names::{LLAMA, Names};
use crate::model::{Biases, LayerAttention};

pub(super) const FAMILY: Family = Family {
    architectures: &["SmolLM3ForCausalLM", "SmolLM3ForSequenceClassification"],
    model_type: "smollm3",
    understands: &[
        "attention_bias",
        "mlp_bias",
        "no_rope_layers",
        "no_rope_layer_interval",
        "use_sliding_window",
        "layer_types",
    ],
    read,
};

const NAMES: Names = Names { classes: ["SmolLM3DecoderLayer", "SmolLM3Attention", "SmolLM3MLP"], ..LLAMA };

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    let defaults = Defaults {
        names: &NAMES,
        max_position_embeddings: 32_768,
        num_key_value_heads: Some(4),
        theta: 2_000_000.0,
        tied: true,
        ..DEFAULTS
    };
    let config = file.relative_of_llama(&defaults)?;
    let attention = file.bool_or("attention_bias", false)?;
    Ok(ModelConfig {
        biases: Biases { qkv: attention, output: attention, mlp: file.bool_or("mlp_bias", false)? },
        layers: layers(file, config.num_hidden_layers)?,
        ..config
    })
}

/// With `use_sliding_window` the layers that know no positions have a window, or those that `layer_types` names.
fn layers(file: &File, count: usize) -> Result<Vec<LayerAttention>, ModelConfigError> {
    let turned = turned_layers(file, count)?;
    let uses = file.bool_or("use_sliding_window", false)?;
    let windowed = match file.windowed_layers(count)? {
        Some(windowed) => windowed,
        None => turned.iter().map(|turned| !turned).collect(),
    };
    let window = if uses { file.optional_size("sliding_window")? } else { None };
    let layer = |(windowed, turned): (bool, bool)| LayerAttention {
        window: window.filter(|_| windowed),
        rope: turned.then_some(0),
    };
    Ok(windowed.into_iter().zip(turned).map(layer).collect())
}

/// Which layers turn queries and keys: `no_rope_layers` has a 1 for each that does.
fn turned_layers(file: &File, count: usize) -> Result<Vec<bool>, ModelConfigError> {
    let Some(value) = file.get("no_rope_layers") else {
        let every = file.optional_size("no_rope_layer_interval")?.unwrap_or(4);
        return Ok((1..=count).map(|layer| !layer.is_multiple_of(every)).collect());
    };
    let turned = value.as_array().map(|items| items.iter().map(serde_json::Value::as_u64).collect::<Option<Vec<_>>>());
    match turned.flatten() {
        Some(turned) if turned.len() >= count && turned.iter().all(|&one| one <= 1) => {
            Ok(turned.into_iter().take(count).map(|one| one == 1).collect())
        }
        _ => Err(file.invalid("no_rope_layers", format!("it must be a list of 0 or 1 for each of {count} layers"))),
    }
}
