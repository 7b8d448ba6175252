//! What is written down of a job while it runs: `metrics.jsonl`, and TensorBoard's event files where they were asked for.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use zerofold_proto::v1::{EvaluationRecord, StepRecord};

use crate::error::LaunchError;
use crate::metrics::MetricsFile;
use crate::supervise::restart::Restart;
use crate::tensorboard::EventFile;
use crate::terminal::Terminal;

/// Of so many steps it is remembered when they ended; a save is told long before so many more are taken.
const STEPS_REMEMBERED: usize = 1024;

/// The files that are written to.
pub(crate) struct Records {
    terminal: Arc<Terminal>,
    metrics: MetricsFile,
    events: Option<EventFile>,
    metrics_failed: bool,
    events_failed: bool,
    ended: VecDeque<(u64, Instant)>,
}

impl Records {
    pub(crate) fn new(terminal: Arc<Terminal>, metrics: MetricsFile, events: Option<EventFile>) -> Records {
        Records { terminal, metrics, events, metrics_failed: false, events_failed: false, ended: VecDeque::new() }
    }

    pub(crate) fn step(&mut self, record: &StepRecord) {
        if self.ended.len() == STEPS_REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((record.step, Instant::now()));
        let written = self.metrics.step(record);
        self.check_metrics(written);
        let written = self.events.as_mut().map_or(Ok(()), |events| events.step(record));
        self.check_events(written);
    }

    pub(crate) fn evaluation(&mut self, record: &EvaluationRecord) {
        let written = self.metrics.evaluation(record);
        self.check_metrics(written);
        let written = self.events.as_mut().map_or(Ok(()), |events| events.evaluation(record));
        self.check_events(written);
    }

    pub(crate) fn checkpoint(&mut self, step: u64, directory: &Path) {
        let ended = self.ended.iter().rev().find(|(of, _)| *of == step);
        let after = ended.map(|(_, ended)| ended.elapsed());
        let written = self.metrics.checkpoint(step, &in_the_run_folder(directory), after);
        self.check_metrics(written);
    }

    pub(crate) fn checkpoint_failed(&mut self, step: u64, reason: &str) {
        let written = self.metrics.checkpoint_failed(step, reason);
        self.check_metrics(written);
    }

    /// The job was begun again: what came after its step is about to be done again.
    ///
    /// # Errors
    /// What was written of that cannot be taken back.
    pub(crate) fn restarted(&mut self, restart: &Restart) -> Result<(), LaunchError> {
        self.metrics.begin_again(restart.after).map_err(LaunchError::system("write metrics.jsonl"))?;
        let written = self.metrics.restart(restart.after.unwrap_or(0), restart.generation, &restart.reason);
        self.check_metrics(written);
        let written = self.events.as_mut().map_or(Ok(()), |events| events.purge(restart.after));
        self.check_events(written);
        Ok(())
    }

    /// A full disk does not end the job, which may still save elsewhere; but it is told, once.
    fn check_metrics(&mut self, written: std::io::Result<()>) {
        tell_once(&mut self.metrics_failed, &self.terminal, "metrics.jsonl is not complete", written);
    }

    fn check_events(&mut self, written: std::io::Result<()>) {
        tell_once(&mut self.events_failed, &self.terminal, "TensorBoard's event file is not complete", written);
    }
}

fn tell_once(told: &mut bool, terminal: &Terminal, what: &str, written: std::io::Result<()>) {
    if let Err(error) = written
        && !std::mem::replace(told, true)
    {
        terminal.complain(&format!("warning: {what}: {error}"));
    }
}

/// `checkpoints/step-00000020` of its path: a run folder may be moved.
pub(crate) fn in_the_run_folder(directory: &Path) -> PathBuf {
    let names: Vec<_> = directory.components().rev().take(2).collect();
    names.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_told_by_its_name_and_the_time_since_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let metrics = MetricsFile::create(&path).unwrap();
        let mut records = Records::new(Arc::new(Terminal::silent()), metrics, None);
        records.step(&StepRecord { step: 4, ..StepRecord::default() });
        records.checkpoint(4, Path::new("/runs/x/checkpoints/step-00000004"));
        records.checkpoint(3, Path::new("/runs/x/checkpoints/step-00000003"));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[1]["checkpoint"], "checkpoints/step-00000004");
        assert!(lines[1]["seconds"].as_f64().unwrap() < 60.0 && lines[2].get("seconds").is_none(), "{text}");
    }
}
