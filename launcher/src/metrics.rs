//! `metrics.jsonl`: one JSON object a step, one an evaluation, one a checkpoint or a save that failed, and one each time a
//! model or data of the hub are begun with; each with the time of writing. Numbers that are not finite are written as null.
//! docs/metrics.md tells every field.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;
use zerofold_configs::{HubData, HubModel};
use zerofold_proto::v1::{EvaluationRecord, Figure, Phase, SourceRecord, StepRecord};

#[derive(Serialize)]
struct Step {
    step: u64,
    epoch: f64,
    loss: f64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    loss_by_source: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l2_toward_pretrained: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ewc_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_token_accuracy: Option<f64>,
    #[serde(flatten)]
    figures: BTreeMap<String, f64>,
    grad_norm: f64,
    learning_rate: f64,
    tokens: u64,
    supervised_tokens: u64,
    tokens_per_second: f64,
    supervised_tokens_per_second: f64,
    step_seconds: f64,
    communication_seconds: f64,
    sent_bytes: u64,
    logical_bytes: u64,
    peak_memory_bytes: u64,
    live_peak_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    phase_seconds: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Evaluation {
    step: u64,
    eval_loss: f64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    eval_loss_by_source: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_mean_token_accuracy: Option<f64>,
    #[serde(flatten)]
    figures: BTreeMap<String, f64>,
    eval_supervised_tokens: u64,
    eval_seconds: f64,
}

#[derive(Serialize)]
struct Checkpoint<'a> {
    step: u64,
    checkpoint: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

#[derive(Serialize)]
struct CheckpointFailed<'a> {
    step: u64,
    checkpoint_failed: &'a str,
}

#[derive(Serialize)]
struct Resumed {
    step: u64,
    resumed: u64,
}

#[derive(Serialize)]
struct Restarted<'a> {
    step: u64,
    restart: u64,
    reason: &'a str,
}

#[derive(Serialize)]
struct Model<'a> {
    step: u64,
    model: &'a str,
    model_revision: &'a str,
    model_commit: &'a str,
}

#[derive(Serialize)]
struct Data<'a> {
    step: u64,
    dataset: &'a str,
    dataset_revision: &'a str,
    dataset_commit: &'a str,
    dataset_config: &'a str,
    dataset_split: &'a str,
}

/// What is written, and when.
#[derive(Serialize)]
struct Line<T> {
    #[serde(flatten)]
    object: T,
    time: f64,
}

/// The open file. Every line is written at once, so that a reader sees whole lines.
#[derive(Debug)]
pub struct MetricsFile {
    file: File,
    path: PathBuf,
}

