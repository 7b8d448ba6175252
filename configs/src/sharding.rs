//! What is sharded, over which ranks, in which units.

use crate::types::{ElementType, choice};
use serde::{Deserialize, Serialize};

/// The ZeRO stage: what each rank holds only a shard of. Written as a number, 0 to 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Stage {
    /// Nothing is sharded: data parallel, as DDP.
    Zero = 0,
    /// The optimizer's state is sharded.
    One = 1,
    /// The optimizer's state and the gradients are sharded.
    Two = 2,
    /// The optimizer's state, the gradients and the parameters are sharded.
    Three = 3,
}

impl Stage {
    /// The stage as a number, 0 to 3.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Masters and moments exist once over all ranks: stage 1 and up.
    pub fn shards_optimizer(self) -> bool {
        self >= Self::One
    }

    /// Gradients are reduced as each unit finishes and kept as shards: stage 2 and up.
    pub fn shards_gradients(self) -> bool {
        self >= Self::Two
    }

    /// Parameters are kept as shards and gathered unit by unit: stage 3.
    pub fn shards_parameters(self) -> bool {
        self >= Self::Three
    }
}

impl From<Stage> for u8 {
    fn from(stage: Stage) -> u8 {
        stage.number()
    }
}

impl TryFrom<u8> for Stage {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            0 => Ok(Self::Zero),
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            3 => Ok(Self::Three),
            other => Err(format!("{other} is no ZeRO stage (0, 1, 2 or 3)")),
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.number())
    }
}

/// What becomes of a unit's gathered parameters between its forward and its backward at stage 3, as FSDP2's
/// `reshard_after_forward` says it. Written as `true`, `false` or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ReshardAfterForward {
    /// `true` (FULL_SHARD): they are released and gathered again. `false` (SHARD_GRAD_OP): they are kept.
    Always(bool),
    /// They are kept as shards of groups of this many neighbouring ranks, which gather them among themselves.
    Group(u32),
}

choice! {
    /// When the gather of the next unit is started in the backward pass of stage 3.
    pub BackwardPrefetch {
        /// Before the current unit's backward.
        Pre = "BACKWARD_PRE",
        /// After the current unit's backward, before its gradient is reduced.
        Post = "BACKWARD_POST",
        /// When the next unit needs it.
        None = "NO_PREFETCH",
    }
}

/// How the model is cut into units, the parameters that communicate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitPolicy {
    /// The embedding, each decoder block, the head.
    Blocks,
    /// As [`UnitPolicy::Blocks`], with each block's attention and MLP as units of their own, each with its norm.
    BlockHalves,
    /// Neighbours are merged until each unit has at least this many parameters.
    MinParameters(u64),
    /// The whole model is one unit.
    Whole,
}

/// Everything that decides which rank holds what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharding {
    /// The ZeRO stage.
    pub stage: Stage,
    /// Stage 3 only; `Always(true)` elsewhere.
    pub reshard_after_forward: ReshardAfterForward,
    /// Hybrid sharding: how many copies there are of everything that is sharded, each over `N / replicas`
    /// neighbouring ranks. 1 without. Divides N.
    pub replicas: u32,
    /// How the model is cut into units.
    pub units: UnitPolicy,
    /// When backward gathers ahead.
    pub backward_prefetch: BackwardPrefetch,
}

impl Sharding {
    /// `stage` with everything else at its default.
    pub fn of(stage: Stage) -> Self {
        Sharding {
            stage,
            reshard_after_forward: ReshardAfterForward::Always(true),
            replicas: 1,
            units: UnitPolicy::Blocks,
            backward_prefetch: BackwardPrefetch::Pre,
        }
    }
}

/// The element types of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementTypes {
    /// Parameters, activations and what is gathered.
    pub compute: ElementType,
    /// Masters and moments.
    pub master: ElementType,
    /// Gradients between ranks.
    pub reduce: ElementType,
    /// Gradients accumulated over micro-batches.
    pub accumulate: ElementType,
}

impl ElementTypes {
    /// `compute` with everything else in float32: the default.
    pub fn of(compute: ElementType) -> Self {
        let float32 = ElementType::Float32;
        ElementTypes { compute, master: float32, reduce: float32, accumulate: float32 }
    }
}
