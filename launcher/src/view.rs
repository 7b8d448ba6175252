//! What a person sees of a running job: a progress line on a terminal, plain lines elsewhere; what happens is passed on to the
//! board and to the files that record it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerofold_proto::v1::{EvaluationRecord, Figure, SourceRecord, StepRecord};

use crate::control::ControlPlane;
use crate::error::LaunchError;
use crate::event::Event;
use crate::format;
use crate::logs;
use crate::metrics::rate;
use crate::records::Records;
use crate::supervise::Observer;
use crate::supervise::restart::Restart;
use crate::terminal::Terminal;
use crate::watch::Board;

/// What the summary at the end is made of.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// From the start of `launch` to the first finished step.
    pub first_step_after: Option<Duration>,
    /// Steps seen.
    pub steps: u64,
    /// How many of them were skipped.
    pub skipped: u64,
    /// The first step.
    pub first: Option<StepRecord>,
    /// The newest step.
    pub last: Option<StepRecord>,
    /// Tokens per second of every step.
    pub tokens_per_second: Vec<f64>,
    /// Seconds of every step.
    pub seconds: Vec<f64>,
    /// Seconds that rank 0 waited for other ranks, over all steps.
    pub waited: f64,
    /// The first pass over the held-out rows.
    pub first_evaluation: Option<EvaluationRecord>,
    /// The newest pass over the held-out rows.
    pub last_evaluation: Option<EvaluationRecord>,
    /// The newest published checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Checkpoints that could not be saved: the step, and why.
    pub failed_saves: Vec<(u64, String)>,
    /// The newest checkpoint in the store: the step, and where.
    pub stored: Option<(u64, String)>,
    /// Checkpoints that could not be put into the store: the step, and why.
    pub failed_uploads: Vec<(u64, String)>,
    /// How often the job was begun again.
    pub restarts: u32,
    /// The step that the run is at.
    pub reached: u64,
}

/// Shows and records what happens.
pub struct View {
    terminal: Arc<Terminal>,
    records: Records,
    board: Arc<Board>,
    began: Instant,
    total: u64,
    logging_steps: u64,
    story: Story,
}

impl View {
    /// A view of a job of `total` steps, `done` of which lie behind, that began at `began`.
    pub(crate) fn new(
        terminal: Arc<Terminal>,
        records: Records,
        board: Arc<Board>,
        began: Instant,
        (total, done): (u64, u64),
        logging_steps: u32,
    ) -> Self {
        terminal.start_progress(total, done);
        View {
            terminal,
            records,
            board,
            began,
            total,
            logging_steps: u64::from(logging_steps).max(1),
            story: Story::default(),
        }
    }

    /// Ends the progress line; hands out what happened.
    pub fn finish(self) -> Story {
        self.terminal.end_progress();
        self.story
    }

    fn step(&mut self, record: &StepRecord, control: &ControlPlane) {
        self.records.step(record);
        let story = &mut self.story;
        logs::at_step(record.step);
        story.first_step_after.get_or_insert_with(|| self.began.elapsed());
        story.steps += 1;
        story.first.get_or_insert_with(|| record.clone());
        story.last = Some(record.clone());
        story.reached = record.step;
        story.tokens_per_second.push(rate(record.tokens, record.seconds));
        story.seconds.push(record.seconds);
        story.waited += record.communication_seconds;
        if !record.skipped.is_empty() {
            let StepRecord { step, loss, grad_norm, skipped, .. } = record;
            let numbers = format!("loss {loss}, gradient norm {grad_norm}");
            story.skipped += 1;
            self.terminal.complain(&format!("warning: step {step} was skipped ({numbers}): {skipped}"));
        }
        let left = self.board.remaining();
        let memory = control.look(|members| members.iter().map(|member| member.memory_bytes).max().unwrap_or(0));
        let memory = memory.max(if memory == 0 { record.peak_memory_bytes } else { 0 });
        if self.terminal.is_live() {
            self.terminal.progress(record.step, progress_message(record, memory, left));
        } else if record.step == 1 || record.step.is_multiple_of(self.logging_steps) || record.step == self.total {
            self.terminal.say(&plain_line(record, self.total, memory, left));
        }
    }

    fn evaluation(&mut self, record: &EvaluationRecord) {
        self.records.evaluation(record);
        self.story.first_evaluation.get_or_insert_with(|| record.clone());
        self.story.last_evaluation = Some(record.clone());
        let EvaluationRecord {
            step, loss, supervised_tokens, seconds, sources, mean_token_accuracy, without_gain, ..
        } = record;
        let of_classifier = mean_token_accuracy.is_nan();
        let counted = if of_classifier { "row" } else { "supervised token" };
        let tokens = format::plural(*supervised_tokens, counted);
        let time = format::duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
        let right = told_right(record);
        self.terminal.say(&format!(
            "held-out loss after step {step}: {loss:.4}{}{right} ({tokens}, {time})",
            by_source(sources)
        ));
        if *without_gain > 0 {
            let evaluations = format::plural(u64::from(*without_gain), "evaluation");
            self.terminal.say(&format!(
                "training ends early after step {step}: {evaluations} of which none was better (early_stopping_patience)"
            ));
        }
    }
}

/// How much of held-out rows was told right, to follow their loss.
fn told_right(record: &EvaluationRecord) -> String {
    if !record.figures.is_empty() {
        return record.figures.iter().map(|Figure { name, value }| format!(", {name} {value:.4}")).collect();
    }
    match record.mean_token_accuracy {
        share if share.is_nan() => String::new(),
        share => format!(", {:.1} % of tokens right", 100.0 * share),
    }
}

