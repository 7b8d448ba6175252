//! Checks of a Hugging Face model folder that cost nothing, before anything is started.

use std::path::Path;

use zerofold_checkpoint::{CheckpointError, ModelFiles, Naming};
use zerofold_configs::{BestMetric, ProblemType, Resolved};
use zerofold_plan::{FileNames, Head, ModelConfig, ModelUnits};

use crate::error::LaunchError;

/// Checks that the folder exists and has its configuration, its tokenizer and weights in safetensors (every file that the
/// index names, with a readable header).
///
/// # Errors
/// [`LaunchError::Model`] or [`LaunchError::Checkpoint`], with what to do.
pub fn check(path: &Path) -> Result<(), LaunchError> {
    let fail = |message: &str, hint: String| {
        Err(LaunchError::Model { path: path.to_owned(), message: message.to_owned(), hint })
    };
    if !path.exists() {
        let hint = "give the path of a folder that is there, or OWNER/NAME, a model of the Hugging Face hub \
                    (--model_revision names a branch or a commit)";
        return fail("there is no such folder", hint.to_owned());
    }
    if !path.is_dir() {
        return fail("this is a file", "give the folder that holds config.json".to_owned());
    }
    for name in ["config.json", "tokenizer.json"] {
        if !path.join(name).is_file() {
            let hint = "a Hugging Face model folder has config.json, tokenizer.json and model.safetensors".to_owned();
            return fail(&format!("it has no {name}"), hint);
        }
    }
    let has = |name: &str| path.join(name).is_file();
    if !has("model.safetensors") && !has("model.safetensors.index.json") {
        return match has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
            true => fail(
                "its weights are a pickle (pytorch_model.bin), which can run code when it is read",
                "load it with transformers and save_pretrained it to another folder: that writes safetensors"
                    .to_owned(),
            ),
            false => fail("it has no model.safetensors", "download the weights too".to_owned()),
        };
    }
    let files = ModelFiles::open(path)?;
    match ModelConfig::read(path) {
        Ok(model) => check_weights(files, &model),
        // What is wrong with it is told where it is needed.
        Err(_) => Ok(()),
    }
}

/// Checks that the files hold as many layers as config.json says, and that a head which it says is tied is the embedding.
fn check_weights(files: ModelFiles, model: &ModelConfig) -> Result<(), LaunchError> {
    let path = files.directory().to_owned();
    let fail =
        |message: String, hint: &str| Err(LaunchError::Model { path: path.clone(), message, hint: hint.to_owned() });
    let (said, found) = (model.num_hidden_layers, model.layers_in(files.names()));
    if found > 0 && found != said {
        return fail(
            format!("config.json says num_hidden_layers: {said}, and the weights have {found} layers"),
            "copy both from the same model",
        );
    }
    let Some([head, embedding]) = model.tied_names().filter(|[head, _]| files.contains(head)) else { return Ok(()) };
    let files = files.renamed(&naming(model));
    let (one, other) = (files.entry(&head)?, files.entry(&embedding)?);
    let mut differs = one.shape != other.shape || one.dtype != other.dtype;
    let count: usize = one.shape.iter().product();
    let (mut left, mut right) = (vec![0.0; COMPARED.min(count)], vec![0.0; COMPARED.min(count)]);
    let mut begin = 0;
    while begin < count && !differs {
        let end = count.min(begin + COMPARED);
        let (left, right) = (&mut left[..end - begin], &mut right[..end - begin]);
        files.read_f32(&head, begin..end, left)?;
        files.read_f32(&embedding, begin..end, right)?;
        differs = left.iter().zip(&*right).any(|(left, right)| left.to_bits() != right.to_bits());
        begin = end;
    }
    match differs {
        false => Ok(()),
        true => fail(
            format!("config.json says tie_word_embeddings: true, and {head} is another matrix than {embedding}"),
            "set tie_word_embeddings: false where the head was trained by itself; else take that tensor out of the files",
        ),
    }
}

/// Elements that are compared at a time.
const COMPARED: usize = 1 << 22;

/// Checks that the model has the layer classes that the configuration names.
///
/// # Errors
/// [`LaunchError::DoesNotFit`], with the place of the key.
pub fn check_layer_classes(config: &Resolved, model: &ModelConfig) -> Result<(), LaunchError> {
    model.check_layer_classes(&config.layer_classes).map_err(|source| {
        let place = config.provenance.get("layer_classes").cloned().unwrap_or_default();
        LaunchError::DoesNotFit { place, source: Box::new(source) }
    })
}

/// Checks that what the configuration says of parameters (`freeze`, `parameter_groups`) fits the model.
///
/// # Errors
/// [`LaunchError::DoesNotFit`], with the place of the key.
pub fn check_groups(config: &Resolved, model: &ModelConfig) -> Result<(), LaunchError> {
    ModelUnits::new(model, config.sharding.units).group(&config.training).map_err(|source| {
        let place = |key: &str| config.provenance.get(key).filter(|place| *place != "default").cloned();
        let keys = [source.key(), "freeze", "parameter_groups"];
        let place = keys.into_iter().find_map(place).unwrap_or_default();
        LaunchError::DoesNotFit { place, source: Box::new(source) }
    })
}

