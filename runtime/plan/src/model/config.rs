//! `config.json` of a Hugging Face model folder, read strictly: what is not understood and would matter is refused.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ModelConfigError;

/// The architectures that are built here, by the names in `architectures`.
const SUPPORTED: [&str; 2] = ["LlamaForCausalLM", "MistralForCausalLM"];

/// Keys of related families that change the maths, with the value at which they do not (null always counts as absent).
const REFUSED_UNLESS: [(&str, Neutral); 19] = [
    ("quantization_config", Neutral::Absent),
    ("attention_bias", Neutral::False),
    ("mlp_bias", Neutral::False),
    ("qkv_bias", Neutral::False),
    ("use_qk_norm", Neutral::False),
    ("qk_norm", Neutral::False),
    ("hidden_dropout", Neutral::Number(0.0)),
    ("partial_rotary_factor", Neutral::Number(1.0)),
    ("attn_logit_softcapping", Neutral::Absent),
    ("final_logit_softcapping", Neutral::Absent),
    ("embedding_multiplier", Neutral::Number(1.0)),
    ("residual_multiplier", Neutral::Number(1.0)),
    ("logits_scaling", Neutral::Number(1.0)),
    ("attention_multiplier", Neutral::Absent),
    ("num_local_experts", Neutral::Number(0.0)),
    ("num_experts", Neutral::Number(0.0)),
    ("no_rope_layers", Neutral::Absent),
    ("kv_lora_rank", Neutral::Absent),
    ("cross_attention_layers", Neutral::Absent),
];

/// When a key of [`REFUSED_UNLESS`] changes nothing.
enum Neutral {
    Absent,
    False,
    Number(f64),
}

/// A Llama-family model's sizes and constants. Lengths are in elements, ids or heads.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `LlamaForCausalLM` or `MistralForCausalLM`.
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
    /// The epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Mistral's window in tokens; sequences up to it are exact.
    pub sliding_window: Option<usize>,
    /// The share of attention weights that training drops; 0 in almost every model.
    pub attention_dropout: f64,
    /// The type the model was saved in, as written (`torch_dtype` or `dtype`).
    pub dtype: Option<String>,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies.
    pub theta: f64,
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
}

impl ModelConfig {
    /// Reads `config.json` in a model folder.
    ///
    /// # Errors
    /// A missing or malformed file, an unsupported architecture, values that cannot be right, and keys that would change
    /// the maths in a way that is not built.
    pub fn read(model_dir: &Path) -> Result<Self, ModelConfigError> {
        let path = model_dir.join("config.json");
        let text =
            std::fs::read_to_string(&path).map_err(|source| ModelConfigError::Read { path: path.clone(), source })?;
        Self::parse(&path, &text)
    }

    /// The longest sequence in tokens that full causal attention computes exactly as the model means it; none when
    /// every length is exact.
    pub fn max_exact_length(&self) -> Option<usize> {
        self.sliding_window
    }

