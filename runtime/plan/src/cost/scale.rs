//! The same job on ever more GPUs, at every stage and in copies: what is fastest where, and what overtakes what.

use super::{Assumptions, CostInputs, predict};
use crate::layout::LayoutError;
use crate::planning::{PlanInputs, plan, usable};
use serde::Serialize;
use std::cmp::Ordering;
use zerofold_configs::{Sharding, Stage};

/// The fewest and the most GPUs; each number is twice the one before.
const GPUS: [usize; 2] = [8, 4096];
/// Layouts whose rates are nearer to each other than this share are equally fast.
const TELLABLE: f64 = 0.005;

/// How the job is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaledLayout {
    /// A stage over all ranks.
    Stage(Stage),
    /// Stage 3 inside each host, a copy on each.
    Hybrid,
}

impl ScaledLayout {
    /// All of them.
    pub const ALL: [ScaledLayout; 5] = [
        ScaledLayout::Stage(Stage::Zero),
        ScaledLayout::Stage(Stage::One),
        ScaledLayout::Stage(Stage::Two),
        ScaledLayout::Stage(Stage::Three),
        ScaledLayout::Hybrid,
    ];

    /// The job so laid out over so many GPUs; none where there is no such layout.
    fn of<'a>(self, job: PlanInputs<'a>, gpus: usize, per_host: usize) -> Option<PlanInputs<'a>> {
        let job = PlanInputs { world_size: gpus, ..job };
        match self {
            ScaledLayout::Stage(stage) => Some(job.at(stage)),
            ScaledLayout::Hybrid if gpus > per_host && gpus.is_multiple_of(per_host) => {
                let sharding = Sharding { stage: Stage::Three, replicas: (gpus / per_host) as u32, ..job.sharding };
                Some(PlanInputs { sharding, ..job })
            }
            ScaledLayout::Hybrid => None,
        }
    }
}

impl std::fmt::Display for ScaledLayout {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ScaledLayout::Stage(stage) => write!(formatter, "stage {stage}"),
            ScaledLayout::Hybrid => formatter.write_str("hybrid"),
        }
    }
}

/// One layout on so many GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scaled {
    /// The layout.
    pub layout: ScaledLayout,
    /// Tokens a second of one GPU.
    pub tokens_per_second_per_gpu: f64,
    /// Seconds of a step that communication is waited for.
    pub exposed: f64,
    /// Bytes of a rank.
    pub memory: u64,
    /// Whether they can be used.
    pub fits: bool,
}

/// Every layout on so many GPUs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScaledRow {
    /// The GPUs.
    pub gpus: usize,
    /// The layouts that there are.
    pub layouts: Vec<Scaled>,
    /// The fastest that fits; of those that are equally fast the simplest. None where none fits.
    pub best: Option<ScaledLayout>,
}

/// One layout overtakes another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Overtaking {
    /// From so many GPUs on.
    pub gpus: usize,
    /// The faster one from there on.
    pub faster: ScaledLayout,
    /// Tokens a second of one of its GPUs there.
    pub faster_rate: f64,
    /// The one that was faster before.
    pub slower: ScaledLayout,
    /// The same of that.
    pub slower_rate: f64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scale {
    /// By number of GPUs.
    pub rows: Vec<ScaledRow>,
    /// By number of GPUs, of layouts that fit there.
    pub overtakings: Vec<Overtaking>,
}

/// Lays the job out over more and more GPUs, the batch of each GPU staying as it is.
///
/// # Errors
/// As [`predict`].
pub fn scale(inputs: &CostInputs<'_>, assumed: &Assumptions) -> Result<Scale, LayoutError> {
    let [least, most] = GPUS;
    let numbers = std::iter::successors(Some(least), |gpus| Some(2 * gpus)).take_while(|gpus| *gpus <= most);
    let rows = numbers.map(|gpus| row(inputs, assumed, gpus)).collect::<Result<Vec<_>, _>>()?;
    Ok(Scale { overtakings: overtakings(&rows), rows })
}

fn row(inputs: &CostInputs<'_>, assumed: &Assumptions, gpus: usize) -> Result<ScaledRow, LayoutError> {
    let mut layouts = Vec::new();
    for layout in ScaledLayout::ALL {
        let Some(job) = layout.of(inputs.job, gpus, inputs.gpus_per_host) else { continue };
        let prediction = predict(&CostInputs { job, ..*inputs }, assumed)?;
        let memory = plan(&job)?.total;
        layouts.push(Scaled {
            layout,
            tokens_per_second_per_gpu: prediction.tokens_per_second_per_gpu,
            exposed: prediction.step.exposed,
            memory,
            fits: memory <= usable(assumed.memory as u64),
        });
    }
    let fitting = layouts.iter().filter(|scaled| scaled.fits);
    // An equally fast one that comes later is no better.
    let best = fitting.fold(None, |best: Option<&Scaled>, scaled| match best {
        Some(best) if faster(scaled, best) != Ordering::Greater => Some(best),
        _ => Some(scaled),
    });
    let best = best.map(|best| best.layout);
    Ok(ScaledRow { gpus, layouts, best })
}

/// Whether one is faster than the other by more than can be told.
fn faster(one: &Scaled, other: &Scaled) -> Ordering {
    let ratio = one.tokens_per_second_per_gpu / other.tokens_per_second_per_gpu;
    match ratio {
        more if more > 1.0 + TELLABLE => Ordering::Greater,
        less if less < 1.0 / (1.0 + TELLABLE) => Ordering::Less,
        _ => Ordering::Equal,
    }
}

/// Of each two layouts, where the one that was slower becomes the faster one.
fn overtakings(rows: &[ScaledRow]) -> Vec<Overtaking> {
    let mut found = Vec::new();
    let pairs = ScaledLayout::ALL
        .iter()
        .enumerate()
        .flat_map(|(index, one)| ScaledLayout::ALL.iter().skip(index + 1).map(move |other| (*one, *other)));
    for (one, other) in pairs {
        let mut before = Ordering::Equal;
        for row in rows {
            let of = |wanted| row.layouts.iter().find(|scaled| scaled.layout == wanted && scaled.fits);
            let (Some(left), Some(right)) = (of(one), of(other)) else { continue };
            let now = faster(left, right);
            if now != Ordering::Equal && before == now.reverse() {
                let (ahead, behind) = if now == Ordering::Greater { (left, right) } else { (right, left) };
                found.push(Overtaking {
                    gpus: row.gpus,
                    faster: ahead.layout,
                    faster_rate: ahead.tokens_per_second_per_gpu,
                    slower: behind.layout,
                    slower_rate: behind.tokens_per_second_per_gpu,
                });
            }
            if now != Ordering::Equal {
                before = now;
            }
        }
    }
    found.sort_by_key(|overtaking| overtaking.gpus);
    found
}
