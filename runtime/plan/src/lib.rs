//! Which bytes live where: units, their flat layout, and what each rank holds by theory. Pure arithmetic, no tensors.
//!
//! A model is described as an ordered list of [`UnitSpec`]s. [`Layout`] places every unit's parameters end to end in one
//! flat parameter, which is cut into one shard per rank. [`plan`] tells what a job needs before it runs: bytes of memory
//! per rank at each stage, bytes sent per step, bytes on disk; [`recommend`] picks the simplest stage that fits.

mod cost;
mod flops;
mod grouping;
mod layout;
mod model;
mod planning;
mod spec;
mod theory;

pub use cost::{
    Assumed, AssumptionError, Assumptions, BreakEven, CALIBRATED_ON, CalibrationError, Compute, CostInputs, GUIDE,
    GUIDE_EXAMPLES, GUIDE_LENGTH, GuideRow, Held, Overtaking, PUBLISHED_RUNS, Prediction, PublishedError, PublishedRun,
    Range, Recomputed, Requests, RunCost, RunData, Scale, Scaled, ScaledLayout, ScaledRow, StepTime, Verdict, Wire,
    break_even, calibrate, hold, judge, predict, scale,
};
pub use flops::model_flops;
pub use grouping::GroupingError;
pub use layout::{ALIGNMENT, Layout, LayoutError, Mesh, PlacedLeaf, PlacedParameter, Run, UnitLayout};
pub use model::{
    Activation, Biases, Classifier, FileNames, Head, HeadInput, LayerAttention, ModelConfig, ModelConfigError,
    ModelUnits, Names, NormKind, NormPlacement, RopeConfig, RopeScaling, Segment, SegmentKind, label_names,
    problem_type,
};
pub use planning::{
    Advice, Lever, Need, Plan, PlanInputs, PlannedDevice, RESERVE, Tried, plan, plan_all_stages, recommend,
    segment_bytes, usable,
};
pub use spec::{LeafSpec, Number, OwnGroup, ParameterGroup, ParameterSpec, UnitSpec};
pub use theory::{StateBytes, fisher_bytes, pretrained_bytes, state_bytes, unmixed_bytes};
