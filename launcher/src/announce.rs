//! What is told before the workers start: the data, its first example with the mask, and the job.

use std::time::Duration;

use zerofold_configs::{
    BackwardPrefetch, DeviceKind, Offload, Precision, ReshardAfterForward, Resolved, Stage, Training, UnitPolicy,
};
use zerofold_data::{Collator, DataReport, Items, Loss, Mixture, Prepared, Segment, StepPlan, TokenizedDataset};

use crate::format;
use crate::hub::{self, DataUse};
use crate::run_folder::RunFolder;
use crate::worker_command::threads_per_rank;

/// So many characters of the first example are shown.
const EXAMPLE_CHARACTERS: usize = 1500;

/// Before what is supervised, at its line breaks, and behind it.
const BRACKETS: (&str, &str, &str) = ("⟦", "\n", "⟧");
/// The same as colour, which does not reach into the margin.
const GREEN: (&str, &str, &str) = ("\x1b[32m", "\x1b[39m\n\x1b[32m", "\x1b[39m");

/// So many classes are told with their rows.
const CLASSES: usize = 12;

/// How many rows are of each class of a classifier.
fn classes(report: &DataReport) -> Option<String> {
    let told: Vec<String> =
        report.classes.iter().take(CLASSES).map(|(name, rows)| format!("{name} {}", format::count(*rows))).collect();
    let more = report.classes.len().saturating_sub(CLASSES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!told.is_empty()).then(|| format!("       rows of {}{more}", told.join(", ")))
}

/// One data set: its counts, and what the loss is taken on.
pub fn data(prepared: &Prepared, took: Duration) -> Vec<String> {
    let report = &prepared.report;
    let source = match report.files {
        1 => report.source.clone(),
        files => format!("{} ({files} files)", report.source),
    };
    let mut line = format!(
        "data   {}: {}, {}{}, longest {} ({})",
        source,
        format::plural(report.rows as u64, "row"),
        format::plural(report.tokens as u64, "token"),
        match report.loss {
            Loss::Classes => String::new(),
            _ => format!(", {:.1} % supervised", 100.0 * report.supervised_share()),
        },
        report.longest,
        format::duration(took)
    );
    if report.truncated > 0 {
        line.push_str(&format!("; {} cut to max_length", format::plural(report.truncated as u64, "row")));
    }
    if report.dropped > 0 {
        line.push_str(&format!("; {} left out: nothing supervised", format::plural(report.dropped as u64, "row")));
    }
    let mut lines = vec![line, format!("       {}", loss(report.loss))];
    lines.extend(classes(report));
    if prepared.tidied.datasets > 0 {
        lines.push(format!(
            "       removed from cache: {} that no run used for 30 days ({})",
            format::plural(prepared.tidied.datasets as u64, "data set"),
            format::bytes(prepared.tidied.bytes)
        ));
    }
    if prepared.from_cache {
        lines.push(format!("       tokenised data taken from cache ({})", prepared.file.display()));
    }
    lines
}

/// What is to be warned of in a data set: of rows that are trained on also what the model would learn. What was `told` of other rows is
/// not said again.
pub(crate) fn warnings<'a>(report: &'a DataReport, which: DataUse, told: Option<&DataReport>) -> Vec<&'a String> {
    let lessons = if which == DataUse::Training { &report.lessons[..] } else { &[] };
    let new = |warning: &&String| !told.is_some_and(|told| told.warnings.contains(warning));
    report.warnings.iter().filter(new).chain(lessons).collect()
}

/// What the loss is taken on, in words.
pub fn loss(loss: Loss) -> &'static str {
    match loss {
        Loss::Labels => "loss on the labels of the file",
        Loss::Assistant => "loss on the assistant's tokens only (assistant_only_loss)",
        Loss::AssistantOfCompletion => "loss on the assistant's tokens in the completion only (assistant_only_loss)",
        Loss::Completion => "loss on the completion only",
        Loss::All => "loss on all tokens",
        Loss::Classes => "loss on the label of each row",
    }
}

/// The first example as the model sees it; what the loss is taken on stands between ⟦ and ⟧.
pub fn example(report: &DataReport) -> Vec<String> {
    segments(&report.example, false)
}

/// A row as the model sees it; what the loss is taken on is green with `color`, else it stands between ⟦ and ⟧.
pub fn segments(segments: &[Segment], color: bool) -> Vec<String> {
    let (how, marks) = if color { ("is green", GREEN) } else { ("stands in ⟦ ⟧", BRACKETS) };
    let text = marked(segments, EXAMPLE_CHARACTERS, marks);
    let mut lines = vec![format!("first example, the loss is taken on what {how}:")];
    lines.extend(text.split('\n').map(|line| format!("  | {line}")));
    lines
}