    /// How many query heads share one key and value head.
    pub fn queries_per_key(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ModelConfigError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| ModelConfigError::Json { path: path.to_owned(), detail: error.to_string() })?;
        let Value::Object(keys) = value else {
            let detail = "the file holds another kind of value".to_owned();
            return Err(ModelConfigError::Json { path: path.to_owned(), detail });
        };
        let file = File { path: path.to_owned(), keys };
        let architecture = file.architecture()?;
        file.refuse_what_is_not_built()?;
        // The defaults of the two classes where a file leaves a key out.
        let mistral = architecture == "MistralForCausalLM";
        let num_attention_heads = file.size("num_attention_heads")?;
        let default_key_value_heads =
            if mistral && !file.keys.contains_key("num_key_value_heads") { 8 } else { num_attention_heads };
        let max_position_embeddings =
            file.optional_size("max_position_embeddings")?.unwrap_or(if mistral { 131_072 } else { 2048 });
        let hidden_size = file.size("hidden_size")?;
        let head_dim = match file.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                let reason = format!("it is not a multiple of num_attention_heads = {num_attention_heads}");
                return Err(file.invalid("hidden_size", reason));
            }
        };
        let window_default = if mistral && !file.keys.contains_key("sliding_window") { Some(4096) } else { None };
        let config = ModelConfig {
            vocab_size: file.size("vocab_size")?,
            hidden_size,
            intermediate_size: file.size("intermediate_size")?,
            num_hidden_layers: file.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: file.optional_size("num_key_value_heads")?.unwrap_or(default_key_value_heads),
            head_dim,
            max_position_embeddings,
            rms_norm_eps: file.optional_number(&file.keys, "rms_norm_eps")?.unwrap_or(1e-6),
            rope: file.rope(max_position_embeddings)?,
            tie_word_embeddings: file.optional_bool("tie_word_embeddings")?.unwrap_or(false),
            sliding_window: if mistral { file.optional_size("sliding_window")?.or(window_default) } else { None },
            attention_dropout: file.optional_number(&file.keys, "attention_dropout")?.unwrap_or(0.0),
            dtype: file.optional_string("dtype")?.or(file.optional_string("torch_dtype")?),
            architecture,
        };
        if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
            let reason = format!(
                "it is not a multiple of num_key_value_heads = {}, so query heads cannot share them evenly",
                config.num_key_value_heads
            );
            return Err(file.invalid("num_attention_heads", reason));
        }
        if !config.head_dim.is_multiple_of(2) {
            let reason = format!("rotary positions turn pairs, and the head width {} is odd", config.head_dim);
            return Err(
                file.invalid(if file.keys.contains_key("head_dim") { "head_dim" } else { "hidden_size" }, reason)
            );
        }
        if !(0.0..1.0).contains(&config.attention_dropout) {
            return Err(file.invalid("attention_dropout", "it must be at least 0 and below 1"));
        }
        if !(config.rms_norm_eps >= 0.0 && config.rms_norm_eps.is_finite()) {
            return Err(file.invalid("rms_norm_eps", "it must be a finite number, 0 or larger"));
        }
        Ok(config)
    }
}

/// The file while it is read, so that every error names it.
struct File {
    path: PathBuf,
    keys: Map<String, Value>,
}

impl File {
    fn invalid(&self, key: &str, reason: impl Into<String>) -> ModelConfigError {
        let value = self.keys.get(key).map_or_else(|| "absent".to_owned(), Value::to_string);
        ModelConfigError::Invalid { path: self.path.clone(), key: key.to_owned(), value, reason: reason.into() }
    }

    fn not_built(&self, key: &str, value: &Value, hint: &str) -> ModelConfigError {
        let value = value.to_string();
        ModelConfigError::NotBuilt { path: self.path.clone(), key: key.to_owned(), value, hint: hint.to_owned() }
    }

    fn missing(&self, key: &str) -> ModelConfigError {
        ModelConfigError::Missing { path: self.path.clone(), key: key.to_owned() }
    }

