//! What a model is: sizes, constants, and what its family does in its own way. Runtime and plan follow this alone.

use super::names::Names;
use zerofold_configs::ProblemType;

/// A model's sizes and constants. Lengths are in elements, ids or heads.
///
/// Two kinds of families fit: those that are causal (Llama and its relatives, GPT-2), and encoders (BERT and its relatives).
/// docs/models.md shows how a family is added.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The class in transformers, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gate and of the up projection, each.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// The context the model was trained for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether a token sees what stands before it alone; in an encoder it sees what follows too.
    pub causal: bool,
    /// How its norms compute.
    pub norm: NormKind,
    /// What its norms add to the mean square, or the variance.
    pub norm_epsilon: f64,
    /// Where its norms stand.
    pub norm_placement: NormPlacement,
    /// Whether queries and keys are normed, head by head, before they are turned.
    pub query_key_norm: bool,
    /// Which linear layers have a bias.
    pub biases: Biases,
    /// What stands between the linear layers of the MLP.
    pub activation: Activation,
    /// Whether the MLP has a gate: `activation(gate) · up`, else `activation(up)`.
    pub gated: bool,
    /// Whether linear layers lie in the files as `[in, out]`, as GPT-2's do.
    pub transposed: bool,
    /// What embeddings are multiplied by.
    pub embedding_scale: Option<f64>,
    /// Whether positions have embeddings of their own: `max_position_embeddings` of them, behind `position_offset` more.
    pub learned_positions: bool,
    /// The embedding that the first position has; those before it stand for none.
    pub position_offset: usize,
    /// How many types of tokens have embeddings of their own; 0 where tokens have no type.
    pub token_types: usize,
    /// Whether the sum of the embeddings is normed.
    pub embedding_norm: bool,
    /// The rotary positions that layers choose from.
    pub ropes: Vec<RopeConfig>,
    /// The attention of each layer; where there are fewer than layers they go round.
    pub layers: Vec<LayerAttention>,
    /// What scores are multiplied by; 1 / √`head_dim` where it is none.
    pub attention_scale: Option<f64>,
    /// Scores s become c · tanh(s / c).
    pub attention_softcap: Option<f64>,
    /// Logits l become c · tanh(l / c).
    pub logit_softcap: Option<f64>,
    /// Whether the head is the embedding; only of a language model.
    pub tie_word_embeddings: bool,
    /// What the model tells at its end.
    pub head: Head,
    /// What stands between the last block and the head.
    pub head_input: HeadInput,
    /// The share of what the head is given that training drops; only of a classifier.
    pub head_dropout: f64,
    /// The share of attention weights that training drops.
    pub attention_dropout: f64,
    /// The share of what attention and MLP add to the residual stream that training drops.
    pub hidden_dropout: f64,
    /// The share of the embeddings that training drops.
    pub embedding_dropout: f64,
    /// The type the model was saved in, as written (`torch_dtype` or `dtype`).
    pub dtype: Option<String>,
    /// How its parameters are called.
    pub names: &'static Names,
}

/// What a model tells at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The next token, at every position: the last norm, and a product with as many rows as tokens.
    Language,
    /// Classes of a sequence, or numbers: as many as labels.
    Classes {
        /// How many.
        labels: usize,
        /// What is told.
        problem: ProblemType,
    },
}

/// What stands between the last block and the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadInput {
    /// The last norm.
    Norm,
    /// A linear layer and tanh, as encoders have it; the head has a bias then.
    Dense {
        /// Whether training drops a share of what the linear layer is given too ([`ModelConfig::head_dropout`]).
        drops_input: bool,
    },
}

/// A norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm: x / √(mean(x²) + ε) · w.
    Rms,
    /// The same with 1 + w in place of w, as Gemma has it.
    RmsFromOne,
    /// LayerNorm: (x − mean) / √(variance + ε) · w + b.
    Layer,
}

impl NormKind {
    /// Whether it has a bias.
    pub fn has_bias(self) -> bool {
        self == NormKind::Layer
    }
}

/// Where the norms of attention and MLP stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before each: x + f(norm(x)).
    Before,
    /// Before and after: x + norm(f(norm(x))), as Gemma 2 and 3 have it.
    Around,
    /// After the residual is added: norm(x + f(x)), as BERT has it.
    After,
}

/// Which linear layers have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Query, key and value.
    pub qkv: bool,
    /// Attention's output.
    pub output: bool,
    /// The MLP's.
    pub mlp: bool,
}

/// What stands between the linear layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016) by its approximation with tanh.
    GeluTanh,
    /// GELU itself.
    Gelu,
}

