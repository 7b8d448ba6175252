//! `config.json` of a Hugging Face model folder, read strictly: what is not understood and would matter is refused.

use std::path::Path;

use serde_json::{Value, json};

use super::families::{self, Family};
use super::file::File;
use super::{Head, ModelConfig, ModelConfigError, NormKind, RopeScaling};

/// Keys of related families that change the maths, with the value at which they do not (null always counts as absent). A
/// family that understands one says so.
fn refused_unless(key: &str) -> Option<Value> {
    Some(match key {
        "mlp_bias"
        | "qkv_bias"
        | "attention_bias"
        | "use_qk_norm"
        | "qk_norm"
        | "use_sliding_window"
        | "use_bidirectional_attention"
        | "add_cross_attention"
        | "lm_head_bias" => json!(false),
        "hidden_dropout" | "embd_pdrop" | "resid_pdrop" | "num_local_experts" | "num_experts" => json!(0),
        "partial_rotary_factor" | "embedding_multiplier" | "residual_multiplier" | "logits_scaling" => json!(1),
        "hidden_act" => json!("silu"),
        "quantization_config"
        | "attn_logit_softcapping"
        | "final_logit_softcapping"
        | "attention_multiplier"
        | "query_pre_attn_scalar"
        | "no_rope_layers"
        | "no_rope_layer_interval"
        | "kv_lora_rank"
        | "cross_attention_layers"
        | "per_layer_config" => Value::Null,
        _ => return None,
    })
}

impl ModelConfig {
    /// Reads `config.json` in a model folder.
    ///
    /// # Errors
    /// A missing or malformed file, an unsupported architecture, values that cannot be right, and keys that would change
    /// the maths in a way that is not built.
    pub fn read(model_dir: &Path) -> Result<Self, ModelConfigError> {
        Self::of_file(&File::read(&model_dir.join("config.json"))?)
    }

    #[cfg(test)]
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ModelConfigError> {
        Self::of_file(&File::parse(path, text)?)
    }

    pub(super) fn of_file(file: &File) -> Result<Self, ModelConfigError> {
        let family = family_of(file)?;
        refuse_what_is_not_understood(file, family)?;
        let mut config = (family.read)(file)?;
        config.architecture = family.name().to_owned();
        if architecture_of(file) == Some(family.classifier()) && config.head == Head::Language {
            // A classifier of a causal family: its head stands in place of the language model's, at the last token.
            config.architecture = family.classifier().to_owned();
            (config.head, config.logit_softcap) = (file.classes()?, None);
        }
        config.dtype = file.optional_string("dtype")?.or(file.optional_string("torch_dtype")?);
        check(file, &config)?;
        Ok(config)
    }
}

fn architecture_of(file: &File) -> Option<&str> {
    file.get("architectures")?.as_array()?.first()?.as_str()
}

pub(super) fn family_of(file: &File) -> Result<&'static Family, ModelConfigError> {
    let (architecture, model_type) = (architecture_of(file), file.get("model_type").and_then(Value::as_str));
    let of = |family: &&Family| match (architecture, model_type) {
        (Some(name), _) => family.architectures.contains(&name),
        (None, kind) => kind == Some(family.model_type),
    };
    if let Some(family) = families::ALL.iter().copied().find(of) {
        return Ok(family);
    }
    let found = match (architecture, model_type) {
        (Some(name), _) => name.to_owned(),
        (None, Some(other)) => format!("of model_type {other}"),
        (None, None) => return Err(file.missing("architectures")),
    };
    let supported: Vec<&str> = families::ALL.iter().map(|family| family.name()).collect();
    let mixture =
        found.to_lowercase().contains("moe") || ["num_experts", "num_local_experts"].iter().any(|key| file.has(key));
    let supported = match mixture {
        true => format!("{}; mixtures of experts are not built", supported.join(", ")),
        false => supported.join(", "),
    };
    Err(ModelConfigError::UnsupportedArchitecture { path: file.path().to_owned(), found, supported })
}

fn refuse_what_is_not_understood(file: &File, family: &Family) -> Result<(), ModelConfigError> {
    // transformers goes by the type, files are read by the architecture.
    if let Some(model_type) = file.optional_string("model_type")?
        && model_type != family.model_type
    {
        let reason = format!("architectures names {}, which is of type {}", family.name(), family.model_type);
        return Err(file.invalid("model_type", reason));
    }
    for key in file.keys.keys().filter(|key| !family.understands.contains(&key.as_str())) {
        if let Some(neutral) = refused_unless(key) {
            let hint = match key.as_str() {
                "hidden_act" => "only silu is built for this family".to_owned(),
                "quantization_config" => {
                    "use the model's unquantized folder (bf16, fp16 or fp32 safetensors)".to_owned()
                }
                _ => format!("{} as transformers knows it does not take it", family.name()),
            };
            file.must_be(key, &neutral, &hint)?;
        }
    }
    if family.understands.contains(&"layer_types") {
        return Ok(());
    }
    match file.words("layer_types")? {
        Some(types) if types.iter().any(|kind| *kind != "full_attention") => {
            let value = file.get("layer_types").cloned().unwrap_or_default();
            Err(file.not_built("layer_types", &value, "every layer of this family must be full_attention"))
        }
        _ => Ok(()),
    }
}

/// What must hold whatever the family.
fn check(file: &File, config: &ModelConfig) -> Result<(), ModelConfigError> {
    if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
        let reason = format!(
            "it is not a multiple of num_key_value_heads = {}, so query heads cannot share them evenly",
            config.num_key_value_heads
        );
        return Err(file.invalid("num_attention_heads", reason));
    }
    if !config.head_dim.is_multiple_of(2) {
        let reason = format!("rotary positions turn pairs, and the head width {} is odd", config.head_dim);
        return Err(file.invalid(if file.has("head_dim") { "head_dim" } else { "hidden_size" }, reason));
    }
    // Products of sizes must be numbers.
    let widest = config.num_attention_heads.max(config.num_key_value_heads).checked_mul(config.head_dim);
    if widest.is_none_or(|width| width >= 1 << 31) {
        let reason = format!("with heads {} wide queries would have no width", config.head_dim);
        return Err(file.invalid("num_attention_heads", reason));
    }
    if !(config.norm_epsilon >= 0.0 && config.norm_epsilon.is_finite()) {
        let key = match config.norm {
            NormKind::Layer if file.has("layer_norm_eps") => "layer_norm_eps",
            NormKind::Layer => "layer_norm_epsilon",
            _ => "rms_norm_eps",
        };
        return Err(file.invalid(key, "it must be a finite number, 0 or larger"));
    }
    for rope in &config.ropes {
        let turned = rope.turned(config.head_dim);
        if turned == 0 || turned != (config.head_dim as f64 * rope.share) as usize {
            let reason = format!("of the {} elements of a head an even number must turn, at least 2", config.head_dim);
            return Err(file.invalid("partial_rotary_factor", reason));
        }
        if let RopeScaling::Long { short_factor, .. } = &rope.scaling
            && short_factor.len() != rope.turned(config.head_dim) / 2
        {
            let (have, pairs) = (short_factor.len(), rope.turned(config.head_dim) / 2);
            return Err(
                file.invalid("short_factor (of the rope scaling)", format!("{have} divisors for {pairs} pairs"))
            );
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