    /// A key's value; null counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn architecture(&self) -> Result<String, ModelConfigError> {
        let named = self.get("architectures").and_then(Value::as_array).and_then(|names| names.first());
        let found = match (named.and_then(Value::as_str), self.get("model_type").and_then(Value::as_str)) {
            (Some(name), _) => name.to_owned(),
            (None, Some("llama")) => "LlamaForCausalLM".to_owned(),
            (None, Some("mistral")) => "MistralForCausalLM".to_owned(),
            (None, Some(other)) => format!("of model_type {other}"),
            (None, None) => return Err(self.missing("architectures")),
        };
        if SUPPORTED.contains(&found.as_str()) {
            return Ok(found);
        }
        let supported = SUPPORTED.join(" and ");
        Err(ModelConfigError::UnsupportedArchitecture { path: self.path.clone(), found, supported })
    }

    fn refuse_what_is_not_built(&self) -> Result<(), ModelConfigError> {
        for (key, neutral) in &REFUSED_UNLESS {
            let Some(value) = self.get(key) else { continue };
            let harmless = match neutral {
                Neutral::Absent => false,
                Neutral::False => value == &Value::Bool(false),
                Neutral::Number(number) => value.as_f64() == Some(*number),
            };
            if !harmless {
                let hint = match *key {
                    "quantization_config" => "use the model's unquantized folder (bf16, fp16 or fp32 safetensors)",
                    _ => "plain Llama and Mistral models (SmolLM2, Llama 2 and 3, Mistral) do not set it",
                };
                return Err(self.not_built(key, value, hint));
            }
        }
        if let Some(activation) = self.get("hidden_act").filter(|value| value.as_str() != Some("silu")) {
            return Err(self.not_built("hidden_act", activation, "the activation of Llama and Mistral models is silu"));
        }
        let full = |value: &Value| value.as_str() == Some("full_attention");
        match self.get("layer_types") {
            Some(Value::Array(types)) if types.iter().all(full) => Ok(()),
            Some(other) => Err(self.not_built("layer_types", other, "every layer must be full_attention")),
            None => Ok(()),
        }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Larger numbers would overflow the products of sizes.
        match value.as_u64() {
            Some(size) if (1..=u64::from(u32::MAX) / 2).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.invalid(key, "it must be a whole number, 1 or larger, and below 2^31")),
        }
    }

    fn size(&self, key: &str) -> Result<usize, ModelConfigError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    fn optional_bool(&self, key: &str) -> Result<Option<bool>, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.invalid(key, "it must be true or false"))
    }

    fn optional_string(&self, key: &str) -> Result<Option<String>, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(|text| Some(text.to_owned())).ok_or_else(|| self.invalid(key, "it must be a string"))
    }

    fn optional_number(&self, keys: &Map<String, Value>, key: &str) -> Result<Option<f64>, ModelConfigError> {
        let Some(value) = keys.get(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid_in(keys, key, "it must be a number")),
        }
    }

    fn invalid_in(&self, keys: &Map<String, Value>, key: &str, reason: &str) -> ModelConfigError {
        let value = keys.get(key).map_or_else(|| "absent".to_owned(), Value::to_string);
        ModelConfigError::Invalid { path: self.path.clone(), key: key.to_owned(), value, reason: reason.to_owned() }
    }

    /// Rotary positions, in the form of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).
    ///
    /// As in transformers, a filled `rope_scaling` goes before `rope_parameters`, and a theta inside the object before
    /// one beside it.
    fn rope(&self, max_position_embeddings: usize) -> Result<RopeConfig, ModelConfigError> {
        let empty = Map::new();
        let mut parameters = &empty;
        for key in ["rope_parameters", "rope_scaling"] {
            match self.get(key) {
                Some(Value::Object(object)) if !object.is_empty() => parameters = object,
                Some(Value::Object(_)) | None => {}
                Some(_) => return Err(self.invalid(key, "it must be an object or null")),
            }
        }
        let theta = match self.optional_number(parameters, "rope_theta")? {
            Some(theta) => theta,
            None => self.optional_number(&self.keys, "rope_theta")?.unwrap_or(10_000.0),
        };
        if theta <= 0.0 {
            let keys = if parameters.contains_key("rope_theta") { parameters } else { &self.keys };
            return Err(self.invalid_in(keys, "rope_theta", "it must be larger than 0"));
        }
        if let Some(share) = parameters.get("partial_rotary_factor").filter(|share| share.as_f64() != Some(1.0)) {
            return Err(self.not_built("partial_rotary_factor", share, "every pair of a head must turn"));
        }
        let kind = parameters.get("rope_type").or(parameters.get("type")).filter(|kind| !kind.is_null());
        let positive = |key: &str| match self.optional_number(parameters, key)? {
            Some(number) if number > 0.0 => Ok(number),
            Some(_) => Err(self.invalid_in(parameters, key, "it must be larger than 0")),
            None => Err(self.missing(&format!("{key} (of the rope scaling)"))),
        };
        let scaling = match kind.map(|kind| (kind, kind.as_str())) {
            None | Some((_, Some("default"))) => RopeScaling::Default,
            Some((_, Some("linear"))) => RopeScaling::Linear { factor: positive("factor")? },
            Some((_, Some("llama3"))) => {
                let (low_freq_factor, high_freq_factor) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
                if high_freq_factor <= low_freq_factor {
                    let reason = format!("it must be larger than low_freq_factor = {low_freq_factor}");
                    return Err(self.invalid_in(parameters, "high_freq_factor", &reason));
                }
                RopeScaling::Llama3 {
                    factor: positive("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: match parameters.get("original_max_position_embeddings") {
                        None | Some(Value::Null) => max_position_embeddings as f64,
                        Some(_) => positive("original_max_position_embeddings")?,
                    },
                }
            }
            Some((kind, _)) => {
                return Err(self.not_built("rope_type", kind, "built are default, linear and llama3"));
            }
        };
        Ok(RopeConfig { theta, scaling })
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