/// The attention of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerAttention {
    /// How many positions a token sees, itself included; none for all before it.
    pub window: Option<usize>,
    /// Its rotary positions among [`ModelConfig::ropes`]; none where it has none.
    pub rope: Option<usize>,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies.
    pub theta: f64,
    /// The share of a head's elements that turn, the first ones.
    pub share: f64,
    /// How the frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: long wavelengths divided by a factor, short ones kept, those between interpolated.
    Llama3 {
        /// The divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original context / this` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original context / this` are short.
        high_freq_factor: f64,
        /// The original context in tokens.
        original_max_position_embeddings: f64,
    },
    /// LongRoPE (Ding et al., 2024): each frequency has a divisor of its own, and another one beyond the original context.
    Long {
        /// The divisors up to the original context, one for each frequency.
        short_factor: Vec<f64>,
        /// The original context in tokens; beyond it nothing is built.
        original_max_position_embeddings: usize,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
    /// YaRN (Peng et al., 2023): frequencies that turn often in the original context are kept, those that turn seldom divided by a
    /// factor, those between interpolated by their place.
    Yarn {
        /// The divisor.
        factor: f64,
        /// Frequencies with so many turns or more in the original context are kept.
        beta_fast: f64,
        /// Those with so many or fewer are divided.
        beta_slow: f64,
        /// Whether these bounds are rounded outward to whole frequencies.
        truncate: bool,
        /// The original context in tokens.
        original_max_position_embeddings: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

impl RopeConfig {
    /// Plain rotary positions.
    pub fn plain(theta: f64) -> Self {
        RopeConfig { theta, share: 1.0, scaling: RopeScaling::Default }
    }

    /// How many of a head's elements turn; even.
    pub fn turned(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.share) as usize / 2 * 2
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Long { attention_factor, .. } | RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }
}

impl ModelConfig {
    /// A Llama without sizes, which every family begins with.
    pub fn llama() -> Self {
        ModelConfig {
            architecture: "LlamaForCausalLM".to_owned(),
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            num_hidden_layers: 0,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            max_position_embeddings: 2048,
            causal: true,
            norm: NormKind::Rms,
            norm_epsilon: 1e-6,
            norm_placement: NormPlacement::Before,
            query_key_norm: false,
            biases: Biases::default(),
            activation: Activation::Silu,
            gated: true,
            transposed: false,
            embedding_scale: None,
            learned_positions: false,
            position_offset: 0,
            token_types: 0,
            embedding_norm: false,
            ropes: vec![RopeConfig::plain(10_000.0)],
            layers: vec![LayerAttention { window: None, rope: Some(0) }],
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            tie_word_embeddings: false,
            head: Head::Language,
            head_input: HeadInput::Norm,
            head_dropout: 0.0,
            attention_dropout: 0.0,
            hidden_dropout: 0.0,
            embedding_dropout: 0.0,
            dtype: None,
            names: &super::names::LLAMA,
        }
    }

    /// The attention of a layer.
    pub fn layer(&self, layer: usize) -> LayerAttention {
        self.layers.get(layer % self.layers.len().max(1)).copied().unwrap_or_default()
    }

    /// Whether the embedding is the head too.
    pub fn ties_head(&self) -> bool {
        self.tie_word_embeddings && self.head == Head::Language
    }

    /// Rows of the head.
    pub fn head_rows(&self) -> usize {
        match self.head {
            Head::Language => self.vocab_size,
            Head::Classes { labels, .. } => labels,
        }
    }

    /// The longest sequence in tokens that the model was made for, or stretched to.
    pub fn context(&self) -> usize {
        let stretched = |rope: &RopeConfig| match rope.scaling {
            RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                (factor * original_max_position_embeddings) as usize
            }
            _ => 0,
        };
        let context = self.ropes.iter().map(stretched).fold(self.max_position_embeddings, usize::max);
        self.max_exact_length().map_or(context, |longest| longest.min(context))
    }

    /// The longest sequence in tokens that is computed as the model means it; none when every length is.
    pub fn max_exact_length(&self) -> Option<usize> {
        let of_ropes = self.ropes.iter().filter_map(|rope| match rope.scaling {
            RopeScaling::Long { original_max_position_embeddings, .. } => Some(original_max_position_embeddings),
            _ => None,
        });
        of_ropes.chain(self.learned_positions.then_some(self.max_position_embeddings)).min()
    }

    /// Whether something is done to the embeddings before the first block.
    pub fn changes_embeddings(&self) -> bool {
        self.embedding_norm || self.embedding_dropout > 0.0
    }

    /// How many query heads share one key and value head.
    pub fn queries_per_key(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// How many positions the tokens of a row see in a layer, all together; half of those at the edge count.
    pub fn positions_seen(&self, layer: usize, length: usize) -> f64 {
        let tokens = length as f64;
        match self.layer(layer).window {
            Some(window) if window < length => window as f64 * (tokens - window as f64 / 2.0),
            _ if self.causal => tokens * tokens / 2.0,
            _ => tokens * tokens,
        }
    }

    /// The weights of an MLP's products: two matrices, with a gate three.
    pub fn mlp_weights(&self) -> usize {
        (if self.gated { 3 } else { 2 }) * self.hidden_size * self.intermediate_size
    }

    /// What scores are multiplied by.
    pub fn score_scale(&self) -> f64 {
        self.attention_scale.unwrap_or(1.0 / (self.head_dim as f64).sqrt())
    }
}
