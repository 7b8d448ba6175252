//! A segment's leaves by name, taken in the order in which [`zerofold_plan::SegmentKind`] lists them.

use tch::Tensor;
use zerofold_plan::{ModelConfig, NormPlacement, SegmentKind};

use super::ModelError;

/// The leaves of a segment that are still to be taken.
pub(super) struct Leaves<'a> {
    kind: SegmentKind,
    rest: std::slice::Iter<'a, Tensor>,
}

impl<'a> Leaves<'a> {
    pub(super) fn new(kind: SegmentKind, leaves: &'a [Tensor]) -> Self {
        Leaves { kind, rest: leaves.iter() }
    }

    fn take(&mut self, name: &'static str) -> Result<&'a Tensor, ModelError> {
        self.rest.next().ok_or(ModelError::LeafMissing { kind: self.kind, name })
    }

    fn take_if(&mut self, there: bool, name: &'static str) -> Result<Option<&'a Tensor>, ModelError> {
        there.then(|| self.take(name)).transpose()
    }

    pub(super) fn norm(&mut self, config: &ModelConfig, name: &'static str) -> Result<Norm<'a>, ModelError> {
        Ok(Norm { weight: self.take(name)?, bias: self.take_if(config.norm.has_bias(), name)? })
    }

    fn norm_before(&mut self, config: &ModelConfig, name: &'static str) -> Result<Option<Norm<'a>>, ModelError> {
        (config.norm_placement != NormPlacement::After).then(|| self.norm(config, name)).transpose()
    }

    fn norm_after(&mut self, config: &ModelConfig, name: &'static str) -> Result<Option<Norm<'a>>, ModelError> {
        (config.norm_placement != NormPlacement::Before).then(|| self.norm(config, name)).transpose()
    }

    pub(super) fn linear(&mut self, bias: bool, name: &'static str) -> Result<Linear<'a>, ModelError> {
        Ok(Linear { weight: self.take(name)?, bias: self.take_if(bias, name)? })
    }

    /// That all were taken.
    pub(super) fn end(self) -> Result<(), ModelError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(ModelError::LeavesLeft { kind: self.kind, left }),
        }
    }
}

/// A norm's weights, `[H]`, or `[D]` for that of heads.
pub(super) struct Norm<'a> {
    pub(super) weight: &'a Tensor,
    pub(super) bias: Option<&'a Tensor>,
}

/// A linear layer's: `[out, in]`, or `[in, out]` in a model whose weights are transposed, and `[out]`.
pub(super) struct Linear<'a> {
    pub(super) weight: &'a Tensor,
    pub(super) bias: Option<&'a Tensor>,
}

/// The weights of a block's attention.
pub(super) struct AttentionWeights<'a> {
    pub(super) norm: Option<Norm<'a>>,
    /// To `(heads + 2 * key_value_heads) * D`: query, key and value.
    pub(super) qkv: Linear<'a>,
    /// Of queries and of keys.
    pub(super) head_norms: Option<[Norm<'a>; 2]>,
    /// From `heads * D`.
    pub(super) output: Linear<'a>,
    pub(super) norm_after: Option<Norm<'a>>,
}

impl<'a> AttentionWeights<'a> {
    pub(super) fn take(leaves: &mut Leaves<'a>, config: &ModelConfig) -> Result<Self, ModelError> {
        let norm = leaves.norm_before(config, "the norm before attention")?;
        let qkv = leaves.linear(config.biases.qkv, "query, key and value")?;
        let mut of_heads = |name| Ok::<_, ModelError>(Norm { weight: leaves.take(name)?, bias: None });
        let head_norms = match config.query_key_norm {
            true => Some([of_heads("the norm of queries")?, of_heads("the norm of keys")?]),
            false => None,
        };
        let output = leaves.linear(config.biases.output, "the output of attention")?;
        let norm_after = leaves.norm_after(config, "the norm after attention")?;
        Ok(AttentionWeights { norm, qkv, head_norms, output, norm_after })
    }
}

/// The weights of a block's MLP.
pub(super) struct MlpWeights<'a> {
    pub(super) norm: Option<Norm<'a>>,
    /// To `2 * intermediate`, gate and up; or to `intermediate` where there is no gate.
    pub(super) up: Linear<'a>,
    /// From `intermediate`.
    pub(super) down: Linear<'a>,
    pub(super) norm_after: Option<Norm<'a>>,
}

impl<'a> MlpWeights<'a> {
    pub(super) fn take(leaves: &mut Leaves<'a>, config: &ModelConfig) -> Result<Self, ModelError> {
        let norm = leaves.norm_before(config, "the norm before the MLP")?;
        let up = leaves.linear(config.biases.mlp, "gate and up")?;
        let down = leaves.linear(config.biases.mlp, "down")?;
        let norm_after = leaves.norm_after(config, "the norm after the MLP")?;
        Ok(MlpWeights { norm, up, down, norm_after })
    }
}
