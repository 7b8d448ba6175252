//! What is told before the workers start: the data, its first example with the mask, and the job.

use std::time::Duration;

use zerofold_configs::Resolved;
use zerofold_data::{DataReport, RowKind, Segment, StepPlan};

use crate::format;
use crate::run_folder::RunFolder;
use crate::worker_command::threads_per_rank;

/// So many characters of the first example are shown.
const EXAMPLE_CHARACTERS: usize = 1500;

/// One data file: its counts, and what the loss is taken on.
pub fn data(report: &DataReport, took: Duration) -> Vec<String> {
    let mut line = format!(
        "data   {}: {}, {}, {:.1} % supervised, longest {} ({})",
        report.path.display(),
        format::plural(report.rows as u64, "row"),
        format::plural(report.tokens as u64, "token"),
        100.0 * report.supervised_share(),
        report.longest,
        format::duration(took)
    );
    if report.truncated > 0 {
        line.push_str(&format!("; {} cut to max_length", format::plural(report.truncated as u64, "row")));
    }
    if report.dropped > 0 {
        line.push_str(&format!("; {} left out: nothing supervised", format::plural(report.dropped as u64, "row")));
    }
    let loss = match (report.kind, report.assistant_only_loss) {
        (RowKind::Tokens, _) => "       loss on the labels of the file",
        (RowKind::Conversations, true) => "       loss on the assistant's tokens only (assistant_only_loss)",
        (RowKind::Conversations, false) => "       loss on all tokens (assistant_only_loss: false)",
    };
    vec![line, loss.to_owned()]
}

/// The first example as the model sees it; what the loss is taken on stands between ⟦ and ⟧.
pub fn example(report: &DataReport) -> Vec<String> {
    let text = marked(&report.example, EXAMPLE_CHARACTERS);
    let mut lines = vec!["first example, the loss is taken on what stands in ⟦ ⟧:".to_owned()];
    lines.extend(text.split('\n').map(|line| format!("  | {line}")));
    lines
}

/// The segments in one text, at most about `limit` characters, without control characters that a terminal would obey.
fn marked(segments: &[Segment], limit: usize) -> String {
    let mut text = String::new();
    let mut left = limit;
    for segment in segments {
        if segment.supervised {
            text.push('⟦');
        }
        let harmless = |letter: char| {
            if letter.is_control() && letter != '\n' { '\u{fffd}' } else { letter }
        };
        let shown = segment.text.chars().take(left);
        text.extend(shown.map(harmless));
        if segment.supervised {
            text.push('⟧');
        }
        let length = segment.text.chars().count();
        if length > left {
            text.push_str(" …");
            return text;
        }
        left -= length;
    }
    text
}

/// The job: model, ranks, batch and length.
pub fn header(config: &Resolved, run: &RunFolder, plan: &StepPlan, report: &DataReport) -> Vec<String> {
    let training = &config.training;
    let ranks = config.num_processes;
    let threads = threads_per_rank(ranks) as u64;
    let rows = plan.total_steps() * plan.global_batch();
    let tokens = rows as f64 * report.tokens as f64 / report.rows.max(1) as f64;
    vec![
        format!("model  {}", training.model_name_or_path.display()),
        format!(
            "job    {} × {}, backend {}, ZeRO stage {}, mixed_precision {}",
            format::plural(u64::from(ranks), "rank"),
            format::plural(threads, "thread"),
            config.backend,
            config.stage,
            config.mixed_precision
        ),
        format!(
            "batch  {} × {} × {} = {} a step (per_device_train_batch_size × gradient_accumulation_steps × ranks)",
            training.per_device_train_batch_size,
            config.gradient_accumulation_steps,
            ranks,
            format::plural(plan.global_batch(), "row")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_visible_and_the_text_harmless() {
        let segment = |text: &str, supervised| Segment { text: text.into(), supervised };
        let segments = [segment("user: \u{1b}[2J\n", false), segment("answer", true), segment(" rest", false)];
        assert_eq!(marked(&segments, 100), "user: \u{fffd}[2J\n⟦answer⟧ rest");
        assert_eq!(marked(&segments, 15), "user: \u{fffd}[2J\n⟦answ⟧ …");
    }
}
