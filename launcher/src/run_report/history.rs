//! What happened in a run, as its `metrics.jsonl` tells.

use std::collections::BTreeMap;
use std::io::BufRead;

use serde_json::Value;

/// A step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Step {
    pub(super) step: u64,
    /// Hours of work since the run began, in seconds; what lies between two jobs of the run is left out.
    pub(super) at: f64,
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
    pub(super) learning_rate: f64,
    pub(super) tokens: f64,
    pub(super) tokens_per_second: f64,
    pub(super) seconds: f64,
    pub(super) communication: f64,
    pub(super) process_bytes: f64,
    pub(super) live_bytes: f64,
    pub(super) phases: BTreeMap<String, f64>,
    pub(super) skipped: bool,
    pub(super) told: Told,
}

/// The figures that are told of rows, where a run tells them: the name, a title, and what it is.
pub(super) const FIGURES: [(&str, &str, &str); 8] = [
    ("mean_token_accuracy", "Tokens right", "The share of the supervised tokens that were the most probable ones"),
    ("accuracy", "Accuracy", "The share of rows that were told right"),
    ("f1", "F1", "Of held-out rows"),
    ("matthews_correlation", "Matthews correlation", "Of held-out rows"),
    ("mse", "Squared error", "The mean over held-out rows"),
    ("pearson", "Pearson correlation", "Of held-out rows"),
    ("l2_toward_pretrained", "L2 toward the pretrained weights", "What is added to the loss"),
    ("ewc_penalty", "EWC", "What is added to the loss for the distance that the Fisher information measures"),
];

/// What is told of rows, of a step or held-out ones: [`FIGURES`] by name, losses by source.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    pub(super) figures: BTreeMap<String, f64>,
    pub(super) loss_by_source: BTreeMap<String, f64>,
}

/// Something else that happened.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Happened {
    /// After this step.
    pub(super) step: u64,
    /// As [`Step::at`].
    pub(super) at: f64,
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    /// A pass over the held-out rows: its loss, and what else it told.
    Evaluation(f64, Told),
    /// A published checkpoint, and the seconds from its step to it, where they are known.
    Checkpoint(Option<f64>),
    /// A save that failed, and why.
    FailedSave(String),
    /// The workers were begun again, and why.
    Restart(String),
    /// Another job went on with the run.
    Resumed,
}

/// A run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    /// By number, each once.
    pub(super) steps: Vec<Step>,
    /// In the order in which it happened.
    pub(super) happened: Vec<Happened>,
}

/// The times of a run's lines on one clock that stands still between its jobs.
#[derive(Default)]
struct Clock {
    began: Option<f64>,
    last: f64,
    left_out: f64,
}

impl Clock {
    /// The time of a line, which took `seconds` until then.
    fn at(&mut self, line: &Value, seconds: f64) -> f64 {
        let Some(time) = line["time"].as_f64() else {
            // Of an earlier version, which wrote down no times.
            self.last += seconds;
            return self.last;
        };
        let began = *self.began.get_or_insert(time - seconds - self.last);
        // A clock that was set back must not turn curves round.
        self.last = (time - began - self.left_out).max(self.last);
        self.last
    }

    /// Another job begins now: what lies between does not count.
    fn resume(&mut self, line: &Value) {
        if let (Some(time), Some(began)) = (line["time"].as_f64(), self.began) {
            self.left_out = (time - began - self.last).max(self.left_out);
        }
    }
}

impl History {
    /// Reads `metrics.jsonl`; lines of unknown kinds, and what is no whole line, are passed over.
    pub(super) fn read(reader: impl BufRead) -> std::io::Result<History> {
        let mut steps = BTreeMap::new();
        let (mut happened, mut clock) = (Vec::new(), Clock::default());
        for line in reader.split(b'\n') {
            let Ok(line) = serde_json::from_slice::<Value>(&line?) else { continue };
            let Some(step) = line["step"].as_u64() else { continue };
            if line.get("loss").is_some() {
                let step = read_step(&line, step, &mut clock);
                // A step that was done again counts as it was done last.
                steps.insert(step.step, step);
                continue;
            }
            if line.get("resumed").is_some() {
                clock.resume(&line);
            }
            let Some((what, seconds)) = read_what(&line) else { continue };
            happened.push(Happened { step, at: clock.at(&line, seconds), what });
        }
        Ok(History { steps: steps.into_values().collect(), happened })
    }

    /// The passes over held-out rows, each with its loss and what else it told.
    pub(super) fn evaluations(&self) -> impl Iterator<Item = (&Happened, f64, &Told)> {
        self.happened.iter().filter_map(|it| match &it.what {
            What::Evaluation(loss, told) => Some((it, *loss, told)),
            _ => None,
        })
    }

    /// How many things like this happened.
    pub(super) fn count(&self, like: fn(&What) -> bool) -> u64 {
        self.happened.iter().filter(|it| like(&it.what)).count() as u64
    }

    /// Seconds of work.
    pub(super) fn seconds(&self) -> f64 {
        let ends = self.steps.iter().map(|step| step.at).chain(self.happened.iter().map(|it| it.at));
        ends.fold(0.0, f64::max)
    }
}

