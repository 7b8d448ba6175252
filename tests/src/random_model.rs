//! Model folders of any size, with random weights.

use std::path::Path;

use zerofold_checkpoint::{ExportPlan, ExportWriter, TensorEntry};
use zerofold_configs::UnitPolicy;
use zerofold_plan::{ModelConfig, ModelUnits, ParameterSpec, UnitSpec};

use crate::model;

pub use zerofold_checkpoint::Dtype;

/// Weights that are made and written at a time.
const CHUNK: usize = 1 << 18;

/// A Llama of some size. Its tokenizer is that of the fixture models, so the vocabulary has at least 320 entries.
#[derive(Clone, Copy, Debug)]
pub struct RandomModel {
    /// The width of the residual stream; heads are 64 wide.
    pub hidden: usize,
    /// The width of the MLP.
    pub intermediate: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Token ids.
    pub vocabulary: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// The type in the files.
    pub dtype: Dtype,
    /// At most this many bytes of weights in a file.
    pub file_bytes: u64,
}

impl RandomModel {
    /// Writes the folder, the same whenever it is written; returns how many parameters the model has.
    pub fn write(&self, folder: &Path) -> usize {
        let units = self.write_configuration(folder);
        let parameters: Vec<ParameterSpec> =
            units.into_iter().flat_map(|unit| unit.leaves).flat_map(|leaf| leaf.parameters).collect();
        self.write_weights(folder, &parameters).expect("the scene can be written");
        parameters.iter().map(ParameterSpec::numel).sum()
    }

    /// Writes the folder without weights; returns the model's units.
    pub fn write_configuration(&self, folder: &Path) -> Vec<UnitSpec> {
        std::fs::create_dir_all(folder).expect("the scene can be written");
        std::fs::copy(model("tiny-llama").join("tokenizer.json"), folder.join("tokenizer.json"))
            .expect("the scene can be written");
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden / 64, "num_key_value_heads": self.hidden / 64,
            "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied, "max_position_embeddings": 512,
        });
        std::fs::write(folder.join("config.json"), config.to_string()).expect("the scene can be written");
        let config = ModelConfig::read(folder).expect("the configuration is one that is read");
        ModelUnits::new(&config, UnitPolicy::Blocks).units
    }

    fn write_weights(&self, folder: &Path, parameters: &[ParameterSpec]) -> zerofold_checkpoint::Result<()> {
        let entry =
            |parameter: &ParameterSpec| TensorEntry::new(parameter.name.clone(), self.dtype, parameter.shape.clone());
        let plan = ExportPlan::new(&parameters.iter().map(entry).collect::<Vec<_>>(), self.file_bytes)?;
        let mut writer = ExportWriter::create(folder, &plan)?;
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut values = vec![0.0; CHUNK];
        for parameter in parameters {
            for begin in (0..parameter.numel()).step_by(CHUNK) {
                let values = &mut values[..CHUNK.min(parameter.numel() - begin)];
                values.fill_with(|| weight(&mut random, parameter.shape.len() == 1));
                writer.write_f32(&parameter.name, begin as u64, values)?;
            }
        }
        writer.finish().map(drop)
    }
}

/// Norms are 1; matrices are uniform with a deviation of 0.02.
fn weight(random: &mut u64, norm: bool) -> f32 {
    // Marsaglia's xorshift.
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let uniform = (*random >> 40) as f32 / (1 << 24) as f32 - 0.5;
    if norm { 1.0 } else { 0.02 * 12_f32.sqrt() * uniform }
}

/// A data set of as many rows of as many tokens, all supervised.
pub fn random_rows(rows: usize, length: usize) -> String {
    let token = |row: usize, place: usize| 3 + (row * 131 + place * place * 17 + place * 7) % 300;
    let row = |row: usize| (0..length).map(|place| token(row, place)).collect::<Vec<_>>();
    (0..rows).map(|index| serde_json::json!({ "input_ids": row(index) }).to_string() + "\n").collect()
}
