//! Learning-rate schedules, by the names and formulas of transformers' `get_scheduler`.

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

/// A learning rate for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// The highest rate.
    pub peak: f64,
    /// Steps in which the rate rises from 0.
    pub warmup_steps: u64,
    /// Steps in all.
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of the step after `finished` finished ones. As in transformers the first step of a warm-up has rate 0.
    pub fn rate(&self, finished: u64) -> f64 {
        let (now, warmup, total) = (finished as f64, self.warmup_steps as f64, self.total_steps as f64);
        let warming = now < warmup;
        let rest = (total - warmup).max(1.0);
        let factor = match self.kind {
            ScheduleKind::Constant => 1.0,
            _ if warming => now / warmup.max(1.0),
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
            let schedule = Schedule { kind, peak: 1.0, warmup_steps, total_steps };
            for (finished, expected) in case["multipliers"].as_array().unwrap().iter().enumerate() {
                let (ours, theirs) = (schedule.rate(finished as u64), expected.as_f64().unwrap());
                assert!((ours - theirs).abs() < 1e-12, "{name}, {finished} steps finished: {ours} instead of {theirs}");
            }
        }
    }
}