impl MetricsFile {
    /// A new file, replacing what is there.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        Ok(MetricsFile { file: File::create(path)?, path: path.to_owned() })
    }

    /// Goes on after `step`: what an earlier run wrote about later steps is taken out, since they are about to be done again.
    pub fn resume(path: &Path, step: u64) -> std::io::Result<Self> {
        MetricsFile::shortened(path, Some(step))
    }

    fn shortened(path: &Path, after: Option<u64>) -> std::io::Result<Self> {
        let kept = match File::open(path) {
            Ok(file) => lines_until(BufReader::new(file), after)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let partial = path.with_extension("jsonl.partial");
        std::fs::write(&partial, kept)?;
        std::fs::rename(&partial, path)?;
        Ok(MetricsFile { file: File::options().append(true).open(path)?, path: path.to_owned() })
    }

    /// Takes out what was written about what came after a step, since it is about to be done again; with none, about all steps and
    /// what was evaluated before the first.
    pub fn begin_again(&mut self, after: Option<u64>) -> std::io::Result<()> {
        *self = MetricsFile::shortened(&self.path, after)?;
        Ok(())
    }

    /// Tells that a job of its own goes on with the run after `step`, as which membership.
    pub fn resumed(&mut self, step: u64, generation: u64) -> std::io::Result<()> {
        self.line(&Resumed { step, resumed: generation })
    }

    /// Tells that the job was begun again after `step`, as which membership, and why.
    pub fn restart(&mut self, step: u64, generation: u64, reason: &str) -> std::io::Result<()> {
        self.line(&Restarted { step, restart: generation, reason })
    }

    /// Tells of a published checkpoint, by its folder's name in the run folder, and how long after its step it was there.
    pub fn checkpoint(&mut self, step: u64, folder: &Path, after: Option<Duration>) -> std::io::Result<()> {
        self.line(&Checkpoint { step, checkpoint: folder, seconds: after.map(|after| after.as_secs_f64()) })
    }

    /// Tells of a save that failed, and why.
    pub fn checkpoint_failed(&mut self, step: u64, reason: &str) -> std::io::Result<()> {
        self.line(&CheckpointFailed { step, checkpoint_failed: reason })
    }

    /// Tells which model of the hub is trained from here on.
    pub fn model(&mut self, step: u64, HubModel { id, revision, commit }: &HubModel) -> std::io::Result<()> {
        self.line(&Model { step, model: id, model_revision: revision, model_commit: commit })
    }

    /// Tells which data of the hub are used from here on.
    pub fn data(&mut self, step: u64, data: &HubData) -> std::io::Result<()> {
        self.line(&Data {
            step,
            dataset: &data.id,
            dataset_revision: &data.revision,
            dataset_commit: &data.commit,
            dataset_config: &data.config,
            dataset_split: &data.split,
        })
    }

    /// Adds a step.
    pub fn step(&mut self, record: &StepRecord) -> std::io::Result<()> {
        self.line(&Step {
            step: record.step,
            epoch: record.epoch,
            loss: record.loss,
            loss_by_source: loss_by_source(&record.sources),
            l2_toward_pretrained: record.l2_toward_pretrained,
            ewc_penalty: record.ewc_penalty,
            mean_token_accuracy: Some(record.mean_token_accuracy).filter(|share| !share.is_nan()),
            figures: figures("", &record.figures),
            grad_norm: record.grad_norm,
            learning_rate: record.learning_rate,
            tokens: record.tokens,
            supervised_tokens: record.supervised_tokens,
            tokens_per_second: rate(record.tokens, record.seconds),
            supervised_tokens_per_second: rate(record.supervised_tokens, record.seconds),
            step_seconds: record.seconds,
            communication_seconds: record.communication_seconds,
            sent_bytes: record.sent_bytes,
            logical_bytes: record.logical_bytes,
            peak_memory_bytes: record.peak_memory_bytes,
            live_peak_bytes: record.live_peak_bytes,
            loss_scale: Some(record.loss_scale).filter(|scale| *scale > 1.0),
            skipped: Some(record.skipped.clone()).filter(|reason| !reason.is_empty()),
            phase_seconds: phase_seconds(record),
        })
    }

    /// Adds an evaluation.
    pub fn evaluation(&mut self, record: &EvaluationRecord) -> std::io::Result<()> {
        self.line(&Evaluation {
            step: record.step,
            eval_loss: record.loss,
            eval_loss_by_source: loss_by_source(&record.sources),
            eval_mean_token_accuracy: Some(record.mean_token_accuracy).filter(|share| !share.is_nan()),
            figures: figures("eval_", &record.figures),
            eval_supervised_tokens: record.supervised_tokens,
            eval_seconds: record.seconds,
        })
    }

    fn line(&mut self, object: &impl Serialize) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&Line { object, time: seconds_of(SystemTime::now()) })?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

/// A classifier's figures by their names.
fn figures(before: &str, figures: &[Figure]) -> BTreeMap<String, f64> {
    figures.iter().map(|Figure { name, value }| (format!("{before}{name}"), *value)).collect()
}

/// Seconds since the beginning of 1970, to the millisecond.
pub fn seconds_of(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as f64 / 1000.0
}

/// Where the time of a step went, by the names of phases.
pub fn phase_seconds(record: &StepRecord) -> BTreeMap<String, f64> {
    let mut seconds = BTreeMap::new();
    for phase in &record.phases {
        *seconds.entry(phase_name(phase.phase())).or_insert(0.0) += phase.seconds;
    }
    seconds
}

/// The loss of each source of rows by its label.
pub(crate) fn loss_by_source(sources: &[SourceRecord]) -> BTreeMap<String, f64> {
    sources.iter().map(|source| (source.label.clone(), source.loss)).collect()
}

/// `PHASE_FORWARD` as a person reads it.
pub fn phase_name(phase: Phase) -> String {
    let name = phase.as_str_name();
    name.strip_prefix("PHASE_").unwrap_or(name).to_lowercase()
}

/// Units per second; not a number for a time of 0.
pub fn rate(units: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { units as f64 / seconds } else { f64::NAN }
}

