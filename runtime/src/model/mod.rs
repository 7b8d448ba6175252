//! Models as maths only: what the layers compute, on tensors that somebody else owns. What a family does in its own way is data:
//! [`ModelConfig`].
//!
//! A model is an ordered list of segments (embedding, decoder blocks or their halves, head), which
//! [`zerofold_plan::ModelUnits`] tells with their parameters. [`Transformer::embed`], [`Transformer::segment`] and
//! [`Transformer::head_input`] compute with tensors handed in by the caller, who alone knows where weights live, when they are
//! gathered and when they are gone.
//!
//! # Note: no operation saves a copy of a weight
//! Between a unit's forward and its backward the engine takes the weights away by repointing their storage, and brings
//! them back before the backward. That works for whatever autograd keeps as a *view* of a weight. It would fail for a
//! copy, which would stay in memory: so weights arrive in the compute type and are never cast, repeated or made
//! contiguous in here.

mod attention;
mod cache;
mod cached;
mod documents;
mod embedding;
mod error;
mod files;
mod head;
mod leaves;
mod rope;
mod transformer;

pub use attention::Kernel;
pub use cache::LayerCache;
pub use cached::Continued;
pub use documents::Documents;
pub use embedding::EmbeddingLeaves;
pub use error::ModelError;
pub use files::{model_files, model_weights};
pub use rope::inverse_frequencies;
pub use transformer::Transformer;
pub use zerofold_plan::{ModelConfig, RopeConfig, RopeScaling};

#[cfg(test)]
mod encoders_tests;
#[cfg(test)]
mod families_tests;
