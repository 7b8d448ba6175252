//! Llama 2 and 3, SmolLM2, and all that say they are Llamas.

use super::{DEFAULTS, Family, File, ModelConfig, ModelConfigError};
use crate::model::Biases;

pub(super) const FAMILY: Family = Family {
    architectures: &["LlamaForCausalLM", "LlamaForSequenceClassification"],
    model_type: "llama",
    understands: &["attention_bias", "mlp_bias"],
    read,
};

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    let attention = file.bool_or("attention_bias", false)?;
    Ok(ModelConfig {
        biases: Biases { qkv: attention, output: attention, mlp: file.bool_or("mlp_bias", false)? },
        ..file.relative_of_llama(&DEFAULTS)?
    })
}