/// The segments in one text, at most about `limit` characters, with marks round what is supervised.
fn marked(segments: &[Segment], limit: usize, (begin, line_break, end): (&str, &str, &str)) -> String {
    let mut text = String::new();
    let mut left = limit;
    for segment in segments {
        let length = segment.text.chars().count();
        let shown = without_controls(&segment.text, left);
        match segment.supervised {
            true => text.extend([begin, &shown.replace('\n', line_break), end]),
            false => text.push_str(&shown),
        }
        if length > left {
            text.push_str(" …");
            return text;
        }
        left -= length;
    }
    text
}

/// A text without control characters that a terminal would obey, cut behind `limit` characters.
pub fn harmless(text: &str, limit: usize) -> String {
    let more = if text.chars().nth(limit).is_some() { " …" } else { "" };
    without_controls(text, limit) + more
}

fn without_controls(text: &str, limit: usize) -> String {
    let letter = |letter: char| if letter.is_control() && letter != '\n' { '\u{fffd}' } else { letter };
    text.chars().take(limit).map(letter).collect()
}

/// What became of the training rows, where they are packed or lie end to end.
pub fn packs(training: &Training, collator: &Collator) -> Option<String> {
    let Some(packs) = collator.packs() else {
        return training
            .padding_free
            .then(|| "rows   end to end in each micro-batch, without padding (padding_free)".to_owned());
    };
    let (count, most) = (packs.count(), u64::from(training.max_length));
    let full = packs.tokens() as f64 / (count as u64 * most).max(1) as f64;
    let mut line = format!(
        "packs  {} of at most {}, {:.1} % full, {:.1} documents in each ({})",
        format::items(count as u64, true),
        format::plural(most, "token"),
        100.0 * full,
        packs.documents() as f64 / count.max(1) as f64,
        training.packing_strategy,
    );
    if packs.left_out() > 0 {
        line.push_str(&format!("; {} left out: nothing supervised", format::items(packs.left_out() as u64, true)));
    }
    Some(line)
}

/// What an epoch takes of each source, where they are mixed; else how many of each there are, where there are several.
pub fn mixture(training: &Training, items: &Items, plan: &StepPlan) -> Option<String> {
    let labels = training.dataset.labels();
    let all: u64 = plan.mixture().map_or(items.count as u64, Mixture::length);
    let words = |(index, label): (usize, &String)| {
        let size = items.sources.get(index).copied().unwrap_or(0) as u64;
        let taken = plan.mixture().map_or(size, |mixture| u64::from(mixture.taken()[index]));
        let share = 100.0 * taken as f64 / all.max(1) as f64;
        format!("{} of {} of {label} ({share:.1} %)", format::count(taken), format::items(size, training.packing))
    };
    let sources: Vec<String> = labels.iter().enumerate().map(words).collect();
    (labels.len() > 1).then(|| format!("mix    an epoch has {}", sources.join(", ")))
}

/// The job: model, ranks, batch and length. So many ranks share this machine.
pub fn header(
    (config, on_machine): (&Resolved, u32),
    run: &RunFolder,
    plan: &StepPlan,
    (dataset, collator): (&TokenizedDataset, &Collator),
) -> Vec<String> {
    let training = &config.training;
    let ranks = config.num_processes;
    let threads = threads_per_rank(on_machine) as u64;
    let tokens = tokens_in_all(plan, &collator.by_source(dataset));
    vec![
        match &config.initial_checkpoint {
            None => format!("model  {}", hub::shown(config)),
            Some(step) => format!("model  {}, weights of {}", hub::shown(config), step.display()),
        },
        format!(
            "job    {} × {}, backend {}",
            format::plural(u64::from(ranks), "rank"),
            format::plural(threads, "thread"),
            config.backend
        ),
        format!("shard  {}", sharding(config)),
        format!("types  {}", types(config)),
        format!(
            "batch  {} × {} × {} = {} a step (per_device_train_batch_size × gradient_accumulation_steps × ranks)",
            training.per_device_train_batch_size,
            config.gradient_accumulation_steps,
            ranks,
            format::items(plan.global_batch(), training.packing)
        ),
        format!(
            "length {} ({:.2} epochs), about {} tokens",
            format::plural(plan.total_steps(), "step"),
            plan.epochs_after(plan.total_steps()),
            format::count(tokens.round() as u64)
        ),
        format!("run    {}", run.root().display()),
    ]
}

/// Tokens that the whole training goes through, about: sources have items of other lengths, and an epoch its share of each.
fn tokens_in_all(plan: &StepPlan, sources: &[(usize, u64)]) -> f64 {
    let taken =
        |index: usize, count: usize| plan.mixture().map_or(count as f64, |mixture| mixture.taken()[index].into());
    let sources = sources.iter().enumerate().filter(|(_, (count, _))| *count > 0);
    let (items, tokens) = sources.fold((0.0, 0.0), |(items, all), (index, &(count, tokens))| {
        let taken = taken(index, count);
        (items + taken, all + taken * tokens as f64 / count as f64)
    });
    plan.rows_after(plan.total_steps()) as f64 * tokens / items.max(1.0)
}

