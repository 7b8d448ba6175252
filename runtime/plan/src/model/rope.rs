//! Rotary positions as `config.json` tells them, in the form of transformers 4 (`rope_theta`, `rope_scaling`) or 5
//! (`rope_parameters`).

use serde_json::{Map, Value};
use zerofold_configs::nearest;

use super::file::File;
use super::{ModelConfigError, RopeConfig, RopeScaling};

/// What YaRN has in its object.
const YARN: [&str; 13] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "finetuned",
];

/// What a family has where its file leaves it out, and what it allows.
#[derive(Clone, Copy)]
pub(super) struct RopeDefaults {
    /// The base of the frequencies.
    pub(super) theta: f64,
    /// The context.
    pub(super) max_position_embeddings: usize,
    /// The original context, where it is another one.
    pub(super) original: Option<usize>,
    /// Whether a head may turn in part.
    pub(super) partial: bool,
}

impl File {
    /// The one rotary embedding of a model.
    pub(super) fn rope(&self, defaults: RopeDefaults) -> Result<RopeConfig, ModelConfigError> {
        self.rope_of(&self.rope_parameters()?, "rope_theta", defaults)
    }

    /// The object that holds them: `rope_parameters`, or `rope_scaling` as it was called before, when theta stood beside it. Both
    /// may be there, as long as they say the same; transformers passes over the first then.
    pub(super) fn rope_parameters(&self) -> Result<Map<String, Value>, ModelConfigError> {
        let mut parameters = Map::new();
        for key in ["rope_parameters", "rope_scaling"] {
            match self.get(key) {
                Some(Value::Object(object)) if !object.is_empty() => {
                    let differs =
                        |(name, value): &(&String, &Value)| object.get(*name).is_some_and(|other| other != *value);
                    if let Some((name, value)) = parameters.iter().find(differs) {
                        let reason =
                            format!("rope_parameters has {name}: {value}; keep what the model was trained with");
                        return Err(self.invalid(key, reason));
                    }
                    let theta = parameters.remove_entry("rope_theta");
                    parameters = theta.into_iter().collect();
                    parameters.extend(object.clone());
                }
                Some(Value::Object(_)) | None => {}
                Some(_) => return Err(self.invalid(key, "it must be an object or null")),
            }
        }
        Ok(parameters)
    }

    /// A rotary embedding by its object; a theta inside it goes before one beside it, which stands under `theta_key`.
    pub(super) fn rope_of(
        &self,
        parameters: &Map<String, Value>,
        theta_key: &str,
        defaults: RopeDefaults,
    ) -> Result<RopeConfig, ModelConfigError> {
        let inside = self.number_in(parameters, "rope_theta")?;
        let theta = match inside {
            Some(theta) => theta,
            None => self.number_or(theta_key, defaults.theta)?,
        };
        if theta <= 0.0 {
            let (keys, key) = if inside.is_some() { (parameters, "rope_theta") } else { (&self.keys, theta_key) };
            return Err(self.invalid_in(keys, key, "it must be larger than 0"));
        }
        let share = match self.number_in(parameters, "partial_rotary_factor")? {
            Some(share) => share,
            None => self.number_or("partial_rotary_factor", 1.0)?,
        };
        if share != 1.0 && !defaults.partial {
            let value = Value::from(share);
            return Err(self.not_built("partial_rotary_factor", &value, "every pair of a head must turn"));
        }
        if !(share > 0.0 && share <= 1.0) {
            return Err(self.invalid("partial_rotary_factor", "it must be larger than 0, and at most 1"));
        }
        Ok(RopeConfig { theta, share, scaling: self.rope_scaling(parameters, defaults)? })
    }

