//! Documents end to end in one row: where each begins, and the positions of its tokens.

use tch::Tensor;

use super::ModelError;
use super::rope::{Rope, Tables};

/// Documents that lie end to end in one row `[1, T]`: positions begin anew in each, and attention does not leave it. Made once
/// for a micro-batch by [`super::Transformer::documents`], and used by all of its segments.
pub struct Documents {
    /// Their lengths, T together.
    pub(super) lengths: Vec<i64>,
    /// The tables of all positions, `[T, R / 2]`, of each rotary embedding of the model.
    pub(super) tables: Vec<Tables>,
}

impl Documents {
    pub(super) fn new(ropes: &[Rope], lengths: &[i64]) -> Result<Self, ModelError> {
        if lengths.is_empty() || lengths.iter().any(|&length| length < 1) {
            return Err(ModelError::Documents { lengths: lengths.to_vec(), row: Vec::new() });
        }
        let tables = ropes.iter().map(|rope| rope.tables_of(lengths)).collect::<Result<_, _>>()?;
        Ok(Documents { lengths: lengths.to_vec(), tables })
    }

    /// That `x` `[1, T, H]` holds them.
    pub(super) fn check(&self, x: &Tensor) -> Result<(), ModelError> {
        match x.size().as_slice() {
            [1, length, _] if *length == self.lengths.iter().sum::<i64>() => Ok(()),
            shape => Err(ModelError::Documents { lengths: self.lengths.clone(), row: shape.to_vec() }),
        }
    }
}
