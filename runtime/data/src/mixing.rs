//! Several sources in one epoch: how much of each, and which of its rows. Pure, as the rest of the plan.
//!
//! An epoch takes of each source its share, in an order of its own. It goes on in each source where the epoch before stopped:
//! each has one permutation (the order of the file, if the order is sequential), gone through round and round, so that a large
//! source beside a small one is seen as a whole in the end, a small one beside a large one again and again, and no row comes
//! twice in an epoch that takes no more rows than there are. So the rows of an epoch depend on the sources' sizes, the shares,
//! the seed and the epoch's number alone.

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::sampling::shuffle;

/// An epoch has at most so many times all items: more of it was never meant.
const MOST_REPEATED: f64 = 100.0;

/// How much of each source there is to be in an epoch.
#[derive(Debug, Clone, PartialEq)]
pub enum Shares {
    /// In proportion to these weights, one for each source.
    Weights(Vec<f64>),
    /// In proportion to the sources' sizes to the power of 1 / temperature: 1 takes them as large as they are, a high one makes
    /// them equal. The temperature of mT5 and of multilingual BERT (Devlin 2018; Xue et al. 2021, section 3).
    Temperature(f64),
}

/// When an epoch ends; the names are those of `datasets.interleave_datasets`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopping {
    /// When the first source is used up: no row comes twice in an epoch.
    FirstExhausted,
    /// When each source was used up: smaller ones come several times.
    AllExhausted,
}

/// How sources are mixed.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixing {
    /// How much of each.
    pub shares: Shares,
    /// Until when.
    pub stopping: Stopping,
}

/// What an epoch takes of each source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mixture {
    /// Items of each source, one source after the other.
    sources: Vec<u32>,
    /// Items of each that an epoch takes.
    taken: Vec<u32>,
}

impl Mixture {
    /// Settles what an epoch takes of sources with so many items each: at least one of each, all of the one that ends it.
    ///
    /// # Errors
    /// [`DataError::Plan`] for a source without items, another number of weights than of sources, weights that are not positive,
    /// and an epoch of far more items than there are.
    pub fn new(sources: &[usize], mixing: &Mixing) -> Result<Mixture, DataError> {
        let fault = |message: String, hint: &str| Err(DataError::Plan { message, hint: hint.into() });
        if let Some(empty) = sources.iter().position(|&items| items == 0) {
            return fault(format!("source {} of {} has nothing to mix in", empty + 1, sources.len()), "leave it out");
        }
        let sizes: Vec<f64> = sources.iter().map(|&items| items as f64).collect();
        let largest = sizes.iter().copied().fold(1.0, f64::max);
        let weights: Vec<f64> = match &mixing.shares {
            Shares::Weights(weights) => weights.clone(),
            Shares::Temperature(temperature) => {
                sizes.iter().map(|size| (size / largest).powf(1.0 / temperature)).collect()
            }
        };
        if weights.len() != sources.len() || !weights.iter().all(|weight| *weight > 0.0 && weight.is_finite()) {
            return match &mixing.shares {
                Shares::Weights(_) => {
                    let message = format!("the weights {weights:?} of {} sources", sources.len());
                    fault(message, "each source has one weight, a positive number")
                }
                Shares::Temperature(temperature) => {
                    let message =
                        format!("mixing_temperature {temperature} leaves nothing of the smaller of {sources:?}");
                    fault(message, "raise it: 1 takes sources as large as they are, higher ones make them more alike")
                }
            };
        }
        // The length of an epoch that would use up a source.
        let all: f64 = weights.iter().sum();
        let lengths = sizes.iter().zip(&weights).map(|(size, weight)| size * all / weight);
        let length = match mixing.stopping {
            Stopping::FirstExhausted => lengths.fold(f64::INFINITY, f64::min),
            Stopping::AllExhausted => lengths.fold(0.0, f64::max),
        };
        if length > MOST_REPEATED * sizes.iter().sum::<f64>() || length > f64::from(u32::MAX) {
            let message =
                format!("an epoch of {length:.0} items of sources of {sources:?}, with the weights {weights:?}");
            let hint = "make the weights more alike, or let the epoch end with stopping_strategy: first_exhausted";
            return fault(message, hint);
        }
        let taken = |weight: &f64| (length * weight / all).round().max(1.0) as u32;
        let sources = sources.iter().map(|&items| u32::try_from(items).unwrap_or(u32::MAX)).collect();
        Ok(Mixture { sources, taken: weights.iter().map(taken).collect() })
    }

