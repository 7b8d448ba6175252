//! The model folder that a job of a classifier begins with.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::json;
use zerofold_checkpoint::{Dtype, ModelFiles, Naming, SafetensorsWriter, StagingDirectory, TensorEntry, is_side_file};
use zerofold_configs::Resolved;
use zerofold_plan::{Classifier, FileNames};

use crate::error::LaunchError;
use crate::run_folder::RunFolder;
use crate::{cache_folder, job};

/// The file of the parameters that the model did not have.
const NEW_PARAMETERS: &str = "model-new-head.safetensors";
/// In a folder that is made here.
const INDEX: &str = "model.safetensors.index.json";

/// Where folders of classifiers are made.
fn made_in(config: &Resolved) -> PathBuf {
    let cache = cache_folder::datasets(&config.training.output_dir).0;
    cache.parent().unwrap_or(&cache).join("classifiers")
}

/// A folder that was made.
pub(super) struct Made {
    pub(super) folder: PathBuf,
    /// Which parameters are new, in words.
    pub(super) told: Option<String>,
}

/// Makes the folder of a classifier in the cache, unless it was made of the same files before.
pub(super) fn make(config: &Resolved, classifier: &Classifier, files: &ModelFiles) -> Result<Made, LaunchError> {
    let FileNames { parameters, prefix, old_ends, ignored } = classifier.config.file_names();
    let source = job::absolute(files.directory())?;
    let present = ModelFiles::open(&source)?.renamed(&Naming { parameters, prefix, old_ends, ignored });
    let new = classifier.new_parameters().into_iter().filter(|parameter| !present.contains(&parameter.name));
    let entries: Vec<TensorEntry> =
        new.map(|parameter| TensorEntry::new(parameter.name, Dtype::F32, parameter.shape)).collect();
    let failed = |path: &Path| LaunchError::system(format!("look at {}", path.display()));
    let mut states = Vec::new();
    for file in present.files() {
        let known = fs::metadata(file.path()).map_err(failed(file.path()))?;
        states.push(json!([file.path(), known.len(), known.ino(), known.mtime(), known.mtime_nsec()]));
    }
    let identity = json!({
        "model": source,
        "files": states,
        "config": classifier.keys,
        "new": entries.iter().map(|entry| &entry.name).collect::<Vec<_>>(),
        "seed": config.training.seed,
    });
    let name = blake3::hash(identity.to_string().as_bytes()).to_hex();
    let folder = made_in(config).join(&name.as_str()[..16]);
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let seed = config.training.seed;
    let told = (!names.is_empty()).then(|| format!("new, at random by seed {seed}: {}", names.join(", ")));
    if !folder.join("config.json").is_file() {
        let parent = folder.parent().unwrap_or(&folder);
        fs::create_dir_all(parent).map_err(LaunchError::system(format!("make {}", parent.display())))?;
        let staging = StagingDirectory::create(&folder)?;
        let place = Place { source: &source, folder: staging.path() };
        place.link_side_files(classifier)?;
        let mut weight_map = place.link_weights()?;
        if !entries.is_empty() {
            place.write_new(&entries, classifier.initializer_range, seed)?;
            weight_map.extend(entries.iter().map(|entry| (entry.name.clone(), NEW_PARAMETERS.to_owned())));
        }
        place.write(INDEX, &json!({"metadata": {}, "weight_map": weight_map}))?;
        staging.commit(true)?;
    }
    Ok(Made { folder, told })
}

/// A folder that is being made of another.
struct Place<'a> {
    source: &'a Path,
    folder: &'a Path,
}

