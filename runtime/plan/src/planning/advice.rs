//! Which stage to take: the simplest one that fits; and where none fits, what could be changed.

use super::{Plan, PlanInputs, plan, plan_all_stages};
use crate::layout::LayoutError;
use serde::Serialize;
use zerofold_configs::{ElementType, ElementTypes, Stage};

/// The share of the memory that a plan leaves free: for the allocator's gaps, the kernels' scratch and, on a GPU, the
/// CUDA context and NCCL.
pub const RESERVE: f64 = 0.10;

/// The most ranks that are tried.
const MOST_RANKS: usize = 4096;

/// Something that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// The lowest stage at which it does.
    pub stage: Stage,
    /// What it needs there, in bytes of one rank.
    pub total: u64,
}

/// Something that can be changed so that a job needs less memory, in the order in which to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lever {
    /// Compute in bfloat16: `mixed_precision: bf16`.
    Bfloat16Compute,
    /// Recompute every block: `gradient_checkpointing: true`.
    GradientCheckpointing,
    /// This many rows in a micro-batch, with more accumulation to make up for it.
    MicroBatch(usize),
    /// Pure bf16: masters, moments and, which follow them, gradients in bfloat16: `master_dtype: bfloat16`.
    Bfloat16Masters,
    /// This many ranks.
    Ranks(usize),
    /// Masters and moments in files: `offload_optimizer_device: nvme`.
    OffloadOptimizer,
}

/// A lever, and what it would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// What is changed.
    pub lever: Lever,
    /// What fits with this change alone.
    pub alone: Option<Fit>,
    /// What fits with this change and those before it (but for more ranks).
    pub together: Option<Fit>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// The lowest stage that fits.
    Stage(Fit),
    /// No stage fits.
    Nothing {
        /// The stage that needs least, and how much.
        least: Fit,
        /// What could be changed, in the order in which to try.
        levers: Vec<Tried>,
    },
}

/// Bytes of `capacity` that a plan may use: all but the [`RESERVE`].
pub fn usable(capacity: u64) -> u64 {
    (capacity as f64 * (1.0 - RESERVE)) as u64
}

/// The plan with the lowest stage that fits into `capacity` bytes a rank, the reserve kept free.
pub fn lowest_fitting(plans: &[Plan], capacity: u64) -> Option<Fit> {
    let fitting = plans.iter().find(|plan| plan.total <= usable(capacity));
    fitting.map(|plan| Fit { stage: plan.stage, total: plan.total })
}

/// The simplest stage whose total fits into `capacity` bytes a rank; else what could be changed.
///
/// # Errors
/// As [`plan`].
pub fn recommend(inputs: &PlanInputs<'_>, capacity: u64) -> Result<Advice, LayoutError> {
    let fit = |inputs: &PlanInputs<'_>| -> Result<Option<Fit>, LayoutError> {
        Ok(lowest_fitting(&plan_all_stages(inputs)?, capacity))
    };
    if let Some(found) = fit(inputs)? {
        return Ok(Advice::Stage(found));
    }
    let plans = plan_all_stages(inputs)?;
    let least = plans.iter().min_by_key(|plan| plan.total);
    let least =
        least.map_or(Fit { stage: Stage::Three, total: 0 }, |plan| Fit { stage: plan.stage, total: plan.total });
    let mut levers = Vec::new();
    let mut so_far = *inputs;
    let simple = [
        Lever::Bfloat16Compute,
        Lever::GradientCheckpointing,
        Lever::MicroBatch(1),
        Lever::Bfloat16Masters,
        Lever::Ranks(0),
        Lever::OffloadOptimizer,
    ];
    for lever in simple {
        if let Lever::Ranks(_) = lever {
            let alone = enough_ranks(inputs, capacity)?;
            let together = enough_ranks(&so_far, capacity)?;
            // The number that is told is the one that is enough with the changes before it.
            if let Some((ranks, together)) = together {
                let alone = alone.filter(|(enough, _)| *enough == ranks).map(|(_, fit)| fit);
                levers.push(Tried { lever: Lever::Ranks(ranks), alone, together: Some(together) });
            }
        } else if let Some(changed) = lever.applied(&so_far) {
            // What none of the changes before touches can be applied alone too.
            let alone = lever.applied(inputs).map_or(Ok(None), |inputs| fit(&inputs))?;
            levers.push(Tried { lever, alone, together: fit(&changed)? });
            so_far = changed;
        }
    }
    Ok(Advice::Nothing { least, levers })
}

impl Lever {
    /// The job with this change; none when it is there already.
    fn applied<'a>(self, inputs: &PlanInputs<'a>) -> Option<PlanInputs<'a>> {
        let mut changed = *inputs;
        let types = &mut changed.types;
        let done = match self {
            Lever::Bfloat16Compute => std::mem::replace(&mut types.compute, ElementType::Bfloat16).bytes() == 2,
            Lever::GradientCheckpointing => {
                let every = std::mem::replace(&mut changed.gradient_checkpointing_every, 1);
                std::mem::replace(&mut changed.gradient_checkpointing, true) && every == 1
            }
            Lever::MicroBatch(rows) => std::mem::replace(&mut changed.per_device_batch, rows) <= rows,
            Lever::Bfloat16Masters => {
                let done = types.master.bytes() == 2;
                let all = ElementType::Bfloat16;
                *types = ElementTypes { compute: all, master: all, reduce: all, accumulate: all };
                done
            }
            Lever::Ranks(ranks) => std::mem::replace(&mut changed.world_size, ranks) >= ranks,
            Lever::OffloadOptimizer => std::mem::replace(&mut changed.offload_optimizer, true),
        };
        // Fewer rows have fewer supervised tokens.
        changed.supervised = inputs
            .supervised
            .map(|supervised| (supervised * changed.per_device_batch).div_ceil(inputs.per_device_batch.max(1)));
        (!done).then_some(changed)
    }
}

/// The ranks, doubled until stage 3 fits, and what fits then. Lower stages need more than stage 3 at any number.
fn enough_ranks(inputs: &PlanInputs<'_>, capacity: u64) -> Result<Option<(usize, Fit)>, LayoutError> {
    let mut ranks = 2 * inputs.world_size;
    while ranks <= MOST_RANKS {
        let more = PlanInputs { world_size: ranks, ..inputs.at(Stage::Three) };
        if plan(&more)?.total <= usable(capacity) {
            return Ok(lowest_fitting(&plan_all_stages(&more)?, capacity).map(|fit| (ranks, fit)));
        }
        ranks *= 2;
    }
    Ok(None)
}
