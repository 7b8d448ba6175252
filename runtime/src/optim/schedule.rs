//! Learning-rate schedules, by the names and formulas of transformers' `get_scheduler`, and the warm-up of DeepSpeed's.

/// The shape of the schedule after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleKind {
    /// Falls in a straight line to 0 at the last step.
    Linear,
    /// Falls along half a cosine to 0 at the last step.
    Cosine,
    /// Stays; no warm-up.
    Constant,
    /// Stays after warm-up.
    ConstantWithWarmup,
}

/// How the rate rises in the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmup {
    /// In a straight line.
    Linear,
    /// As the logarithm of the step, by the formula of DeepSpeed's `WarmupLR`.
    Logarithmic,
}

/// A learning rate for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// The highest rate.
    pub peak: f64,
    /// Steps in which the rate rises from 0.
    pub warmup_steps: u64,
    /// How it rises.
    pub warmup: Warmup,
    /// Steps in all.
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of the step after `finished` finished ones. As in transformers the first step of a warm-up has rate 0.
    pub fn rate(&self, finished: u64) -> f64 {
        let (now, total) = (finished as f64, self.total_steps as f64);
        let warmup = match (self.warmup, self.warmup_steps) {
            // A warm-up of one step would be divided by the logarithm of 1.
            (Warmup::Logarithmic, 1) => 2.0,
            (_, steps) => steps as f64,
        };
        let warming = now < warmup;
        let rest = (total - warmup).max(1.0);
        let factor = match self.kind {
            ScheduleKind::Constant => 1.0,
            _ if warming => match self.warmup {
                Warmup::Linear => now / warmup.max(1.0),
                Warmup::Logarithmic => (now + 1.0).ln() / warmup.ln(),
            },
            ScheduleKind::ConstantWithWarmup => 1.0,
            ScheduleKind::Linear => ((total - now) / rest).max(0.0),
            ScheduleKind::Cosine => {
                let progress = (now - warmup) / rest;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Multipliers as transformers' `get_scheduler` gives them.
    #[test]
    fn every_schedule_equals_that_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/schedules.json");
        let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cases = fixture["schedules"].as_array().unwrap();
        assert!(cases.len() >= 4, "{} cases", cases.len());
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let kind = match name {
                "linear" => ScheduleKind::Linear,
                "cosine" => ScheduleKind::Cosine,
                "constant" => ScheduleKind::Constant,
                "constant_with_warmup" => ScheduleKind::ConstantWithWarmup,
                other => panic!("a schedule that is not built: {other}"),
            };
            let steps = |key: &str| case[key].as_u64().unwrap();
            let (warmup_steps, total_steps) = (steps("warmup_steps"), steps("total_steps"));
            let schedule = Schedule { kind, peak: 1.0, warmup_steps, warmup: Warmup::Linear, total_steps };
            assert_rates(&schedule, case);
        }
    }

    /// Multipliers as DeepSpeed's schedules give them, step for step.
    #[test]
    fn a_logarithmic_warm_up_equals_that_of_deepspeed() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/deepspeed_schedules.json");
        let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cases = fixture["schedules"].as_array().unwrap();
        assert!(cases.len() >= 8, "{} cases", cases.len());
        for case in cases {
            let kind = match case["name"].as_str().unwrap() {
                "WarmupLR" => ScheduleKind::ConstantWithWarmup,
                "WarmupDecayLR" => ScheduleKind::Linear,
                other => panic!("a schedule that is not compared: {other}"),
            };
            let steps = |key: &str| case[key].as_u64().unwrap();
            let (warmup_steps, total_steps) = (steps("warmup_num_steps"), steps("total_num_steps"));
            let schedule = Schedule { kind, peak: 1.0, warmup_steps, warmup: Warmup::Logarithmic, total_steps };
            assert_rates(&schedule, case);
        }
        let none = Schedule {
            kind: ScheduleKind::Linear,
            peak: 1.0,
            warmup_steps: 0,
            warmup: Warmup::Logarithmic,
            total_steps: 4,
        };
        assert_eq!([0, 1, 2, 3, 4].map(|finished| none.rate(finished)), [1.0, 0.75, 0.5, 0.25, 0.0]);
    }

    #[track_caller]
    fn assert_rates(schedule: &Schedule, case: &Value) {
        let multipliers = case["multipliers"].as_array().unwrap();
        assert!(multipliers.len() >= 20, "{case}");
        for (finished, expected) in multipliers.iter().enumerate() {
            let (ours, theirs) = (schedule.rate(finished as u64), expected.as_f64().unwrap());
            let name = &case["name"];
            assert!((ours - theirs).abs() < 1e-12, "{name}, {finished} steps finished: {ours} instead of {theirs}");
        }
    }
}
