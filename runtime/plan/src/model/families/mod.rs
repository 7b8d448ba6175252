//! The families that are built: for each what its `config.json` means, as a [`ModelConfig`], and how it calls its parameters.
//! docs/models.md shows how one is added.

mod bert;
mod gemma2;
mod gemma3;
mod gpt2;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod roberta;
mod smollm3;

use super::file::File;
use super::names::Names;
use super::rope::RopeDefaults;
use super::{Activation, Head, LayerAttention, ModelConfig, ModelConfigError};
use zerofold_configs::ProblemType;

/// A family of models.
pub(super) struct Family {
    /// Its classes in transformers whose files are read; the first is what the model is here, unless it is the classifier.
    pub(super) architectures: &'static [&'static str],
    /// Its `model_type`.
    pub(super) model_type: &'static str,
    /// Keys that [`Family::read`] looks at though they are refused in others.
    pub(super) understands: &'static [&'static str],
    /// What its file means; architecture and type are filled in by the caller.
    pub(super) read: fn(&File) -> Result<ModelConfig, ModelConfigError>,
}

impl Family {
    /// The class that the model is here.
    pub(super) fn name(&self) -> &'static str {
        self.architectures.first().copied().unwrap_or(self.model_type)
    }

    /// The class of its classifiers of sequences.
    pub(super) fn classifier(&self) -> &'static str {
        let mut classes = self.architectures.iter().copied();
        classes.find(|class| class.ends_with("ForSequenceClassification")).unwrap_or(self.name())
    }
}

/// All of them, the plainest first.
pub(super) const ALL: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &smollm3::FAMILY,
    &gpt2::FAMILY,
    &bert::FAMILY,
    &roberta::FAMILY,
];

/// What a relative of Llama has where its file leaves a key out.
struct Defaults {
    names: &'static Names,
    max_position_embeddings: usize,
    /// As many as query heads where it is none.
    num_key_value_heads: Option<usize>,
    /// The width of a head's share of the hidden size where it is none.
    head_dim: Option<usize>,
    norm_epsilon: f64,
    theta: f64,
    tied: bool,
    /// Whether a head may turn in part.
    partial: bool,
    /// The context before it was stretched; the context itself where it is none.
    original: Option<usize>,
}

/// Llama's own.
const DEFAULTS: Defaults = Defaults {
    names: &super::names::LLAMA,
    max_position_embeddings: 2048,
    num_key_value_heads: None,
    head_dim: None,
    norm_epsilon: 1e-6,
    theta: 10_000.0,
    tied: false,
    partial: false,
    original: None,
};

impl File {
    /// A relative of Llama: RMSNorm before attention and MLP, rotary positions, a gate.
    fn relative_of_llama(&self, defaults: &Defaults) -> Result<ModelConfig, ModelConfigError> {
        let num_attention_heads = self.size("num_attention_heads")?;
        // A family's own number stands for an absent key; null means as many as query heads.
        let key_heads = match defaults.num_key_value_heads {
            Some(number) if !self.has("num_key_value_heads") => number,
            _ => num_attention_heads,
        };
        let hidden_size = self.size("hidden_size")?;
        let max_position_embeddings =
            self.optional_size("max_position_embeddings")?.unwrap_or(defaults.max_position_embeddings);
        let Defaults { theta, partial, original, .. } = *defaults;
        let rope = RopeDefaults { theta, max_position_embeddings, original, partial };
        Ok(ModelConfig {
            vocab_size: self.size("vocab_size")?,
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers: self.layers("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: self.optional_size("num_key_value_heads")?.unwrap_or(key_heads),
            head_dim: match self.optional_size("head_dim")?.or(defaults.head_dim) {
                Some(head_dim) => head_dim,
                None => self.part_of_hidden(hidden_size, num_attention_heads)?,
            },
            max_position_embeddings,
            norm_epsilon: self.number_or("rms_norm_eps", defaults.norm_epsilon)?,
            ropes: vec![self.rope(rope)?],
            tie_word_embeddings: self.bool_or("tie_word_embeddings", defaults.tied)?,
            attention_dropout: self.dropout("attention_dropout", 0.0)?,
            names: defaults.names,
            ..ModelConfig::llama()
        })
    }

    /// The width of a head that has its part of the hidden size.
    fn part_of_hidden(&self, hidden_size: usize, heads: usize) -> Result<usize, ModelConfigError> {
        match hidden_size.is_multiple_of(heads) {
            true => Ok(hidden_size / heads),
            false => {
                let key = if self.has("n_embd") { "n_embd" } else { "hidden_size" };
                Err(self.invalid(key, format!("it is not a multiple of num_attention_heads = {heads}")))
            }
        }
    }

    /// An activation by its name in transformers.
    fn activation(&self, key: &str, default: Activation) -> Result<Activation, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_str() {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("gelu") => Ok(Activation::Gelu),
            _ => Err(self.not_built(key, value, "built are silu, gelu, gelu_new and gelu_pytorch_tanh")),
        }
    }

