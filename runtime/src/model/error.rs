//! What can go wrong with a model's maths.

use crate::torch::ShimError;
use tch::TchError;

/// Errors of [`crate::model`].
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The model's `config.json`.
    #[error(transparent)]
    Config(#[from] zerofold_plan::ModelConfigError),
    /// A unit was called with the wrong number of tensors.
    #[error("{unit} expects {expected} tensors ({names}) but was given {found}")]
    Leaves {
        /// The unit.
        unit: &'static str,
        /// What it expects.
        expected: usize,
        /// Their names, in order.
        names: &'static str,
        /// How many came.
        found: usize,
    },
    /// A segment that does not go from hidden states to hidden states.
    #[error("{0:?} does not map hidden states to hidden states")]
    NoHidden(zerofold_plan::SegmentKind),
    /// A sequence that full attention would treat otherwise than the model's sliding window.
    #[error(
        "a sequence of {length} tokens is longer than the model's sliding window of {window}, and sliding windows are not built yet\nhint: keep prompts and max_length at {window} tokens or fewer"
    )]
    BeyondWindow {
        /// Tokens in the sequence.
        length: usize,
        /// The model's window.
        window: usize,
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
