//! A model as its `config.json` tells it: sizes, constants, what its family does in its own way, and which parameters it has,
//! unit by unit. No weights.

mod classifier;
mod config;
mod description;
mod error;
mod families;
mod file;
mod leaves;
mod names;
mod published;
mod rope;
mod units;

pub use classifier::{Classifier, label_names, problem_type};
pub use description::{
    Activation, Biases, Head, HeadInput, LayerAttention, ModelConfig, NormKind, NormPlacement, RopeConfig, RopeScaling,
};
pub use error::ModelConfigError;
pub use names::{FileNames, Names};
pub use units::{ModelUnits, Segment, SegmentKind};
