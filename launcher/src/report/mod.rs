//! What is printed when a job is over: its summary, or its failure with the cause first (`failure.rs`).

mod failure;

pub use failure::{Failed, cause, failure, short};

use std::path::Path;
use std::time::Duration;

use zerofold_plan::{Head, ModelConfig};
use zerofold_proto::v1::{StateBytes, StepRecord};

use crate::control::{Left, Member};
use crate::format;
use crate::plan::{Measured, PlanRecord};
use crate::run_folder::RunFolder;
use crate::supervise::Facts;
use crate::supervise::verdict::RankFacts;
use crate::view::Story;

/// What the summary needs beside the story.
pub struct Ended<'a> {
    /// Since `launch` began.
    pub time: Duration,
    /// What is known of each rank.
    pub facts: &'a Facts,
    /// What each rank told last.
    pub members: &'a [Member],
    /// What was planned, with what the ranks measured.
    pub plan: Option<&'a PlanRecord>,
}

/// The summary of a job that went well or was stopped.
pub fn summary(story: &Story, ended: &Ended<'_>) -> String {
    let mut lines = vec![format!("{} in {}", format::plural(story.steps, "step"), format::duration(ended.time))];
    if story.restarts > 0 {
        lines.push(format!(
            "begun again {}",
            if story.restarts == 1 { "once".to_owned() } else { format!("{} times", story.restarts) }
        ));
    }
    if story.skipped > 0 {
        lines.push(format!("{} of {} were skipped", story.skipped, format::plural(story.steps, "step")));
    }
    if let [.., (step, reason)] = &story.failed_saves[..] {
        let count = format::plural(story.failed_saves.len() as u64, "save");
        let reason = reason.lines().next().unwrap_or_default();
        lines.push(format!("{count} failed, the last one after step {step}: {reason}"));
    }
    if let [.., (step, reason)] = &story.failed_uploads[..] {
        let count = format::plural(story.failed_uploads.len() as u64, "upload");
        let newest = match &story.stored {
            Some((newest, url)) => {
                format!("the newest checkpoint of this job in the store is that of step {newest}, {url}")
            }
            None => "this job put no checkpoint into the store".to_owned(),
        };
        let reason = reason.lines().next().unwrap_or_default();
        lines.push(format!("{count} failed, the last one of step {step}: {reason}; {newest}"));
    }
    if let Some(time) = story.first_step_after {
        let rest =
            format::median(&story.seconds).map(|median| format!(", median step {median:.3} s")).unwrap_or_default();
        lines.push(format!("first step finished after {}{rest}", format::duration(time)));
    }
    if let (Some(first), Some(last)) = (&story.first, &story.last) {
        lines.push(format!("loss {:.4} → {:.4}", first.loss, last.loss));
    }
    if let (Some(first), Some(last)) = (&story.first_evaluation, &story.last_evaluation) {
        lines.push(match first.step == last.step {
            true => format!("held-out loss {:.4} (after step {})", first.loss, first.step),
            false => {
                format!(
                    "held-out loss {:.4} → {:.4} (after step {} and {})",
                    first.loss, last.loss, first.step, last.step
                )
            }
        });
    }
    if let Some(median) = format::median(&story.tokens_per_second) {
        lines.push(format!("median {} tokens/s", format::figure(median)));
    }
    let seconds: f64 = story.seconds.iter().sum();
    if story.waited > 0.0 && seconds > 0.0 {
        let time = |seconds: f64| format::duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
        lines.push(format!(
            "waiting for other ranks {:.0} % of the steps' time ({} of {}, rank 0)",
            100.0 * story.waited / seconds,
            time(story.waited),
            time(seconds)
        ));
    }
    let peaks: Vec<u64> = ended.members.iter().map(|member| member.peak_memory_bytes).collect();
    if peaks.iter().any(|&peak| peak > 0) {
        lines.push(format!("peak memory {}", by_rank(&peaks, |&bytes| format::bytes(bytes))));
    }
    let states: Vec<StateBytes> = ended.facts.ranks.iter().filter_map(state).collect();
    let planned = ended.plan.map(PlanRecord::lines).unwrap_or_default();
    if planned.is_empty() && states.iter().any(|&state| state != StateBytes::default()) {
        lines.push(format!("state {}", by_rank(&states, state_words)));
    }
    lines.extend(planned);
    lines.join("\n")
}

/// What the ranks that left measured, and what the last step sent.
pub fn measured(facts: &Facts, last: Option<&StepRecord>) -> Option<Measured> {
    let sent = last.map_or(0, |step| step.sent_bytes);
    Measured::of(&facts.ranks.iter().filter_map(state).collect::<Vec<_>>(), sent)
}

fn state(rank: &RankFacts) -> Option<StateBytes> {
    rank.left.as_ref().map(|(_, left)| left.state)
}

