//! A model's own files.

use super::ModelConfig;
use std::path::Path;
use zerofold_checkpoint::{ModelFiles, Naming, Result, Weights};
use zerofold_configs::UnitPolicy;
use zerofold_plan::{Head, ModelUnits};

/// The files in the folder of a model that is configured so, under the names that [`ModelUnits`] has for its parameters.
///
/// # Errors
/// If they cannot be read, or hold what is no parameter of the model: it would be left out silently.
pub fn model_files(directory: &Path, config: &ModelConfig) -> Result<ModelFiles> {
    with_naming(config, |naming| ModelFiles::open(directory)?.named(naming))
}

/// The same as parameters to be read.
///
/// # Errors
/// As [`model_files`].
pub fn model_weights(directory: &Path, config: &ModelConfig) -> Result<Weights> {
    with_naming(config, |naming| Weights::of_known_model(directory, naming))
}

fn with_naming<T>(config: &ModelConfig, open: impl FnOnce(&Naming<'_>) -> Result<T>) -> Result<T> {
    let units = ModelUnits::new(config, UnitPolicy::Whole).units;
    let parameters = units.iter().flat_map(|unit| &unit.leaves).flat_map(|leaf| &leaf.parameters);
    let parameters = parameters.map(|parameter| parameter.name.as_str()).collect();
    // A head that is tied may be in the files too: it is the embedding. A classifier has no use for a language model's.
    let other_head =
        (config.ties_head() || config.head != Head::Language).then(|| format!("{}.weight", config.names.head));
    let ignored = config.names.constants.iter().copied().chain(other_head.as_deref()).collect();
    open(&Naming { parameters, prefix: config.names.prefix, old_ends: config.names.old_ends, ignored })
}
