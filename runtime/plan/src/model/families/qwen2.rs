//! Qwen 2 and 2.5: a Llama with biases of query, key and value.

use super::{DEFAULTS, Defaults, Family, File, ModelConfig, ModelConfigError};
use crate::model::Biases;
use crate::model::names::{LLAMA, Names};

pub(super) const FAMILY: Family = Family {
    architectures: &["Qwen2ForCausalLM", "Qwen2ForSequenceClassification"],
    model_type: "qwen2",
    understands: &["use_sliding_window", "layer_types"],
    read,
};

const NAMES: Names = Names { classes: ["Qwen2DecoderLayer", "Qwen2Attention", "Qwen2MLP"], ..LLAMA };

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    let defaults =
        Defaults { names: &NAMES, max_position_embeddings: 32_768, num_key_value_heads: Some(32), ..DEFAULTS };
    let config = file.relative_of_llama(&defaults)?;
    Ok(ModelConfig {
        biases: Biases { qkv: true, ..Biases::default() },
        layers: file.qwen_layers(config.num_hidden_layers)?,
        ..config
    })
}
