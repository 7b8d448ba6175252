//! What a check found, and the report over all of them.

use serde::Serialize;

use crate::columns::left_aligned;

/// The parts of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// The machine and its system.
    System,
    /// libtorch, the driver, GPUs and NCCL.
    Libraries,
    /// What was measured.
    Rates,
}

impl Group {
    const ALL: [Group; 3] = [Group::System, Group::Libraries, Group::Rates];

    fn title(self) -> &'static str {
        match self {
            Group::System => "system",
            Group::Libraries => "libtorch and GPUs",
            Group::Rates => "rates",
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Good to know; costs nothing by itself.
    Note,
    /// A job runs, but slower, or not in every case.
    Warning,
    /// The job that was asked about would not run.
    Problem,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warning => "warning",
            Verdict::Problem => "problem",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The part of the report.
    pub group: Group,
    /// What was looked at.
    pub what: String,
    /// What was seen, with units.
    pub value: String,
    /// How bad it is.
    pub verdict: Verdict,
    /// Why it matters and what to do; only where it is not well.
    pub hint: Option<String>,
}

impl Finding {
    /// Nothing wrong, so far.
    pub(super) fn new(group: Group, what: impl Into<String>, value: impl Into<String>) -> Self {
        Finding { group, what: what.into(), value: value.into(), verdict: Verdict::Ok, hint: None }
    }

    /// Nothing wrong with the system, so far.
    pub(super) fn of_system(what: &str, value: impl Into<String>) -> Self {
        Finding::new(Group::System, what, value)
    }

    /// It is so bad, for this reason, if `wrong` and nothing worse is known.
    pub(super) fn when(mut self, wrong: bool, verdict: Verdict, hint: impl Into<String>) -> Self {
        if wrong && verdict > self.verdict {
            self.verdict = verdict;
            self.hint = Some(hint.into());
        }
        self
    }

    /// An error of the product's own: its last line is what to do.
    pub(super) fn of_error(group: Group, what: impl Into<String>, error: &str, verdict: Verdict) -> Self {
        let (message, hint) = error.split_once("\nhint: ").unwrap_or((error, error));
        let finding = Finding::new(group, what, message.lines().collect::<Vec<_>>().join(" "));
        finding.when(verdict > Verdict::Ok, verdict, hint)
    }
}

/// The report's lines: a table, then what to do.
pub(super) fn lines(findings: &[Finding]) -> Vec<String> {
    let mut lines = Vec::new();
    let row =
        |finding: &Finding| vec![format!("  {}", finding.verdict.word()), finding.what.clone(), finding.value.clone()];
    let mut table = left_aligned(&findings.iter().map(row).collect::<Vec<_>>()).into_iter().zip(findings);
    let rows: Vec<_> = table.by_ref().collect();
    for group in Group::ALL {
        let of_group: Vec<_> = rows.iter().filter(|(_, finding)| finding.group == group).collect();
        if !of_group.is_empty() {
            lines.push(group.title().to_owned());
            lines.extend(of_group.iter().map(|(line, _)| line.clone()));
        }
    }
    let mut wrong: Vec<&Finding> = findings.iter().filter(|finding| finding.hint.is_some()).collect();
    // The worst first; among equals the order of the table.
    wrong.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
    if !wrong.is_empty() {
        lines.extend([String::new(), "what to do".to_owned()]);
    }
    for finding in wrong {
        let hint = finding.hint.as_deref().unwrap_or_default();
        lines.push(format!("  {}: {}: {hint}", finding.verdict.word(), finding.what));
    }
    lines
}

/// How many findings of each kind there are, in a sentence.
pub(super) fn summary(findings: &[Finding]) -> String {
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count() as u64;
    let problems = match count(Verdict::Problem) {
        0 => "no problem".to_owned(),
        number => crate::format::plural(number, "problem"),
    };
    let warnings = crate::format::plural(count(Verdict::Warning), "warning");
    format!("{problems}, {warnings}, {}", crate::format::plural(count(Verdict::Note), "note"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_verdict_stays_with_its_hint() {
        let finding = Finding::of_system("memory", "1 GiB")
            .when(true, Verdict::Note, "first")
            .when(true, Verdict::Problem, "second")
            .when(true, Verdict::Warning, "third")
            .when(false, Verdict::Problem, "fourth");
        assert_eq!((finding.verdict, finding.hint.as_deref()), (Verdict::Problem, Some("second")));
    }

    #[test]
    fn an_error_is_cut_at_its_hint() {
        let error = "no driver here\nhint: bring one";
        let finding = Finding::of_error(Group::Libraries, "driver", error, Verdict::Problem);
        assert_eq!((finding.value.as_str(), finding.hint.as_deref()), ("no driver here", Some("bring one")));
        let finding = Finding::of_error(Group::Libraries, "driver", error, Verdict::Ok);
        assert_eq!((finding.verdict, finding.hint), (Verdict::Ok, None));
    }

    #[test]
    fn the_report_is_a_table_and_what_to_do_worst_first() {
        let findings = [
            Finding::of_system("disk", "5 MB/s").when(true, Verdict::Warning, "take another"),
            Finding::of_system("kernel", "Linux 6"),
            Finding::new(Group::Libraries, "driver", "none").when(true, Verdict::Problem, "bring one"),
        ];
        let expected = [
            "system",
            "  warning  disk    5 MB/s",
            "  ok       kernel  Linux 6",
            "libtorch and GPUs",
            "  problem  driver  none",
            "",
            "what to do",
            "  problem: driver: bring one",
            "  warning: disk: take another",
        ];
        assert_eq!(lines(&findings), expected);
        assert_eq!(summary(&findings), "1 problem, 1 warning, 0 notes");
        assert_eq!(lines(&findings[1..2]), ["system", "  ok  kernel  Linux 6"]);
    }
}