fn read_step(line: &Value, step: u64, clock: &mut Clock) -> Step {
    let number = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
    let phases = line["phase_seconds"].as_object().into_iter().flatten();
    let seconds = number("step_seconds");
    Step {
        step,
        at: clock.at(line, if seconds.is_finite() { seconds } else { 0.0 }),
        loss: number("loss"),
        grad_norm: number("grad_norm"),
        learning_rate: number("learning_rate"),
        tokens: number("tokens"),
        tokens_per_second: number("tokens_per_second"),
        seconds,
        communication: number("communication_seconds"),
        process_bytes: number("peak_memory_bytes"),
        live_bytes: number("live_peak_bytes"),
        phases: phases.filter_map(|(phase, seconds)| Some((phase.clone(), seconds.as_f64()?))).collect(),
        skipped: line.get("skipped").is_some(),
        told: read_told(line, ""),
    }
}

/// What a line tells of rows under names that begin so.
fn read_told(line: &Value, begin: &str) -> Told {
    let figures = FIGURES.iter().filter_map(|(name, ..)| {
        let value = line[format!("{begin}{name}")].as_f64()?;
        Some(((*name).to_owned(), value))
    });
    let by_source = line[format!("{begin}loss_by_source")].as_object().into_iter().flatten();
    let by_source = by_source.filter_map(|(label, loss)| Some((label.clone(), loss.as_f64()?)));
    Told { figures: figures.collect(), loss_by_source: by_source.collect() }
}

/// What a line tells that is no step, and the seconds that it took.
fn read_what(line: &Value) -> Option<(What, f64)> {
    let words = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    if let Some(loss) = line.get("eval_loss") {
        let seconds = line["eval_seconds"].as_f64().unwrap_or(0.0);
        return Some((What::Evaluation(loss.as_f64().unwrap_or(f64::NAN), read_told(line, "eval_")), seconds));
    }
    let what = if line.get("checkpoint").is_some() {
        What::Checkpoint(line["seconds"].as_f64())
    } else if line.get("checkpoint_failed").is_some() {
        What::FailedSave(words("checkpoint_failed"))
    } else if line.get("restart").is_some() {
        What::Restart(words("reason"))
    } else if line.get("resumed").is_some() {
        What::Resumed
    } else {
        return None;
    };
    Some((what, 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> History {
        History::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_run_is_put_together_from_its_lines() {
        let history = read(
            "{\"step\":0,\"eval_loss\":3.0,\"eval_f1\":0.5,\"eval_loss_by_source\":{\"eval_a\":1.0,\"b\":null},\
              \"eval_seconds\":2.0,\"time\":102.0}\n\
             {\"step\":1,\"loss\":2.0,\"step_seconds\":1.0,\"phase_seconds\":{\"forward\":0.5},\"time\":103.0}\n\
             {\"step\":2,\"loss\":null,\"step_seconds\":1.0,\"skipped\":\"why\",\"time\":104.0}\n\
             {\"step\":1,\"checkpoint\":\"checkpoints/step-00000001\",\"seconds\":1.5,\"time\":104.5}\n\
             {\"step\":1,\"restart\":2,\"reason\":\"rank 1 was killed\",\"time\":110.0}\n\
             {\"step\":2,\"loss\":1.5,\"step_seconds\":1.0,\"time\":112.0}\n\
             not json\n{\"step\":2,\"new_kind\":1,\"time\":113.0}\n{\"step\":3,\"lo",
        );
        assert_eq!(history.steps.iter().map(|step| (step.step, step.at)).collect::<Vec<_>>(), [(1, 3.0), (2, 12.0)]);
        assert_eq!((history.steps[1].loss, history.steps[1].skipped), (1.5, false), "as it was done last");
        assert_eq!(history.steps[0].phases["forward"], 0.5);
        let (evaluation, _, told) = history.evaluations().next().unwrap();
        assert_eq!((told.figures["f1"], &told.loss_by_source), (0.5, &[("eval_a".to_owned(), 1.0)].into()));
        assert_eq!((evaluation.step, evaluation.at, &evaluation.what), (0, 2.0, &What::Evaluation(3.0, told.clone())));
        let happened: Vec<_> = history.happened[1..].iter().map(|it| (it.step, it.at, it.what.clone())).collect();
        let restart = What::Restart("rank 1 was killed".to_owned());
        let checkpoint = What::Checkpoint(Some(1.5));
        assert_eq!(happened, [(1, 4.5, checkpoint), (1, 10.0, restart)]);
        assert_eq!((history.seconds(), history.count(|what| matches!(what, What::Restart(_)))), (12.0, 1));
    }

    #[test]
    fn what_lies_between_two_jobs_does_not_count_and_clocks_may_be_set_back() {
        let step =
            |step: u64, time: f64| format!("{{\"step\":{step},\"loss\":1.0,\"step_seconds\":1.0,\"time\":{time}}}\n");
        let resumed = |time: f64| format!("{{\"step\":1,\"resumed\":2,\"time\":{time}}}\n");
        let text =
            [step(1, 1001.0), resumed(90_000.0), step(2, 90_003.0), resumed(500_000.0), step(3, 500_002.0)].concat();
        let at = |history: &History| history.steps.iter().map(|step| step.at).collect::<Vec<_>>();
        assert_eq!(at(&read(&text)), [1.0, 4.0, 6.0]);
        assert_eq!(at(&read(&[step(1, 1001.0), step(2, 900.0), step(3, 1003.0)].concat())), [1.0, 1.0, 3.0]);
        let old = "{\"step\":1,\"loss\":1.0,\"step_seconds\":2.0}\n{\"step\":2,\"loss\":1.0,\"step_seconds\":3.0}\n";
        assert_eq!(at(&read(old)), [2.0, 5.0], "a file without times");
        assert_eq!(read(""), History::default());
    }
}
