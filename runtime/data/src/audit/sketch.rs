//! MinHash sketches: 128 bytes of a row, whose agreement estimates how alike two rows are.
//!
//! A row is the set of its shingles, each three neighbouring words (a shorter row is one shingle). Two sets are alike by
//! their Jaccard similarity, |A ∩ B| / |A ∪ B|. Their sketches agree at a place with about that probability.
//!
//! The sketch is that of Dahlgaard, Knudsen and Thorup, "Fast Similarity Sketching" (FOCS 2017): in round *i* an element *x*
//! has a hash of 32 bits, half *i mod 2* of *mix(x + ⌊i / 2⌋ γ)*, *mix* being the finaliser of SplitMix64 and *γ* its increment. Its upper
//! 7 bits name a place (from round 128 on, place *i* − 128), its lower 24 bits are a value, and each place keeps the least (round, value).
//! Rounds go on until every place is filled: two for long rows, some dozens for short ones, 256 at most. It costs the time of about one
//! hash a shingle, where the classical MinHash takes 128, and estimates as well.
//!
//! One byte of each place is kept, as in Li and König, "b-Bit Minwise Hashing" (WWW 2010): places that differ agree by
//! chance once in 256 times, which the estimate takes off again. Its standard deviation is at most
//! √((J + 1/255) (1 − J) / 128), 0.035 at J = 0.8.

/// Places of a sketch.
const PLACES: usize = 128;

/// Words of a shingle.
pub const SHINGLE_WORDS: usize = 3;

/// Bands of a sketch, by each of which candidates for being alike are found: those with the same eight bytes there. Rows of similarity J
/// are candidates with the probability 1 − (1 − J⁸)¹⁶: 0.947 at 0.8, 0.9999 at 0.9, 0.06 at 0.5.
pub(super) const BANDS: usize = 16;

/// SplitMix64's increment.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// How alike a row is to others. All zero: nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sketch([u8; PLACES]);

impl Sketch {
    /// Of a row without words.
    pub(super) const NONE: Sketch = Sketch([0; PLACES]);

    /// Of a row's words, in their order.
    pub(super) fn of_words(words: &[u64]) -> Sketch {
        Sketch::of_set(&shingles(words))
    }

    /// Of a set of elements, some of which may stand there twice.
    fn of_set(elements: &[u64]) -> Sketch {
        if elements.is_empty() {
            return Sketch::NONE;
        }
        let mut places = [u32::MAX; PLACES];
        for pair in 0..PLACES as u32 {
            for &element in elements {
                let hash = mix(element.wrapping_add(u64::from(pair).wrapping_mul(GAMMA)));
                for (round, hash) in [(2 * pair, hash as u32), (2 * pair + 1, (hash >> 32) as u32)] {
                    let place = round.checked_sub(PLACES as u32).unwrap_or(hash >> 25) as usize;
                    let value = round << 24 | hash & 0xFF_FFFF;
                    places[place] = places[place].min(value);
                }
            }
            // None is empty. All are looked at, which takes less than counting while they are filled.
            if places.iter().fold(0, |largest, &value| largest.max(value)) < u32::MAX {
                break;
            }
        }
        Sketch(places.map(|value| value as u8))
    }

    /// The estimated Jaccard similarity of the two sets, from 0 to 1.
    pub(super) fn similarity(&self, other: &Sketch) -> f64 {
        let equal = self.0.iter().zip(&other.0).filter(|(left, right)| left == right).count();
        let by_chance = 1.0 / 256.0;
        ((equal as f64 / PLACES as f64 - by_chance) / (1.0 - by_chance)).max(0.0)
    }

    /// What rows that are alike are likely to have in common.
    pub(super) fn band(&self, band: usize) -> u64 {
        let (bands, _) = self.0.as_chunks::<{ PLACES / BANDS }>();
        u64::from_le_bytes(bands[band])
    }
}

/// The hashes of a row's shingles.
fn shingles(words: &[u64]) -> Vec<u64> {
    let hash = |words: &[u64]| words.iter().fold(0, |hash, word| mix(hash ^ word));
    match words.len() {
        0 => Vec::new(),
        1..=SHINGLE_WORDS => vec![hash(words)],
        _ => words.windows(SHINGLE_WORDS).map(hash).collect(),
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Elements `from..to`, spread over all numbers.
    fn range(from: u64, to: u64) -> Vec<u64> {
        (from..to).map(|number| mix(number ^ 0x5EED)).collect()
    }

    fn jaccard(left: &[u64], right: &[u64]) -> f64 {
        let [left, right]: [HashSet<u64>; 2] = [left, right].map(|elements| elements.iter().copied().collect());
        left.intersection(&right).count() as f64 / left.union(&right).count() as f64
    }

    #[test]
    fn equal_sets_are_alike_and_strangers_are_not() {
        for size in [1, 2, 5, 127, 3000] {
            let (set, doubled) = (range(0, size), [range(0, size), range(0, size)].concat());
            assert_eq!(Sketch::of_set(&set), Sketch::of_set(&doubled));
            let stranger = Sketch::of_set(&range(size, 2 * size));
            let told = Sketch::of_set(&set).similarity(&stranger);
            assert!(told < 0.06, "{size}: {told}");
            assert_eq!(stranger.similarity(&stranger), 1.0);
        }
        assert_eq!(Sketch::of_words(&[]), Sketch::NONE);
    }

    /// Over many pairs the mean is the truth: no bias, for short rows as for long ones. The standard error of the mean of 400
    /// estimates is 0.0025 at most.
    #[test]
    fn the_estimate_has_no_bias() {
        for (size, common) in [(12u64, 9u64), (40, 20), (40, 36), (400, 300), (2000, 400)] {
            let pairs = 400;
            let sum: f64 = (0..pairs)
                .map(|pair| {
                    let begin = pair * 10_000;
                    let left = range(begin, begin + size);
                    let right = range(begin + size - common, begin + 2 * size - common);
                    Sketch::of_set(&left).similarity(&Sketch::of_set(&right))
                })
                .sum();
            let truth = common as f64 / (2 * size - common) as f64;
            let mean = sum / pairs as f64;
            assert!((mean - truth).abs() < 0.01, "{size} with {common}: {mean} for {truth}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        /// Within six standard deviations of an ordinary MinHash with 128 places, those that agree by chance among them. 0.03 is
        /// for sets with next to nothing in common, where the number of these has a Poisson distribution: of 128 places nine would
        /// have to agree by chance, 3e-9 a pair.
        #[test]
        fn the_estimate_is_near_the_truth(
            left in prop::collection::vec(0u64..600, 1..500),
            right in prop::collection::vec(0u64..600, 1..500),
        ) {
            let [left, right] = [left, right].map(|numbers| numbers.into_iter().map(mix).collect::<Vec<_>>());
            let truth = jaccard(&left, &right);
            let told = Sketch::of_set(&left).similarity(&Sketch::of_set(&right));
            let deviation = ((truth + 1.0 / 255.0) * (1.0 - truth) / PLACES as f64).sqrt();
            prop_assert!((told - truth).abs() <= 6.0 * deviation + 0.03, "{} for {}", told, truth);
        }
    }

    #[test]
    fn shingles_are_three_neighbouring_words() {
        assert_eq!(shingles(&[1, 2]), shingles(&[1, 2]));
        assert_ne!(shingles(&[1, 2]), shingles(&[2, 1]));
        let of_five = shingles(&[1, 2, 3, 4, 5]);
        assert_eq!(of_five.len(), 3);
        assert_eq!(of_five[1], shingles(&[2, 3, 4])[0]);
    }
}
