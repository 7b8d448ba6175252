//! Whether what a rank tells can be true. What passes can be added up, divided and printed without care.

use thiserror::Error;
use zerofold_proto::v1::{
    Call, Doing, EvaluationRecord, HeartbeatRequest, LeaveRequest, SourceRecord, StateBytes, StepRecord,
};

/// No count is larger: so many are exact as floating-point numbers, and thousands of them add up in 64 bits.
const MAX_COUNT: u64 = 1 << 53;
/// No time is longer, in seconds: thirty years.
const MAX_SECONDS: f64 = 1e9;
/// The longest text that is kept, in bytes; of longer ones the beginning.
pub const MAX_TEXT_BYTES: usize = 64 << 10;
/// So many collectives a rank tells of; it keeps sixteen.
const MAX_CALLS: usize = 64;
/// The longest name of a collective, a unit or a phase.
const MAX_NAME_BYTES: usize = 1 << 10;
/// So many phases a step has.
const MAX_PHASES: usize = 64;
const MAX_SOURCES: usize = 1024;
/// The longest path.
pub const MAX_PATH_BYTES: usize = 4 << 10;

/// Why a rank's report is refused.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum RecordError {
    /// A number that cannot be.
    #[error(
        "rank {rank} reports {field} = {value}, which cannot be\nhint: build launch and worker from the same source"
    )]
    Absurd {
        /// The rank.
        rank: u32,
        /// The field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
    /// Steps and evaluations are told by rank 0 alone.
    #[error("rank {rank} reports {what}; only rank 0 does\nhint: build launch and worker from the same source")]
    NotRankZero {
        /// The rank.
        rank: u32,
        /// What it reports.
        what: &'static str,
    },
    /// A path is too long.
    #[error(
        "rank {rank} names a folder by {bytes} bytes; at most {MAX_PATH_BYTES} are allowed\nhint: take a shorter output_dir"
    )]
    Path {
        /// The rank.
        rank: u32,
        /// Length of the path.
        bytes: usize,
    },
}

/// Checks a heartbeat.
pub fn check_heartbeat(request: &HeartbeatRequest) -> Result<(), RecordError> {
    let HeartbeatRequest { rank, step, memory_bytes, peak_memory_bytes, .. } = *request;
    let by = By(rank);
    if rank != 0 && !request.steps.is_empty() {
        return Err(RecordError::NotRankZero { rank, what: "steps" });
    }
    if rank != 0 && !request.evaluations.is_empty() {
        return Err(RecordError::NotRankZero { rank, what: "evaluations" });
    }
    by.count("step", step)?;
    request.doing.iter().try_for_each(|doing| by.doing(doing))?;
    by.count("memory_bytes", memory_bytes)?;
    by.count("peak_memory_bytes", peak_memory_bytes)?;
    request.steps.iter().try_for_each(|record| by.step(record))?;
    request.evaluations.iter().try_for_each(|record| by.evaluation(record))
}

/// Checks what a rank tells on leaving.
pub fn check_leave(request: &LeaveRequest) -> Result<(), RecordError> {
    let by = By(request.rank);
    by.count("step", request.step)?;
    by.count("model_step", request.model_step)?;
    check_path(request.rank, &request.model_directory)?;
    let StateBytes {
        parameters,
        gradients,
        masters,
        moments,
        gather_buffers,
        gradient_buffers,
        live_peak,
        loading_peak,
        offloaded,
        pretrained,
    } = request.state.unwrap_or_default();
    by.count("parameters", parameters)?;
    by.count("gradients", gradients)?;
    by.count("masters", masters)?;
    by.count("moments", moments)?;
    by.count("gather_buffers", gather_buffers)?;
    by.count("gradient_buffers", gradient_buffers)?;
    by.count("live_peak", live_peak)?;
    by.count("loading_peak", loading_peak)?;
    by.count("pretrained", pretrained)?;
    by.count("offloaded", offloaded)
}

/// Checks a folder's name.
pub fn check_path(rank: u32, path: &str) -> Result<(), RecordError> {
    match path.len() {
        0..=MAX_PATH_BYTES => Ok(()),
        bytes => Err(RecordError::Path { rank, bytes }),
    }
}

/// The beginning of a text that is too long, with a word that there was more.
pub fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let bytes = text.len();
        let end = (0..=MAX_TEXT_BYTES).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push_str(&format!(" … ({bytes} bytes)"));
    }
    text
}

/// Who reports.
struct By(u32);

impl By {
    fn count(&self, field: &'static str, value: u64) -> Result<(), RecordError> {
        self.check(field, value <= MAX_COUNT, value)
    }

    fn seconds(&self, field: &'static str, value: f64) -> Result<(), RecordError> {
        self.check(field, (0.0..=MAX_SECONDS).contains(&value), value)
    }

    fn check(&self, field: &'static str, possible: bool, value: impl ToString) -> Result<(), RecordError> {
        if possible { Ok(()) } else { Err(RecordError::Absurd { rank: self.0, field, value: value.to_string() }) }
    }