    /// Items of each source.
    pub fn sources(&self) -> &[u32] {
        &self.sources
    }

    /// Items of each source that an epoch takes.
    pub fn taken(&self) -> &[u32] {
        &self.taken
    }

    /// Items of an epoch.
    pub fn length(&self) -> u64 {
        self.taken.iter().map(|&taken| u64::from(taken)).sum()
    }

    /// The items of an epoch: mixed by the seed, or with none in the order of their files, spread evenly over the epoch.
    pub(crate) fn epoch(&self, epoch: u64, seed: Option<u64>) -> Vec<u32> {
        let parts: Vec<Vec<u32>> = (0..self.sources.len()).map(|source| self.part(source, epoch, seed)).collect();
        match seed {
            Some(seed) => {
                let mut order = parts.concat();
                shuffle(&mut order, seed, epoch);
                order
            }
            None => spread(&parts),
        }
    }

    /// What an epoch takes of a source.
    fn part(&self, source: usize, epoch: u64, seed: Option<u64>) -> Vec<u32> {
        let (size, taken) = (self.sources[source], self.taken[source]);
        let first: u32 = self.sources[..source].iter().sum();
        let permutation = seed.map(|seed| Permutation::new(size, seed, source));
        let begin = u128::from(epoch) * u128::from(taken);
        let item = |place: u32| {
            let place = ((begin + u128::from(place)) % u128::from(size)) as u32;
            first + permutation.as_ref().map_or(place, |permutation| permutation.at(place))
        };
        (0..taken).map(item).collect()
    }
}

/// Steps of the network below.
const ROUNDS: usize = 6;

/// A permutation of the numbers below a size, of which each is worked out by itself: of a large source an epoch may need few. A
/// Feistel network over the next even number of bits, gone through again where it leads beyond the size (cycle walking; Black and
/// Rogaway, *Ciphers with arbitrary finite domains*, 2002). Written out here so that the order of a run never changes with a
/// library.
struct Permutation {
    size: u32,
    /// Bits of each half.
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    fn new(size: u32, seed: u64, source: usize) -> Permutation {
        let bits = (32 - size.saturating_sub(1).leading_zeros()).max(2);
        let key = |round: usize| {
            let mut hasher = blake3::Hasher::new();
            for number in [seed, source as u64, round as u64] {
                hasher.update(&number.to_le_bytes());
            }
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
            u64::from_le_bytes(bytes)
        };
        Permutation { size, half: bits.div_ceil(2), keys: std::array::from_fn(key) }
    }

    /// What stands at `place`, which is below the size.
    fn at(&self, place: u32) -> u32 {
        let mut number = u64::from(place);
        loop {
            number = self.network(number);
            if number < u64::from(self.size) {
                return number as u32;
            }
        }
    }

    fn network(&self, number: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let halves = (number >> self.half, number & mask);
        let (left, right) =
            self.keys.iter().fold(halves, |(left, right), key| (right, (left ^ mixed(right ^ key)) & mask));
        left << self.half | right
    }
}

/// Every bit of a number in every bit of the result: the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// Parts in one, each in its order, so that every beginning has about each part's share: what comes next is of the part that
/// is furthest behind its share, of equally far ones the first.
fn spread(parts: &[Vec<u32>]) -> Vec<u32> {
    let length: usize = parts.iter().map(Vec::len).sum();
    let mut given = vec![0; parts.len()];
    let mut order = Vec::with_capacity(length);
    for place in 1..=length {
        let behind = |part: usize| parts[part].len() as i128 * place as i128 - given[part] as i128 * length as i128;
        let left = (0..parts.len()).filter(|&part| given[part] < parts[part].len());
        let Some(part) = left.max_by_key(|&part| (behind(part), std::cmp::Reverse(part))) else { break };
        order.push(parts[part][given[part]]);
        given[part] += 1;
    }
    order
}

#[cfg(test)]
#[path = "mixing_tests.rs"]
mod tests;