/// Checks that evaluations of the model have the figure that they are to be judged by.
///
/// # Errors
/// [`LaunchError::Usage`] with those that they have.
pub fn check_metric(config: &Resolved, model: &ModelConfig) -> Result<(), LaunchError> {
    use BestMetric::{Accuracy, F1, Loss, MatthewsCorrelation, MeanTokenAccuracy, Mse, Pearson};
    let there: &[BestMetric] = match model.head {
        Head::Language => &[Loss, MeanTokenAccuracy],
        Head::Classes { problem: ProblemType::SingleLabel, .. } => &[Loss, Accuracy, F1, MatthewsCorrelation],
        Head::Classes { problem: ProblemType::MultiLabel, .. } => &[Loss, Accuracy, F1],
        Head::Classes { problem: ProblemType::Regression, .. } => &[Loss, Mse, Pearson],
    };
    let metric = config.training.metric_for_best_model;
    if there.contains(&metric) {
        return Ok(());
    }
    let names: Vec<&str> = there.iter().map(|metric| metric.name()).collect();
    let message =
        format!("metric_for_best_model is {metric}, which an evaluation of a {} does not have", model.architecture);
    Err(LaunchError::usage(message, format!("use one of {}", names.join(", "))))
}

/// The weights in a model's folder, under the names that the model has for them where its configuration can be read.
///
/// # Errors
/// If they cannot be read.
pub fn weights(folder: &Path) -> Result<ModelFiles, CheckpointError> {
    let files = ModelFiles::open(folder)?;
    Ok(match ModelConfig::read(folder) {
        Ok(config) => files.renamed(&naming(&config)),
        Err(_) => files,
    })
}

fn naming(model: &ModelConfig) -> Naming {
    let FileNames { parameters, prefix, old_ends, ignored } = model.file_names();
    Naming { parameters, prefix, old_ends, ignored }
}

/// A sentence about rows of `tokens` tokens where the model was made for shorter ones; `what` is what is so long, with its
/// verb.
pub fn too_long(what: &str, tokens: usize, model: &ModelConfig) -> Option<String> {
    let most = model.context();
    (tokens > most).then(|| {
        format!(
            "{what} {tokens} tokens, and the model's context is {most} (config.json): it was made for no longer rows; set \
             max_length to {most} or less"
        )
    })
}

/// Refuses rows that the model has no positions for: they would end the job at the step that meets them.
///
/// # Errors
/// [`LaunchError::Usage`] with the length and the limit; `what` are the rows, `longest` the longest of them in tokens.
pub fn check_positions(what: &str, longest: usize, model: &ModelConfig) -> Result<(), LaunchError> {
    match model.max_exact_length().filter(|&most| longest > most) {
        None => Ok(()),
        Some(most) => Err(LaunchError::usage(
            format!("{what} have up to {longest} tokens, and the model has positions for {most}"),
            format!("set max_length to {most} or less"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_the_model_has_no_positions_for_are_refused() {
        let llama = ModelConfig::published("llama-7b").unwrap();
        assert!(check_positions("training rows", 1 << 20, &llama).is_ok());
        let learned = ModelConfig { learned_positions: true, max_position_embeddings: 1024, ..llama };
        assert!(check_positions("training rows", 1024, &learned).is_ok());
        let told = check_positions("training rows", 1025, &learned).unwrap_err().to_string();
        assert!(told.contains("up to 1025 tokens") && told.contains("positions for 1024"), "{told}");
    }

    #[test]
    fn rows_beyond_the_positions_of_the_model_are_told() {
        let model = ModelConfig::published("llama-7b").unwrap();
        assert_eq!(too_long("rows have up to", 4096, &model), None);
        let told = too_long("rows have up to", 4097, &model).unwrap();
        assert!(
            told.starts_with("rows have up to 4097 tokens, and the model's context is 4096 (config.json)"),
            "{told}"
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let message = |path: &Path| check(path).unwrap_err().to_string();
        assert!(message(&path.join("no/such")).contains("or OWNER/NAME"));
        assert!(message(path).contains("it has no config.json"));
        std::fs::write(path.join("config.json"), "{}").unwrap();
        assert!(message(&path.join("config.json")).contains("this is a file"));
        std::fs::write(path.join("tokenizer.json"), "{}").unwrap();
        assert!(message(path).contains("it has no model.safetensors"));
        std::fs::write(path.join("pytorch_model.bin"), "").unwrap();
        assert!(message(path).contains("a pickle"));
        let index = r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}"#;
        std::fs::write(path.join("model.safetensors.index.json"), index).unwrap();
        assert!(message(path).contains("model-00001-of-00001.safetensors"), "{}", message(path));
    }
}
