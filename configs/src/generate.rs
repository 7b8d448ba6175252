//! What `launch generate` asks of `worker generate`, as one JSON argument, and of `worker answer`, as a file in the job's folder.

use crate::types::choice;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

choice! {
    /// The type a model computes in when it generates.
    pub ComputeDtype {
        /// 4 bytes an element.
        Float32 = "float32",
        /// 2 bytes an element, float32's range.
        Bfloat16 = "bfloat16",
    }
}

/// A request to generate text from a model folder. Absent fields of the JSON take their defaults; unknown ones are an
/// error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    /// The Hugging Face model folder.
    pub model: PathBuf,
    /// The step's folder of the checkpoint whose masters are the weights, in place of the folder's.
    #[serde(default)]
    pub checkpoint: Option<PathBuf>,
    /// The text of the chat template, in place of the folder's.
    #[serde(default)]
    pub chat_template: Option<String>,
    /// The token that ends a turn, in place of the folder's.
    #[serde(default)]
    pub eos_token: Option<String>,
    /// What to answer or continue. Without a prompt and a data set, prompts are read from standard input.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Put the prompt through the model's chat template as a user's message.
    #[serde(default)]
    pub chat: bool,
    /// The system message of the chat.
    #[serde(default)]
    pub system: Option<String>,
    /// A JSONL file with `messages`: each example is answered and compared with its own last assistant message.
    #[serde(default)]
    pub dataset: Option<PathBuf>,
    /// Names of the data set's columns: the name here to the name there.
    #[serde(default)]
    pub column_mapping: BTreeMap<String, String>,
    /// Where `launch` writes the answers to the data set, as JSONL.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// At most so many examples of the data set.
    #[serde(default)]
    pub limit: Option<usize>,
    /// At most so many new tokens for each prompt.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: u32,
    /// The softmax temperature; 0 takes the likeliest token (greedy).
    #[serde(default)]
    pub temperature: f64,
    /// Sample among the likeliest tokens that hold this much probability; 1 means all.
    #[serde(default = "default_top_p")]
    pub top_p: f64,
    /// Sample among so many likeliest tokens; 0 means all.
    #[serde(default)]
    pub top_k: u32,
    /// The seed of the sampling.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The type to compute in; ranks go by their configuration, as they do for `checkpoint`.
    #[serde(default = "default_dtype")]
    pub dtype: ComputeDtype,
}

fn default_max_new_tokens() -> u32 {
    256
}

fn default_top_p() -> f64 {
    1.0
}

fn default_seed() -> u64 {
    42
}

fn default_dtype() -> ComputeDtype {
    ComputeDtype::Float32
}

impl GenerateRequest {
    /// The file in a job's folder that the ranks which answer a data set read it from.
    pub const FILE: &'static str = "request.json";

    /// The file in that folder that a rank writes its answers to, each as a line: the row's number, a tab, and an object as
    /// [`GenerateRequest::output`] has it.
    pub fn answers(folder: &Path, rank: usize) -> PathBuf {
        folder.join(format!("answers-{rank}.jsonl"))
    }

    /// A request for `model` with every option at its default: greedy, float32, 256 new tokens.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            checkpoint: None,
            chat_template: None,
            eos_token: None,
            prompt: None,
            chat: false,
            system: None,
            dataset: None,
            column_mapping: BTreeMap::new(),
            output: None,
            limit: None,
            max_new_tokens: default_max_new_tokens(),
            temperature: 0.0,
            top_p: default_top_p(),
            top_k: 0,
            seed: default_seed(),
            dtype: default_dtype(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_json() {
        let mut request = GenerateRequest::new("some/model");
        request.prompt = Some("two\nlines \"quoted\"".to_owned());
        request.chat = true;
        request.limit = Some(7);
        request.temperature = 0.7;
        request.dtype = ComputeDtype::Bfloat16;
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.contains("\"dtype\":\"bfloat16\""), "{text}");
        assert_eq!(serde_json::from_str::<GenerateRequest>(&text).unwrap(), request);
    }

    #[test]
    fn absent_fields_take_their_defaults_and_unknown_ones_are_refused() {
        let request: GenerateRequest = serde_json::from_str(r#"{"model": "m"}"#).unwrap();
        assert_eq!(request, GenerateRequest::new("m"));
        let error = serde_json::from_str::<GenerateRequest>(r#"{"model": "m", "temprature": 1}"#).unwrap_err();
        assert!(error.to_string().contains("temprature"), "{error}");
    }
}
