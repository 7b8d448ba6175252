//! The next token out of its logits: the likeliest, or one drawn.

use anyhow::{Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleOptions {
    /// The softmax temperature; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only so many likeliest tokens; 0 means all.
    pub top_k: usize,
    /// Only the likeliest tokens that together hold this much probability, in (0, 1].
    pub top_p: f64,
    /// Seed of the ChaCha8 stream that is drawn from.
    pub seed: u64,
}

/// Draws tokens; the same options and logits give the same tokens on every machine.
pub struct Sampler {
    options: SampleOptions,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the beginning of its random stream.
    ///
    /// # Errors
    /// Options out of range.
    pub fn new(options: SampleOptions) -> Result<Self> {
        let SampleOptions { temperature, top_p, seed, .. } = options;
        ensure!(
            temperature >= 0.0 && temperature.is_finite(),
            "temperature is {temperature}, which is not a number of 0 or more\nhint: 0 is greedy, 1 the model's own distribution"
        );
        ensure!(
            top_p > 0.0 && top_p <= 1.0,
            "top_p is {top_p}, which is not above 0 and at most 1\nhint: 1 keeps every token"
        );
        Ok(Sampler { options, random: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// The same from another stream of the seed, independent of all others.
    pub fn of_stream(mut self, stream: u64) -> Self {
        self.random.set_stream(stream);
        self
    }

    /// Chooses a token; `logits` holds one value per token of the vocabulary.
    ///
    /// # Errors
    /// Logits that are not numbers: the model's weights are broken, or its type overflows.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32> {
        let best = likeliest(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(best);
        }
        let candidates = self.candidates(logits, logits[best as usize]);
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        // 53 random bits make a number in [0, 1).
        let mut left = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
        for (token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return Ok(*token);
            }
        }
        Ok(candidates.last().map_or(best, |(token, _)| *token))
    }

    /// The tokens to draw from with their weights (the likeliest has weight 1), likeliest first.
    fn candidates(&self, logits: &[f32], best: f32) -> Vec<(u32, f64)> {
        let SampleOptions { temperature, top_k, top_p, .. } = self.options;
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        // Equal logits stand in the order of their ids.
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if top_k > 0 && top_k < order.len() {
            order.select_nth_unstable_by(top_k - 1, likelier);
            order.truncate(top_k);
        }
        order.sort_unstable_by(likelier);
        let weight = |token: u32| (f64::from(logits[token as usize] - best) / temperature).exp();
        let mut candidates: Vec<(u32, f64)> = order.into_iter().map(|token| (token, weight(token))).collect();
        if top_p < 1.0 {
            let enough = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut before = 0.0;
            candidates.retain(|(_, weight)| {
                let kept = before < enough;
                before += weight;
                kept
            });
        }
        candidates
    }
}

/// The token with the largest logit; the first of equals.
fn likeliest(logits: &[f32]) -> Result<u32> {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        ensure!(
            !logit.is_nan() && *logit != f32::INFINITY,
            "the model's logit of token {token} is {logit}\nhint: the weights are broken, or need float32 (dtype: float32)"
        );
        if *logit > logits[best] {
            best = token;
        }
    }
    ensure!(!logits.is_empty(), "the model gave no logits");
    Ok(best as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: SampleOptions = SampleOptions { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 1 };

    fn draw(options: SampleOptions, logits: &[f32], times: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(options).expect("options in range");
        let mut counts = vec![0; logits.len()];
        for _ in 0..times {
            counts[sampler.next(logits).expect("a token") as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(draw(GREEDY, &[0.0, 2.0, 2.0, f32::NEG_INFINITY], 3), [0, 3, 0, 0]);
    }

    #[test]
    fn drawing_follows_the_softmax() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let plain = SampleOptions { temperature: 1.0, ..GREEDY };
        let shares = |options| draw(options, &logits, 20_000).into_iter().map(|count| count as f64 / 20_000.0);
        for (share, expected) in shares(plain).zip([0.5, 0.3, 0.2]) {
            assert!((share - expected).abs() < 0.015, "{share} is far from {expected}");
        }
        // Temperature 0.5 squares the probabilities: 25 : 9 : 4.
        for (share, expected) in shares(SampleOptions { temperature: 0.5, ..plain }).zip([25.0, 9.0, 4.0]) {
            assert!((share - expected / 38.0).abs() < 0.015, "{share} is far from {}", expected / 38.0);
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_unlikely_out() {
        let logits = [0.1f32.ln(), 0.5f32.ln(), 0.05f32.ln(), 0.35f32.ln()];
        let kept = |top_k, top_p| {
            let counts = draw(SampleOptions { temperature: 1.0, top_k, top_p, seed: 3 }, &logits, 2000);
            counts.iter().map(|count| *count > 0).collect::<Vec<bool>>()
        };
        assert_eq!(kept(0, 1.0), [true, true, true, true]);
        assert_eq!(kept(1, 1.0), [false, true, false, false]);
        assert_eq!(kept(2, 1.0), [false, true, false, true]);
        // 0.5 alone does not hold 0.6; with 0.35 it does.
        assert_eq!(kept(0, 0.6), [false, true, false, true]);
        assert_eq!(kept(0, 0.4), [false, true, false, false]);
        // Of the two likeliest, the first holds 0.5 / 0.85.
        assert_eq!(kept(2, 0.55), [false, true, false, false]);
        assert_eq!(kept(99, 1.0), [true, true, true, true]);
    }

    #[test]
    fn a_seed_decides_everything() {
        let logits: Vec<f32> = (0..50).map(|token| (token as f32 * 0.7).sin()).collect();
        let tokens = |seed| {
            let mut sampler = Sampler::new(SampleOptions { temperature: 1.0, seed, ..GREEDY }).expect("in range");
            (0..20).map(|_| sampler.next(&logits).expect("a token")).collect::<Vec<u32>>()
        };
        assert_eq!(tokens(7), tokens(7));
        assert_ne!(tokens(7), tokens(8));
    }

    #[test]
    fn what_is_out_of_range_says_so() {
        for (temperature, top_p, expected) in [
            (-1.0, 1.0, "temperature is -1"),
            (f64::NAN, 1.0, "temperature is NaN"),
            (1.0, 0.0, "top_p is 0"),
            (1.0, 1.5, "top_p is 1.5"),
        ] {
            let error =
                Sampler::new(SampleOptions { temperature, top_p, ..GREEDY }).err().map(|error| error.to_string());
            assert!(error.as_deref().is_some_and(|error| error.contains(expected)), "{error:?}");
        }
        let mut sampler = Sampler::new(GREEDY).expect("in range");
        assert!(sampler.next(&[0.0, f32::NAN]).is_err());
        assert!(sampler.next(&[]).is_err());
    }
}