    fn rope_scaling(
        &self,
        parameters: &Map<String, Value>,
        defaults: RopeDefaults,
    ) -> Result<RopeScaling, ModelConfigError> {
        let positive = |key: &str| match self.number_in(parameters, key)? {
            Some(number) if number > 0.0 => Ok(number),
            Some(_) => Err(self.invalid_in(parameters, key, "it must be larger than 0")),
            None => Err(self.missing(&format!("{key} (of the rope scaling)"))),
        };
        // As in transformers, one beside the object goes before one inside.
        let original = || {
            let key = "original_max_position_embeddings";
            let keys = if self.get(key).is_some() { &self.keys } else { parameters };
            let default = defaults.original.unwrap_or(defaults.max_position_embeddings) as f64;
            match self.number_in(keys, key)?.unwrap_or(default) {
                number if number >= 2.0 && number.fract() == 0.0 && number < 2f64.powi(31) => Ok(number),
                _ => Err(self.invalid_in(keys, key, "it must be a whole number, 2 or larger, and below 2^31")),
            }
        };
        let kind = parameters.get("rope_type").or(parameters.get("type")).filter(|kind| !kind.is_null());
        Ok(match kind.map(|kind| (kind, kind.as_str())) {
            None | Some((_, Some("default"))) => RopeScaling::Default,
            Some((_, Some("linear"))) => RopeScaling::Linear { factor: positive("factor")? },
            Some((_, Some("llama3"))) => {
                let (low_freq_factor, high_freq_factor) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
                if high_freq_factor <= low_freq_factor {
                    let reason = format!("it must be larger than low_freq_factor = {low_freq_factor}");
                    return Err(self.invalid_in(parameters, "high_freq_factor", reason));
                }
                RopeScaling::Llama3 {
                    factor: positive("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: original()?,
                }
            }
            // `su` is what the first models called it.
            Some((_, Some("longrope" | "su"))) => {
                let original = original()?;
                let factor = match self.number_in(parameters, "factor")? {
                    Some(factor) => factor,
                    None => defaults.max_position_embeddings as f64 / original,
                };
                let attention_factor = match self.number_in(parameters, "attention_factor")? {
                    Some(_) => positive("attention_factor")?,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + factor.ln() / original.ln()).sqrt(),
                };
                RopeScaling::Long {
                    short_factor: self.divisors(parameters, "short_factor")?,
                    original_max_position_embeddings: original as usize,
                    attention_factor,
                }
            }
            Some((_, Some("yarn"))) => self.yarn(parameters, original()?, defaults)?,
            Some((kind, _)) => {
                return Err(self.not_built("rope_type", kind, "built are default, linear, llama3, longrope and yarn"));
            }
        })
    }

    fn yarn(
        &self,
        parameters: &Map<String, Value>,
        original: f64,
        defaults: RopeDefaults,
    ) -> Result<RopeScaling, ModelConfigError> {
        let number = |key: &str| match self.number_in(parameters, key)? {
            Some(number) if number < 0.0 => Err(self.invalid_in(parameters, key, "it must be 0 or larger")),
            number => Ok(number.filter(|&number| number > 0.0)),
        };
        if let Some(key) = parameters.keys().find(|key| !YARN.contains(&key.as_str())) {
            let hint = match nearest(key, YARN) {
                Some(near) => format!("did you mean {near}? YaRN has {}", YARN.join(", ")),
                None => format!("YaRN has {}", YARN.join(", ")),
            };
            return Err(self.not_built(key, &parameters[key], hint));
        }
        let stretch = defaults.max_position_embeddings as f64 / original;
        let factor = match number("factor")? {
            Some(factor) if factor < 1.0 => return Err(self.invalid_in(parameters, "factor", "it must be at least 1")),
            Some(factor) => factor,
            None if stretch > 1.0 => stretch,
            None => return Err(self.missing("factor (of the rope scaling)")),
        };
        let (beta_fast, beta_slow) = (number("beta_fast")?.unwrap_or(32.0), number("beta_slow")?.unwrap_or(1.0));
        if beta_fast < beta_slow {
            let reason = format!("it must be at least beta_slow = {beta_slow}");
            return Err(self.invalid_in(parameters, "beta_fast", reason));
        }
        let temperature = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let attention_factor = match (number("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
            (Some(attention_factor), ..) => attention_factor,
            (None, Some(scale), Some(of_all)) => temperature(scale) / temperature(of_all),
            (None, ..) => temperature(1.0),
        };
        let truncate = match parameters.get("truncate").filter(|value| !value.is_null()).map(Value::as_bool) {
            None => true,
            Some(Some(truncate)) => truncate,
            Some(None) => return Err(self.invalid_in(parameters, "truncate", "it must be true or false")),
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            truncate,
            original_max_position_embeddings: original,
            attention_factor,
        })
    }

    /// A list of numbers larger than 0.
    fn divisors(&self, parameters: &Map<String, Value>, key: &str) -> Result<Vec<f64>, ModelConfigError> {
        let Some(value) = parameters.get(key).filter(|value| !value.is_null()) else {
            return Err(self.missing(&format!("{key} (of the rope scaling)")));
        };
        let numbers = value.as_array().map(|items| items.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        match numbers.flatten().filter(|numbers| numbers.iter().all(|&number| number > 0.0 && number.is_finite())) {
            Some(numbers) => Ok(numbers),
            None => Err(self.invalid_in(parameters, key, "it must be a list of numbers larger than 0")),
        }
    }
}
