//! Which stage to take: the simplest one that fits; and where none fits, what could be changed.

use super::{Plan, PlanInputs, plan, plan_all_stages};
use crate::layout::LayoutError;
use serde::Serialize;
use std::iter::successors;
use zerofold_configs::{ElementType, ElementTypes, ReshardAfterForward, Stage};

/// The share of the memory that a plan leaves free: for the allocator's gaps, the kernels' scratch and, on a GPU, the
/// CUDA context and NCCL.
pub const RESERVE: f64 = 0.10;

/// The most ranks that are tried; a job of more is tried with twice as many.
const MOST_RANKS: usize = 4096;
/// The shortest rows that are tried, in tokens.
const SHORTEST_ROWS: usize = 128;

/// What a job needs: at the lowest stage that fits; where none fits, at the one that needs least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// That stage.
    pub stage: Stage,
    /// Bytes of one rank there.
    pub total: u64,
    /// Whether they fit.
    pub fits: bool,
}

/// Something that can be changed so that a job needs less memory, in the order in which to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lever {
    /// One copy of what is sharded in place of several.
    OneCopy,
    /// Release parameters between forward and backward: FULL_SHARD in place of SHARD_GRAD_OP.
    ReleaseParameters,
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
    /// Rows of at most this many tokens: `max_length`. The last to try, as it alone takes data away.
    MaxLength(usize),
}

/// A lever, and what it would do. Its number, where it has one, is the first that is enough with the changes before it;
/// where none is, the last that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// What is changed.
    pub lever: Lever,
    /// What the job needs with this change alone.
    pub alone: Need,
    /// What it needs with this change and those before it (but for more ranks).
    pub together: Need,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// The lowest stage that fits.
    Stage(Need),
    /// No stage fits.
    Nothing {
        /// The stage that needs least, and how much.
        least: Need,
        /// What could be changed, in the order in which to try.
        levers: Vec<Tried>,
    },
}

/// Bytes of `capacity` that a plan may use: all but the [`RESERVE`].
pub fn usable(capacity: u64) -> u64 {
    (capacity as f64 * (1.0 - RESERVE)) as u64
}

/// The simplest stage, without copies, whose total fits into `capacity` bytes a rank, the reserve kept free; else what could be changed.
///
/// # Errors
/// As [`plan`](super::plan).
pub fn recommend(inputs: &PlanInputs<'_>, capacity: u64) -> Result<Advice, LayoutError> {
    let one_copy = Lever::OneCopy.applied(inputs).unwrap_or(*inputs);
    let least = need(&one_copy, capacity)?;
    if least.fits {
        return Ok(Advice::Stage(least));
    }
    let mut levers = Vec::new();
    let mut so_far = *inputs;
    for choices in choices(inputs) {
        let mut found = None;
        for lever in choices {
            let (Some(changed), Some(alone)) = (lever.applied(&so_far), lever.applied(inputs)) else { continue };
            let together = need(&changed, capacity)?;
            found = Some((lever, alone, changed, together));
            if together.fits {
                break;
            }
        }
        let Some((lever, alone, changed, together)) = found else { continue };
        levers.push(Tried { lever, alone: need(&alone, capacity)?, together });
        // More ranks are not for everybody to have.
        if !matches!(lever, Lever::Ranks(_)) {
            so_far = changed;
        }
    }
    Ok(Advice::Nothing { least, levers })
}

/// What a job needs at its best stage; where it has copies, which are of stage 3, with them. Optimizer state is
/// offloaded where it is sharded, so that stage 0 does not go with it.
fn need(inputs: &PlanInputs<'_>, capacity: u64) -> Result<Need, LayoutError> {
    let plans = match inputs.sharding.replicas {
        1 => plan_all_stages(inputs)?,
        _ => vec![plan(inputs)?],
    };
    let offered = |plan: &&Plan| !inputs.offload_optimizer || plan.stage.shards_optimizer();
    let plans: Vec<&Plan> = plans.iter().filter(offered).collect();
    let fits = |total: u64| total <= usable(capacity);
    let lowest = plans.iter().find(|plan| fits(plan.total));
    let best = lowest.or_else(|| plans.iter().min_by_key(|plan| plan.total)).copied();
    let (stage, total) = best.map_or((Stage::Three, 0), |plan| (plan.stage, plan.total));
    Ok(Need { stage, total, fits: fits(total) })
}

/// The levers in the order in which to try, each with its numbers from the smallest change to the largest.
fn choices(inputs: &PlanInputs<'_>) -> [Vec<Lever>; 9] {
    let more = successors(Some(2 * inputs.world_size), |ranks| Some(2 * ranks).filter(|ranks| *ranks <= MOST_RANKS));
    let shorter = successors(Some(inputs.length / 2), |length| Some(length / 2));
    [
        vec![Lever::OneCopy],
        vec![Lever::ReleaseParameters],
        vec![Lever::Bfloat16Compute],
        vec![Lever::GradientCheckpointing],
        vec![Lever::MicroBatch(1)],
        vec![Lever::Bfloat16Masters],
        more.map(Lever::Ranks).collect(),
        vec![Lever::OffloadOptimizer],
        shorter.take_while(|length| *length >= SHORTEST_ROWS).map(Lever::MaxLength).collect(),
    ]
}

impl Lever {
    /// The job with this change; none when it is there already.
    fn applied<'a>(self, inputs: &PlanInputs<'a>) -> Option<PlanInputs<'a>> {
        let mut changed = *inputs;
        let types = &mut changed.types;
        let done = match self {
            Lever::OneCopy => std::mem::replace(&mut changed.sharding.replicas, 1) == 1,
            Lever::ReleaseParameters => {
                let always = ReshardAfterForward::Always(true);
                std::mem::replace(&mut changed.sharding.reshard_after_forward, always) == always
            }
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
            Lever::MaxLength(length) => std::mem::replace(&mut changed.length, length) <= length,
        };
        // Fewer or shorter rows have fewer supervised tokens.
        let tokens = |inputs: &PlanInputs<'_>| inputs.per_device_batch * inputs.length;
        changed.supervised =
            inputs.supervised.map(|supervised| (supervised * tokens(&changed)).div_ceil(tokens(inputs).max(1)));
        (!done).then_some(changed)
    }
}
