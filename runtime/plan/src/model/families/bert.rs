//! BERT and MiniLM: encoders, with norms after the residual is added, types of tokens, and a head on the first token.

use super::{Family, File, ModelConfig, ModelConfigError};
use crate::model::names::Names;
use crate::model::{Activation, Biases, HeadInput, LayerAttention, NormKind, NormPlacement};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    architectures: &[
        "BertForSequenceClassification",
        "BertModel",
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForNextSentencePrediction",
    ],
    model_type: "bert",
    understands: &["hidden_act"],
    read,
};

/// RoBERTa has all but those of its prefix and its head.
pub(super) const NAMES: Names = Names {
    embedding: "bert.embeddings.word_embeddings",
    positions: "bert.embeddings.position_embeddings",
    token_types: "bert.embeddings.token_type_embeddings",
    embedding_norm: "bert.embeddings.LayerNorm",
    layers: "bert.encoder.layer",
    attention_norm: "",
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    query_key_norms: ["", ""],
    output: "attention.output.dense",
    post_attention_norm: "attention.output.LayerNorm",
    mlp_norm: "",
    up: &["intermediate.dense"],
    down: "output.dense",
    post_mlp_norm: "output.LayerNorm",
    final_norm: "",
    dense: "bert.pooler.dense",
    head: "cls.predictions.decoder",
    classifier: "classifier",
    prefix: "bert.",
    constants: &[
        "embeddings.position_ids",
        "cls.predictions.bias",
        "cls.predictions.decoder.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
        "cls.predictions.transform.LayerNorm.gamma",
        "cls.predictions.transform.LayerNorm.beta",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    ],
    old_ends: &[("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")],
    classes: ["BertLayer", "BertAttention", "BertIntermediate"],
};

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    file.encoder(&NAMES)
}

impl File {
    /// BERT's and RoBERTa's keys alike.
    pub(super) fn encoder(&self, names: &'static Names) -> Result<ModelConfig, ModelConfigError> {
        self.must_be("position_embedding_type", &json!("absolute"), "built are absolute positions")?;
        self.must_be("is_decoder", &json!(false), "a token sees all others")?;
        self.must_be("chunk_size_feed_forward", &json!(0), "the MLP is computed in one go")?;
        let (hidden_size, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let hidden_dropout = self.dropout("hidden_dropout_prob", 0.1)?;
        Ok(ModelConfig {
            vocab_size: self.size("vocab_size")?,
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers: self.size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: self.part_of_hidden(hidden_size, heads)?,
            max_position_embeddings: self.optional_size("max_position_embeddings")?.unwrap_or(512),
            causal: false,
            norm: NormKind::Layer,
            norm_epsilon: self.number_or("layer_norm_eps", 1e-12)?,
            norm_placement: NormPlacement::After,
            biases: Biases { qkv: true, output: true, mlp: true },
            activation: self.activation("hidden_act", Activation::Gelu)?,
            gated: false,
            learned_positions: true,
            token_types: self.optional_size("type_vocab_size")?.unwrap_or(2),
            embedding_norm: true,
            ropes: Vec::new(),
            layers: vec![LayerAttention::default()],
            head: self.classes()?,
            head_input: HeadInput::Dense { drops_input: false },
            head_dropout: self.dropout("classifier_dropout", hidden_dropout)?,
            attention_dropout: self.dropout("attention_probs_dropout_prob", 0.1)?,
            hidden_dropout,
            embedding_dropout: hidden_dropout,
            names,
            ..ModelConfig::llama()
        })
    }
}
