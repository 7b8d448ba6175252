//! A classifier of sequences made of a model: what its `config.json` says, and which parameters begin at random.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use zerofold_configs::ProblemType;

use super::config::family_of;
use super::file::File;
use super::{Head, ModelConfig, ModelConfigError, SegmentKind};
use crate::model::ModelUnits;
use crate::spec::ParameterSpec;
use zerofold_configs::UnitPolicy;

/// What transformers draws weights of new layers with, where a model does not say.
const INITIALIZER_RANGE: f64 = 0.02;

/// A classifier that begins with another model's weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Classifier {
    /// Its `config.json`: that of the model with class, labels and problem in it.
    pub keys: Map<String, Value>,
    /// The same as it is understood.
    pub config: ModelConfig,
    /// The standard deviation of new matrices (`initializer_range`); new vectors are 0, as transformers has it.
    pub initializer_range: f64,
}

impl Classifier {
    /// The classifier that transformers' `AutoModelForSequenceClassification.from_pretrained` makes of the model in a folder,
    /// with these labels. Where the model tells no token to pad with, `pad_token` does: transformers' causal classifiers find the last
    /// token by it.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn of_model(
        folder: &Path,
        labels: &[String],
        problem: ProblemType,
        pad_token: Option<u32>,
    ) -> Result<Self, ModelConfigError> {
        let path = folder.join("config.json");
        let mut keys = File::read(&path)?.keys;
        let family = family_of(&File::new(&path, keys.clone()))?;
        let names: Map<String, Value> =
            labels.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label))).collect();
        let numbers: Map<String, Value> =
            labels.iter().enumerate().map(|(id, label)| (label.clone(), json!(id))).collect();
        keys.insert("architectures".to_owned(), json!([family.classifier()]));
        keys.insert("id2label".to_owned(), names.into());
        keys.insert("label2id".to_owned(), numbers.into());
        keys.insert("problem_type".to_owned(), json!(problem.name()));
        // transformers counts the names.
        keys.shift_remove("num_labels");
        if let Some(pad_token) = pad_token.filter(|_| keys.get("pad_token_id").is_none_or(Value::is_null)) {
            keys.insert("pad_token_id".to_owned(), json!(pad_token));
        }
        let file = File::new(&path, keys);
        let initializer_range = file.positive("initializer_range")?.unwrap_or(INITIALIZER_RANGE);
        Ok(Classifier { config: ModelConfig::of_file(&file)?, keys: file.keys, initializer_range })
    }

    /// The parameters that a model without this head does not have: those of its head and of the linear layer before it.
    pub fn new_parameters(&self) -> Vec<ParameterSpec> {
        let ModelUnits { units, segments } = ModelUnits::new(&self.config, UnitPolicy::Blocks);
        let norm = self.config.names.final_norm;
        let of_head = segments.into_iter().filter(|segment| segment.kind == SegmentKind::Head);
        let leaves = of_head.flat_map(|segment| units[segment.unit].leaves[segment.leaves].to_vec());
        let parameters = leaves.flat_map(|leaf| leaf.parameters);
        parameters.filter(|parameter| norm.is_empty() || !parameter.name.starts_with(norm)).collect()
    }
}

/// What the labels of a classifier are called, by their numbers, where its `config.json` names them (`LABEL_0` is no name); none
/// where it is no classifier.
///
/// # Errors
/// As [`ModelConfig::read`].
pub fn label_names(folder: &Path) -> Result<Option<Vec<String>>, ModelConfigError> {
    let file = File::read(&folder.join("config.json"))?;
    let Head::Classes { labels, .. } = ModelConfig::of_file(&file)?.head else { return Ok(None) };
    let Some(names) = file.get("id2label").and_then(Value::as_object) else { return Ok(None) };
    let numbered = names.iter().filter_map(|(id, name)| Some((id.parse::<usize>().ok()?, name.as_str()?.to_owned())));
    let numbered: BTreeMap<usize, String> = numbered.collect();
    let named = (0..labels).map(|id| numbered.get(&id).cloned()).collect::<Option<Vec<_>>>();
    Ok(named.filter(|names| names.iter().enumerate().any(|(id, name)| *name != format!("LABEL_{id}"))))
}

/// What a classifier tells, where its `config.json` says so in words.
///
/// # Errors
/// A file that cannot be read, and a word that is none of transformers'.
pub fn problem_type(folder: &Path) -> Result<Option<ProblemType>, ModelConfigError> {
    let file = File::read(&folder.join("config.json"))?;
    let Some(name) = file.optional_string("problem_type")? else { return Ok(None) };
    let known = || format!("it must be one of {}", ProblemType::NAMES.join(", "));
    ProblemType::from_name(&name).map(Some).ok_or_else(|| file.invalid("problem_type", known()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(config: Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        folder
    }

    fn llama() -> Value {
        json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": true,
            "num_labels": 9, "initializer_range": 0.1})
    }

    #[test]
    fn a_language_model_becomes_a_classifier() {
        let (folder, labels) = (folder(llama()), ["no", "yes", "perhaps"].map(str::to_owned));
        let made = Classifier::of_model(folder.path(), &labels, ProblemType::SingleLabel, Some(7)).unwrap();
        assert_eq!(made.keys["architectures"], json!(["LlamaForSequenceClassification"]));
        assert_eq!((&made.keys["id2label"]["2"], &made.keys["label2id"]["perhaps"]), (&json!("perhaps"), &json!(2)));
        assert_eq!((made.keys.get("num_labels"), &made.keys["pad_token_id"]), (None, &json!(7)));
        assert_eq!(made.config.head, Head::Classes { labels: 3, problem: ProblemType::SingleLabel });
        assert_eq!(
            (made.config.architecture.as_str(), made.config.ties_head()),
            ("LlamaForSequenceClassification", false)
        );
        assert_eq!(
            (made.initializer_range, made.new_parameters()),
            (0.1, vec![ParameterSpec::new("score.weight", [3, 8])])
        );
    }

    #[test]
    fn an_encoder_has_a_layer_before_its_head() {
        let bert = json!({"architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": 32, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0});
        let folder = folder(bert);
        let made =
            Classifier::of_model(folder.path(), &["score".to_owned()], ProblemType::Regression, Some(7)).unwrap();
        let names: Vec<_> = made.new_parameters().into_iter().map(|parameter| parameter.name).collect();
        let expected = ["classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"];
        assert_eq!((names.as_slice(), made.initializer_range), (expected.map(str::to_owned).as_slice(), 0.02));
        assert_eq!(made.keys["pad_token_id"], json!(0));
        assert_eq!(made.config.head, Head::Classes { labels: 1, problem: ProblemType::Regression });
    }

    #[test]
    fn labels_have_names_where_the_file_gives_them() {
        let named = |names: Value| {
            let mut config = llama();
            config["architectures"] = json!(["LlamaForSequenceClassification"]);
            config["num_labels"] = Value::Null;
            config["id2label"] = names;
            label_names(folder(config).path()).unwrap()
        };
        assert_eq!(named(json!({"1": "yes", "0": "no"})), Some(vec!["no".to_owned(), "yes".to_owned()]));
        assert_eq!(named(json!({"1": "LABEL_1", "0": "LABEL_0"})), None);
        assert_eq!(label_names(folder(llama()).path()).unwrap(), None);
    }
}
