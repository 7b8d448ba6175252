//! A model as its `config.json` tells it: sizes, constants, and which parameters it has, unit by unit. No weights.

mod config;
mod error;
mod published;
mod units;

pub use config::{ModelConfig, RopeConfig, RopeScaling};
pub use error::ModelConfigError;
pub use units::{ModelUnits, Segment, SegmentKind};
