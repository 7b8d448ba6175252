//! The weights that a model came with, sharded: what training is drawn toward.
//!
//! Each rank keeps its shard of what is ever trained, at every stage, in the type of the masters and where they lie.

use super::files::{CHUNK, fill_by_float_chunks};
use super::{ShardError, Shards, Unit};
use std::ops::Range;
use tch::Tensor;
use zerofold_checkpoint::{STATES, Weights};

/// What a unit's masters are drawn toward, and its gradient, as far as it is trained now; views of equal length.
pub(crate) struct Drawn {
    /// This rank's shard of the masters.
    pub(crate) master: Tensor,
    /// What they were in the model's files.
    pub(crate) pretrained: Tensor,
    /// Their Fisher information, where it was estimated.
    pub(crate) fisher: Option<Tensor>,
    /// The shard of the gradient.
    pub(crate) gradient: Tensor,
}

impl Shards {
    /// Keeps the weights of `weights`. Returns a number by which they are known again, whatever the layout: a sum over all
    /// elements of this rank's shards, to be added to those of the other ranks of its copy.
    pub fn keep_pretrained(&mut self, weights: &Weights) -> Result<u64, ShardError> {
        let mut sum = 0u64;
        let mut all = Vec::with_capacity(self.units.len());
        for unit in &self.units {
            let shard = unit.layout.shard(self.place());
            let kept = super::trained_within(&shard, unit.layout.trained_numel(u32::MAX));
            let pretrained = Tensor::f_zeros([kept as i64], (self.kinds.master, unit.master.device()))?;
            let mut read = |range: Range<usize>, values: &mut [f32]| {
                for parameter in unit.layout.parameters() {
                    let begin = parameter.begin.max(shard.start + range.start);
                    let end = parameter.end.min(shard.start + range.end);
                    if begin < end {
                        let elements = (begin - parameter.begin) as u64..(end - parameter.begin) as u64;
                        let target = &mut values[begin - shard.start - range.start..end - shard.start - range.start];
                        weights.read(&parameter.name, STATES[0], elements.clone(), target)?;
                        sum = sum.wrapping_add(fingerprint(&parameter.name, elements.start, target));
                    }
                }
                Ok::<(), ShardError>(())
            };
            fill_by_float_chunks(&pretrained, &mut read)?;
            // What is never trained is looked at alone, so that the number is that of the whole model.
            for begin in (kept..shard.len()).step_by(CHUNK) {
                let end = shard.len().min(begin + CHUNK);
                read(begin..end, &mut vec![0.0; end - begin])?;
            }
            all.push(pretrained);
        }
        self.pretrained = all;
        Ok(sum)
    }

    /// Whether training is drawn toward the pretrained weights.
    pub fn keeps_pretrained(&self) -> bool {
        !self.pretrained.is_empty()
    }

    /// What is drawn of each unit.
    pub(crate) fn drawn(&self) -> Result<Vec<Drawn>, ShardError> {
        let drawn = |(index, (unit, pretrained)): (usize, (&Unit, &Tensor))| {
            let [master, moment, _] = unit.own_state()?;
            // As long as the moments: what is trained now.
            let beginning = |tensor: &Tensor| tensor.f_narrow(0, 0, moment.numel() as i64);
            Ok(Drawn {
                master: beginning(&master)?,
                pretrained: beginning(pretrained)?,
                fisher: self.fisher.get(index).map(beginning).transpose()?,
                gradient: beginning(&unit.own_gradient()?)?,
            })
        };
        let trained = self.units.iter().zip(&self.pretrained).enumerate().filter(|(_, (unit, _))| unit.is_trained());
        trained.map(drawn).collect()
    }
}

/// A number of a parameter's elements from `begin` on. Those of neighbouring ranges add up to that of both together.
fn fingerprint(name: &str, begin: u64, values: &[f32]) -> u64 {
    let mut key = [0; 8];
    key.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
    let key = u64::from_le_bytes(key);
    let each = values.iter().zip(begin..).map(|(value, place)| {
        mixed(key.wrapping_add(mixed(place)) ^ mixed(u64::from(value.to_bits()).wrapping_add(key)))
    });
    each.fold(0, u64::wrapping_add)
}

/// The golden ratio's part behind the point, in 64 bits; odd, so that multiplying by it loses nothing.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every bit of `word` over the result.
fn mixed(word: u64) -> u64 {
    let folded = |word: u64| word ^ (word >> 32);
    folded(folded(folded(word).wrapping_mul(GOLDEN)).wrapping_mul(GOLDEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_does_not_depend_on_how_elements_are_cut() {
        let values: Vec<f32> = (0..100).map(|value| value as f32 / 7.0).collect();
        let whole = fingerprint("a", 0, &values);
        for cut in [1, 50, 99] {
            let (first, rest) = values.split_at(cut);
            assert_eq!(fingerprint("a", 0, first).wrapping_add(fingerprint("a", cut as u64, rest)), whole);
        }
        let mut swapped = values.clone();
        swapped.swap(3, 4);
        assert_ne!(fingerprint("a", 0, &swapped), whole);
        assert_ne!(fingerprint("b", 0, &values), whole);
    }
}
