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
