//! `config.json` while it is read, so that every error names the file, the key and the value.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ModelConfigError;

/// No model has nearly as many layers.
const MOST_LAYERS: usize = 10_000;

/// The file and its keys.
pub(super) struct File {
    path: PathBuf,
    pub(super) keys: Map<String, Value>,
}

impl File {
    pub(super) fn read(path: &Path) -> Result<Self, ModelConfigError> {
        let read = std::fs::read_to_string(path);
        let text = read.map_err(|source| ModelConfigError::Read { path: path.to_owned(), source })?;
        File::parse(path, &text)
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ModelConfigError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| ModelConfigError::Json { path: path.to_owned(), detail: error.to_string() })?;
        match value {
            Value::Object(keys) => Ok(File::new(path, keys)),
            _ => {
                let detail = "the file holds another kind of value".to_owned();
                Err(ModelConfigError::Json { path: path.to_owned(), detail })
            }
        }
    }

    /// A file of these keys.
    pub(super) fn new(path: &Path, keys: Map<String, Value>) -> Self {
        File { path: path.to_owned(), keys }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn invalid(&self, key: &str, reason: impl Into<String>) -> ModelConfigError {
        self.invalid_in(&self.keys, key, reason)
    }

    pub(super) fn invalid_in(
        &self,
        keys: &Map<String, Value>,
        key: &str,
        reason: impl Into<String>,
    ) -> ModelConfigError {
        let value = keys.get(key).map_or_else(|| "absent".to_owned(), Value::to_string);
        ModelConfigError::Invalid { path: self.path.clone(), key: key.to_owned(), value, reason: reason.into() }
    }

    pub(super) fn not_built(&self, key: &str, value: &Value, hint: impl Into<String>) -> ModelConfigError {
        let (key, value) = (key.to_owned(), value.to_string());
        ModelConfigError::NotBuilt { path: self.path.clone(), key, value, hint: hint.into() }
    }

    pub(super) fn missing(&self, key: &str) -> ModelConfigError {
        ModelConfigError::Missing { path: self.path.clone(), key: key.to_owned() }
    }

    /// A key's value; null counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Larger numbers would overflow the products of sizes.
        match value.as_u64() {
            Some(size) if (1..=u64::from(u32::MAX) / 2).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.invalid(key, "it must be a whole number, 1 or larger, and below 2^31")),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, ModelConfigError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A number of layers, of which each has entries of its own.
    pub(super) fn layers(&self, key: &str) -> Result<usize, ModelConfigError> {
        match self.size(key)? {
            layers if layers <= MOST_LAYERS => Ok(layers),
            _ => Err(self.invalid(key, format!("it must be at most {MOST_LAYERS}"))),
        }
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.invalid(key, "it must be true or false"))
    }

    pub(super) fn optional_string(&self, key: &str) -> Result<Option<String>, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(|text| Some(text.to_owned())).ok_or_else(|| self.invalid(key, "it must be a string"))
    }

    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64, ModelConfigError> {
        Ok(self.number_in(&self.keys, key)?.unwrap_or(default))
    }

    pub(super) fn number_in(&self, keys: &Map<String, Value>, key: &str) -> Result<Option<f64>, ModelConfigError> {
        let Some(value) = keys.get(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid_in(keys, key, "it must be a number")),
        }
    }

    /// A number that must be larger than 0; none where it is absent.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ModelConfigError> {
        match self.number_in(&self.keys, key)? {
            Some(number) if number <= 0.0 => Err(self.invalid(key, "it must be larger than 0")),
            number => Ok(number),
        }
    }

    /// A share that training drops.
    pub(super) fn dropout(&self, key: &str, default: f64) -> Result<f64, ModelConfigError> {
        let share = self.number_or(key, default)?;
        match (0.0..1.0).contains(&share) {
            true => Ok(share),
            false => Err(self.invalid(key, "it must be at least 0 and below 1")),
        }
    }

    /// A list of words; none where it is absent.
    pub(super) fn words(&self, key: &str) -> Result<Option<Vec<&str>>, ModelConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let words = value.as_array().map(|items| items.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        words.flatten().map(Some).ok_or_else(|| self.invalid(key, "it must be a list of strings"))
    }

    /// Refuses a key with any other value than null and `neutral`.
    pub(super) fn must_be(&self, key: &str, neutral: &Value, hint: &str) -> Result<(), ModelConfigError> {
        match self.get(key) {
            Some(value) if !same(value, neutral) => Err(self.not_built(key, value, hint)),
            _ => Ok(()),
        }
    }
}

/// Equal, with numbers by what they are worth.
fn same(value: &Value, other: &Value) -> bool {
    match (value.as_f64(), other.as_f64()) {
        (Some(value), Some(other)) => value == other,
        _ => value == other,
    }
}
