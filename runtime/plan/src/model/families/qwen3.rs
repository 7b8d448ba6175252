//! Qwen 3: a Llama whose queries and keys are normed head by head.

use super::{DEFAULTS, Defaults, Family, File, ModelConfig, ModelConfigError};
use crate::model::Biases;
use crate::model::names::{LLAMA, Names};

pub(super) const FAMILY: Family = Family {
    architectures: &["Qwen3ForCausalLM", "Qwen3ForSequenceClassification"],
    model_type: "qwen3",
    understands: &["attention_bias", "use_sliding_window", "layer_types"],
    read,
};

const NAMES: Names = Names { classes: ["Qwen3DecoderLayer", "Qwen3Attention", "Qwen3MLP"], ..LLAMA };

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    let defaults = Defaults {
        names: &NAMES,
        max_position_embeddings: 32_768,
        num_key_value_heads: Some(32),
        head_dim: Some(128),
        ..DEFAULTS
    };
    let config = file.relative_of_llama(&defaults)?;
    let bias = file.bool_or("attention_bias", false)?;
    Ok(ModelConfig {
        query_key_norm: true,
        biases: Biases { qkv: bias, output: bias, mlp: false },
        layers: file.qwen_layers(config.num_hidden_layers)?,
        ..config
    })
}