    /// The head of a classifier: as many classes as `num_labels` says or `id2label` names, 2 where neither is there.
    pub(super) fn classes(&self) -> Result<Head, ModelConfigError> {
        let named = match self.get("id2label").map(serde_json::Value::as_object) {
            None => None,
            Some(Some(names)) if !names.is_empty() => Some(names.len()),
            Some(_) => return Err(self.invalid("id2label", "it must name each class by its number")),
        };
        let labels = self.optional_size("num_labels")?.or(named).unwrap_or(2);
        let problem = match self.optional_string("problem_type")? {
            None if labels == 1 => ProblemType::Regression,
            None => ProblemType::SingleLabel,
            Some(name) => ProblemType::from_name(&name).ok_or_else(|| {
                self.invalid("problem_type", format!("it must be one of {}", ProblemType::NAMES.join(", ")))
            })?,
        };
        Ok(Head::Classes { labels, problem })
    }

    /// `layer_types`, one for each layer: whether it has a window. None where the key is absent.
    fn windowed_layers(&self, layers: usize) -> Result<Option<Vec<bool>>, ModelConfigError> {
        let Some(types) = self.words("layer_types")? else { return Ok(None) };
        if types.len() < layers {
            let reason = format!("{} types for num_hidden_layers = {layers}", types.len());
            return Err(self.invalid("layer_types", reason));
        }
        let windowed = types.iter().take(layers).map(|kind| match *kind {
            "full_attention" => Ok(false),
            "sliding_attention" => Ok(true),
            _ => Err(self.invalid("layer_types", "built are full_attention and sliding_attention")),
        });
        windowed.collect::<Result<_, _>>().map(Some)
    }

    /// The window of layers of which some have one, with the one that an absent key means.
    fn window(&self, windowed: &[bool], default: usize) -> Result<usize, ModelConfigError> {
        match (self.has("sliding_window"), self.optional_size("sliding_window")?) {
            (_, Some(window)) => Ok(window),
            (true, None) if windowed.contains(&true) => {
                Err(self.invalid("sliding_window", "layers of sliding attention need a window, in tokens"))
            }
            _ => Ok(default),
        }
    }

    /// The layers of Qwen 2 and 3: with `use_sliding_window` those from `max_window_layers` on have a window, or those that
    /// `layer_types` names.
    fn qwen_layers(&self, layers: usize) -> Result<Vec<LayerAttention>, ModelConfigError> {
        let uses = self.bool_or("use_sliding_window", false)?;
        let windowed = match self.windowed_layers(layers)? {
            Some(windowed) => windowed,
            None => {
                // 0 is allowed: every layer has a window.
                let first = match self.get("max_window_layers").map(serde_json::Value::as_u64) {
                    None => 28,
                    Some(Some(first)) => first as usize,
                    Some(None) => return Err(self.invalid("max_window_layers", "it must be a whole number")),
                };
                (0..layers).map(|layer| uses && layer >= first).collect()
            }
        };
        if windowed.iter().any(|&windowed| windowed) && !uses {
            let reason = "it names sliding_attention, but use_sliding_window is false";
            return Err(self.invalid("layer_types", reason));
        }
        let window = self.window(&windowed, 4096)?;
        Ok(windowed.into_iter().map(|has| LayerAttention { window: has.then_some(window), rope: Some(0) }).collect())
    }
}
