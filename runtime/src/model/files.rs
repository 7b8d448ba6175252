//! A model's own files.

use super::ModelConfig;
use std::path::Path;
use zerofold_checkpoint::{ModelFiles, Naming, Result, Weights};
use zerofold_plan::FileNames;

/// The files in the folder of a model that is configured so, under the names that [`zerofold_plan::ModelUnits`] has for its
/// parameters.
///
/// # Errors
/// If they cannot be read, or hold what is no parameter of the model: it would be left out silently.
pub fn model_files(directory: &Path, config: &ModelConfig) -> Result<ModelFiles> {
    ModelFiles::open(directory)?.named(&naming(config))
}

/// The same as parameters to be read.
///
/// # Errors
/// As [`model_files`].
pub fn model_weights(directory: &Path, config: &ModelConfig) -> Result<Weights> {
    Weights::of_known_model(directory, &naming(config))
}

fn naming(config: &ModelConfig) -> Naming {
    let FileNames { parameters, prefix, old_ends, ignored } = config.file_names();
    Naming { parameters, prefix, old_ends, ignored }
}
