//! Random choices that a seed repeats.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A source of choices.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// The choices of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Dice(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    /// True one time in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of `choices`.
    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Fewer than `end` bytes.
    pub(crate) fn bytes(&mut self, end: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.below(end) as usize];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// A count: small as a rule, and at the ends of what there is.
    pub(crate) fn count(&mut self) -> u64 {
        let small = self.below(100);
        self.one_of(&[0, 1, small, small << 20, u64::from(u32::MAX), 1 << 53, u64::MAX - small])
    }

    /// A number: sensible as a rule, and none.
    pub(crate) fn number(&mut self) -> f64 {
        let small = self.below(1000) as f64 / 7.0;
        self.one_of(&[0.0, small, -small, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, 5e-324])
    }

    /// A text: short as a rule, and long, and strange.
    pub(crate) fn text(&mut self) -> String {
        let length = self.one_of(&[0, 1, 7, 200, 5000, 70_000]);
        self.one_of(&["x", "é", "\0", "\u{1b}[2J", "\n", "../"]).repeat(length)
    }
}
