//! What a rank holds between optimizer steps, by theory (Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training
//! Trillion Parameter Models", 2020, section 3), counted over padded flat parameters.

use crate::layout::{Layout, UnitLayout};
use serde::{Deserialize, Serialize};
use zerofold_configs::{ElementType, ElementTypes, Stage};

/// Persistent bytes of one rank. What comes and goes within a step (gather buffers, activations) is not in here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateBytes {
    /// Parameters in the compute type that stay between steps.
    pub parameters: usize,
    /// Accumulated gradients.
    pub gradients: usize,
    /// Masters that are not the parameters themselves.
    pub masters: usize,
    /// Both moments of AdamW.
    pub moments: usize,
    /// The weights that the model came with, where training is drawn toward them, and their Fisher information.
    #[serde(default)]
    pub pretrained: usize,
}

impl StateBytes {
    /// The sum.
    pub fn total(&self) -> usize {
        self.parameters + self.gradients + self.masters + self.moments + self.pretrained
    }
}

/// What `stage` keeps on each rank of `layout`.
///
/// Where the masters have the compute type they are the parameters: a full copy at stages 0 to 2 (a rank's master shard
/// is its slice of it) and the shard at stage 3. Else stage 3 keeps no copy in the compute type: the shard is cast as it
/// is gathered. Units without anything that is ever trained have neither gradients nor moments, and frozen parts of others no
/// moments: of a shard that is partly frozen the first rank has most.
pub fn state_bytes(layout: &Layout, stage: Stage, types: &ElementTypes) -> StateBytes {
    let (full, shard) = (layout.numel(), layout.shard_numel());
    let at = |sharded: bool| if sharded { shard } else { full };
    let (compute, master) = (types.compute.bytes(), types.master.bytes());
    let (parameters, masters) = if types.compute == types.master {
        (compute * at(stage.shards_parameters()), 0)
    } else {
        (if stage.shards_parameters() { 0 } else { compute * full }, master * at(stage.shards_optimizer()))
    };
    let trained = || layout.units.iter().filter(|unit| unit.trained_numel(u32::MAX) > 0);
    let reduced = |unit: &UnitLayout| if stage.shards_gradients() { unit.shard_numel } else { unit.numel };
    let gradients = types.accumulate.bytes() * trained().map(reduced).sum::<usize>();
    let owned = |unit: &UnitLayout| if stage.shards_optimizer() { unit.shard_numel } else { unit.numel };
    let moments = trained().map(|unit| unit.trained_numel(u32::MAX).min(owned(unit))).sum::<usize>();
    StateBytes { parameters, gradients, masters, moments: 2 * master * moments, pretrained: 0 }
}

/// What a rank keeps of the weights that the model came with: its shard of what is ever trained, at every stage.
pub fn pretrained_bytes(layout: &Layout, types: &ElementTypes) -> usize {
    types.master.bytes() * trained_shard(layout)
}

/// What a rank keeps of their Fisher information: the same shard in float32, whatever the types.
pub fn fisher_bytes(layout: &Layout) -> usize {
    ElementType::Float32.bytes() * trained_shard(layout)
}

/// Masters that mixout keeps apart where they would be the parameters themselves: it changes those.
pub fn unmixed_bytes(layout: &Layout, stage: Stage, types: &ElementTypes) -> usize {
    match stage {
        _ if types.compute != types.master => 0,
        Stage::Zero => types.master.bytes() * layout.numel(),
        Stage::One | Stage::Two => types.master.bytes() * layout.shard_numel(),
        Stage::Three => 0,
    }
}

/// The elements that are ever trained of a rank's shard; the first rank has most.
fn trained_shard(layout: &Layout) -> usize {
    layout.units.iter().map(|unit| unit.trained_numel(u32::MAX).min(unit.shard_numel)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Mesh;
    use crate::spec::{LeafSpec, ParameterGroup, ParameterSpec, UnitSpec};

    /// 7.5 billion parameters on 64 ranks, the paper's example: 120, 31.4, 16.6 and 1.9 GB with 16-bit gradients.
    /// Ours accumulate in float32, so a full gradient costs 2 bytes more per parameter.
    #[test]
    fn the_papers_example() {
        let unit = UnitSpec {
            name: "all".to_string(),
            leaves: vec![LeafSpec::single(
                ParameterGroup::Decayed,
                ParameterSpec::new("weight", [7_500_000_000 / 4096, 4096]),
            )],
            stays_gathered: false,
        };
        let layout = Layout::new(&[unit], Mesh::new(64, 1).unwrap()).unwrap();
        let types = ElementTypes::of(ElementType::Bfloat16);
        let gigabytes = |stage| state_bytes(&layout, stage, &types).total() as f64 / 1e9;
        assert!((gigabytes(Stage::Zero) - (120.0 + 15.0)).abs() < 0.1);
        assert!((gigabytes(Stage::One) - (31.4 + 15.0)).abs() < 0.1);
        assert!((gigabytes(Stage::Two) - (16.6 + 0.2)).abs() < 0.1);
        assert!((gigabytes(Stage::Three) - 1.9).abs() < 0.1);
    }
}
