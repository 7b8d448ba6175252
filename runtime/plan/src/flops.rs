//! Floating-point operations that training a row asks of a model, whatever computes it.

use crate::model::{HeadInput, ModelConfig};

/// Operations of forward and backward over one row of `length` tokens, `supervised` of which the head is asked for; an
/// addition and a multiplication are two.
///
/// Model FLOPs as in Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, appendix B: 6 for each weight
/// of a matrix product and token, and attention's two products, 12 × layers × width × length for each token. They differ from
/// it where less is needed: where attention is causal half of its products count, and less where it has a window, and the head counts on supervised tokens only.
/// Looking up an embedding is no product. What is recomputed in backward is not counted twice.
pub fn model_flops(model: &ModelConfig, length: usize, supervised: usize) -> f64 {
    let [hidden, layers, tokens, supervised] =
        [model.hidden_size, model.num_hidden_layers, length, supervised].map(|it| it as f64);
    let [query, key] = [model.num_attention_heads, model.num_key_value_heads].map(|it| (it * model.head_dim) as f64);
    let block = hidden * (query + 2.0 * key) + query * hidden + model.mlp_weights() as f64;
    let dense = if model.head_input == HeadInput::Norm { 0.0 } else { hidden * hidden };
    let head = hidden * model.head_rows() as f64 + dense;
    let seen = (0..model.num_hidden_layers).map(|layer| model.positions_seen(layer, length));
    let attention = 12.0 * query * seen.sum::<f64>();
    6.0 * layers * block * tokens + attention + 6.0 * head * supervised
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Head;
    use zerofold_configs::ProblemType;

    /// Calculated by hand for Llama 2 7B, whose blocks have 202,375,168 weights and whose head 131,072,000, over 4096
    /// tokens: 6 × (32 × 202,375,168 + 131,072,000) = 39,642,464,256 a token by weights, and by attention
    /// 12 × 32 × 4096 × 4096 / 2 = 3,221,225,472.
    #[test]
    fn llama_2_7b_by_hand() {
        let model = ModelConfig::published("llama-7b").unwrap();
        let all = 4096.0 * (39_642_464_256.0 + 3_221_225_472.0);
        assert_eq!(model_flops(&model, 4096, 4096), all);
        let without_head = all - 4096.0 * 6.0 * 131_072_000.0;
        assert_eq!(model_flops(&model, 4096, 0), without_head);
    }

    /// In an encoder every token sees all: twice as much attention. Its head is a product of one token, behind another as wide as
    /// the model.
    #[test]
    fn an_encoder_sees_all() {
        let causal = ModelConfig::published("llama-7b").unwrap();
        let encoder = ModelConfig {
            causal: false,
            head: Head::Classes { labels: 3, problem: ProblemType::SingleLabel },
            head_input: HeadInput::Dense { drops_input: false },
            ..causal.clone()
        };
        let attention = 12.0 * 32.0 * 4096.0 * 128.0 * 128.0 / 2.0;
        assert_eq!(model_flops(&encoder, 128, 0), model_flops(&causal, 128, 0) + attention);
        let head = 6.0 * (4096.0 * 4096.0 + 3.0 * 4096.0);
        assert_eq!(model_flops(&encoder, 128, 1), model_flops(&encoder, 128, 0) + head);
    }

    /// Key and value heads are fewer than query heads: 8 of 64 in Llama 2 70B, 855,638,016 weights a block.
    #[test]
    fn shared_key_heads_have_fewer_weights() {
        let model = ModelConfig::published("llama-70b").unwrap();
        assert_eq!(model_flops(&model, 1, 0), 6.0 * 80.0 * 855_638_016.0 + 12.0 * 80.0 * 8192.0 / 2.0);
    }
}