impl Observer for View {
    fn event(&mut self, event: &Event, control: &ControlPlane) {
        self.board.event(event);
        match event {
            Event::Steps(records) => records.iter().for_each(|record| self.step(record, control)),
            Event::Evaluations(records) => records.iter().for_each(|record| self.evaluation(record)),
            Event::Checkpoint { step, directory } => {
                self.records.checkpoint(*step, Path::new(directory));
                self.story.checkpoint = Some(PathBuf::from(directory));
                self.terminal.say(&format!("checkpoint of step {step}: {directory}"));
            }
            Event::CheckpointFailed { step, reason } => {
                self.terminal.complain(&format!("error: no checkpoint of step {step}: {reason}"));
                self.records.checkpoint_failed(*step, reason);
                self.story.failed_saves.push((*step, reason.clone()));
            }
            Event::Stored { step, url, bytes, time } => {
                let (size, time) = (format::bytes(*bytes), format::duration(*time));
                self.terminal.say(&format!("checkpoint of step {step} in the store: {url} ({size} in {time})"));
                self.story.stored = Some((*step, url.clone()));
            }
            Event::StoreFailed { step, url, reason } => {
                self.terminal.complain(&format!("error: the checkpoint of step {step} is not in {url}: {reason}"));
                self.story.failed_uploads.push((*step, reason.clone()));
            }
            Event::StoreSkipped { step } => {
                let why = "a newer one waits for the store by now";
                self.terminal.complain(&format!("note: the checkpoint of step {step} is not uploaded: {why}"));
            }
            _ => {}
        }
    }

    fn notice(&mut self, text: &str) {
        self.terminal.complain(text);
    }

    fn restarted(&mut self, restart: &Restart) -> Result<(), LaunchError> {
        self.records.restarted(restart)?;
        let step = restart.after.unwrap_or(0);
        logs::at_step(step);
        self.story.begin_again(step);
        self.total = restart.total;
        self.terminal.end_progress();
        self.terminal.start_progress(self.total, step);
        Ok(())
    }

    fn hang(&mut self, words: Option<&str>) {
        self.board.hang(words);
    }
}

impl Story {
    /// What came after `step` is about to be done again.
    fn begin_again(&mut self, step: u64) {
        self.restarts += 1;
        let undone = self.reached.saturating_sub(step).min(self.steps);
        self.reached = step;
        self.steps -= undone;
        let kept = self.seconds.len().saturating_sub(undone as usize);
        self.seconds.truncate(kept);
        self.tokens_per_second.truncate(kept);
    }
}

fn left_words(left: Option<Duration>) -> String {
    left.map(|left| format!("{} left", format::duration(left))).unwrap_or_else(|| "done".to_owned())
}

/// What matters most stands first: a narrow terminal cuts the end.
fn progress_message(record: &StepRecord, memory: u64, left: Option<Duration>) -> String {
    format!(
        "loss {:.4} · {} tokens/s · {} · norm {:.3} · lr {:.2e} · {}/rank",
        record.loss,
        format::figure(rate(record.tokens, record.seconds)),
        left_words(left),
        record.grad_norm,
        record.learning_rate,
        format::bytes(memory)
    )
}

/// The loss of each of several sources, in square brackets; of those without a token a dash.
fn by_source(sources: &[SourceRecord]) -> String {
    let words = |source: &SourceRecord| match source.supervised_tokens {
        0 => format!("{} –", source.label),
        _ => format!("{} {:.4}", source.label, source.loss),
    };
    match sources {
        [] => String::new(),
        sources => format!(" [{}]", sources.iter().map(words).collect::<Vec<_>>().join(", ")),
    }
}

fn plain_line(record: &StepRecord, total: u64, memory: u64, left: Option<Duration>) -> String {
    let counted = if record.mean_token_accuracy.is_nan() { "rows" } else { "supervised" };
    format!(
        "step {}/{total}  epoch {:.2}  loss {:.4}{}{}{}  lr {:.2e}  grad_norm {:.3}  {} tokens/s ({} {counted})  {:.2} s/step  \
         {}/rank  {}",
        record.step,
        record.epoch,
        record.loss,
        by_source(&record.sources),
        record.l2_toward_pretrained.map_or(String::new(), |value| format!("  l2_toward_pretrained {value:.2e}")),
        record.ewc_penalty.map_or(String::new(), |value| format!("  ewc_penalty {value:.2e}")),
        record.learning_rate,
        record.grad_norm,
        format::figure(rate(record.tokens, record.seconds)),
        format::figure(rate(record.supervised_tokens, record.seconds)),
        record.seconds,
        format::bytes(memory),
        left_words(left)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_everything_about_its_step() {
        let record = StepRecord {
            step: 20,
            epoch: 0.5,
            loss: 1.23456,
            grad_norm: 0.8125,
            learning_rate: 2e-5,
            tokens: 3000,
            supervised_tokens: 600,
            seconds: 1.5,
            ..StepRecord::default()
        };
        let left = Some(Duration::from_secs(120));
        assert_eq!(
            plain_line(&record, 100, 3 << 29, left),
            "step 20/100  epoch 0.50  loss 1.2346  lr 2.00e-5  grad_norm 0.812  2,000 tokens/s (400 supervised)  \
             1.50 s/step  1.50 GiB/rank  2 min 00 s left"
        );
        let source =
            |label: &str, supervised_tokens| SourceRecord { label: label.into(), loss: 2.5, supervised_tokens };
        let sources = vec![source("chats", 7), source("wiki", 0)];
        let line = plain_line(&StepRecord { sources, ..record }, 100, 3 << 29, left);
        assert!(line.contains("  loss 1.2346 [chats 2.5000, wiki –]  lr 2.00e-5"), "{line}");
    }
}
