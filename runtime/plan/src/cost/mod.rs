//! What a job takes in time and money, before it runs. Pure arithmetic over a plan's inputs and named assumptions.
//!
//! ```text
//! CostInputs + Assumptions ─ compute ──── seconds of each segment ─┐
//!                          ├ collective ─ seconds of each unit ────┴ timeline ─ what hides behind what
//!                          └ step_time ── a step by part → tokens/s → run (hours, money)
//!                             ├ calibrate   a measured run sets compute_efficiency
//!                             ├ scale       stages and hybrid from 8 to 4,096 GPUs
//!                             ├ published   measured rows of others, against it
//!                             ├ guide       a fine-tuning guide's hours and prices, against it
//!                             └ break_even  tuning against prompting
//! ```

mod assumptions;
mod break_even;
mod calibrate;
mod collective;
mod compute;
mod guide;
mod published;
mod run;
mod scale;
mod step_time;
mod timeline;

pub use assumptions::{Assumed, AssumptionError, Assumptions, Range};
pub use break_even::{BreakEven, Requests, break_even};
pub use calibrate::{CalibrationError, calibrate};
pub use collective::Wire;
pub use compute::{Compute, Recomputed};
pub use guide::{GUIDE, GUIDE_EXAMPLES, GUIDE_LENGTH, GuideRow, Verdict, judge};
pub use published::{CALIBRATED_ON, Held, PUBLISHED_RUNS, PublishedError, PublishedRun, hold};
pub use run::{RunCost, RunData};
pub use scale::{Overtaking, Scale, Scaled, ScaledLayout, ScaledRow, scale};
pub use step_time::{CostInputs, Prediction, StepTime, predict};
