//! The report for a person.

use zerofold_data::{
    AuditReport, Copied, DataAudit, Finding, FindingKind, LengthBar, LengthUnit, Loss, NEARLY_THE_SAME, SHINGLE_WORDS,
    SHORT_WORDS,
};

use crate::announce;
use crate::columns::aligned;
use crate::format;
use crate::terminal::Terminal;

/// So many well-chosen examples are enough to rival so many poorer ones, as is known of instruction data.
const WELL_CHOSEN: u64 = 1_000;
const POORER: u64 = 50_000;

/// Characters of the longest bar.
const BAR: u64 = 40;

/// Characters of a reason: templates quote rows.
const REASON: usize = 240;

pub(super) fn report(report: &AuditReport, model: Option<&str>, terminal: &Terminal) {
    let mut lines = vec![match model {
        Some(model) => format!("model    {model}"),
        None => {
            "model    none: rows are judged by their text; --model FOLDER tells tokens, template and masks too".into()
        }
    }];
    lines.extend(of_data("data", &report.training));
    lines.push(format!("amount   {}", amount(&report.training)));
    lines.extend(found(&report.training));
    if let Some(held_out) = &report.held_out {
        lines.extend(of_data("held out", held_out));
        lines.extend(found(held_out));
    }
    if !report.training.example.is_empty() {
        lines.extend(announce::segments(&report.training.example, terminal.has_color()));
    }
    lines.iter().for_each(|line| terminal.result(line));
}

/// What was left out of the copy, and what is in it.
pub(super) fn copied(copied: &Copied, terminal: &Terminal) {
    let dropped: Vec<String> = copied
        .dropped
        .iter()
        .map(|dropped| format!("{} {}", format::count(dropped.rows), dropped.kind.name()))
        .collect();
    let (rows, path) = (format::plural(copied.rows, "row"), copied.path.display());
    terminal.result(&format!("wrote {path}: {rows}; left out: {}", dropped.join(", ")));
}

/// What has to be given for this to be looked for.
pub(super) fn needs(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::Leaks => "give held-out data: --eval_dataset FILE",
        FindingKind::NearLeaks => "give held-out data: --eval_dataset FILE; it is looked for in rows of text",
        FindingKind::Refused | FindingKind::Unsupervised | FindingKind::Truncated => {
            "give the model whose template and tokenizer are used: --model FOLDER"
        }
        FindingKind::Unended => {
            "it is looked for with a model (--model FOLDER), where the loss is on the assistant's tokens only"
        }
        FindingKind::AllSupervised => {
            "it is looked for with a model or `labels`, where not all tokens are to be learned"
        }
        FindingKind::NearDuplicates | FindingKind::Empty => "it is looked for in rows of text",
        FindingKind::RoleOrder => "it is looked for in rows of messages",
        _ => "it is looked for in rows that answer something",
    }
}

/// Counts, loss and lengths.
fn of_data(title: &str, audit: &DataAudit) -> Vec<String> {
    let files = match audit.files {
        1 => String::new(),
        files => format!(" in {files} files"),
    };
    let kind = audit.kind.map_or(String::new(), |kind| format!(", {}", kind.words()));
    let mut lines = vec![format!("{title:9}{}: {}{files}{kind}", audit.source, format::plural(audit.rows, "row"))];
    if !audit.unused_columns.is_empty() {
        let names = announce::harmless(&audit.unused_columns.join(", "), REASON);
        lines.push(format!("columns  nothing is made of these, as nothing is in `train`: {names} (column_mapping can say what they are)"));
    }
    if let Some(loss) = audit.loss {
        lines.push(format!("{:9}{}", "", announce::loss(loss)));
    }
    let lengths = &audit.lengths;
    if lengths.rows == 0 {
        return lines;
    }
    let unit = match lengths.unit {
        LengthUnit::Tokens => "token",
        LengthUnit::Words => "word",
    };
    lines.push(format!(
        "lengths  {} ({:.1} a row): half of the rows up to {}, 90 % up to {}, 99 % up to {}, longest {}",
        format::plural(lengths.total, unit),
        lengths.total as f64 / lengths.rows as f64,
        format::count(lengths.half),
        format::count(lengths.percent_90),
        format::count(lengths.percent_99),
        format::count(lengths.longest),
    ));
    lines.extend(histogram(&lengths.histogram));
    if let (Some(cut), Some(supervised)) = (audit.truncation, audit.supervised_tokens) {
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let kept = lengths.total - cut.tokens;
        // A classifier has one label in each row, which is never cut off.
        let of_classifier = audit.loss == Some(Loss::Classes);
        if !of_classifier {
            lines.push(format!(
                "masks    {} of {} are supervised ({:.1} %)",
                format::count(supervised),
                format::plural(kept, "token"),
                share(supervised, kept)
            ));
        }
        lines.push(format!(
            "cut      at max_length {}: {}; {} lost ({:.1} %){}",
            cut.max_length,
            format::plural(cut.rows, "row"),
            format::plural(cut.tokens, "token"),
            share(cut.tokens, lengths.total),
            match of_classifier {
                true => String::new(),
                false => format!(
                    ", {} of them supervised ({:.1} %)",
                    format::count(cut.supervised_tokens),
                    share(cut.supervised_tokens, supervised + cut.supervised_tokens),
                ),
            },
        ));
    }
    lines
}

