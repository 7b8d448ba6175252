//! Mixout (Lee, Cho and Kang, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models", 2020): in
//! training each weight is with probability p its pretrained value θ₀, and the others are scaled so that the expectation holds.
//!
//! (m·θ₀ + (1 − m)·θ − p·θ₀) / (1 − p) is θ₀ + s·(θ − θ₀), where the scale s is 0 with probability p, else 1 / (1 − p); and s times
//! its gradient is that of θ. So masters stay what they are, apart from the parameters, which are mixed in the shards as they are
//! published or gathered. Matrices are mixed, embeddings among them; biases and norm weights are not, nor is what is never trained.

use super::{ShardError, Shards, Unit};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Elements that are mixed at a time.
const CHUNK: usize = 1 << 18;

/// Which weights are the pretrained ones in a step. It follows from the three numbers and an element's place in the model alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    /// The share of the weights.
    pub probability: f64,
    /// The job's seed.
    pub seed: u64,
    /// The step, from 1.
    pub step: u64,
}

impl Mask {
    /// The scales of a parameter's elements from `begin` on.
    fn scales(&self, name: &str, begin: u64, scales: &mut [f32]) {
        let numbers = [self.seed, self.step].into_iter().chain(name.bytes().map(u64::from));
        let key = numbers.fold(0, |key: u64, number| spread(key.wrapping_add(GOLDEN) ^ number));
        let kept = (1.0 / (1.0 - self.probability)) as f32;
        // So many of 2^32 numbers are below.
        let threshold = (self.probability * 4_294_967_296.0) as u64;
        for (scale, element) in scales.iter_mut().zip(begin..) {
            let number = spread(key.wrapping_add(element.wrapping_mul(GOLDEN))) >> 32;
            *scale = if number < threshold { 0.0 } else { kept };
        }
    }
}

/// The golden ratio's part behind the point, in 64 bits.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every bit of a number over the result: the last part of SplitMix64.
fn spread(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Shards {
    /// Shows parameters mixed by `mask`, or as they are. They are published where they are not yet so. Every rank calls it; without
    /// mixout it does nothing.
    pub fn show(&mut self, mask: Option<Mask>) -> Result<(), ShardError> {
        if !self.mixes || self.mask == mask && !self.stale {
            return Ok(());
        }
        self.mask = mask;
        self.stale = false;
        self.publish(Unit::is_trained)
    }

    /// Turns this rank's gradient shards, which are of the mixed parameters, into those of the masters.
    pub fn unmix_gradients(&self) -> Result<(), ShardError> {
        let Some(mask) = self.mask else { return Ok(()) };
        for index in 0..self.units.len() {
            if !self.units[index].is_trained() {
                continue;
            }
            let gradient = self.units[index].own_gradient()?;
            self.for_each_piece(index, mask, |elements, scales| {
                let scales = scales.f_to_device(gradient.device())?;
                let mut part = gradient.f_narrow(0, elements.start as i64, elements.len() as i64)?;
                let _scaled = part.f_mul_(&scales)?;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Mixes a rank's shard of a unit's parameters, which is there unmixed.
    pub(super) fn mix(&self, index: usize, parameters: &Tensor) -> Result<(), ShardError> {
        let Some(mask) = self.mask else { return Ok(()) };
        let [master, _, _] = self.units[index].own_state()?;
        let pretrained = &self.pretrained[index];
        self.for_each_piece(index, mask, |elements, scales| {
            let part = |tensor: &Tensor| tensor.f_narrow(0, elements.start as i64, elements.len() as i64);
            let float = |tensor: &Tensor| part(tensor)?.f_to_kind(Kind::Float);
            let pretrained = float(pretrained)?;
            let scales = scales.f_to_device(master.device())?;
            let mixed = float(&master)?.f_sub(&pretrained)?.f_mul_(&scales)?.f_add_(&pretrained)?;
            part(parameters)?.f_copy_(&mixed)?;
            Ok(())
        })
    }

    /// Goes through what is mixed of a rank's shard of a unit, with its scales in host memory.
    fn for_each_piece(
        &self,
        index: usize,
        mask: Mask,
        mut visit: impl FnMut(Range<usize>, Tensor) -> Result<(), ShardError>,
    ) -> Result<(), ShardError> {
        let layout = &self.units[index].layout;
        let shard = layout.shard(self.place());
        let kept = shard.start..shard.start + super::trained_within(&shard, layout.trained_numel(u32::MAX));
        let mut scales = Vec::new();
        for parameter in layout.parameters().filter(|parameter| parameter.shape.len() > 1) {
            let (first, last) = (parameter.begin.max(kept.start), parameter.end.min(kept.end));
            for begin in (first..last).step_by(CHUNK) {
                let end = last.min(begin + CHUNK);
                scales.resize(end - begin, 0.0f32);
                mask.scales(&parameter.name, (begin - parameter.begin) as u64, &mut scales);
                visit(begin - shard.start..end - shard.start, Tensor::f_from_slice(&scales)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMEL: usize = 1000;

    fn scales(mask: Mask, name: &str) -> Vec<f32> {
        let mut scales = vec![-1.0; NUMEL];
        mask.scales(name, 0, &mut scales);
        scales
    }

    /// Over many steps each element's mean scale is 1, and so is that of all elements in a step: the expectation holds.
    #[test]
    fn the_expectation_of_every_scale_is_one() {
        for probability in [0.1, 0.5, 0.9] {
            let steps = 2000;
            let (mut sums, deviation) = (vec![0.0f64; NUMEL], f64::sqrt(probability / (1.0 - probability)));
            for step in 1..=steps {
                let scales = scales(Mask { probability, seed: 42, step }, "weight");
                let mean = scales.iter().map(|&scale| f64::from(scale)).sum::<f64>() / NUMEL as f64;
                assert!((mean - 1.0).abs() < 5.0 * deviation / (NUMEL as f64).sqrt(), "{probability}, {step}: {mean}");
                sums.iter_mut().zip(scales).for_each(|(sum, scale)| *sum += f64::from(scale));
            }
            for sum in sums {
                let mean = sum / steps as f64;
                assert!((mean - 1.0).abs() < 5.0 * deviation / (steps as f64).sqrt(), "{probability}: {mean}");
            }
        }
    }

    #[test]
    fn masks_follow_from_seed_step_and_place_alone() {
        let mask = Mask { probability: 0.5, seed: 1, step: 3 };
        let whole = scales(mask, "weight");
        let mut part = vec![0.0; 10];
        mask.scales("weight", 77, &mut part);
        assert_eq!(part, whole[77..87]);
        for other in [
            scales(mask, "bias"),
            scales(Mask { step: 4, ..mask }, "weight"),
            scales(Mask { seed: 2, ..mask }, "weight"),
        ] {
            let same = other.iter().zip(&whole).filter(|(one, other)| one == other).count();
            assert!((400..600).contains(&same), "half of the elements are alike by chance, not {same} of {NUMEL}");
        }
        assert!(scales(Mask { probability: 0.0, ..mask }, "weight").iter().all(|&scale| scale == 1.0));
    }
}