    fn step(&self, record: &StepRecord) -> Result<(), RecordError> {
        self.count("step", record.step)?;
        self.check("epoch", (0.0..=MAX_SECONDS).contains(&record.epoch), record.epoch)?;
        // Loss and norm may be infinite or no number: that is what makes a step a skipped one.
        self.check("learning_rate", record.learning_rate.is_finite(), record.learning_rate)?;
        self.check("loss_scale", record.loss_scale.is_finite(), record.loss_scale)?;
        self.seconds("seconds", record.seconds)?;
        self.seconds("communication_seconds", record.communication_seconds)?;
        self.count("tokens", record.tokens)?;
        self.count("supervised_tokens", record.supervised_tokens)?;
        self.count("sent_bytes", record.sent_bytes)?;
        self.count("peak_memory_bytes", record.peak_memory_bytes)?;
        self.count("logical_bytes", record.logical_bytes)?;
        self.count("live_peak_bytes", record.live_peak_bytes)?;
        let times = record.phases.len() <= MAX_PHASES;
        self.check("phases", times, format!("{} phases", record.phases.len()))?;
        record.phases.iter().try_for_each(|time| self.seconds("phases.seconds", time.seconds))?;
        self.sources(&record.sources)?;
        self.check("skipped", record.skipped.len() <= MAX_TEXT_BYTES, format!("{} bytes", record.skipped.len()))
    }

    fn doing(&self, doing: &Doing) -> Result<(), RecordError> {
        self.seconds("doing.seconds", doing.seconds)?;
        self.seconds("doing.usual_seconds", doing.usual_seconds)?;
        self.seconds("doing.blocked_seconds", doing.blocked_seconds)?;
        let calls = &doing.calls;
        self.check("doing.calls", calls.len() <= MAX_CALLS, format!("{} calls", calls.len()))?;
        calls.iter().chain(&doing.blocked_in).try_for_each(|call| self.call(call))?;
        // What looks at them goes through the numbers from the first to the last.
        let rises = calls.windows(2).find(|pair| pair[1].sequence != pair[0].sequence + 1);
        rises.map_or(Ok(()), |pair| {
            let value = format!("{} after {}", pair[1].sequence, pair[0].sequence);
            self.check("doing.calls.sequence", false, value)
        })
    }

    fn call(&self, Call { sequence, operation, about, bytes }: &Call) -> Result<(), RecordError> {
        self.count("doing.calls.sequence", *sequence)?;
        self.count("doing.calls.bytes", *bytes)?;
        let longest = operation.len().max(about.len());
        self.check("doing.calls", longest <= MAX_NAME_BYTES, format!("a name of {longest} bytes"))
    }

    fn evaluation(&self, record: &EvaluationRecord) -> Result<(), RecordError> {
        self.count("step", record.step)?;
        self.count("supervised_tokens", record.supervised_tokens)?;
        self.sources(&record.sources)?;
        self.seconds("seconds", record.seconds)
    }

    fn sources(&self, sources: &[SourceRecord]) -> Result<(), RecordError> {
        self.check("sources", sources.len() <= MAX_SOURCES, format!("{} sources", sources.len()))?;
        sources.iter().try_for_each(|SourceRecord { label, loss: _, supervised_tokens }| {
            self.check("sources.label", label.len() <= MAX_TEXT_BYTES, format!("{} bytes", label.len()))?;
            self.count("sources.supervised_tokens", *supervised_tokens)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        let step = StepRecord { step: 7, loss: f64::NAN, grad_norm: f64::INFINITY, ..Default::default() };
        let beat = |rank, record| HeartbeatRequest { rank, steps: vec![record], ..Default::default() };
        assert_eq!(check_heartbeat(&beat(0, step.clone())), Ok(()), "losses may be anything");
        let cases = [
            (StepRecord { step: u64::MAX, ..step.clone() }, "step = 18446744073709551615"),
            (StepRecord { seconds: f64::NAN, ..step.clone() }, "seconds = NaN"),
            (StepRecord { seconds: -1.0, ..step.clone() }, "seconds = -1"),
            (StepRecord { communication_seconds: f64::INFINITY, ..step.clone() }, "communication_seconds = inf"),
            (StepRecord { tokens: u64::MAX, ..step.clone() }, "tokens = "),
            (StepRecord { epoch: f64::NAN, ..step.clone() }, "epoch = NaN"),
            (StepRecord { learning_rate: f64::INFINITY, ..step.clone() }, "learning_rate = inf"),
            (StepRecord { skipped: "x".repeat(MAX_TEXT_BYTES + 1), ..step.clone() }, "skipped = 65537 bytes"),
        ];
        for (record, expected) in cases {
            let message = check_heartbeat(&beat(0, record)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
        assert_eq!(check_heartbeat(&beat(1, step)), Err(RecordError::NotRankZero { rank: 1, what: "steps" }));
        let leave =
            LeaveRequest { state: Some(StateBytes { masters: u64::MAX, ..Default::default() }), ..Default::default() };
        assert!(check_leave(&leave).unwrap_err().to_string().contains("masters = "));
        assert!(check_path(0, &"/".repeat(MAX_PATH_BYTES + 1)).unwrap_err().to_string().contains("4097 bytes"));
    }

    #[test]
    fn long_texts_keep_their_beginning() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened("é".repeat(MAX_TEXT_BYTES));
        assert!(long.starts_with("éé") && long.ends_with("… (131072 bytes)") && long.len() < MAX_TEXT_BYTES + 40);
    }
}
