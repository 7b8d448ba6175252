//! A file of ours: keys in the groups of `--help`, what is set as it is, important defaults as comments.

use super::layout::Layout;
use super::yaml::scalar;
use super::{Composed, Line};
use crate::outline::Outline;
use crate::registry::{DefaultValue, Group, Key, Section, key};
use crate::training::KEYS;
use crate::types::DeviceKind;
use crate::written::Written;
use serde_yaml::Value;

const HEAD: &str = "\
# How a model is fine-tuned: launch --config FILE train
#
# Each key is also a flag (--learning_rate 5e-5), and flags go before the file. Lines with # before their key show
# defaults; launch train --help lists every key, launch config check tells whether this file can be used.
";

/// The defaults that a reader wants to see.
const IMPORTANT: &[&str] = &[
    "model_name_or_path",
    "dataset",
    "eval_dataset",
    "output_dir",
    "mixed_precision",
    "num_processes",
    "gradient_checkpointing",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "assistant_only_loss",
    "seed",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "report_to",
];

pub(super) fn compose(outline: &Outline) -> Composed {
    let layout = Layout::of(outline);
    let written = outline.written();
    let mut text = HEAD.to_owned();
    job(&mut text, outline, &layout, &written);
    if written.iter().any(|written| written.group() == Group::Hosts && written.is_set()) {
        heading(&mut text, "", Group::Hosts);
        let hosts = written.iter().filter(|written| written.group() == Group::Hosts && written.is_set());
        hosts.for_each(|written| line(&mut text, "", written.key, &written.value));
    }
    text.push_str("\ntraining:\n");
    let mut first = true;
    for group in Group::ALL {
        let keys: Vec<&Key> =
            KEYS.iter().filter(|key| key.section == Section::Training && key.group == group).collect();
        let mut inside = String::new();
        keys.iter().for_each(|key| entry(&mut inside, "  ", key, &written));
        if !inside.is_empty() {
            if first {
                text.push_str(&format!("  # {}\n", group.title()));
            } else {
                heading(&mut text, "  ", group);
            }
            text.push_str(&inside);
            first = false;
        }
    }
    Composed { text, left_out: layout.left_out }
}

/// Accelerate's part but for the hosts.
fn job(text: &mut String, outline: &Outline, layout: &Layout, written: &[Written]) {
    heading(text, "", Group::Job);
    text.push_str(&format!("distributed_type: {}\n", scalar(&Value::from(layout.distributed_type))));
    for section in [Section::DeepSpeed, Section::Fsdp, Section::Parallelism] {
        let lines: Vec<&Line> = layout.lines.iter().filter(|line| line.section == section).collect();
        if !lines.is_empty() {
            text.push_str(&format!("{}:\n", section.name()));
            lines.iter().for_each(|it| line(text, "  ", it.key, &it.value));
        }
    }
    let is_set = |key: &str| written.iter().any(|written| written.key == key && written.is_set());
    if outline.resolved.device == DeviceKind::Cpu && is_set("use_cpu") {
        line(text, "", "use_cpu", &true.into());
    }
    let keys = KEYS.iter().filter(|key| key.section == Section::Top && key.group == Group::Job);
    keys.filter(|key| key.name != "use_cpu").for_each(|key| entry(text, "", key, written));
    if let Some(ids) = written.iter().find(|written| written.key == "gpu_ids" && written.is_set()) {
        line(text, "", "gpu_ids", &ids.value);
    }
}

fn heading(text: &mut String, indent: &str, group: Group) {
    text.push_str(&format!("\n{indent}# {}\n", group.title()));
}

/// The line of a key: its value where somebody set it, else its default as a comment if a reader wants to see it.
fn entry(text: &mut String, indent: &str, known: &Key, written: &[Written]) {
    let found = written.iter().find(|written| (written.section, written.key) == (known.section, known.name));
    match found {
        Some(written) if written.is_set() && !written.value.is_null() => {
            line(text, indent, known.name, &written.value);
        }
        // Null takes a default back where there is one.
        Some(written) if written.is_set() && written.source != "missing" && known.default != DefaultValue::Unset => {
            line(text, indent, known.name, &Value::Null);
        }
        _ if IMPORTANT.contains(&known.name) => {
            let (value, note) = match known.default {
                DefaultValue::Text(value) => (scalar(&Value::from(value)), String::new()),
                DefaultValue::Required => (known.kind.placeholder(), " [required]".to_owned()),
                DefaultValue::Unset => (known.kind.placeholder(), String::new()),
                other => (known.kind.placeholder(), format!(" [default: {other}]")),
            };
            // A number's own form is easier to read than one in quotes.
            let value = value.trim_matches('\'').to_owned();
            text.push_str(&format!("{indent}# {}: {value}  # {}{note}\n", known.name, known.help));
        }
        _ => {}
    }
}

fn line(text: &mut String, indent: &str, name: &str, value: &Value) {
    let help = key(name).map(|known| format!("  # {}", known.help)).unwrap_or_default();
    text.push_str(&format!("{indent}{name}: {}{help}\n", scalar(value)));
}
