//! What can go wrong with a model's maths.

use crate::torch::ShimError;
use tch::TchError;

/// Errors of [`crate::model`].
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The model's `config.json`.
    #[error(transparent)]
    Config(#[from] zerofold_plan::ModelConfigError),
    /// A segment was called with too few tensors.
    #[error("{kind} was not given {name}")]
    LeafMissing {
        /// The segment.
        kind: zerofold_plan::SegmentKind,
        /// The first one that is missing.
        name: &'static str,
    },
    /// A segment was called with too many tensors.
    #[error("{kind} was given {left} tensors too many")]
    LeavesLeft {
        /// The segment.
        kind: zerofold_plan::SegmentKind,
        /// How many are too many.
        left: usize,
    },
    /// A segment that does not go from hidden states to hidden states.
    #[error("{0:?} does not map hidden states to hidden states")]
    NoHidden(zerofold_plan::SegmentKind),
    /// Types of tokens for a model that has no embedding for them.
    #[error("{0} does not tell types of tokens apart, but was given some")]
    NoTokenTypes(String),
    /// A sequence with positions that the model does not have, or has by other numbers.
    #[error(
        "a sequence of {length} tokens is longer than the {longest} that this model's positions are built for\nhint: keep prompts and max_length at {longest} tokens or fewer"
    )]
    TooLong {
        /// Tokens in the sequence.
        length: usize,
        /// The longest that is computed as the model means it.
        longest: usize,
    },
    /// Documents that are none, or not those of a row.
    #[error("documents of {lengths:?} tokens do not lie end to end in one row of hidden states {row:?}")]
    Documents {
        /// Tokens of each.
        lengths: Vec<i64>,
        /// The shape of the hidden states; empty where there are none yet.
        row: Vec<i64>,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
    /// A kernel of the shim refused, or libtorch under it.
    #[error(transparent)]
    Kernel(#[from] ShimError),
}