impl Place<'_> {
    fn failed(&self) -> impl FnOnce(std::io::Error) -> LaunchError {
        LaunchError::system(format!("write into {}", self.folder.display()))
    }

    fn write(&self, name: &str, content: &serde_json::Value) -> Result<(), LaunchError> {
        let text = serde_json::to_string_pretty(content).unwrap_or_default();
        fs::write(self.folder.join(name), format!("{text}\n")).map_err(self.failed())
    }

    fn link(&self, name: &str, to: &str) -> Result<(), LaunchError> {
        symlink(self.source.join(name), self.folder.join(to)).map_err(self.failed())
    }

    /// Configuration and tokenizer.
    fn link_side_files(&self, classifier: &Classifier) -> Result<(), LaunchError> {
        self.write("config.json", &classifier.keys.clone().into())?;
        for entry in fs::read_dir(self.source).map_err(self.failed())? {
            let name = entry.map_err(self.failed())?.file_name();
            if let Some(name) = name.to_str().filter(|name| is_side_file(name) && *name != "config.json") {
                self.link(name, name)?;
            }
        }
        Ok(())
    }

    /// The model's own weights; gives the file of each tensor.
    fn link_weights(&self) -> Result<BTreeMap<String, String>, LaunchError> {
        let mut weight_map = BTreeMap::new();
        for (tensor, file) in ModelFiles::open(self.source)?.tensors() {
            let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            // A single file of this name would go before the index.
            let to = if name == "model.safetensors" { "model-before.safetensors" } else { &name };
            if !self.folder.join(to).exists() {
                self.link(&name, to)?;
            }
            weight_map.insert(tensor.name.to_owned(), to.to_owned());
        }
        Ok(weight_map)
    }

    /// The parameters that the model did not have: matrices at random, vectors 0.
    fn write_new(&self, entries: &[TensorEntry], range: f64, seed: u64) -> Result<(), LaunchError> {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut writer = SafetensorsWriter::create(&self.folder.join(NEW_PARAMETERS), entries, &metadata)?;
        let mut random = Normal::new(seed);
        for entry in entries {
            let count: usize = entry.shape.iter().product();
            let values: Vec<f32> = match entry.shape.len() {
                1 => vec![0.0; count],
                _ => (0..count).map(|_| (range * random.draw()) as f32).collect(),
            };
            writer.write_f32(&entry.name, 0, &values)?;
        }
        writer.finish()?;
        Ok(())
    }
}

/// Numbers of the standard normal distribution (Box and Muller, 1958).
struct Normal {
    random: ChaCha8Rng,
    /// The second of a pair.
    kept: Option<f64>,
}

impl Normal {
    fn new(seed: u64) -> Normal {
        Normal { random: ChaCha8Rng::seed_from_u64(seed), kept: None }
    }

    fn draw(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        // Above 0, so that it has a logarithm.
        let mut uniform = || -> f64 { (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 };
        let (radius, angle) = ((-2.0 * (1.0 - uniform()).ln()).sqrt(), std::f64::consts::TAU * uniform());
        self.kept = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// Keeps the folder that was made in the run's own, which outlives the cache and is seen by all hosts. A job that goes on has the one that it
/// began with.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn keep(config: &mut Resolved, run: &RunFolder, goes_on: bool) -> Result<(), LaunchError> {
    let folder = config.training.model_name_or_path.clone();
    if folder.parent() != Some(&made_in(config)) {
        return Ok(());
    }
    let kept = run.initial_model();
    if !goes_on || !kept.join("config.json").is_file() {
        let failed = |error| LaunchError::system(format!("write {}", kept.display()))(error);
        let staging = StagingDirectory::create(&kept)?;
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let from = entry.map_err(failed)?.path();
            let to = staging.path().join(from.file_name().unwrap_or_default());
            match fs::read_link(&from) {
                Ok(target) => symlink(target, to).map_err(failed)?,
                Err(_) => _ = fs::copy(&from, to).map_err(failed)?,
            }
        }
        staging.commit(true)?;
    }
    config.training.model_name_or_path = kept;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_normal_and_of_the_seed() {
        let draw = |seed: u64| {
            let mut normal = Normal::new(seed);
            (0..40_000).map(|_| normal.draw()).collect::<Vec<_>>()
        };
        let numbers = draw(7);
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let moment = |power: i32| numbers.iter().map(|number| (number - mean).powi(power)).sum::<f64>() / count;
        assert!(mean.abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.2);
        assert_eq!(numbers, draw(7));
        assert_ne!(numbers, draw(8));
    }
}
