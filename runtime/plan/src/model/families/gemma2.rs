//! Gemma 2: norms around attention and MLP, whose weights count from one; a GELU gate; scores and logits that are capped; a
//! window in every other layer.

use super::{DEFAULTS, Defaults, Family, File, ModelConfig, ModelConfigError};
use crate::model::names::{LLAMA, Names};
use crate::model::{Activation, Biases, LayerAttention, NormKind, NormPlacement};

pub(super) const FAMILY: Family = Family {
    architectures: &["Gemma2ForCausalLM", "Gemma2ForSequenceClassification"],
    model_type: "gemma2",
    understands: &[
        "attention_bias",
        "hidden_act",
        "layer_types",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ],
    read,
};

/// Those of Gemma 2 and 3.
pub(super) const NAMES: Names = Names {
    post_attention_norm: "post_attention_layernorm",
    mlp_norm: "pre_feedforward_layernorm",
    post_mlp_norm: "post_feedforward_layernorm",
    classes: ["Gemma2DecoderLayer", "Gemma2Attention", "Gemma2MLP"],
    ..LLAMA
};

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    let defaults = Defaults { names: &NAMES, max_position_embeddings: 8192, ..GEMMA };
    let cap = |key: &str, default: f64| match file.has(key) {
        true => file.positive(key),
        false => Ok(Some(default)),
    };
    let config = gemma(file, &defaults)?;
    let windowed = file.windowed_layers(config.num_hidden_layers)?;
    let windowed = windowed.unwrap_or_else(|| (0..config.num_hidden_layers).map(|layer| layer % 2 == 0).collect());
    let window = file.window(&windowed, 4096)?;
    Ok(ModelConfig {
        attention_softcap: cap("attn_logit_softcapping", 50.0)?,
        logit_softcap: cap("final_logit_softcapping", 30.0)?,
        layers: windowed
            .into_iter()
            .map(|has| LayerAttention { window: has.then_some(window), rope: Some(0) })
            .collect(),
        ..config
    })
}

/// What Gemma 2 and 3 have where a file leaves a key out.
pub(super) const GEMMA: Defaults =
    Defaults { num_key_value_heads: Some(4), head_dim: Some(256), tied: true, ..DEFAULTS };

/// What Gemma 2 and 3 have in common.
pub(super) fn gemma(file: &File, defaults: &Defaults) -> Result<ModelConfig, ModelConfigError> {
    let config = file.relative_of_llama(defaults)?;
    let bias = file.bool_or("attention_bias", false)?;
    let activation = file.activation("hidden_activation", Activation::GeluTanh)?;
    if activation == Activation::Gelu {
        let value = file.get("hidden_activation").cloned().unwrap_or_default();
        return Err(file.not_built("hidden_activation", &value, "a gate goes by gelu_pytorch_tanh or silu"));
    }
    Ok(ModelConfig {
        norm: NormKind::RmsFromOne,
        norm_placement: NormPlacement::Around,
        biases: Biases { qkv: bias, output: bias, mlp: false },
        activation,
        embedding_scale: Some((config.hidden_size as f64).sqrt()),
        attention_scale: Some(1.0 / file.positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt()),
        ..config
    })
}
