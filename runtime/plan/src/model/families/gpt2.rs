//! GPT-2: LayerNorm, biases, learned positions, no gate, and weights that lie the other way round.

use super::{Family, File, ModelConfig, ModelConfigError};
use crate::model::names::Names;
use crate::model::{Activation, Biases, LayerAttention, NormKind};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    architectures: &["GPT2LMHeadModel", "GPT2ForSequenceClassification"],
    model_type: "gpt2",
    understands: &["embd_pdrop", "resid_pdrop"],
    read,
};

const NAMES: Names = Names {
    embedding: "transformer.wte",
    positions: "transformer.wpe",
    token_types: "",
    embedding_norm: "",
    layers: "transformer.h",
    attention_norm: "ln_1",
    qkv: &["attn.c_attn"],
    query_key_norms: ["", ""],
    output: "attn.c_proj",
    post_attention_norm: "",
    mlp_norm: "ln_2",
    up: &["mlp.c_fc"],
    down: "mlp.c_proj",
    post_mlp_norm: "",
    final_norm: "transformer.ln_f",
    dense: "",
    head: "lm_head",
    classifier: "score",
    prefix: "transformer.",
    // The causal mask, in files of old.
    constants: &["attn.bias", "attn.masked_bias"],
    old_ends: &[],
    classes: ["GPT2Block", "GPT2Attention", "GPT2MLP"],
};

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    file.must_be("scale_attn_weights", &json!(true), "scores are divided by the root of the head's width")?;
    file.must_be("scale_attn_by_inverse_layer_idx", &json!(false), "every layer has the same scale")?;
    let (hidden_size, heads) = (file.size("n_embd")?, file.size("n_head")?);
    Ok(ModelConfig {
        vocab_size: file.size("vocab_size")?,
        hidden_size,
        intermediate_size: file.optional_size("n_inner")?.unwrap_or(4 * hidden_size),
        num_hidden_layers: file.layers("n_layer")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: file.part_of_hidden(hidden_size, heads)?,
        max_position_embeddings: file.optional_size("n_positions")?.unwrap_or(1024),
        norm: NormKind::Layer,
        norm_epsilon: file.number_or("layer_norm_epsilon", 1e-5)?,
        biases: Biases { qkv: true, output: true, mlp: true },
        activation: file.activation("activation_function", Activation::GeluTanh)?,
        gated: false,
        transposed: true,
        learned_positions: true,
        ropes: Vec::new(),
        layers: vec![LayerAttention::default()],
        tie_word_embeddings: file.bool_or("tie_word_embeddings", true)?,
        attention_dropout: file.dropout("attn_pdrop", 0.1)?,
        hidden_dropout: file.dropout("resid_pdrop", 0.1)?,
        embedding_dropout: file.dropout("embd_pdrop", 0.1)?,
        names: &NAMES,
        ..ModelConfig::llama()
    })
}