/// One bar a line, the longest of [`BAR`] characters; rows that are there have a bar.
fn histogram(bars: &[LengthBar]) -> Vec<String> {
    let most = bars.iter().map(|bar| bar.rows).max().unwrap_or(0).max(1);
    let row = |bar: &LengthBar| {
        let length = (bar.rows * BAR).div_ceil(most);
        vec![
            format!("{:9}", ""),
            format!("{} to {}", format::count(bar.from), format::count(bar.to)),
            format::count(bar.rows),
            format!("{:<width$}", "█".repeat(length as usize), width = BAR as usize),
        ]
    };
    aligned(&bars.iter().map(row).collect::<Vec<_>>())
}

/// The number of good rows beside what is known to be enough.
fn amount(audit: &DataAudit) -> String {
    let good = audit.rows_without_finding;
    let known = format!(
        "about {} well-chosen rows can rival {} poorer ones",
        format::count(WELL_CHOSEN),
        format::count(POORER)
    );
    let meant = match good {
        ..WELL_CHOSEN => {
            format!("{known}; more rows of this quality help, and a high learning rate on so few makes a model forget")
        }
        WELL_CHOSEN..POORER => {
            format!("enough, if they are well chosen: {known}, so look at what is found below before you add more")
        }
        _ => format!("more than enough: {known}, so choosing among them is worth more than adding to them"),
    };
    format!("{} of {} without a finding; {meant}", format::count(good), format::plural(audit.rows, "row"))
}

/// The findings with rows, each with a few of these, and what was not looked for.
fn found(audit: &DataAudit) -> Vec<String> {
    let mut lines = Vec::new();
    for finding in audit.findings.iter().filter(|finding| finding.rows > 0) {
        let verdict = if finding.fault { "fault" } else { "warning" };
        let rows = format::plural(finding.rows, "row");
        lines.push(format!("{verdict:9}{}: {rows}: {}", finding.kind.name(), meaning(finding.kind)));
        lines.extend(examples(finding));
    }
    let names = |kinds: Vec<FindingKind>| kinds.into_iter().map(FindingKind::name).collect::<Vec<_>>().join(", ");
    let nothing = audit.findings.iter().filter(|finding| finding.rows == 0).map(|finding| finding.kind).collect();
    let nothing = names(nothing);
    if !nothing.is_empty() {
        lines.push(format!("ok       no row: {nothing}"));
    }
    if !audit.not_checked.is_empty() {
        lines.push(format!("skipped  not looked for: {}", names(audit.not_checked.clone())));
    }
    lines
}

fn examples(finding: &Finding) -> Vec<String> {
    let mut lines: Vec<String> = finding
        .examples
        .iter()
        .map(|example| {
            let reason = announce::harmless(&example.reason.replace('\n', " "), REASON);
            format!("{:11}{}: {reason}", "", example.place)
        })
        .collect();
    let left = finding.rows - finding.examples.len() as u64;
    if left > 0 {
        lines.push(format!("{:11}and {} more", "", format::count(left)));
    }
    lines
}

/// What a finding is, and what to do.
fn meaning(kind: FindingKind) -> String {
    match kind {
        FindingKind::Unreadable => "they would stop the training; mend or remove them".into(),
        FindingKind::Refused => {
            "template, tokenizer or mask refuse them, which would stop the training; change them, or the \
                                 template (chat_template_path)"
                .into()
        }
        FindingKind::Leaks => "they are held out too, so the held-out loss would tell what was learned by heart".into(),
        FindingKind::NearLeaks => format!(
            "they are nearly held-out rows: at least {NEARLY_THE_SAME} of their {SHINGLE_WORDS}-word sequences are in common"
        ),
        FindingKind::Unended => "the model does not learn to stop there; is eos_token what the template writes?".into(),
        FindingKind::Unsupervised => "nothing is learned from them, and training leaves them out".into(),
        FindingKind::AllSupervised => "questions are learned as if they were answers; are they what you meant?".into(),
        FindingKind::Truncated => "longer than max_length, and cut at the end".into(),
        FindingKind::Empty => "nothing is asked, answered or written".into(),
        FindingKind::RoleOrder => "roles are not in turns from the user to the assistant".into(),
        FindingKind::Duplicates => "the same as an earlier row".into(),
        FindingKind::NearDuplicates => format!(
            "nearly an earlier row: at least {NEARLY_THE_SAME} of their {SHINGLE_WORDS}-word sequences are in common"
        ),
        FindingKind::DuplicateInstructions => "what is asked was asked in an earlier row".into(),
        FindingKind::Conflicts => "what is asked is answered otherwise elsewhere; is one of the answers wrong?".into(),
        FindingKind::Short => {
            format!("answers of fewer than {SHORT_WORDS} words; right where short answers are what the task asks for")
        }
        FindingKind::Unrelated => "the answer shares no word with what is asked; does it answer that?".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        let bar = |from: u64, rows: u64| LengthBar { from, to: 2 * from - 1, rows };
        let lines = histogram(&[bar(8, 1), bar(16, 0), bar(32, 1000)]);
        let blocks: Vec<usize> = lines.iter().map(|line| line.matches('█').count()).collect();
        assert_eq!(blocks, [1, 0, 40]);
        assert!(lines[2].contains("32 to 63  1,000  ███"), "{}", lines[2]);
        assert_eq!(histogram(&[]), Vec::<String>::new());
    }
}
