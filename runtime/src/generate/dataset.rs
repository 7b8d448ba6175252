//! A data set answered by the ranks of a job: `worker answer`. Each rank has every so manieth row, and writes its answers to a file of its
//! own, which `launch` puts together.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use zerofold_configs::{GenerateRequest, Resolved};
use zerofold_data::{ChatTemplate, Columns, Conversation, Message, Row, RowReader, Sources};
use zerofold_proto::v1::LeaveRequest;

use super::generator::Prompt;
use super::sequence::{Segmented, Visit};
use super::{Generator, generator, template};
use crate::comm::{Activity, Phase};
use crate::control::Control;
use crate::evaluate::untrained;
use crate::model::Transformer;
use crate::trainer::{TrainError, Trainer};
use crate::worker::{Environment, WorkerError, as_rank};

/// One line of the output.
#[derive(Serialize)]
struct Answered<'a> {
    /// The conversation up to the answer, as the template renders it.
    prompt: &'a str,
    /// What the model said.
    answer: &'a str,
    /// What the data set says.
    expected: &'a str,
    /// Whether the two are equal, white space at both ends apart.
    #[serde(rename = "match")]
    matches: bool,
}

/// Answers as the rank that the environment names; tells whether its work is done. Where it is not, `launch` knows why and
/// shows it.
///
/// # Errors
/// What `launch` could not be told.
pub fn answer_as_rank() -> Result<bool, WorkerError> {
    as_rank(answer_joined)
}

fn answer_joined(
    environment: &Environment,
    config: &Resolved,
    control: &Control,
    activity: Arc<Activity>,
) -> Result<(), WorkerError> {
    let (_device, mut trainer) = untrained(environment, config, control, activity.clone())?;
    let (rank, world_size) = (trainer.shards.comm().rank(), trainer.shards.comm().world_size());
    activity.enter(Phase::Evaluation);
    let _no_gradients = tch::no_grad_guard();
    let folder = &config.training.output_dir;
    // What loading left under way among the ranks is waited for, also by one that has no row.
    trainer.each_segment(&mut |_, _, _| Ok::<(), TrainError>(()))?;
    let sharded = config.sharding.stage.shards_parameters();
    let answers = || {
        let text = std::fs::read_to_string(folder.join(GenerateRequest::FILE)).context("reading the request")?;
        let request: GenerateRequest = serde_json::from_str(&text).context("reading the request")?;
        let generator = generator(&request, Box::new(ShardedModel { trainer, sharded }))?;
        let batch = config.training.per_device_eval_batch_size as usize;
        Ranked { request: &request, rank, world_size, batch }.answer(generator, folder)
    };
    answers().map_err(WorkerError::Generate)?;
    control.leave(LeaveRequest::default())?;
    Ok(())
}

/// A model over the ranks' shards.
struct ShardedModel {
    trainer: Trainer,
    /// Whether parameters are gathered, by all ranks at the same time.
    sharded: bool,
}

impl Segmented for ShardedModel {
    fn transformer(&self) -> &Transformer {
        &self.trainer.model
    }

    fn each_segment(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        self.trainer.each_segment(visit)
    }

    fn any_rank(&self, busy: bool) -> Result<bool> {
        if !self.sharded {
            return Ok(busy);
        }
        let all = self.trainer.shards.comm().exchange(&[f64::from(busy)])?;
        Ok(all.iter().any(|of_rank| of_rank[0] > 0.0))
    }
}

/// What one rank is to answer.
pub(super) struct Ranked<'a> {
    pub(super) request: &'a GenerateRequest,
    pub(super) rank: usize,
    pub(super) world_size: usize,
    /// Rows that are answered side by side.
    pub(super) batch: usize,
}

impl Ranked<'_> {
    /// Answers this rank's rows up to their last assistant turns, and compares with these turns. Each answer is a line of this rank's
    /// file in the folder: the row's number, a tab, JSON.
    ///
    /// # Errors
    /// Rows without an assistant turn (file and line are named), an output that cannot be written, and what generating says.
    pub(super) fn answer(&self, mut generator: Generator, folder: &Path) -> Result<()> {
        let template = template(self.request, &generator)?;
        let path = GenerateRequest::answers(folder, self.rank);
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut output = BufWriter::new(file);
        let dataset = self.request.dataset.as_deref().context("the request names no data set")?;
        let (sources, columns) =
            (Sources::find(&[dataset.to_string_lossy()])?, Columns::new(self.request.column_mapping.clone(), None)?);
        let rows = RowReader::new(&sources, &columns).take(self.request.limit.unwrap_or(usize::MAX));
        let mut rows = rows.enumerate().filter(|(number, _)| number % self.world_size == self.rank);
        // Prompts that are being answered, and what the answers should be.
        let asked: RefCell<HashMap<u64, (String, String)>> = RefCell::default();
        let mut next = || {
            let Some((number, row)) = rows.next() else { return Ok(None) };
            let (place, row) = row?;
            let (number, place) = (number as u64, place.to_string());
            let (text, expected) = prompt(&template, row).with_context(|| place.clone())?;
            asked.borrow_mut().insert(number, (text.clone(), expected));
            Ok(Some(Prompt { number, text, place }))
        };
        let mut done = |number: u64, answer: String| {
            let (prompt, expected) = asked.borrow_mut().remove(&number).unwrap_or_default();
            let matches = answer.trim() == expected.trim();
            let answered = Answered { prompt: &prompt, answer: &answer, expected: &expected, matches };
            let line = format!("{number}\t{}\n", serde_json::to_string(&answered)?);
            // Flushed line by line: `launch` counts them.
            let written = output.write_all(line.as_bytes()).and_then(|()| output.flush());
            written.with_context(|| format!("cannot write {}", path.display()))
        };
        generator.answer_all(self.batch, &mut next, &mut done)
    }
}

/// The prompt of a row, and what the answer should be.
fn prompt(template: &ChatTemplate, row: Row) -> Result<(String, String)> {
    let (conversation, expected) = split(row)?;
    Ok((template.render(&conversation, true)?, expected))
}

/// The messages before the last assistant turn, and what that turn says.
fn split(row: Row) -> Result<(Conversation, String)> {
    let Some(mut conversation) = row.into_conversation() else {
        bail!("the row is no conversation\nhint: answers are compared as text; give rows with `messages`");
    };
    let messages = &mut conversation.messages;
    let Some(last) = messages.iter().rposition(Message::is_assistant) else {
        bail!("the conversation has no assistant turn to compare with\nhint: end each row with the right answer");
    };
    let expected = messages[last].content().to_owned();
    messages.truncate(last);
    Ok((conversation, expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_data::Role;

    #[test]
    fn the_last_assistant_turn_is_the_answer() {
        let message = |role, text: &str| Message::new(role, text);
        let row = Row::Conversation(Conversation::from(vec![
            message(Role::User, "one"),
            message(Role::Assistant, "first"),
            message(Role::User, "two"),
            message(Role::Assistant, "second"),
            message(Role::User, "thanks"),
        ]));
        let (conversation, expected) = split(row).expect("a turn");
        let texts: Vec<&str> = conversation.messages.iter().map(|message| message.content()).collect();
        assert_eq!((texts, expected.as_str()), (vec!["one", "first", "two"], "second"));
        assert!(split(Row::Conversation(vec![message(Role::User, "one")].into())).is_err());
        assert!(split(Row::Tokens { input_ids: vec![1], labels: vec![1] }).is_err());
    }
}
