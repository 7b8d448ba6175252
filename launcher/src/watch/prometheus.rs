//! The job's figures in Prometheus' text format, version 0.0.4.
//!
//! Names follow Prometheus' conventions: base units, `_total` for what only grows while `launch` runs. docs/watching.md has
//! the table.

use std::collections::BTreeMap;
use std::fmt::Write;

use zerofold_proto::v1::{JobStatus, RankStatus, StatusReply};

/// What the format is called in HTTP.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Labels of a sample, and its value.
type Sample = (Vec<(&'static str, String)>, f64);

/// Whether a figure goes up and down, or only grows.
#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
}
use Kind::{Counter, Gauge};

/// The whole page.
pub(crate) fn exposition(status: &StatusReply) -> String {
    let mut page = Page::default();
    page.one("up", Gauge, "Whether the job is there.", Some(1.0));
    if let Some(job) = &status.job {
        page.job(job);
    }
    page.ranks(&status.ranks);
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn one(&mut self, name: &str, kind: Kind, help: &str, value: Option<f64>) {
        self.family(name, kind, help, value.map(|value| (Vec::new(), value)));
    }

    /// A figure with all its samples; nothing where there are none.
    fn family(&mut self, name: &str, kind: Kind, help: &str, samples: impl IntoIterator<Item = Sample>) {
        let kind = match kind {
            Gauge => "gauge",
            Counter => "counter",
        };
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            let _ = write!(self.text, "# HELP zerofold_{name} {help}\n# TYPE zerofold_{name} {kind}\n");
        }
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escape(text))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.text, "zerofold_{name}{labels} {}", number(value));
        }
    }

    fn job(&mut self, job: &JobStatus) {
        let labels = vec![("run", job.run.clone()), ("version", env!("CARGO_PKG_VERSION").to_owned())];
        self.family("job_info", Gauge, "The run folder, and the version of launch.", [(labels, 1.0)]);
        let total = Some(job.total_steps).filter(|total| *total > 0).map(|total| total as f64);
        self.one("step", Gauge, "Optimizer steps finished.", Some(job.step as f64));
        self.one("planned_steps", Gauge, "Optimizer steps that the job is to have.", total);
        self.one("elapsed_seconds", Gauge, "Time since launch was started.", Some(job.elapsed_seconds));
        self.one("remaining_seconds", Gauge, "Time that the job will still take.", job.remaining_seconds);
        self.one("generation", Gauge, "Which membership of the job this is.", Some(job.generation as f64));
        for (name, help, count) in [
            ("restarts_total", "Restarts of the workers.", job.restarts),
            ("tokens_total", "Tokens trained on, without padding.", job.tokens),
            ("sent_bytes_total", "Bytes that rank 0 sent to other ranks.", job.sent_bytes),
            ("skipped_steps_total", "Optimizer steps that were not taken.", job.skipped_steps),
            ("evaluations_total", "Passes over the held-out rows.", job.evaluations),
            ("checkpoints_total", "Checkpoints published.", job.checkpoints),
            ("failed_checkpoints_total", "Saves that failed.", job.failed_checkpoints),
        ] {
            self.one(name, Counter, help, Some(count as f64));
        }
        self.one("hang", Gauge, "1 while a rank holds the others up.", Some(f64::from(job.verdict.is_some())));
        self.last_step(job);
        let evaluation = job.last_evaluation.as_ref();
        let of = |figure: fn(&_) -> f64| evaluation.map(figure);
        self.one("evaluation_loss", Gauge, "Held-out loss, in nats a token.", of(|it| it.eval_loss));
        self.one("evaluation_step", Gauge, "Optimizer steps before the newest evaluation.", of(|it| it.step as f64));
        self.one("evaluation_seconds", Gauge, "Time of the newest evaluation.", of(|it| it.eval_seconds));
        if let Some(evaluation) = evaluation {
            let sources = labelled("source", &evaluation.eval_loss_by_source);
            self.family("evaluation_source_loss", Gauge, "Held-out loss of the rows of each source.", sources);
            let figures = labelled("figure", &evaluation.eval_figures);
            self.family("evaluation_figure", Gauge, "What else the newest evaluation told.", figures);
        }
        let checkpoint = job.last_checkpoint.as_ref();
        let of = |figure: fn(&_) -> f64| checkpoint.map(figure);
        self.one("checkpoint_step", Gauge, "Step of the newest checkpoint.", of(|it| it.step as f64));
        self.one("checkpoint_age_seconds", Gauge, "Age of the newest checkpoint.", of(|it| it.age_seconds));
        let help = "When the newest checkpoint was published, since 1970.";
        self.one("checkpoint_timestamp_seconds", Gauge, help, of(|it| it.time));
    }

    fn last_step(&mut self, job: &JobStatus) {
        let Some(step) = &job.last_step else { return };
        for (name, help, value) in [
            ("epoch", "Passes over the training data so far.", step.epoch),
            ("loss", "Loss of the newest step, in nats a token.", step.loss),
            ("gradient_norm", "Norm of its gradient, before clipping.", step.grad_norm),
            ("learning_rate", "Its learning rate.", step.learning_rate),
            ("tokens_per_second", "Its tokens a second, without padding.", step.tokens_per_second),
            ("step_seconds", "Its time.", step.step_seconds),
            (
                "exposed_communication_seconds",
                "Of its time, what rank 0 waited in collectives.",
                step.communication_seconds,
            ),
            (
                "live_peak_bytes",
                "Most in tensors at once during it, of the rank with most.",
                step.live_peak_bytes as f64,
            ),
        ] {
            self.one(name, Gauge, help, Some(value));
        }
        self.family("penalty", Gauge, "What was added to its loss.", labelled("of", &step.penalties));
        self.family(
            "source_loss",
            Gauge,
            "Its loss, of the rows of each source.",
            labelled("source", &step.loss_by_source),
        );
        self.family("phase_seconds", Gauge, "Its time by phase, of rank 0.", labelled("phase", &step.phase_seconds));
    }

    fn ranks(&mut self, ranks: &[RankStatus]) {
        type Figure = fn(&RankStatus) -> Option<f64>;
        let figures: [(&str, &str, Figure); 5] = [
            ("rank_memory_bytes", "Memory of the process.", |rank| Some(rank.memory_bytes as f64)),
            ("rank_peak_memory_bytes", "Most memory of the process.", |rank| Some(rank.peak_memory_bytes as f64)),
            ("rank_step", "Optimizer steps finished.", |rank| Some(rank.step as f64)),
            ("rank_collective", "Number of the last collective entered.", |rank| Some(rank.collective as f64)),
            ("rank_heard_seconds", "How long ago the rank was last heard from.", |rank| rank.heard_seconds),
        ];
        for (name, help, figure) in figures {
            let samples = ranks.iter().filter_map(|rank| {
                let labels = vec![("rank", rank.rank.to_string()), ("host", rank.host.clone())];
                Some((labels, figure(rank)?))
            });
            self.family(name, Gauge, help, samples);
        }
    }
}