/// What a person may want to change before the job has run for hours.
pub fn warning(config: &Resolved) -> Option<String> {
    let slow = config.mixed_precision == Precision::Fp16 && config.device == DeviceKind::Cpu;
    slow.then(|| {
        "warning: mixed_precision: fp16 is very slow on a CPU, a step may take twenty times as long as in float32; \
         bf16 is the fast 16-bit type there"
            .to_owned()
    })
}

/// What is allowed and seldom meant: in the configuration, and together with `rows` rows of training data.
pub fn cautions(config: &Resolved, rows: usize) -> Vec<String> {
    let forgetting = zerofold_configs::forgetting(&config.training, rows as u64);
    let all = zerofold_configs::cautions(config).into_iter().chain(forgetting);
    all.map(|caution| format!("warning: {caution}")).collect()
}

/// What is sharded, by DeepSpeed's number and FSDP's name, and what is not as usual.
fn sharding(config: &Resolved) -> String {
    let sharding = &config.sharding;
    let hybrid = sharding.replicas > 1;
    let (kept, name) = match sharding.reshard_after_forward {
        ReshardAfterForward::Always(true) => ("", if hybrid { "HYBRID_SHARD" } else { "FULL_SHARD" }),
        ReshardAfterForward::Always(false) => (
            ", parameters kept between forward and backward",
            if hybrid { "HYBRID_SHARD_ZERO2" } else { "SHARD_GRAD_OP" },
        ),
        ReshardAfterForward::Group(_) => (", parameters kept between forward and backward", ""),
    };
    let mut line = format!("ZeRO stage {}", sharding.stage);
    match (sharding.stage, sharding.reshard_after_forward) {
        (Stage::Zero, _) => line.push_str(" (DDP)"),
        (Stage::Three, ReshardAfterForward::Group(ranks)) => {
            line.push_str(&format!("{kept} as shards of groups of {}", format::plural(u64::from(ranks), "rank")));
        }
        (Stage::Three, ReshardAfterForward::Always(_)) => line.push_str(&format!("{kept} ({name})")),
        (Stage::One | Stage::Two, _) => {}
    }
    if hybrid {
        let shards = config.num_processes / sharding.replicas;
        line.push_str(&format!("; hybrid: {} copies × {shards} shards", sharding.replicas));
    }
    if sharding.units != UnitPolicy::Blocks {
        line.push_str(&format!("; units: {}", units(sharding.units)));
    }
    if sharding.stage == Stage::Three && sharding.backward_prefetch != BackwardPrefetch::Pre {
        line.push_str(&format!("; backward gathers ahead: {}", sharding.backward_prefetch));
    }
    match &config.offload_optimizer {
        Offload::No => {}
        Offload::HostMemory => line.push_str("; optimizer state in host memory"),
        Offload::Files(folder) => line.push_str(&format!("; optimizer state in files in {}", folder.display())),
    }
    line
}

/// What the units are.
pub fn units(policy: UnitPolicy) -> String {
    match policy {
        UnitPolicy::Blocks => "decoder blocks".to_owned(),
        UnitPolicy::BlockHalves => "attention and MLP of each block".to_owned(),
        UnitPolicy::MinParameters(least) => format!("at least {} parameters", format::count(least)),
        UnitPolicy::Whole => "the whole model is one".to_owned(),
    }
}

