//! The head, and what stands before it: the last norm, or an encoder's linear layer with tanh.

use tch::Tensor;
use zerofold_plan::{HeadInput, SegmentKind};

use super::leaves::{Linear, Norm};
use super::transformer::dropped;
use super::{ModelError, Transformer};
use crate::torch::linear;

impl Transformer {
    /// How many leaves of [`SegmentKind::Head`] are the head itself: its weight, and its bias where it has one. What stands before
    /// it has the others.
    pub fn head_leaves(&self) -> usize {
        match self.config.head_input {
            HeadInput::Norm => 1,
            HeadInput::Dense { .. } => 2,
        }
    }

    /// The weight of the head, `[V, H]`, among the leaves of [`SegmentKind::Head`].
    ///
    /// # Errors
    /// No leaves.
    pub fn head<'a>(&self, leaves: &'a [Tensor]) -> Result<&'a Tensor, ModelError> {
        leaves.first().ok_or_else(|| missing("the head"))
    }

    /// What the head is given of hidden states `[…, H]`, of the first token of each row in an encoder. `leaves` are those of
    /// [`SegmentKind::Head`].
    ///
    /// # Errors
    /// Too few leaves, and what libtorch says.
    pub fn head_input(&self, leaves: &[Tensor], x: &Tensor) -> Result<Tensor, ModelError> {
        self.head_input_with(leaves, x, 0.0)
    }

    /// The same in training: with the head's dropout, which follows from `seed` alone.
    ///
    /// # Errors
    /// As [`Transformer::head_input`].
    pub fn head_input_in_training(&self, leaves: &[Tensor], x: &Tensor, seed: u64) -> Result<Tensor, ModelError> {
        if self.config.head_dropout > 0.0 {
            tch::manual_seed(seed.cast_signed());
        }
        self.head_input_with(leaves, x, self.config.head_dropout)
    }

    fn head_input_with(&self, leaves: &[Tensor], x: &Tensor, dropout: f64) -> Result<Tensor, ModelError> {
        let input = match (self.config.head_input, leaves) {
            (HeadInput::Norm, [_, weight, bias @ ..]) => self.norm(&Norm { weight, bias: bias.first() }, x)?,
            (HeadInput::Norm, _) => return Err(missing("the norm before the head")),
            (HeadInput::Dense { drops_input }, [_, _, weight, bias]) => {
                let x = dropped(x.shallow_clone(), if drops_input { dropout } else { 0.0 })?;
                self.linear(&x, &Linear { weight, bias: Some(bias) })?.f_tanh()?
            }
            (HeadInput::Dense { .. }, _) => return Err(missing("the head and the linear layer before it")),
        };
        dropped(input, dropout)
    }

    /// The logits `[…, V]` of `[…, H]`, with what stands before the head, and cap. `leaves` are those of [`SegmentKind::Head`]. For
    /// generation and comparisons: no gradients of the head's weight.
    ///
    /// # Errors
    /// As [`Transformer::head_input`].
    pub fn logits(&self, leaves: &[Tensor], x: &Tensor) -> Result<Tensor, ModelError> {
        let mut logits = linear(&self.head_input(leaves, x)?, self.head(leaves)?)?;
        if let (HeadInput::Dense { .. }, [_, bias, ..]) = (self.config.head_input, leaves) {
            logits = logits.f_add(bias)?;
        }
        match self.config.logit_softcap {
            Some(cap) => Ok(logits.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?),
            None => Ok(logits),
        }
    }
}

fn missing(name: &'static str) -> ModelError {
    ModelError::LeafMissing { kind: SegmentKind::Head, name }
}