/// The lines of steps up to that one; with none, what was told before the first step but its evaluation. What is no whole line of
/// ours (the last one of a killed run) is left out.
fn lines_until(reader: impl BufRead, after: Option<u64>) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    for line in reader.lines() {
        let line = line?;
        let Ok(object) = serde_json::from_str::<Value>(&line) else { continue };
        // That the job was begun again stays so, however far back it goes.
        let of = object.get("step").and_then(Value::as_u64);
        let done =
            of.is_some_and(|of| of <= after.unwrap_or(0)) && (after.is_some() || object.get("eval_loss").is_none());
        if done || object.get("restart").is_some() {
            kept.extend_from_slice(line.as_bytes());
            kept.push(b'\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use zerofold_proto::v1::PhaseTime;

    fn step(step: u64) -> StepRecord {
        StepRecord { step, loss: 1.5, tokens: 100, seconds: 0.5, grad_norm: f64::NAN, ..StepRecord::default() }
    }

    #[test]
    fn every_field_is_documented_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = MetricsFile::create(&path).unwrap();
        let phases = vec![PhaseTime { phase: Phase::Forward.into(), seconds: 0.5 }];
        let sources = vec![SourceRecord { label: "a".into(), loss: f64::NAN, supervised_tokens: 0 }];
        let all = StepRecord {
            loss_scale: 2.0,
            skipped: "why".into(),
            phases,
            sources: sources.clone(),
            l2_toward_pretrained: Some(0.5),
            ewc_penalty: Some(0.25),
            figures: vec![Figure { name: "accuracy".into(), value: 0.5 }],
            ..step(1)
        };
        metrics.step(&all).unwrap();
        let model = HubModel { id: "a/b".to_owned(), revision: "main".to_owned(), commit: "c".to_owned() };
        metrics.model(0, &model).unwrap();
        let [id, revision, commit, config, split] = ["a/b", "main", "c", "default", "train"].map(str::to_owned);
        metrics.data(0, &HubData { id, revision, commit, config, split }).unwrap();
        let figures = vec![Figure { name: "accuracy".into(), value: 0.5 }];
        metrics.evaluation(&EvaluationRecord { sources, figures, ..Default::default() }).unwrap();
        metrics.checkpoint(1, Path::new("checkpoints/step-00000001"), Some(Duration::from_secs(1))).unwrap();
        metrics.checkpoint_failed(1, "why").unwrap();
        metrics.restart(1, 2, "why").unwrap();
        metrics.resumed(1, 3).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let written = text.lines().map(|line| {
            let object: Value = serde_json::from_str(line).unwrap();
            object.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>()
        });
        let document = include_str!("../../docs/metrics.md");
        // A table for each kind of line, in the order in which they were written.
        let documented = document.split("\n## ").skip(1).map(|section| {
            let fields = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
            fields.map(str::to_owned).collect::<BTreeSet<String>>()
        });
        assert_eq!(written.collect::<Vec<_>>(), documented.collect::<Vec<_>>());
    }

    #[test]
    fn a_resumed_file_has_every_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = MetricsFile::create(&path).unwrap();
        for number in 1..=3 {
            metrics.step(&step(number)).unwrap();
        }
        metrics.evaluation(&EvaluationRecord { step: 3, loss: 2.0, ..Default::default() }).unwrap();
        metrics.file.write_all(b"{\"step\": 4, \"lo").unwrap();
        let mut metrics = MetricsFile::resume(&path, 2).unwrap();
        metrics.step(&step(3)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
        let now = seconds_of(SystemTime::now());
        assert!(lines.iter().all(|line| (now - line["time"].as_f64().unwrap()).abs() < 60.0), "{text}");
        assert_eq!(lines[0]["tokens_per_second"], 200.0);
        assert_eq!(lines[0]["grad_norm"], Value::Null);
    }

    #[test]
    fn what_is_evaluated_before_the_first_step_is_there_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = MetricsFile::create(&path).unwrap();
        let model = HubModel { id: "a/b".to_owned(), revision: "main".to_owned(), commit: "c".to_owned() };
        metrics.model(0, &model).unwrap();
        metrics.evaluation(&EvaluationRecord::default()).unwrap();
        metrics.step(&step(1)).unwrap();
        let again = |metrics: &mut MetricsFile, after| {
            metrics.begin_again(after).unwrap();
            metrics.restart(after.unwrap_or(0), 2, "why").unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let is = |key: &str| lines.iter().filter(|line| line.get(key).is_some()).count();
            (is("model"), is("eval_loss"), is("loss"), is("restart"))
        };
        assert_eq!(again(&mut metrics, Some(0)), (1, 1, 0, 1), "it goes on after a checkpoint of step 0");
        assert_eq!(again(&mut metrics, None), (1, 0, 0, 2));
    }
}
