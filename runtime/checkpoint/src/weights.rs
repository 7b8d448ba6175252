//! Parameters to be read, whether of a checkpoint or of a model folder.

use crate::dtype::Dtype;
use crate::error::Result;
use crate::manifest::Manifest;
use crate::model_files::ModelFiles;
use crate::naming::Naming;
use crate::publish::{Found, open_step};
use crate::state::StateReader;
use crate::units::STATES;
use std::ops::Range;
use std::path::Path;

/// Parameters that are read at ranges of elements.
#[derive(Debug)]
pub enum Weights {
    /// Those of a checkpoint: masters and moments.
    Checkpoint {
        /// What the checkpoint tells of itself.
        manifest: Box<Manifest>,
        /// Its files.
        state: StateReader,
    },
    /// Those of a Hugging Face model folder; what is a master elsewhere is the tensor itself.
    Model(ModelFiles),
}

impl Weights {
    /// Opens the checkpoint in a step's folder.
    pub fn of_checkpoint(step_directory: &Path) -> Result<Self> {
        Weights::of_found(&open_step(step_directory)?)
    }

    /// Opens the files of a checkpoint whose manifest was read.
    pub fn of_found(found: &Found) -> Result<Self> {
        let state = StateReader::open(found)?;
        Ok(Weights::Checkpoint { manifest: Box::new(found.manifest.clone()), state })
    }

    /// Opens a model folder.
    pub fn of_model(directory: &Path) -> Result<Self> {
        ModelFiles::open(directory).map(Weights::Model)
    }

    /// Opens the folder of a model that has these parameters.
    ///
    /// # Errors
    /// [`crate::CheckpointError::StrangeTensors`] where it holds others, and if it cannot be read.
    pub fn of_known_model(directory: &Path, naming: &Naming) -> Result<Self> {
        ModelFiles::open(directory)?.named(naming).map(Weights::Model)
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        match self {
            Weights::Checkpoint { state, .. } => state.directory(),
            Weights::Model(files) => files.directory(),
        }
    }

    /// The names of all parameters, sorted.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Weights::Checkpoint { state, .. } => state.parameters().map(|(name, _)| name).collect(),
            Weights::Model(files) => files.names().collect(),
        }
    }

    /// What is kept of every parameter: all of [`STATES`], or the first alone.
    pub fn states(&self) -> &'static [&'static str] {
        match self {
            Weights::Checkpoint { .. } => &STATES,
            Weights::Model(_) => &STATES[..1],
        }
    }

    /// The shape of a parameter, and the type of its elements.
    pub fn describe(&self, name: &str) -> Result<(Vec<u64>, Dtype)> {
        match self {
            Weights::Checkpoint { state, .. } => Ok((state.parameter(name)?.shape.clone(), Dtype::F32)),
            Weights::Model(files) => {
                let entry = files.entry(name)?;
                Ok((entry.shape.iter().map(|&size| size as u64).collect(), entry.dtype))
            }
        }
    }

    /// Reads elements of a state of a parameter, in row-major order.
    pub fn read(&self, name: &str, state: &str, elements: Range<u64>, values: &mut [f32]) -> Result<()> {
        match self {
            Weights::Checkpoint { state: reader, .. } => reader.read(name, state, elements, values),
            Weights::Model(files) => files.read_f32(name, elements.start as usize..elements.end as usize, values),
        }
    }
}
