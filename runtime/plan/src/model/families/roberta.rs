//! RoBERTa: a BERT whose positions begin after that of padding, and whose head has its own linear layer.

use super::{Family, File, ModelConfig, ModelConfigError, bert};
use crate::model::HeadInput;
use crate::model::names::Names;

pub(super) const FAMILY: Family = Family {
    architectures: &["RobertaForSequenceClassification", "RobertaModel", "RobertaForMaskedLM"],
    model_type: "roberta",
    understands: &["hidden_act"],
    read,
};

const NAMES: Names = Names {
    embedding: "roberta.embeddings.word_embeddings",
    positions: "roberta.embeddings.position_embeddings",
    token_types: "roberta.embeddings.token_type_embeddings",
    embedding_norm: "roberta.embeddings.LayerNorm",
    layers: "roberta.encoder.layer",
    dense: "classifier.dense",
    head: "lm_head.decoder",
    classifier: "classifier.out_proj",
    prefix: "roberta.",
    constants: &[
        "embeddings.position_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
        "lm_head.bias",
        "lm_head.decoder.bias",
        "lm_head.dense.weight",
        "lm_head.dense.bias",
        "lm_head.layer_norm.weight",
        "lm_head.layer_norm.bias",
    ],
    classes: ["RobertaLayer", "RobertaAttention", "RobertaIntermediate"],
    ..bert::NAMES
};

fn read(file: &File) -> Result<ModelConfig, ModelConfigError> {
    let padding = match file.get("pad_token_id").map(serde_json::Value::as_u64) {
        None => 1,
        Some(Some(padding)) if padding < u64::from(u32::MAX) => padding as usize,
        Some(_) => {
            return Err(file.invalid("pad_token_id", "positions are counted from it on: it must be a token's id"));
        }
    };
    let config = file.encoder(&NAMES)?;
    let position_offset = padding + 1;
    // The file counts all embeddings of positions.
    match config.max_position_embeddings.checked_sub(position_offset) {
        Some(max_position_embeddings) if max_position_embeddings > 0 => Ok(ModelConfig {
            max_position_embeddings,
            position_offset,
            head_input: HeadInput::Dense { drops_input: true },
            ..config
        }),
        _ => {
            let reason = format!("the first {position_offset} embeddings of positions stand for none");
            Err(file.invalid("max_position_embeddings", reason))
        }
    }
}