fn state_words(state: &StateBytes) -> String {
    let StateBytes { parameters, gradients, masters, moments, pretrained, gather_buffers, .. } = *state;
    let total = parameters + gradients + masters + moments + pretrained;
    let parts = [
        ("parameters", parameters),
        ("gradients", gradients),
        ("masters", masters),
        ("moments", moments),
        ("pretrained weights", pretrained),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", format::bytes(*bytes)))
        .collect();
    let buffers = match gather_buffers {
        0 => String::new(),
        bytes => format!("; gather buffers {}", format::bytes(bytes)),
    };
    format!("{} ({}{buffers})", format::bytes(total), parts.join(", "))
}

/// `X per rank` when all ranks read the same, else each rank's.
fn by_rank<T>(values: &[T], words: impl Fn(&T) -> String) -> String {
    let words: Vec<String> = values.iter().map(words).collect();
    match words.iter().all(|word| *word == words[0]) {
        true => format!("{} per rank", words[0]),
        false => {
            let each: Vec<String> =
                words.iter().enumerate().map(|(rank, word)| format!("rank {rank}: {word}")).collect();
            each.join(", ")
        }
    }
}

/// Where the result is and how to try it; `None` when no model was written.
pub fn result(facts: &Facts) -> Option<String> {
    let mut left = facts.ranks.iter().filter_map(|it| it.left.as_ref().map(|(_, left)| left));
    let Left { model_directory: directory, model_step, step, .. } =
        left.find(|left| !left.model_directory.is_empty())?;
    let of_step = match model_step == step {
        true => String::new(),
        false => format!(" (of step {model_step}, the best of those that were evaluated)"),
    };
    let quoted = quote(Path::new(directory));
    let launch = std::env::args().next().unwrap_or_else(|| "launch".to_owned());
    if ModelConfig::read(Path::new(directory)).is_ok_and(|model| model.head != Head::Language) {
        return Some(format!(
            "model: {directory}{of_step}\nsee how it does: {launch} evaluate {quoted} --dataset FILE"
        ));
    }
    Some(format!("model: {directory}{of_step}\ntry it: {launch} generate --model {quoted} --chat \"Hello\""))
}

/// How a person goes on with a job that was stopped. `arguments` are those of this program, its name first.
pub fn stopped(story: &Story, facts: &Facts, run: &RunFolder, arguments: &[String]) -> String {
    let unfinished = unfinished(facts);
    let how = unfinished.as_ref().map(|why| format!(" before its step was finished ({why})")).unwrap_or_default();
    if story.checkpoint.is_some() {
        return format!("stopped{how}; {}", go_on(story, arguments).unwrap_or_default());
    }
    let why = if unfinished.is_none() { " (save_strategy says when one is)" } else { "" };
    format!("stopped{how}; no checkpoint was written{why}; the run is in {}", run.root().display())
}

/// Why a stop did not wait for the step to be finished and saved, where it did not.
fn unfinished(facts: &Facts) -> Option<String> {
    let forced = facts.asked_to_stop && facts.terminated.is_some();
    let at_work: Vec<String> = (0..)
        .zip(&facts.ranks)
        .filter(|(_, it)| forced && it.left.is_none())
        .map(|(rank, _): (u32, _)| rank.to_string())
        .collect();
    match (&facts.hang, &at_work[..]) {
        (_, []) => None,
        (Some((_, hang)), _) => Some(hang.words.clone()),
        (None, [rank]) => Some(format!("rank {rank} was still at work")),
        (None, ranks) => Some(format!("ranks {} were still at work", ranks.join(", "))),
    }
}

/// The newest checkpoint of this job and the command line that goes on from it; `None` where none was written.
fn go_on(story: &Story, arguments: &[String]) -> Option<String> {
    let checkpoint = story.checkpoint.as_ref()?;
    Some(format!("newest checkpoint: {}\ngo on: {}", checkpoint.display(), resume_command(arguments)))
}

/// The same command line with `--resume` at its end, in place of one that is there.
fn resume_command(arguments: &[String]) -> String {
    let mut words = Vec::new();
    let mut value_of_resume = false;
    for (index, word) in arguments.iter().enumerate() {
        // As the command line is read: a command or an option is no value.
        let is_value = value_of_resume && word != "train" && !word.starts_with("--");
        value_of_resume = index > 0 && word == "--resume";
        let is_resume = value_of_resume || (index > 0 && word.starts_with("--resume="));
        if !is_value && !is_resume {
            words.push(quote(Path::new(word)));
        }
    }
    words.push("--resume".to_owned());
    words.join(" ")
}

/// A path as a shell takes it.
pub fn quote(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+=:@%".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::Place;
    use std::time::Instant;
    use zerofold_proto::v1::EvaluationRecord;

    pub(super) fn places() -> Vec<Place> {
        [10, 11].map(|pid| Place { pid, ..Place::default() }).into()
    }

    #[test]
    fn a_stop_tells_who_did_not_come_to_the_end_of_the_step() {
        let now = Instant::now();
        let (run, arguments) = (RunFolder::new("runs/x"), ["launch".to_owned(), "train".to_owned()]);
        let mut facts = Facts::new(now, places());
        let mut story = Story::default();
        let told = |story: &Story, facts: &Facts| stopped(story, facts, &run, &arguments);
        let nothing = "stopped; no checkpoint was written (save_strategy says when one is); the run is in runs/x";
        assert_eq!(told(&story, &facts), nothing);
        // As after a failure that the signal came upon: nobody was waited for.
        facts.terminated = Some(now);
        assert_eq!(told(&story, &facts), nothing);
        facts.asked_to_stop = true;
        facts.ranks[0].left = Some((now, Left::default()));
        assert_eq!(
            told(&story, &facts),
            "stopped before its step was finished (rank 1 was still at work); no checkpoint was written; the run is in runs/x"
        );
        story.checkpoint = Some("runs/x/checkpoints/step-00000040".into());
        let text = told(&story, &facts);
        assert!(
            text.contains("(rank 1 was still at work); newest checkpoint: runs/x/checkpoints/step-00000040\ngo on: ")
        );
        facts.ranks[1].left = Some((now, Left::default()));
        assert!(told(&story, &facts).starts_with("stopped; newest checkpoint: "), "its process alone did not end");
    }

    #[test]
    fn the_line_to_go_on_with_resumes_once() {
        for (line, expected) in [
            ("launch --nproc 2 train --bf16", "launch --nproc 2 train --bf16 --resume"),
            ("launch --resume train --bf16", "launch train --bf16 --resume"),
            ("launch train --resume", "launch train --resume"),
            ("launch train --resume step-00000020 --bf16", "launch train --bf16 --resume"),
            ("launch train --resume=20 --bf16", "launch train --bf16 --resume"),
            ("launch train --resume --bf16", "launch train --bf16 --resume"),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(resume_command(&words), expected, "{line}");
        }
    }

    #[test]
    fn a_summary_has_every_figure_once() {
        let step = |loss| Some(StepRecord { loss, ..StepRecord::default() });
        let evaluation = |step, loss| Some(EvaluationRecord { step, loss, ..EvaluationRecord::default() });
        let story = Story {
            first_step_after: Some(Duration::from_millis(1500)),
            steps: 20,
            skipped: 3,
            first: step(2.0),
            last: step(1.0),
            tokens_per_second: vec![100.0, 300.0, 200.0],
            seconds: vec![0.5],
            waited: 0.1,
            first_evaluation: evaluation(0, 3.0),
            last_evaluation: evaluation(20, 2.5),
            checkpoint: None,
            failed_saves: vec![(10, "no space left\nhint: free some".to_owned())],
            stored: Some((10, "s3://b/p/step-00000010".to_owned())),
            failed_uploads: vec![(20, "cannot write\nhint: look".to_owned())],
            restarts: 2,
            reached: 20,
        };
        let mut facts = Facts::new(Instant::now(), places());
        for rank in &mut facts.ranks {
            let state = StateBytes { parameters: 1 << 20, gradients: 1 << 20, ..StateBytes::default() };
            rank.left = Some((Instant::now(), Left { state, ..Left::default() }));
        }
        facts.ranks[0].left.as_mut().unwrap().1.model_directory = "runs/my run/model".into();
        let members = [1 << 30, 2 << 30].map(|peak| Member { peak_memory_bytes: peak, ..Member::default() });
        let text =
            summary(&story, &Ended { time: Duration::from_secs(30), facts: &facts, members: &members, plan: None });
        assert_eq!(
            text,
            "20 steps in 30 s\n\
             begun again 2 times\n\
             3 of 20 steps were skipped\n\
             1 save failed, the last one after step 10: no space left\n\
             1 upload failed, the last one of step 20: cannot write; the newest checkpoint of this job in the store is that of \
             step 10, s3://b/p/step-00000010\n\
             first step finished after 1.5 s, median step 0.500 s\n\
             loss 2.0000 → 1.0000\n\
             held-out loss 3.0000 → 2.5000 (after step 0 and 20)\n\
             median 200 tokens/s\n\
             waiting for other ranks 20 % of the steps' time (0.1 s of 0.5 s, rank 0)\n\
             peak memory rank 0: 1.00 GiB, rank 1: 2.00 GiB\n\
             state 2.00 MiB (parameters 1.00 MiB, gradients 1.00 MiB) per rank"
        );
        assert!(result(&facts).unwrap().contains("--model 'runs/my run/model'"));
    }
}
