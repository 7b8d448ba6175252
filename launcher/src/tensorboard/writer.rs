//! The event file of one start of a job.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use prost::Message;
use zerofold_proto::v1::{EvaluationRecord, Figure, SourceRecord, StepRecord};

use super::event::{Event, FILE_VERSION, SESSION_START, SessionLog, Summary, What};
use super::folder::EventsFolder;
use super::record::record;
use crate::metrics::{rate, seconds_of};

/// The open file. Every event is written at once, so that a reader sees whole records.
#[derive(Debug)]
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// A new file beside those that are there; `done` steps lie behind, and what other files tell of later ones no longer
    /// counts.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn create(folder: &EventsFolder, done: u64) -> std::io::Result<EventFile> {
        std::fs::create_dir_all(folder.path())?;
        let file = File::options().append(true).create_new(true).open(folder.new_file()?)?;
        let mut events = EventFile { file };
        events.write(0, What::FileVersion(FILE_VERSION.to_owned()))?;
        events.purge(Some(done))?;
        Ok(events)
    }

    /// From here on, what was written of the steps after `done` no longer counts: they are done again. With none, nothing counts.
    pub fn purge(&mut self, done: Option<u64>) -> std::io::Result<()> {
        self.write(done.map_or(0, |done| done + 1), What::SessionLog(SessionLog { status: SESSION_START }))
    }

    /// Adds a step.
    pub fn step(&mut self, record: &StepRecord) -> std::io::Result<()> {
        let scalars = [
            ("train/loss", record.loss),
            ("train/grad_norm", record.grad_norm),
            ("train/learning_rate", record.learning_rate),
            ("train/epoch", record.epoch),
            ("train/tokens_per_second", rate(record.tokens, record.seconds)),
            ("train/step_seconds", record.seconds),
            ("train/communication_seconds", record.communication_seconds),
            ("train/peak_memory_bytes", record.peak_memory_bytes as f64),
        ];
        let scale = (record.loss_scale > 1.0).then_some(("train/loss_scale", record.loss_scale));
        let drawn = record.l2_toward_pretrained.map(|value| ("train/l2_toward_pretrained", value));
        let consolidated = record.ewc_penalty.map(|value| ("train/ewc_penalty", value));
        let others = scale.into_iter().chain(drawn).chain(consolidated);
        let scalars = scalars.into_iter().chain(others).map(|(tag, value)| (tag.to_owned(), value));
        let right = told("train", record.mean_token_accuracy, &record.figures);
        let scalars: Vec<_> = scalars.chain(right).chain(of_sources("train", &record.sources)).collect();
        self.write(record.step, What::Summary(Summary::of(&scalars)))
    }

    /// Adds an evaluation.
    pub fn evaluation(&mut self, record: &EvaluationRecord) -> std::io::Result<()> {
        let scalars = [("eval/loss", record.loss), ("eval/runtime", record.seconds)];
        let scalars = scalars.into_iter().map(|(tag, value)| (tag.to_owned(), value));
        let right = told("eval", record.mean_token_accuracy, &record.figures);
        let scalars: Vec<_> = scalars.chain(right).chain(of_sources("eval", &record.sources)).collect();
        self.write(record.step, What::Summary(Summary::of(&scalars)))
    }

    fn write(&mut self, step: u64, what: What) -> std::io::Result<()> {
        let wall_time = seconds_of(SystemTime::now());
        let event = Event { wall_time, step: i64::try_from(step).unwrap_or(i64::MAX), what: Some(what) };
        self.file.write_all(&record(&event.encode_to_vec()))
    }
}

/// How much was told right: of a language model the share of tokens, of a classifier its figures.
fn told(part: &str, mean_token_accuracy: f64, figures: &[Figure]) -> Vec<(String, f64)> {
    let of_tokens = ("mean_token_accuracy".to_owned(), mean_token_accuracy);
    let of_tokens = Some(of_tokens).filter(|(_, share)| !share.is_nan());
    let figures = figures.iter().map(|Figure { name, value }| (name.clone(), *value));
    of_tokens.into_iter().chain(figures).map(|(name, value)| (format!("{part}/{name}"), value)).collect()
}

/// The losses of the sources that have one, by the tags that transformers' Trainer gives to those of several data sets.
fn of_sources(part: &str, sources: &[SourceRecord]) -> impl Iterator<Item = (String, f64)> {
    let there = sources.iter().filter(|source| source.supervised_tokens > 0);
    there.map(move |source| (format!("{part}/{}_loss", source.label), source.loss))
}

/// Whether a name is that of an event file, as TensorBoard has it.
pub(super) fn is_event_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains("tfevents"))
}

#[cfg(test)]
mod tests {
    use super::super::record::read_all;
    use super::*;

    fn events(folder: &Path) -> Vec<Vec<Event>> {
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let read =
            |path| read_all(&std::fs::read(path).unwrap()).into_iter().map(|data| Event::decode(&data[..]).unwrap());
        files.into_iter().map(|path| read(path).collect()).collect()
    }

    #[test]
    fn a_file_begins_with_its_version_and_the_step_it_starts_at() {
        let folder = tempfile::tempdir().unwrap();
        let place = EventsFolder::at(folder.path().to_owned());
        let mut file = EventFile::create(&place, 0).unwrap();
        let step = StepRecord { step: 1, loss: 0.0, tokens: 10, seconds: 0.5, loss_scale: 8.0, ..Default::default() };
        file.step(&step).unwrap();
        file.evaluation(&EvaluationRecord { step: 1, loss: 2.5, seconds: 0.25, ..Default::default() }).unwrap();
        drop(file);
        // A restart in the same second has a file of its own, which stands after the first.
        EventFile::create(&place, 1).unwrap();
        let files = events(folder.path());
        let [first, second] = &files[..] else { panic!("{files:?}") };
        assert_eq!(first[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        let start = What::SessionLog(SessionLog { status: 1 });
        assert_eq!((first[1].step, first[1].what.as_ref()), (1, Some(&start)));
        assert_eq!((second[1].step, second[1].what.as_ref()), (2, Some(&start)));
        let Some(What::Summary(summary)) = &first[2].what else { panic!("{first:?}") };
        let value =
            |tag: &str| summary.value.iter().find(|value| value.tag == tag).and_then(|value| value.simple_value);
        assert_eq!((value("train/loss"), value("train/tokens_per_second")), (Some(0.0), Some(20.0)));
        assert_eq!((value("train/loss_scale"), value("train/none")), (Some(8.0), None));
        let evaluation = [("eval/loss", 2.5), ("eval/runtime", 0.25), ("eval/mean_token_accuracy", 0.0)];
        assert_eq!(first[3].what, Some(What::Summary(Summary::of(&evaluation))));
        assert!(first.iter().all(|event| event.wall_time > 1.7e9));
    }
}
