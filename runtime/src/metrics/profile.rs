//! The profile of a run: a timeline of some of its steps, written by each rank as it goes along.
//!
//! A rank's part is a file of trace events, as Chrome and Perfetto read them: one event a line, without the bracket at the
//! end, which both do without. So what is there after a crash can be looked at too. `launch` puts the parts together.

use super::timeline::{Begun, Label, Span, Timeline, Track};
use crate::comm::{Collectives, CommError};
use serde::Serialize;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zerofold_configs::ProfileSteps;

/// Two spans that overlap by less than this follow each other: the device's clock is no finer.
const ROUNDING: Duration = Duration::from_micros(1);

/// Lanes of a track, at most, for spans that overlap.
const LANES: u32 = 100;

/// Records the steps that were asked for. A file that cannot be written ends the recording, not the run.
pub struct Profile {
    steps: ProfileSteps,
    part: Part,
    /// Whether the ranks have met for it. They do so once, whatever became of the recording on any of them.
    started: bool,
    step: Option<Begun>,
}

impl Profile {
    /// Of these steps; rank `rank`'s part is written to `path`.
    pub fn new(steps: ProfileSteps, rank: u32, path: PathBuf) -> Self {
        Profile { steps, part: Part { rank, path, file: None, lanes: Default::default() }, started: false, step: None }
    }

    /// To be called before each step, by every rank.
    ///
    /// # Errors
    /// When the ranks cannot agree on an origin of all times.
    pub fn before_step(&mut self, step: u64, comm: &dyn Collectives) -> Result<(), CommError> {
        if !(self.steps.first()..=self.steps.last()).contains(&step) {
            return Ok(());
        }
        let timeline = comm.timeline();
        if !std::mem::replace(&mut self.started, true) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let origin = comm.exchange(&[now as f64])?.first().map_or(0.0, |numbers| numbers[0]);
            if let Err(error) = timeline.start(UNIX_EPOCH + Duration::from_secs(origin as u64)) {
                tracing::warn!("no timeline is recorded: {error}");
            }
        }
        // What happened between two steps.
        timeline.leave();
        self.step = Some(timeline.begin(Track::Host, || Label::new(format!("step {step}"))));
        Ok(())
    }

    /// To be called after each step.
    pub fn after_step(&mut self, step: u64, timeline: &Timeline) {
        timeline.leave();
        if let Some(begun) = self.step.take() {
            timeline.end(begun);
        }
        if step >= self.steps.last() {
            timeline.stop();
        }
        self.write(timeline, false);
    }

    /// To be called when nothing is under way any more: waits for what the device has not told yet.
    pub fn finish(&mut self, timeline: &Timeline) {
        timeline.stop();
        self.write(timeline, true);
    }

    fn write(&mut self, timeline: &Timeline, wait: bool) {
        let written = match timeline.take(wait) {
            Ok(spans) => self.part.add(spans).map_err(|error| format!("{}: {error}", self.part.path.display())),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = written {
            tracing::warn!("the timeline ends here: {error}");
            timeline.stop();
        }
    }
}

/// A trace event.
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    ph: &'static str,
    cat: &'static str,
    /// Microseconds since the origin.
    ts: f64,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: u32,
    tid: u32,
    args: Value,
}

fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

fn arguments(label: &Label) -> Value {
    let mut arguments = serde_json::Map::new();
    if !label.kind.is_empty() {
        arguments.insert("kind".to_owned(), json!(label.kind));
    }
    if let Some(transfer) = label.transfer {
        arguments.insert("bytes".to_owned(), json!(transfer.bytes));
        arguments.insert("sequence".to_owned(), json!(transfer.sequence));
    }
    Value::Object(arguments)
}

/// One rank's file.
struct Part {
    rank: u32,
    path: PathBuf,
    /// Made with the first spans.
    file: Option<BufWriter<File>>,
    /// The time up to which each lane of each track is taken. Spans of one lane do not overlap, since viewers draw a span
    /// that reaches into the next one wrongly; where several collectives are under way, a track has several lanes.
    lanes: [Vec<Duration>; 4],
}

impl Part {
    fn add(&mut self, mut spans: Vec<Span>) -> io::Result<()> {
        if spans.is_empty() {
            return Ok(());
        }
        if self.file.is_none() {
            self.begin()?;
        }
        // A span that lies in another comes after it.
        spans.sort_by_key(|span| (span.from, std::cmp::Reverse(span.to)));
        for mut span in spans {
            let lane = self.lane(&mut span)?;
            let event = Event {
                name: &span.label.name,
                ph: "X",
                cat: span.track.name(),
                ts: microseconds(span.from),
                dur: Some(microseconds(span.to - span.from)),
                pid: self.rank,
                tid: thread(span.track, lane),
                args: arguments(&span.label),
            };
            line(self.file.as_mut(), &event)?;
        }
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }

    fn begin(&mut self) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(&self.path)?);
        file.write_all(b"[\n")?;
        self.file = Some(file);
        self.describe("process_name", 0, json!({ "name": format!("rank {}", self.rank) }))?;
        self.describe("process_sort_index", 0, json!({ "sort_index": self.rank }))?;
        Track::ALL.into_iter().try_for_each(|track| self.open_lane(track))
    }

    /// The lane that a span goes to: the first in which it overlaps nothing.
    fn lane(&mut self, span: &mut Span) -> io::Result<u32> {
        if span.track == Track::Host {
            return Ok(0);
        }
        let lanes = &self.lanes[span.track as usize];
        let free = lanes.iter().position(|taken| *taken <= span.from + ROUNDING);
        let lane = free.unwrap_or(lanes.len());
        if free.is_none() {
            self.open_lane(span.track)?;
        }
        let taken = &mut self.lanes[span.track as usize][lane];
        span.from = span.from.max(*taken);
        span.to = span.to.max(span.from);
        *taken = span.to;
        Ok(lane as u32)
    }

    fn open_lane(&mut self, track: Track) -> io::Result<()> {
        let lanes = &mut self.lanes[track as usize];
        lanes.push(Duration::ZERO);
        let lane = lanes.len() as u32 - 1;
        let name = match lane {
            0 => track.name().to_owned(),
            lane => format!("{} {}", track.name(), lane + 1),
        };
        let thread = thread(track, lane);
        self.describe("thread_name", thread, json!({ "name": name }))?;
        self.describe("thread_sort_index", thread, json!({ "sort_index": thread }))
    }

    fn describe(&mut self, name: &str, tid: u32, args: Value) -> io::Result<()> {
        let event = Event { name, ph: "M", cat: "__metadata", ts: 0.0, dur: None, pid: self.rank, tid, args };
        line(self.file.as_mut(), &event)
    }
}

fn thread(track: Track, lane: u32) -> u32 {
    track as u32 * LANES + lane.min(LANES - 1)
}

fn line(file: Option<&mut BufWriter<File>>, event: &Event<'_>) -> io::Result<()> {
    let Some(file) = file else { return Ok(()) };
    serde_json::to_writer(&mut *file, event)?;
    file.write_all(b",\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::timeline::Transfer;

    fn span(track: Track, name: &str, from: u64, to: u64) -> Span {
        let time = Duration::from_micros;
        Span { track, label: Label::new(name), from: time(from), to: time(to) }
    }

    fn events(path: &std::path::Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.strip_suffix(",\n").expect("whole lines");
        serde_json::from_str(&format!("{text}]")).unwrap()
    }

    #[test]
    fn spans_that_overlap_get_lanes_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile-rank-3.json");
        let mut part = Part { rank: 3, path: path.clone(), file: None, lanes: Default::default() };
        part.add(Vec::new()).unwrap();
        assert!(!path.exists(), "no file without spans");
        let transfer = Some(Transfer { sequence: 9, bytes: 128 });
        let mut second = span(Track::Reductions, "layer 1", 20, 40);
        second.label.transfer = transfer;
        part.add(vec![second, span(Track::Reductions, "layer 2", 10, 30), span(Track::Host, "wait", 12, 13)]).unwrap();
        // Told late.
        part.add(vec![span(Track::Reductions, "layer 0", 30, 50), span(Track::Host, "step 1", 0, 60)]).unwrap();
        let events = events(&path);
        let of = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
        assert!(events.iter().all(|event| event["pid"] == 3 && event["ts"].is_number() && event["tid"].is_number()));
        assert_eq!((of("layer 2")["tid"].clone(), of("layer 2")["ts"].clone()), (json!(300), json!(10.0)));
        assert_eq!((of("layer 1")["tid"].clone(), of("layer 1")["dur"].clone()), (json!(301), json!(20.0)));
        assert_eq!(of("layer 1")["args"], json!({"bytes": 128, "sequence": 9}));
        assert_eq!(of("layer 0")["tid"], 300);
        assert_eq!(of("wait")["tid"], of("step 1")["tid"], "what lies in another is no overlap");
        let lanes: Vec<&Value> =
            events.iter().filter(|event| event["name"] == "thread_name").map(|event| &event["args"]["name"]).collect();
        assert_eq!(lanes, ["host", "compute", "gathers", "reductions", "reductions 2"]);
    }

    #[test]
    fn an_overlap_within_the_clocks_resolution_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part.json");
        let mut part = Part { rank: 0, path: path.clone(), file: None, lanes: Default::default() };
        let mut next = span(Track::Compute, "next", 20, 30);
        next.from -= Duration::from_nanos(400);
        part.add(vec![span(Track::Compute, "first", 10, 20), next]).unwrap();
        let events = events(&path);
        let next = events.iter().find(|event| event["name"] == "next").unwrap();
        assert_eq!(
            (next["ts"].as_f64(), next["dur"].as_f64(), next["tid"].as_u64()),
            (Some(20.0), Some(10.0), Some(100))
        );
    }
}
