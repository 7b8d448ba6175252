//! Phi-3, 3.5 and 4 (mini, medium and Phi-4 itself): a Llama whose query, key and value are one matrix, and gate and up.

use super::{DEFAULTS, Defaults, Family, File, ModelConfig, ModelConfigError};
use crate::model::LayerAttention;
use crate::model::names::{LLAMA, Names};

pub(super) const FAMILY: Family = Family {
    architectures: &["Phi3ForCausalLM", "Phi3ForSequenceClassification"],
    model_type: "phi3",
    understands: &["partial_rotary_factor", "resid_pdrop"],
    read,
};

const NAMES: Names = Names {
    qkv: &["self_attn.qkv_proj"],
    up: &["mlp.gate_up_proj"],
    classes: ["Phi3DecoderLayer", "Phi3Attention", "Phi3MLP"],
    ..LLAMA
};

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    let defaults = Defaults {
        names: &NAMES,
        max_position_embeddings: 4096,
        norm_epsilon: 1e-5,
        partial: true,
        original: Some(4096),
        ..DEFAULTS
    };
    let window = file.optional_size("sliding_window")?;
    Ok(ModelConfig {
        layers: vec![LayerAttention { window, rope: Some(0) }],
        hidden_dropout: file.dropout("resid_pdrop", 0.0)?,
        ..file.relative_of_llama(&defaults)?
    })
}
