//! The recommendations that people know, from a fine-tuning guide's table, against ours: row by row, with the reason
//! where arithmetic disagrees. The expected text is `guide.txt`.

use std::fmt::Write;
use zerofold_configs::{ElementType, ElementTypes, Sharding, Stage};
use zerofold_plan::{Advice, ModelConfig, Plan, PlanInputs, PlannedDevice, plan_all_stages, recommend, usable};

/// 80 GB as the guide counts.
const GPU: u64 = 80_000_000_000;

/// A row of the guide.
struct Row {
    situation: &'static str,
    advice: &'static str,
    /// Model, ranks, whether masters are bfloat16 too, whether the optimizer's state is offloaded.
    jobs: &'static [(&'static str, usize, bool, bool)],
    agrees: &'static str,
}

const ROWS: [Row; 4] = [
    Row {
        situation: "7B, one 80 GB GPU",
        advice: "no distribution; bf16 (fits only with bf16 weights and states: 56 GB; float32 masters need 112 GB)",
        jobs: &[("llama-7b", 1, false, false), ("llama-7b", 1, true, false)],
        agrees: "yes. Pure bf16 is 8 bytes a parameter: 54 GB for 6.74 billion, the guide's 56 GB for 7. With float32 \
                 masters the guide counts 16 bytes (2 + 2 + 12); we add up gradients in float32, so it is 18 (2 + 4 + 12) \
                 at stage 0: 121 GB where the guide says 112.",
    },
    Row {
        situation: "7B, 2-4 GPUs",
        advice: "FSDP or ZeRO-2",
        jobs: &[("llama-7b", 2, false, false), ("llama-7b", 4, false, false)],
        agrees: "on 2 GPUs, yes: stage 2 needs 2 + 16/2 = 10 bytes a parameter, 67 GB, and just fits. On 4 GPUs no: stage 1 \
                 needs 6 + 12/4 = 9 bytes, 61 GB, and fits already; it is simpler, and with accumulation it sends less.",
    },
    Row {
        situation: "13B-34B, 4-8 GPUs",
        advice: "FSDP or ZeRO-3",
        jobs: &[
            ("llama-13b", 4, false, false),
            ("llama-13b", 8, false, false),
            ("llama-34b", 4, false, false),
            ("llama-34b", 8, false, false),
            ("llama-34b", 16, false, false),
            ("llama-34b", 8, true, false),
            ("llama-34b", 8, false, true),
        ],
        agrees: "13B on 4 GPUs, yes. On 8, no: stage 2 fits (2 + 16/8 = 4 bytes a parameter, 52 GB) and is simpler. 34B, \
                 no: stage 3 has 18/N bytes of state a parameter less the 2/N of parameters that are not kept, 16/N: 67 GB \
                 on 8 GPUs and 135 GB on 4. A block of 700 million parameters then takes 8 GB of buffers (gathered \
                 twice in bfloat16, full gradients twice in float32). It takes 16 GPUs, pure bf16, or offloading.",
    },
    Row {
        situation: "70B and more, 8 or more GPUs",
        advice: "ZeRO-3 with offloading, or FSDP",
        jobs: &[
            ("llama-70b", 8, false, false),
            ("llama-70b", 8, false, true),
            ("llama-70b", 16, false, false),
            ("llama-70b", 32, false, false),
        ],
        agrees: "with offloading, yes: 8 GPUs need it. Without (FSDP), no: 16/N bytes of state a parameter are 138 GB on 8 \
                 GPUs and 69 GB, before buffers, on 16; it begins to fit at 32.",
    },
];

/// The text after its label, in lines of readable length.
fn wrapped(label: &str, text: &str) -> String {
    let mut lines = vec![label.trim_end().to_owned()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < 116 => *line = format!("{line} {word}"),
            _ => lines.push(format!("{:width$}{word}", "", width = label.len())),
        }
    }
    lines.join("\n")
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// One row of 2048 tokens a micro-batch, recomputing: what somebody does for whom memory is short.
fn job(model: &ModelConfig, world_size: usize, pure: bool, offload_optimizer: bool) -> PlanInputs<'_> {
    let all = ElementType::Bfloat16;
    PlanInputs {
        model,
        world_size,
        sharding: Sharding::of(Stage::Zero),
        types: match pure {
            true => ElementTypes { compute: all, master: all, reduce: all, accumulate: all },
            false => ElementTypes::of(all),
        },
        per_device_batch: 1,
        length: 2048,
        longest_document: None,
        supervised: None,
        accumulation: 4,
        gradient_checkpointing: true,
        gradient_checkpointing_every: 1,
        offload_optimizer,
        device: PlannedDevice::Gpu,
        receives: false,
        copies: false,
        training: None,
    }
}

fn found(advice: &Advice, plans: &[Plan]) -> String {
    match advice {
        Advice::Stage(fit) => format!("stage {}, {}", fit.stage, gigabytes(fit.total)),
        Advice::Nothing { least, .. } => {
            let state = plans.last().map_or(0, |plan| plan.state.total() as u64);
            format!(
                "nothing fits; stage {} needs {} ({} of it state)",
                least.stage,
                gigabytes(least.total),
                gigabytes(state)
            )
        }
    }
}

fn report() -> String {
    let mut text = format!(
        "The guide's recommendations and ours: bfloat16, 1 × 2048 tokens a micro-batch, 4 micro-batches a step, gradient\n\
         checkpointing, GPUs of {} of which {} can be used.\n",
        gigabytes(GPU),
        gigabytes(usable(GPU))
    );
    for row in &ROWS {
        write!(text, "\n{}\n  guide: {}\n", row.situation, row.advice).unwrap();
        for &(name, ranks, pure, offload) in row.jobs {
            let model = ModelConfig::published(name).unwrap();
            let job = job(&model, ranks, pure, offload);
            let plans = plan_all_stages(&job).unwrap();
            let masters = if pure { "bfloat16 masters" } else { "float32 masters" };
            let offloaded = if offload { ", offloaded" } else { "" };
            let totals: Vec<String> = plans.iter().map(|plan| gigabytes(plan.total)).collect();
            let found = found(&recommend(&job, GPU).unwrap(), &plans);
            writeln!(text, "  ours: {name} × {ranks}, {masters}{offloaded}: {found}").unwrap();
            writeln!(text, "        stages 0 to 3: {}", totals.join(", ")).unwrap();
        }
        writeln!(text, "{}", wrapped("  agrees: ", row.agrees)).unwrap();
    }
    text
}

#[test]
fn the_guides_table_is_reproduced_or_argued_with() {
    let found = report();
    assert!(found == include_str!("guide.txt"), "the recommendations are now (tests/guide.txt has others):\n{found}");
}
