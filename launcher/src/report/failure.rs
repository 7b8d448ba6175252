//! The report of a job that failed: the cause first, then its consequences, then what to do.

use std::fmt::Write;

use super::go_on;
use crate::format;
use crate::run_folder::RunFolder;
use crate::supervise::{Cause, Ending, Facts, Failure};
use crate::view::Story;

/// A job that failed.
pub struct Failed<'a> {
    /// The cause.
    pub first: &'a Failure,
    /// The consequences.
    pub others: &'a [Failure],
    /// What is known of each rank.
    pub facts: &'a Facts,
    /// What happened before.
    pub story: &'a Story,
    /// Where.
    pub run: &'a RunFolder,
    /// The command line, the program's name first.
    pub arguments: &'a [String],
}

/// The report of a failed job: the first cause with what it said, then the consequences; where its log is, how to go on
/// from what was saved, what to do.
pub fn failure(failed: &Failed<'_>) -> String {
    let Failed { first, others, facts, story, run, arguments } = *failed;
    let mut text = cause(first, others, facts);
    let _ = write!(text, "\nlog: {}", run.log(first.rank).display());
    if let Some(words) = go_on(story, arguments) {
        let _ = write!(text, "\n{words}");
    }
    if let Some(hint) = hint(&first.cause) {
        let _ = write!(text, "\nhint: {hint}");
    }
    text
}

/// The first cause with what it said, then the consequences.
pub fn cause(first: &Failure, others: &[Failure], facts: &Facts) -> String {
    let mut text = format!("error: {}", sentence(first, facts));
    let exit = facts.ranks.get(first.rank as usize).and_then(|it| it.exit.as_ref());
    if let (Cause::Ended(_) | Cause::LeftSilently, Some((_, exit))) = (&first.cause, exit)
        && !exit.last_lines.is_empty()
    {
        let _ = write!(text, "\nits last lines:");
        for line in &exit.last_lines {
            let _ = write!(text, "\n  | {line}");
        }
    }
    for other in others {
        let _ = write!(text, "\nthen: {}", brief(other, facts));
    }
    text
}

/// Why it failed, in one line.
pub fn short(failure: &Failure, facts: &Facts) -> String {
    sentence(failure, facts).lines().next().unwrap_or_default().to_owned()
}

fn name(failure: &Failure, facts: &Facts) -> String {
    let place = facts.ranks.get(failure.rank as usize).map(|it| it.place.clone()).unwrap_or_default();
    match place.host.is_empty() {
        true => format!("rank {} (pid {})", failure.rank, place.pid),
        false => format!("rank {} (host {}, pid {})", failure.rank, place.host, place.pid),
    }
}

fn sentence(failure: &Failure, facts: &Facts) -> String {
    let name = name(failure, facts);
    match &failure.cause {
        Cause::Reported(message) => format!("{name}: {message}"),
        Cause::Ended(ending) => format!("{name} {ending}"),
        Cause::LeftSilently => format!("{name} exited with code 0 before its work was done"),
        Cause::NeverJoined(limit) => format!("{name} did not join the job within {}", format::duration(*limit)),
        Cause::HostLost(words) => words.clone(),
        Cause::Hung(words) => words.replacen(&format!("rank {}", failure.rank), &name, 1),
        Cause::Unkillable => format!("{name} does not end, not even by SIGKILL"),
        Cause::Silent(limit) => format!("{name} was not heard from for {}", format::duration(*limit)),
    }
}

/// One line, without hints.
fn brief(failure: &Failure, facts: &Facts) -> String {
    let sentence = sentence(failure, facts);
    let line = sentence.lines().next().unwrap_or_default();
    let by_us =
        matches!(failure.cause, Cause::Ended(Ending::Signal(libc::SIGTERM | libc::SIGKILL))) && failure.consequence;
    format!("{line}{}", if by_us { " by launch" } else { "" })
}

fn hint(cause: &Cause) -> Option<&'static str> {
    match cause {
        Cause::Ended(Ending::Signal(libc::SIGKILL)) => Some(
            "the kernel kills what uses too much memory (`dmesg | tail` tells): try a higher ZeRO stage, fewer ranks, a \
             smaller per_device_train_batch_size (per_device_eval_batch_size, where nothing is trained) or gradient_checkpointing",
        ),
        Cause::Ended(Ending::Signal(libc::SIGILL)) => {
            Some("this processor lacks an instruction that libtorch was built with")
        }
        Cause::Ended(Ending::Signal(libc::SIGBUS)) => Some("a disk or shared memory is full (`df -h`)"),
        Cause::HostLost(_) => Some(
            "is that host up, and the network between? with --max-restarts N the job waits for it to come back, with --nnodes \
             MIN:MAX it goes on with fewer",
        ),
        Cause::NeverJoined(_) | Cause::Silent(_) | Cause::Hung(_) => {
            Some("the log shows how far it came; --timeout sets the limit")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::places;
    use super::*;
    use crate::supervise::Exit;
    use std::time::Instant;

    #[test]
    fn a_failure_tells_the_cause_first() {
        let now = Instant::now();
        let mut facts = Facts::new(now, places());
        let exit = Exit { ending: Ending::Signal(libc::SIGKILL), last_lines: vec!["loading".into()] };
        facts.ranks[1].exit = Some((now, exit));
        let first = Failure { rank: 1, at: now, cause: Cause::Ended(Ending::Signal(9)), consequence: false };
        let reported = Cause::Reported("a peer closed its connection\nhint: see there".into());
        let other = Failure { rank: 0, at: now, cause: reported, consequence: true };
        let mut story = Story::default();
        let arguments = ["launch", "--config", "my job.yaml", "--resume", "20", "train"].map(str::to_owned);
        let run = RunFolder::new("runs/x");
        let others = [other];
        let text = |story: &Story| {
            let failed =
                Failed { first: &first, others: &others, facts: &facts, story, run: &run, arguments: &arguments };
            failure(&failed)
        };
        story.checkpoint = Some("runs/x/checkpoints/step-00000040".into());
        let saved = text(&story);
        assert!(
            saved.contains(
                "log: runs/x/logs/rank-1.log\nnewest checkpoint: runs/x/checkpoints/step-00000040\n\
                 go on: launch --config 'my job.yaml' train --resume\nhint: "
            ),
            "{saved}"
        );
        let text = text(&Story::default());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..5],
            [
                "error: rank 1 (pid 11) was killed by SIGKILL",
                "its last lines:",
                "  | loading",
                "then: rank 0 (pid 10): a peer closed its connection",
                "log: runs/x/logs/rank-1.log",
            ]
        );
        assert!(lines[5].starts_with("hint: "));
    }
}
