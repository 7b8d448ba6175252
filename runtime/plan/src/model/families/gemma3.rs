//! Gemma 3 (text): as Gemma 2 without caps of scores, with norms of queries and keys; five layers of six have a window and
//! rotary positions of their own.

use super::gemma2::{self, gemma};
use super::{Defaults, Family, File, ModelConfig, ModelConfigError};
use crate::model::LayerAttention;
use crate::model::names::Names;
use crate::model::rope::RopeDefaults;
use serde_json::{Map, Value};

pub(super) const FAMILY: Family = Family {
    architectures: &["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"],
    model_type: "gemma3_text",
    understands: &["attention_bias", "hidden_act", "layer_types", "query_pre_attn_scalar", "final_logit_softcapping"],
    read,
};

const NAMES: Names = Names { classes: ["Gemma3DecoderLayer", "Gemma3Attention", "Gemma3MLP"], ..gemma2::NAMES };

/// Places in [`ModelConfig::ropes`].
const FULL: usize = 0;
const SLIDING: usize = 1;

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    let defaults = Defaults { names: &NAMES, max_position_embeddings: 131_072, theta: 1e6, ..gemma2::GEMMA };
    // Rotary positions by kind of layer are no rotary positions of a model.
    let config = gemma(&without_ropes(file), &defaults)?;
    let layers = config.num_hidden_layers;
    let windowed = match file.windowed_layers(layers)? {
        Some(windowed) => windowed,
        None => {
            let pattern = file.optional_size("sliding_window_pattern")?.unwrap_or(6);
            (1..=layers).map(|layer| !layer.is_multiple_of(pattern)).collect()
        }
    };
    let window = file.window(&windowed, 4096)?;
    let layer = |windowed: bool| match windowed {
        true => LayerAttention { window: Some(window), rope: Some(SLIDING) },
        false => LayerAttention { window: None, rope: Some(FULL) },
    };
    Ok(ModelConfig {
        query_key_norm: true,
        logit_softcap: file.positive("final_logit_softcapping")?,
        layers: windowed.into_iter().map(layer).collect(),
        ropes: ropes(file, config.max_position_embeddings)?.into(),
        ..config
    })
}

fn without_ropes(file: &File) -> File {
    let mut keys = file.keys.clone();
    keys.remove("rope_parameters");
    keys.remove("rope_scaling");
    File::new(file.path(), keys)
}

/// Of the form of transformers 5 (`rope_parameters` by kind of layer), or 4 (`rope_theta`, `rope_scaling` and
/// `rope_local_base_freq`).
fn ropes(file: &File, max_position_embeddings: usize) -> Result<[crate::model::RopeConfig; 2], ModelConfigError> {
    let part = |kind: &str| -> Result<Map<String, Value>, ModelConfigError> {
        let empty = Map::new();
        let parameters = match file.get("rope_parameters") {
            Some(Value::Object(parameters)) => parameters,
            None => &empty,
            Some(_) => return Err(file.invalid("rope_parameters", "it must be an object or null")),
        };
        match parameters.get(kind) {
            Some(Value::Object(part)) => Ok(part.clone()),
            None | Some(Value::Null) => Ok(Map::new()),
            Some(_) => Err(file.invalid("rope_parameters", format!("{kind} in it must be an object or null"))),
        }
    };
    let (mut full, sliding) = (part("full_attention")?, part("sliding_attention")?);
    match file.get("rope_scaling") {
        Some(Value::Object(scaling)) => full.extend(scaling.clone()),
        None => {}
        Some(_) => return Err(file.invalid("rope_scaling", "it must be an object or null")),
    }
    let of = |theta: f64| RopeDefaults { theta, max_position_embeddings, original: None, partial: false };
    Ok([file.rope_of(&full, "rope_theta", of(1e6))?, file.rope_of(&sliding, "rope_local_base_freq", of(10_000.0))?])
}
