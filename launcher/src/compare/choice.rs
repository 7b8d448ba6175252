//! Which configuration to choose, and why.

use serde::Serialize;

use super::series::Configuration;
use crate::format;

/// What is known of a configuration that was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) configuration: Configuration,
    /// Tokens per second of the slowest round, the median round and the fastest one.
    pub(super) lowest: f64,
    pub(super) median: f64,
    pub(super) highest: f64,
    /// The most memory that a rank needed.
    pub(super) peak_bytes: u64,
}

/// A recommendation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// What to take.
    #[serde(flatten)]
    pub configuration: Configuration,
    /// Why, in a sentence.
    pub reason: String,
}

/// The fastest of what fits in `usable` bytes a rank (none: everything that ran does). Where others are as fast within what
/// the rounds differ by, that of them which needs least memory. `None` where nothing fits.
pub(super) fn choose(candidates: &[Candidate], usable: Option<u64>) -> Option<Choice> {
    let fits = |it: &&Candidate| usable.is_none_or(|usable| it.peak_bytes <= usable);
    let fitting: Vec<&Candidate> = candidates.iter().filter(fits).collect();
    let fastest = **fitting.iter().max_by(|one, other| one.median.total_cmp(&other.median))?;
    let (near, slower): (Vec<&Candidate>, Vec<&Candidate>) =
        fitting.iter().partition(|it| it.highest >= fastest.lowest);
    let chosen = **near.iter().min_by(|one, other| {
        let by_speed = other.median.total_cmp(&one.median);
        one.peak_bytes
            .cmp(&other.peak_bytes)
            .then(by_speed)
            .then(one.configuration.stage.cmp(&other.configuration.stage))
    })?;
    let name = chosen.configuration.without_accumulation();
    let speed = |it: &Candidate| format!("{} tokens/s", format::figure(it.median));
    let next = slower.iter().max_by(|one, other| one.median.total_cmp(&other.median));
    let reason = if fitting.len() == 1 && candidates.len() == 1 {
        format!("{name} is the only one that was measured ({})", speed(&chosen))
    } else if fitting.len() == 1 {
        format!("{name} is the only one whose peak of {} fits", format::bytes(chosen.peak_bytes))
    } else if near.len() > 1 && chosen.configuration == fastest.configuration {
        let others = near.iter().filter(|it| it.configuration != fastest.configuration);
        let others: Vec<String> = others.map(|it| it.configuration.without_accumulation()).collect();
        let (come, need) = if others.len() == 1 { ("comes", "needs") } else { ("come", "need") };
        format!(
            "{name} is the fastest, {}; {} {come} as near as the rounds differ, but {need} no less memory than its {}",
            speed(&chosen),
            others.join(" and "),
            format::bytes(chosen.peak_bytes)
        )
    } else if near.len() > 1 {
        format!(
            "{name}, {}, is as fast as the fastest, {} with {}, within what their rounds differ by, and needs less memory: {} \
             against {}",
            speed(&chosen),
            fastest.configuration.without_accumulation(),
            speed(&fastest),
            format::bytes(chosen.peak_bytes),
            format::bytes(fastest.peak_bytes)
        )
    } else {
        let next = next.map_or(String::new(), |next| {
            let percent = 100.0 * (chosen.median / next.median - 1.0);
            format!(", {percent:.0} % ahead of {} ({})", next.configuration.without_accumulation(), speed(next))
        });
        format!("{name} is the fastest, {}{next}", speed(&chosen))
    };
    Some(Choice { configuration: chosen.configuration, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::{Backend, Stage};

    fn candidate(stage: Stage, lowest: f64, highest: f64, peak_bytes: u64) -> Candidate {
        let configuration = Configuration { stage, backend: Backend::Shm, accumulation: 1 };
        Candidate { configuration, lowest, median: (lowest + highest) / 2.0, highest, peak_bytes: peak_bytes << 20 }
    }

    fn chosen(candidates: &[Candidate], usable: Option<u64>) -> (Stage, String) {
        let choice = choose(candidates, usable.map(|bytes| bytes << 20)).unwrap();
        (choice.configuration.stage, choice.reason)
    }

    #[test]
    fn the_fastest_is_taken_where_it_is_clearly_ahead() {
        let candidates = [candidate(Stage::Zero, 380.0, 420.0, 2600), candidate(Stage::Three, 190.0, 210.0, 1500)];
        let (stage, reason) = chosen(&candidates, None);
        assert_eq!(stage, Stage::Zero);
        assert_eq!(
            reason,
            "stage 0 over shm is the fastest, 400 tokens/s, 100 % ahead of stage 3 over shm (200 tokens/s)"
        );
    }

    #[test]
    fn within_the_spread_memory_decides() {
        let candidates = [
            candidate(Stage::Zero, 380.0, 420.0, 2600),
            candidate(Stage::One, 370.0, 380.0, 1800),
            candidate(Stage::Three, 300.0, 379.0, 1500),
        ];
        let (stage, reason) = chosen(&candidates, None);
        assert_eq!(stage, Stage::One, "stage 3 never reached the slowest round of stage 0");
        assert_eq!(
            reason,
            "stage 1 over shm, 375 tokens/s, is as fast as the fastest, stage 0 over shm with 400 tokens/s, within what their \
             rounds differ by, and needs less memory: 1.76 GiB against 2.54 GiB"
        );
    }

    #[test]
    fn of_equals_the_lower_stage_is_taken() {
        let candidates = [candidate(Stage::One, 90.0, 110.0, 7), candidate(Stage::Zero, 90.0, 110.0, 7)];
        let (stage, reason) = chosen(&candidates, None);
        assert_eq!(stage, Stage::Zero);
        assert_eq!(
            reason,
            "stage 0 over shm is the fastest, 100 tokens/s; stage 1 over shm comes as near as the rounds differ, but needs no \
             less memory than its 7.00 MiB"
        );
    }

    #[test]
    fn what_does_not_fit_is_not_chosen() {
        let candidates = [candidate(Stage::Zero, 380.0, 420.0, 2600), candidate(Stage::Three, 190.0, 210.0, 1500)];
        let (stage, reason) = chosen(&candidates, Some(2000));
        assert_eq!(stage, Stage::Three);
        assert!(reason.ends_with("is the only one whose peak of 1.46 GiB fits"), "{reason}");
        assert_eq!(choose(&candidates, Some(1000 << 20)), None);
        assert_eq!(choose(&[], None), None);
        assert!(chosen(&candidates[..1], None).1.contains("the only one that was measured"));
    }
}