/// A sample for each entry, with its name as this label.
fn labelled<'a>(label: &'static str, values: &'a BTreeMap<String, f64>) -> impl Iterator<Item = Sample> + 'a {
    // A source of which a step has no row has no loss.
    let told = values.iter().filter(|(_, value)| !value.is_nan());
    told.map(move |(name, value)| (vec![(label, name.clone())], *value))
}

/// A number as Prometheus reads it.
fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => value.to_string(),
    }
}

/// A label's text between its quotation marks.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use zerofold_proto::v1::{CheckpointStatus, EvaluationStatus, StepStatus};

    fn status() -> StatusReply {
        let step = StepStatus {
            loss: f64::NAN,
            grad_norm: f64::INFINITY,
            learning_rate: 2e-5,
            phase_seconds: [("forward".to_owned(), 0.25)].into(),
            loss_by_source: [("chat".to_owned(), 2.5), ("code".to_owned(), f64::NAN)].into(),
            penalties: [("ewc_penalty".to_owned(), 0.5)].into(),
            ..StepStatus::default()
        };
        let job = JobStatus {
            run: "a \"b\"\\\nc".to_owned(),
            step: 3,
            total_steps: 10,
            tokens: 12_345_678_901,
            remaining_seconds: Some(1.5),
            last_step: Some(step),
            last_evaluation: Some(EvaluationStatus {
                eval_loss_by_source: [("code".to_owned(), 1.5)].into(),
                eval_figures: [("f1".to_owned(), 0.5)].into(),
                ..EvaluationStatus::default()
            }),
            last_checkpoint: Some(CheckpointStatus { step: 2, time: 1.8e9, ..Default::default() }),
            ..JobStatus::default()
        };
        let rank = |rank| RankStatus { rank, host: "h".to_owned(), heard_seconds: Some(0.5), ..Default::default() };
        StatusReply { job: Some(job), ranks: vec![rank(0), RankStatus { heard_seconds: None, ..rank(1) }] }
    }

    #[test]
    fn every_figure_has_one_line_a_sample_under_its_help_and_type() {
        let text = exposition(&status());
        for line in [
            "# TYPE zerofold_tokens_total counter\nzerofold_tokens_total 12345678901\n",
            "\nzerofold_job_info{run=\"a \\\"b\\\"\\\\\\nc\",version=\"",
            "\nzerofold_loss NaN\n",
            "\nzerofold_gradient_norm +Inf\n",
            "\nzerofold_learning_rate 0.00002\n",
            "\nzerofold_phase_seconds{phase=\"forward\"} 0.25\n",
            "\nzerofold_source_loss{source=\"chat\"} 2.5\n# HELP",
            "\nzerofold_penalty{of=\"ewc_penalty\"} 0.5\n",
            "\nzerofold_evaluation_source_loss{source=\"code\"} 1.5\n",
            "\nzerofold_evaluation_figure{figure=\"f1\"} 0.5\n",
            "# TYPE zerofold_rank_memory_bytes gauge\nzerofold_rank_memory_bytes{rank=\"0\",host=\"h\"} 0\n\
             zerofold_rank_memory_bytes{rank=\"1\",host=\"h\"} 0\n",
            "\nzerofold_rank_heard_seconds{rank=\"0\",host=\"h\"} 0.5\n",
            "\nzerofold_checkpoint_timestamp_seconds 1800000000\n",
        ] {
            assert!(text.contains(line), "{line:?} is missing in\n{text}");
        }
        assert!(!text.contains("rank_heard_seconds{rank=\"1\""), "{text}");
        let mut families = BTreeSet::new();
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                assert!(families.insert(family.to_owned()), "{family} comes twice");
            }
        }
        assert!(text.ends_with('\n') && !text.contains("\n\n"));
    }

    #[test]
    fn a_job_that_has_just_begun_tells_no_figures_that_it_has_not() {
        let text = exposition(&StatusReply { job: Some(JobStatus::default()), ranks: Vec::new() });
        assert!(text.contains("\nzerofold_step 0\n") && text.starts_with("# HELP zerofold_up "), "{text}");
        for absent in ["zerofold_loss", "planned_steps", "checkpoint_age", "rank_"] {
            assert!(!text.contains(absent), "{absent}\n{text}");
        }
    }

    #[test]
    fn every_figure_is_documented() {
        let document = include_str!("../../../docs/watching.md");
        let text = exposition(&status());
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap_or_default();
            assert!(document.contains(&format!("| `{name}`")), "{name} is not in docs/watching.md");
        }
    }
}
