//! How the families of transformers call their parameters.

use super::{Head, ModelConfig, ModelUnits};
use zerofold_configs::UnitPolicy;

/// The names of a family's parameters, without `.weight` and `.bias`. Those of a block stand behind [`Names::layers`] and the
/// layer's number.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// The embedding of tokens.
    pub embedding: &'static str,
    /// The embedding of positions, in families that have one.
    pub positions: &'static str,
    /// The embedding of types of tokens, in families that have one.
    pub token_types: &'static str,
    /// The norm of the embeddings, in families that have one.
    pub embedding_norm: &'static str,
    /// The blocks.
    pub layers: &'static str,
    /// The norm before attention.
    pub attention_norm: &'static str,
    /// Query, key and value, in that order: apart, or as one.
    pub qkv: &'static [&'static str],
    /// The norms of queries and of keys.
    pub query_key_norms: [&'static str; 2],
    /// Attention's output.
    pub output: &'static str,
    /// The norm after attention, in families that have one.
    pub post_attention_norm: &'static str,
    /// The norm before the MLP.
    pub mlp_norm: &'static str,
    /// Gate and up, in that order: apart, or as one.
    pub up: &'static [&'static str],
    /// The MLP's output.
    pub down: &'static str,
    /// The norm after the MLP, in families that have one.
    pub post_mlp_norm: &'static str,
    /// The last norm, in families that have one.
    pub final_norm: &'static str,
    /// The linear layer before the head, in families that have one.
    pub dense: &'static str,
    /// The head of a language model.
    pub head: &'static str,
    /// That of a classifier.
    pub classifier: &'static str,
    /// What files of the bare model, without a head, leave out at the beginning of each name.
    pub prefix: &'static str,
    /// Ends of names in files of this family that hold no parameters: constants that are computed here, and heads that are not
    /// trained.
    pub constants: &'static [&'static str],
    /// Ends of names, and what they were in files of old.
    pub old_ends: &'static [(&'static str, &'static str)],
    /// The classes of a block, of its attention and of its MLP in transformers.
    pub classes: [&'static str; 3],
}

/// The names that the files of a model may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileNames {
    /// Those of all parameters.
    pub parameters: Vec<String>,
    /// [`Names::prefix`].
    pub prefix: String,
    /// [`Names::old_ends`].
    pub old_ends: &'static [(&'static str, &'static str)],
    /// Ends of names that hold no parameters: [`Names::constants`], and a head that the model has no use for.
    pub ignored: Vec<String>,
}

impl ModelConfig {
    /// The names that this model's files may have.
    pub fn file_names(&self) -> FileNames {
        let units = ModelUnits::new(self, UnitPolicy::Whole).units;
        let parameters = units.into_iter().flat_map(|unit| unit.leaves).flat_map(|leaf| leaf.parameters);
        // A head that is tied may be in the files too: it is the embedding. A classifier has no use for a language model's.
        let has_no_use = self.ties_head() || self.head != Head::Language;
        let other_head = has_no_use.then(|| format!("{}.weight", self.names.head));
        FileNames {
            parameters: parameters.map(|parameter| parameter.name).collect(),
            prefix: self.names.prefix.to_owned(),
            old_ends: self.names.old_ends,
            ignored: self.names.constants.iter().map(|end| (*end).to_owned()).chain(other_head).collect(),
        }
    }
}

impl ModelConfig {
    /// Where the head is the embedding, the names of the two: files may hold the head beside it.
    pub fn tied_names(&self) -> Option<[String; 2]> {
        let weight = |name: &str| format!("{name}.weight");
        self.ties_head().then(|| [weight(self.names.head), weight(self.names.embedding)])
    }

    /// How many layers files have that hold tensors of these names.
    pub fn layers_in<'a>(&self, names: impl Iterator<Item = &'a str>) -> usize {
        let bare = self.names.layers.strip_prefix(self.names.prefix).unwrap_or(self.names.layers);
        let layer = |name: &'a str| {
            let rest = name.strip_prefix(self.names.layers).or_else(|| name.strip_prefix(bare))?;
            rest.strip_prefix('.')?.split('.').next()?.parse::<usize>().ok()
        };
        names.filter_map(layer).collect::<std::collections::BTreeSet<_>>().len()
    }
}

/// Those of Llama, which most families have.
pub(super) const LLAMA: Names = Names {
    embedding: "model.embed_tokens",
    positions: "",
    token_types: "",
    embedding_norm: "",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    query_key_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    output: "self_attn.o_proj",
    post_attention_norm: "",
    mlp_norm: "post_attention_layernorm",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    post_mlp_norm: "",
    final_norm: "model.norm",
    dense: "",
    head: "lm_head",
    classifier: "score",
    prefix: "model.",
    constants: &["rotary_emb.inv_freq"],
    old_ends: &[],
    classes: ["LlamaDecoderLayer", "LlamaAttention", "LlamaMLP"],
};
