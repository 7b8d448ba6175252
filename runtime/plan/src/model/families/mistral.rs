//! Mistral: a Llama whose every layer may have a window.

use super::{DEFAULTS, Defaults, Family, File, ModelConfig, ModelConfigError};
use crate::model::LayerAttention;
use crate::model::names::{LLAMA, Names};

pub(super) const FAMILY: Family = Family {
    architectures: &["MistralForCausalLM", "MistralForSequenceClassification"],
    model_type: "mistral",
    understands: &[],
    read,
};

const NAMES: Names = Names { classes: ["MistralDecoderLayer", "MistralAttention", "MistralMLP"], ..LLAMA };

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    let defaults =
        Defaults { names: &NAMES, max_position_embeddings: 131_072, num_key_value_heads: Some(8), ..DEFAULTS };
    let window = match file.has("sliding_window") {
        true => file.optional_size("sliding_window")?,
        false => Some(4096),
    };
    Ok(ModelConfig { layers: vec![LayerAttention { window, rope: Some(0) }], ..file.relative_of_llama(&defaults)? })
}
