//! The recommendation in words.

use zerofold_configs::{ElementType, Resolved, Stage};
use zerofold_plan::{Advice, Lever, Need, Plan, PlanInputs, PlannedDevice, RESERVE, Tried, usable};

use super::Capacity;
use crate::columns::left_aligned;
use crate::format;

/// With so many micro-batches a step, what stage 2 and 3 send each time outweighs what they save.
const MUCH_ACCUMULATION: usize = 4;

/// What is known when advice is put into words.
pub(crate) struct Situation<'a> {
    pub(crate) config: &'a Resolved,
    pub(crate) inputs: &'a PlanInputs<'a>,
    /// A row per stage, and one with the configuration's copies where it has some.
    pub(crate) plans: &'a [Plan],
    pub(crate) capacity: Capacity,
}

/// What to do, with the reason.
pub(crate) fn lines(advice: &Advice, situation: &Situation<'_>) -> Vec<String> {
    match advice {
        Advice::Stage(need) => vec![recommended(*need, situation)],
        Advice::Nothing { least, levers } => nothing_fits(*least, levers, situation),
    }
}

/// The changes, each alone and with those above it, and how to write them.
fn nothing_fits(least: Need, levers: &[Tried], situation: &Situation<'_>) -> Vec<String> {
    let Situation { config, inputs, capacity, .. } = *situation;
    let mut lines = vec![format!(
        "nothing fits: stage {} needs least, {}, and {} can be used{}. What could be changed, in this order:",
        least.stage,
        format::bytes(least.total),
        format::bytes(usable(capacity.bytes)),
        reserve(capacity),
    )];
    let head = ["  change", "alone", "with those above"].map(str::to_owned).to_vec();
    let rows = levers.iter().map(|tried| {
        let change = format!("  {}", flag(tried, inputs));
        vec![change, outcome(tried.alone), outcome(tried.together)]
    });
    lines.extend(left_aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    let too_few = levers.iter().find(|tried| matches!(tried.lever, Lever::Ranks(_)) && !tried.together.fits);
    if let Some(Tried { lever: Lever::Ranks(ranks), together, .. }) = too_few {
        lines.push(format!(
            "Not even {} are enough: with the changes above, a rank then still needs {} (stage {}).",
            format::plural(*ranks as u64, "rank"),
            format::bytes(together.total),
            together.stage
        ));
    }
    let names = if wrote_fsdp(config) { "; 0 is NO_SHARD, 3 FULL_SHARD" } else { "" };
    lines.push(format!(
        "Each size is that of the lowest stage that fits, else of the stage that needs least (--zero_stage N{names}). More \
         ranks are not among the changes that rows below them count."
    ));
    if config.sharding.replicas > 1 {
        lines.push(format!(
            "Alone, each change but the first leaves the {} copies as they are. Where copies or ranks change, \
             parallelism_config_dp_shard_size must go, if it is set.",
            config.sharding.replicas
        ));
    }
    lines
}

/// `fits: stage 3, 62.1 GiB`.
fn outcome(need: Need) -> String {
    let verdict = if need.fits { "fits" } else { "not enough" };
    format!("{verdict}: stage {}, {}", need.stage, format::bytes(need.total))
}

fn recommended(fit: Need, situation: &Situation<'_>) -> String {
    let Situation { inputs, plans, capacity, .. } = *situation;
    let of = |stage: Stage| plans.iter().find(|plan| plan.stage == stage && plan.replicas == 1);
    let mut text = format!("take stage {}: ", fit.stage);
    let lower = plans.iter().take_while(|plan| plan.stage < fit.stage).last();
    match (fit.stage, lower) {
        (Stage::Zero, _) if inputs.world_size == 1 => text.push_str("one rank has nobody to share with"),
        (Stage::Zero, _) => text.push_str("everything fits unsharded, and nothing is simpler"),
        (Stage::One, _) if inputs.offload_optimizer => {
            text.push_str("it is the lowest whose optimizer state is sharded and can be offloaded");
        }
        (_, Some(lower)) => text.push_str(&format!(
            "it is the lowest that fits (stage {} needs {})",
            lower.stage,
            format::bytes(lower.total)
        )),
        (_, None) => text.push_str("it is the lowest that fits"),
    }
    text.push_str(&format!(
        "; {} of {} used{}.",
        format::bytes(fit.total),
        format::bytes(capacity.bytes),
        reserve(capacity)
    ));
    if let (Some(one), Some(two)) = (of(Stage::One), of(Stage::Two))
        && inputs.world_size > 1
        && inputs.accumulation >= MUCH_ACCUMULATION
        && fit.stage <= Stage::One
    {
        text.push_str(&format!(
            " With {} micro-batches a step, stage 1 also sends less than stage 2 ({} against {}).",
            inputs.accumulation,
            format::bytes(one.sent_bytes_per_step),
            format::bytes(two.sent_bytes_per_step)
        ));
    }
    if let Some(configured) = configured(fit, situation) {
        text.push_str(&format!(" {configured}"));
    }
    text
}

/// Where the configuration has something else than what is advised: what it has, as it was written, and how to write the
/// advice.
fn configured(fit: Need, situation: &Situation<'_>) -> Option<String> {
    let Situation { config, plans, capacity, .. } = *situation;
    let sharding = &config.sharding;
    if fit.stage == sharding.stage {
        let hybrid = plans.last().filter(|plan| plan.replicas > 1)?;
        let (copies, needed) = (hybrid.replicas, format::bytes(hybrid.total));
        return Some(match hybrid.total <= usable(capacity.bytes) {
            true => format!("It fits with the configuration's {copies} copies too: {needed}."),
            false => format!(
                "The configuration's {copies} copies need {needed} and do not fit: for one copy, remove \
                 parallelism_config_dp_replicate_size{}.",
                if wrote_fsdp(config) { ", and write FULL_SHARD for HYBRID_SHARD" } else { "" }
            ),
        });
    }
    let advised = match fit.stage {
        Stage::Zero if wrote_fsdp(config) => " (NO_SHARD)",
        Stage::Three if wrote_fsdp(config) => " (FULL_SHARD)",
        _ if wrote_fsdp(config) => " (FSDP has no name for it)",
        _ => "",
    };
    let place = config.provenance.get("stage").map_or("default", String::as_str);
    let instead = if place.starts_with("flag") { " in its place" } else { "" };
    let written = match &config.sharding_as_written {
        None => format!("stage {}, the default", sharding.stage),
        Some(written) => {
            let copies = match sharding.replicas {
                1 => String::new(),
                copies => format!(" in {copies} copies"),
            };
            format!("{written} ({place}), stage {}{copies}", sharding.stage)
        }
    };
    // Copies need stage 3, and as a flag they stand as high as the stage.
    let copies = config.provenance.get("replicas").filter(|place| sharding.replicas > 1 && place.starts_with("flag"));
    let without = copies.map_or("", |_| " and remove --parallelism_config_dp_replicate_size");
    Some(format!("The configuration has {written}: pass --zero_stage {}{instead}{advised}{without}.", fit.stage))
}

/// Whether what is sharded was said in FSDP's words.
fn wrote_fsdp(config: &Resolved) -> bool {
    config.sharding_as_written.as_ref().is_some_and(|written| written.to_lowercase().contains("fsdp"))
}

fn reserve(capacity: Capacity) -> String {
    let percent = RESERVE * 100.0;
    match capacity.device {
        PlannedDevice::Gpu => format!(", {percent:.0} % kept free for the allocator and the CUDA context"),
        PlannedDevice::Cpu => {
            format!(
                " (this machine's memory over its ranks), {percent:.0} % kept free for the allocator and the program"
            )
        }
    }
}

/// The flag of a lever.
fn flag(tried: &Tried, inputs: &PlanInputs<'_>) -> String {
    match tried.lever {
        Lever::OneCopy => {
            format!("--parallelism_config_dp_replicate_size 1 (in place of {})", inputs.sharding.replicas)
        }
        Lever::ReleaseParameters => "--zero_stage 3 (FULL_SHARD)".to_owned(),
        Lever::Bfloat16Compute => "--mixed_precision bf16".to_owned(),
        Lever::GradientCheckpointing => "--gradient_checkpointing true".to_owned(),
        Lever::MicroBatch(rows) => format!("--per_device_train_batch_size {rows}"),
        // float16 does not go with masters in bfloat16.
        Lever::Bfloat16Masters if inputs.types.compute == ElementType::Float16 => {
            "--mixed_precision bf16 --master_dtype bfloat16".to_owned()
        }
        Lever::Bfloat16Masters => "--master_dtype bfloat16".to_owned(),
        Lever::Ranks(ranks) => format!("--nproc {ranks}"),
        Lever::OffloadOptimizer => {
            let place = match inputs.device {
                PlannedDevice::Gpu => "cpu",
                PlannedDevice::Cpu => "nvme --offload_optimizer_nvme_path FOLDER",
            };
            // Where the two outcomes are of different stages, each tells its own.
            let (alone, together) = (tried.alone.stage, tried.together.stage);
            let stage = if alone == together { alone.to_string() } else { "N".to_owned() };
            format!("--zero_stage {stage} --offload_optimizer_device {place}")
        }
        Lever::MaxLength(length) => format!("--max_length {length}"),
    }
}
