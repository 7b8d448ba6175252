//! Several sources in one epoch: how much of each, and which of its rows. Pure, as the rest of the plan.
//!
//! An epoch takes of each source its share. What it takes goes on where the epoch before stopped, through one permutation of
//! the source after the other (the order of the file, if the order is sequential), so that a large source beside a small one
//! is seen as a whole in the end, and a small one beside a large one again and again. So the rows of an epoch depend on the
//! sources' sizes, the shares, the seed and the epoch's number alone.

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::sampling::shuffle;

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
    /// and an epoch of more than 2³² − 1 items.
    pub fn new(sources: &[usize], mixing: &Mixing) -> Result<Mixture, DataError> {
        let fault = |message: String, hint: &str| Err(DataError::Plan { message, hint: hint.into() });
        if let Some(empty) = sources.iter().position(|&items| items == 0) {
            return fault(format!("source {} of {} has nothing to mix in", empty + 1, sources.len()), "leave it out");
        }
        let sizes = sources.iter().map(|&items| items as f64);
        let weights: Vec<f64> = match &mixing.shares {
            Shares::Weights(weights) => weights.clone(),
            Shares::Temperature(temperature) => sizes.clone().map(|size| size.powf(1.0 / temperature)).collect(),
        };
        if weights.len() != sources.len() || !weights.iter().all(|weight| *weight > 0.0 && weight.is_finite()) {
            let message = format!("the weights {weights:?} of {} sources", sources.len());
            return fault(message, "each source has one weight, a positive number");
        }
        // The length of an epoch that would use up a source.
        let all: f64 = weights.iter().sum();
        let lengths = sizes.zip(&weights).map(|(size, weight)| size * all / weight);
        let length = match mixing.stopping {
            Stopping::FirstExhausted => lengths.fold(f64::INFINITY, f64::min),
            Stopping::AllExhausted => lengths.fold(0.0, f64::max),
        };
        if length > f64::from(u32::MAX) {
            let message =
                format!("an epoch of {length:.0} items, with the weights {weights:?} of sources of {sources:?}");
            return fault(
                message,
                "make the weights more alike, or let the epoch end with stopping_strategy: first_exhausted",
            );
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
        let size = self.sources[source];
        let first: u32 = self.sources[..source].iter().sum();
        let taken = u128::from(self.taken[source]);
        let (mut next, end) = (u128::from(epoch) * taken, (u128::from(epoch) + 1) * taken);
        let mut part = Vec::with_capacity(self.taken[source] as usize);
        while next < end {
            let (round, begin) = (next / u128::from(size), next % u128::from(size));
            let count = (u128::from(size) - begin).min(end - next);
            let mut order: Vec<u32> = (first..first + size).collect();
            if let Some(seed) = seed {
                shuffle(&mut order, seed_of(seed, source), round as u64);
            }
            part.extend_from_slice(&order[begin as usize..(begin + count) as usize]);
            next += count;
        }
        part
    }
}

/// The seed of a source's own permutations. That of the epoch's order is the run's, so that these are another stream.
fn seed_of(seed: u64, source: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"source");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(source as u64).to_le_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
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
