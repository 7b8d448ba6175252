//! The leaves of each segment, in the order in which its forward uses them.
//!
//! `runtime/src/model` takes them one by one in the same order. Matrices and embeddings are decayed; norms and biases are not.

use super::{Head, HeadInput, ModelConfig, NormPlacement};
use crate::spec::{LeafSpec, ParameterGroup, ParameterSpec};

/// The embeddings of positions and of types of tokens where there are such, then that of tokens.
pub(super) fn embedding(config: &ModelConfig) -> Vec<LeafSpec> {
    let table = |name: &str, rows: usize| matrix(format!("{name}.weight"), rows, config.hidden_size);
    let rows = config.position_offset + config.max_position_embeddings;
    let positions = config.learned_positions.then(|| table(config.names.positions, rows));
    let types = (config.token_types > 0).then(|| table(config.names.token_types, config.token_types));
    let tokens = table(config.names.embedding, config.vocab_size);
    positions.into_iter().chain(types).chain([tokens]).map(decayed).collect()
}

/// The norm of the embeddings, where there is one.
pub(super) fn embedding_output(config: &ModelConfig) -> Vec<LeafSpec> {
    if config.embedding_norm { norm(config, config.names.embedding_norm) } else { Vec::new() }
}

/// The head with its bias, then what stands before it: the last norm, or a linear layer with its bias.
pub(super) fn head(config: &ModelConfig) -> Vec<LeafSpec> {
    let name = match config.head {
        Head::Language => config.names.head,
        Head::Classes { .. } => config.names.classifier,
    };
    let (rows, width) = (config.head_rows(), config.hidden_size);
    let head = decayed(matrix(format!("{name}.weight"), rows, width));
    if config.head_input == HeadInput::Norm {
        return [head].into_iter().chain(final_norm(config)).collect();
    }
    let dense = config.names.dense;
    let weight = decayed(matrix(format!("{dense}.weight"), width, width));
    vec![head, not_decayed(format!("{name}.bias"), rows), weight, not_decayed(format!("{dense}.bias"), width)]
}

/// The last norm.
pub(super) fn final_norm(config: &ModelConfig) -> Vec<LeafSpec> {
    norm(config, config.names.final_norm)
}

/// The norm before it, query, key and value (stacked), their norms, the output, the norm after it; each with its bias.
pub(super) fn attention(config: &ModelConfig, layer: usize) -> Vec<LeafSpec> {
    let names = config.names;
    let (query, key) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let block = Block { config, layer };
    let mut leaves = block.norm_before(names.attention_norm);
    leaves.extend(block.linear(names.qkv, &[query, key, key], config.hidden_size, config.biases.qkv));
    if config.query_key_norm {
        let weight = |name: &&str| not_decayed(format!("{}.weight", block.name(name)), config.head_dim);
        leaves.extend(names.query_key_norms.iter().map(weight));
    }
    leaves.extend(block.linear(&[names.output], &[config.hidden_size], query, config.biases.output));
    leaves.extend(block.norm_after(names.post_attention_norm));
    leaves
}

/// The norm before it, gate and up (stacked), down, the norm after it; each with its bias.
pub(super) fn mlp(config: &ModelConfig, layer: usize) -> Vec<LeafSpec> {
    let (names, inner) = (config.names, config.intermediate_size);
    let block = Block { config, layer };
    let mut leaves = block.norm_before(names.mlp_norm);
    let widths = if config.gated { vec![inner; 2] } else { vec![inner] };
    leaves.extend(block.linear(names.up, &widths, config.hidden_size, config.biases.mlp));
    leaves.extend(block.linear(&[names.down], &[config.hidden_size], inner, config.biases.mlp));
    leaves.extend(block.norm_after(names.post_mlp_norm));
    leaves
}

/// One block of a model.
struct Block<'a> {
    config: &'a ModelConfig,
    layer: usize,
}

impl Block<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}.{}.{part}", self.config.names.layers, self.layer)
    }

    fn norm_before(&self, part: &str) -> Vec<LeafSpec> {
        self.norm_if(self.config.norm_placement != NormPlacement::After, part)
    }

    fn norm_after(&self, part: &str) -> Vec<LeafSpec> {
        self.norm_if(self.config.norm_placement != NormPlacement::Before, part)
    }

    fn norm_if(&self, there: bool, part: &str) -> Vec<LeafSpec> {
        if there { norm(self.config, &self.name(part)) } else { Vec::new() }
    }

    /// A linear layer from `from` to the sum of `widths`: one parameter for each width, or one for all where the family has
    /// but one name.
    fn linear(&self, names: &[&str], widths: &[usize], from: usize, bias: bool) -> Vec<LeafSpec> {
        let all = [widths.iter().sum()];
        let widths = if names.len() == 1 { &all[..] } else { widths };
        let parts = || names.iter().zip(widths).map(|(name, width)| (self.name(name), *width));
        let weight = |(name, width): (String, usize)| match self.config.transposed {
            true => matrix(format!("{name}.weight"), from, width),
            false => matrix(format!("{name}.weight"), width, from),
        };
        let vector = |(name, width): (String, usize)| ParameterSpec::new(format!("{name}.bias"), [width]);
        let weight = LeafSpec::stacked(ParameterGroup::Decayed, parts().map(weight).collect());
        let bias = bias.then(|| LeafSpec::stacked(ParameterGroup::NotDecayed, parts().map(vector).collect()));
        [weight].into_iter().chain(bias).collect()
    }
}

fn matrix(name: String, rows: usize, columns: usize) -> ParameterSpec {
    ParameterSpec::new(name, [rows, columns])
}

fn decayed(parameter: ParameterSpec) -> LeafSpec {
    LeafSpec::single(ParameterGroup::Decayed, parameter)
}

fn not_decayed(name: String, width: usize) -> LeafSpec {
    LeafSpec::single(ParameterGroup::NotDecayed, ParameterSpec::new(name, [width]))
}

/// A norm's weight, and its bias.
fn norm(config: &ModelConfig, name: &str) -> Vec<LeafSpec> {
    let leaf = |part: &str| not_decayed(format!("{name}.{part}"), config.hidden_size);
    [leaf("weight")].into_iter().chain(config.norm.has_bias().then(|| leaf("bias"))).collect()
}