/// The element types, and what goes with them.
fn types(config: &Resolved) -> String {
    let types = config.element_types();
    let mut line = format!("compute {}, masters {}, reductions {}", types.compute, types.master, types.reduce);
    if types.accumulate != types.master {
        line.push_str(&format!(", accumulation {}", types.accumulate));
    }
    if config.mixed_precision == Precision::Fp16 {
        line.push_str(", dynamic loss scale");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::{Inputs, resolve};
    use zerofold_data::{Batching, TokenizedDataset};

    /// What the preset `zero3.yaml` with these flags resolves to, over 8 ranks.
    fn job(flags: &[(&str, &str)]) -> Resolved {
        let flags = flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let inputs = Inputs { config: Some("zero3.yaml".to_owned()), nproc: Some(8), flags, ..Inputs::default() };
        resolve(&inputs).expect("the flags are right")
    }

    #[test]
    fn what_is_sharded_is_told_in_the_words_of_both() {
        let replicate = ("parallelism_config_dp_replicate_size", "2");
        let table: [(&[(&str, &str)], &str); 11] = [
            (&[], "ZeRO stage 3 (FULL_SHARD)"),
            (&[("zero_stage", "2")], "ZeRO stage 2"),
            (&[("zero_stage", "0"), ("fsdp_backward_prefetch", "NO_PREFETCH")], "ZeRO stage 0 (DDP)"),
            (
                &[("fsdp_sharding_strategy", "SHARD_GRAD_OP")],
                "ZeRO stage 3, parameters kept between forward and backward (SHARD_GRAD_OP)",
            ),
            (
                &[("fsdp_version", "2"), ("fsdp_reshard_after_forward", "4")],
                "ZeRO stage 3, parameters kept between forward and backward as shards of groups of 4 ranks",
            ),
            (&[replicate], "ZeRO stage 3 (HYBRID_SHARD); hybrid: 2 copies × 4 shards"),
            (
                &[replicate, ("fsdp_sharding_strategy", "HYBRID_SHARD_ZERO2")],
                "ZeRO stage 3, parameters kept between forward and backward (HYBRID_SHARD_ZERO2); hybrid: 2 copies × 4 \
                 shards",
            ),
            (
                &[("fsdp_transformer_layer_cls_to_wrap", "LlamaMLP,LlamaAttention")],
                "ZeRO stage 3 (FULL_SHARD); units: attention and MLP of each block",
            ),
            (
                &[("fsdp_auto_wrap_policy", "SIZE_BASED_WRAP"), ("fsdp_min_num_params", "1e6")],
                "ZeRO stage 3 (FULL_SHARD); units: at least 1,000,000 parameters",
            ),
            (
                &[("fsdp_auto_wrap_policy", "NO_WRAP"), ("fsdp_backward_prefetch", "NO_PREFETCH")],
                "ZeRO stage 3 (FULL_SHARD); units: the whole model is one; backward gathers ahead: NO_PREFETCH",
            ),
            (
                &[("offload_optimizer_device", "nvme"), ("offload_optimizer_nvme_path", "/mnt/fast")],
                "ZeRO stage 3 (FULL_SHARD); optimizer state in files in /mnt/fast",
            ),
        ];
        for (flags, line) in table {
            assert_eq!(sharding(&job(flags)), line, "{flags:?}");
        }
    }

    #[test]
    fn packs_are_told_and_how_full_they_are() {
        let mut dataset = TokenizedDataset::new();
        for length in [5, 3, 6, 1] {
            dataset.push(1, &vec![7; length], &vec![7; length]);
        }
        let told = |flags: &[(&str, &str)]| {
            let training = job(&[&[("max_length", "8")], flags].concat()).training;
            let collator = Collator::new(&dataset, Batching::of(&training, training.packing)).unwrap();
            packs(&training, &collator)
        };
        let line = "packs  2 packs of at most 8 tokens, 93.8 % full, 2.0 documents in each (bfd)";
        assert_eq!(told(&[("packing", "true")]).as_deref(), Some(line));
        assert!(told(&[("padding_free", "true")]).is_some_and(|line| line.contains("without padding")));
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn the_element_types_are_told() {
        let table: [(&[(&str, &str)], &str); 4] = [
            (&[], "compute bfloat16, masters float32, reductions float32"),
            (&[("master_dtype", "bfloat16")], "compute bfloat16, masters bfloat16, reductions bfloat16"),
            (
                &[("mixed_precision", "fp16"), ("reduce_dtype", "float16")],
                "compute float16, masters float32, reductions float16, dynamic loss scale",
            ),
            (
                &[("grad_accum_dtype", "bfloat16")],
                "compute bfloat16, masters float32, reductions float32, accumulation bfloat16",
            ),
        ];
        for (flags, line) in table {
            assert_eq!(types(&job(flags)), line, "{flags:?}");
        }
    }

    #[test]
    fn float16_on_a_cpu_is_warned_of() {
        assert!(warning(&job(&[("mixed_precision", "fp16")])).is_some_and(|text| text.contains("bf16")));
        assert_eq!(warning(&job(&[("mixed_precision", "bf16")])), None);
    }

    #[test]
    fn the_mask_is_visible_and_the_text_harmless() {
        let segment = |text: &str, supervised| Segment { text: text.into(), supervised };
        let segments = [segment("user: \u{1b}[2J\n", false), segment("answer", true), segment(" rest", false)];
        assert_eq!(marked(&segments, 100, BRACKETS), "user: \u{fffd}[2J\n⟦answer⟧ rest");
        assert_eq!(marked(&segments, 15, BRACKETS), "user: \u{fffd}[2J\n⟦answ⟧ …");
        assert_eq!(marked(&segments, 3, BRACKETS), "use …");
        let lines = super::segments(&[segment("a\nb", true)], true);
        assert_eq!(lines[1..], ["  | \x1b[32ma\x1b[39m", "  | \x1b[32mb\x1b[39m"]);
    }
}
