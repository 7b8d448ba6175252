//! Shapes of published models, for questions that need no model folder.

use super::{ModelConfig, RopeConfig, RopeScaling};

impl ModelConfig {
    /// The names that [`ModelConfig::published`] knows.
    pub const PUBLISHED: &'static [&'static str] =
        &["llama-7b", "llama-13b", "llama-34b", "llama-70b", "llama-8b", "smollm2-360m"];

    /// The shape of a published model: `llama-7b`, `llama-13b` and `llama-70b` are Llama 2's, `llama-34b` is Code
    /// Llama's, `llama-8b` Llama 3.1's, `smollm2-360m` SmolLM2's. None for another name.
    pub fn published(name: &str) -> Option<ModelConfig> {
        // Hidden size, intermediate size, blocks, heads, key heads.
        let ([hidden, intermediate, layers, heads, key_heads], theta, context) = match name {
            "llama-7b" => ([4096, 11008, 32, 32, 32], 1e4, 4096),
            "llama-13b" => ([5120, 13824, 40, 40, 40], 1e4, 4096),
            "llama-34b" => ([8192, 22016, 48, 64, 8], 1e6, 16384),
            "llama-70b" => ([8192, 28672, 80, 64, 8], 1e4, 4096),
            "llama-8b" => ([4096, 14336, 32, 32, 8], 5e5, 131_072),
            "smollm2-360m" => ([960, 2560, 32, 15, 5], 1e5, 8192),
            _ => return None,
        };
        let llama_3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let (vocab_size, scaling, tie_word_embeddings) = match name {
            "llama-8b" => (128_256, llama_3, false),
            "smollm2-360m" => (49_152, RopeScaling::Default, true),
            _ => (32_000, RopeScaling::Default, false),
        };
        Some(ModelConfig {
            vocab_size,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: key_heads,
            head_dim: hidden / heads,
            max_position_embeddings: context,
            norm_epsilon: 1e-5,
            ropes: vec![RopeConfig { scaling, ..RopeConfig::plain(theta) }],
            tie_word_embeddings,
            dtype: Some("bfloat16".to_owned()),
            ..ModelConfig::llama()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, Mesh, ModelUnits};
    use zerofold_configs::UnitPolicy;

    #[test]
    fn they_have_as_many_parameters_as_was_published() {
        let expected = [6_738_415_616, 13_015_864_320, 33_743_970_304, 68_976_648_192, 8_030_261_248, 361_821_120];
        for (name, expected) in ModelConfig::PUBLISHED.iter().zip(expected) {
            let config = ModelConfig::published(name).unwrap();
            let units = ModelUnits::new(&config, UnitPolicy::Blocks).units;
            let layout = Layout::new(&units, Mesh::new(1, 1).unwrap()).unwrap();
            assert_eq!(layout.parameter_numel(), expected, "{name}");
        }
        assert_eq!(ModelConfig::published("llama-9b"), None);
    }
}
