//! What a rank holds between optimizer steps, by theory (Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training
//! Trillion Parameter Models", 2020, section 3), counted over padded flat parameters.

use crate::layout::Layout;

/// The type that parameters are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// float32 throughout: the parameters are the masters.
    Float32,
    /// bfloat16 parameters with float32 masters.
    Bfloat16,
}

/// Persistent bytes of one rank. What comes and goes within a step (gather buffers, activations) is not in here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateBytes {
    /// Parameters in the compute type that stay between steps.
    pub parameters: usize,
    /// Accumulated gradients, float32.
    pub gradients: usize,
    /// float32 masters that are not the parameters themselves.
    pub masters: usize,
    /// Both moments of AdamW, float32.
    pub moments: usize,
}

impl StateBytes {
    /// The sum.
    pub fn total(&self) -> usize {
        self.parameters + self.gradients + self.masters + self.moments
    }
}

/// What `stage` (0 to 3) keeps on each rank of `layout`.
///
/// In float32 the masters are the parameters: a full copy at stages 0 to 2 (a rank's master shard is its slice of it)
/// and the shard at stage 3. In bfloat16 stage 3 keeps no bfloat16 copy: the shard is cast as it is gathered.
pub fn state_bytes(layout: &Layout, stage: u8, precision: Precision) -> StateBytes {
    let (full, shard) = (layout.numel(), layout.shard_numel());
    let at = |sharded_from: u8| if stage >= sharded_from { shard } else { full };
    let (parameters, masters) = match precision {
        Precision::Float32 => (4 * at(3), 0),
        Precision::Bfloat16 => (if stage >= 3 { 0 } else { 2 * full }, 4 * at(1)),
    };
    StateBytes { parameters, gradients: 4 * at(2), masters, moments: 8 * at(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let layout = Layout::new(&[unit], 64).unwrap();
        let gigabytes = |stage| state_bytes(&layout, stage, Precision::Bfloat16).total() as f64 / 1e9;
        assert!((gigabytes(0) - (120.0 + 15.0)).abs() < 0.1);
        assert!((gigabytes(1) - (31.4 + 15.0)).abs() < 0.1);
        assert!((gigabytes(2) - (16.6 + 0.2)).abs() < 0.1);
        assert!((gigabytes(3) - 1.9).abs() < 0.1);
    }
}
