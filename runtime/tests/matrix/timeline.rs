//! The timeline over both wires: the same spans, whether the host's clock tells them or the events of streams.

use crate::Tally;
use crate::common::{Spec, bits};
use crate::workers::{Curve, Task, Wire, Workers};
use serde_json::Value;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use zerofold_configs::{ProfileSteps, Stage};
use zerofold_runtime::comm::{Activity, Collectives};
use zerofold_runtime::metrics::Profile;
use zerofold_runtime::trainer::Requests;

const STEPS: u64 = 4;
const PROFILED: &str = "2..3";
/// What the stand-in's collectives take at least.
const DELAY: u64 = 2000;

/// Trains and records steps in the middle, in a file of `folder` for each rank.
pub(crate) fn record(spec: &Spec, folder: &Path, comm: Rc<dyn Collectives>, activity: Arc<Activity>) -> Curve {
    let (dataset, rank) = (spec.dataset(), comm.rank());
    let mut trainer = spec.trainer(comm, activity);
    let steps = ProfileSteps::parse(PROFILED).unwrap();
    let mut profile = Profile::new(steps, rank as u32, folder.join(format!("{rank}.json")));
    let mut outcomes = Vec::new();
    for step in 0..STEPS {
        profile.before_step(step + 1, trainer.shards.comm()).unwrap();
        outcomes.push(trainer.step(step, &spec.window(&dataset, step, rank), Requests::default()).unwrap());
        profile.after_step(step + 1, trainer.shards.timeline());
    }
    trainer.shards.forget_gathered().unwrap();
    profile.finish(trainer.shards.timeline());
    trainer.shards.comm().barrier().unwrap();
    Curve { bits: bits(&outcomes), ..Curve::default() }
}

/// A span: its track, name, kind, bytes, beginning and end in µs, and thread.
type Span = (String, String, String, u64, f64, f64, u64);

fn spans(path: &Path) -> Vec<Span> {
    let text = std::fs::read_to_string(path).unwrap();
    let events: Vec<Value> = serde_json::from_str(&format!("{}]", text.trim_end_matches(",\n"))).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let span = |event: &Value| {
        let (args, from) = (&event["args"], event["ts"].as_f64().unwrap());
        let end = from + event["dur"].as_f64().unwrap();
        let bytes = args["bytes"].as_u64().unwrap_or(0);
        let (track, thread) = (text(&event["cat"]), event["tid"].as_u64().unwrap());
        (track, text(&event["name"]), text(&args["kind"]), bytes, from, end, thread)
    };
    let mut spans: Vec<Span> = events.iter().filter(|event| event["ph"] == "X").map(span).collect();
    spans.sort_by(|left, right| left.4.total_cmp(&right.4));
    spans
}

/// What a track shows, in the order of beginning, times and waits apart.
fn order<'a>(spans: &'a [Span], track: &'a str) -> Vec<(&'a str, &'a str, u64)> {
    let on = spans.iter().filter(|span| span.0 == track && span.1 != "wait");
    on.map(|span| (span.1.as_str(), span.2.as_str(), span.3)).collect()
}

fn same_spans(gloo: &[Span], other: &[Span]) -> Result<(), String> {
    for track in ["host", "compute", "gathers", "reductions"] {
        let (left, right) = (order(gloo, track), order(other, track));
        if left.is_empty() || left != right {
            return Err(format!("{track} differs:\n{left:?}\n{right:?}"));
        }
    }
    Ok(())
}

fn compare(gloo: &[Span], events: &[Span]) -> Result<String, String> {
    same_spans(gloo, events)?;
    for thread in [100, 200, 300] {
        let of_thread: Vec<&Span> = events.iter().filter(|span| span.6 == thread).collect();
        if let Some(pair) = of_thread.windows(2).find(|pair| pair[0].5 > pair[1].4 + 1e-3) {
            return Err(format!("{pair:?} overlap"));
        }
    }
    if let Some(span) = events.iter().find(|span| ![0, 100, 200, 300].contains(&span.6)) {
        return Err(format!("{span:?} has a lane of its own, but a stream does one thing after another"));
    }
    let transfers = events.iter().filter(|span| span.3 > 0);
    if let Some(short) = transfers.clone().find(|span| span.5 - span.4 < DELAY as f64 * 0.95) {
        return Err(format!("{short:?} is shorter than what the stream took"));
    }
    let step = events.iter().find(|span| span.1 == "step 2").ok_or("no step 2")?;
    if let Some(outside) = transfers.clone().find(|span| span.4 < step.4) {
        return Err(format!("{outside:?} lies before the first step"));
    }
    // While a prefetched unit is on its way libtorch computes, or waits for just that.
    if !events.iter().any(|span| span.0 == "compute" && span.1 == "wait") {
        return Err("libtorch never waits, though every collective is late".to_owned());
    }
    Ok(format!("{} spans, {} collectives of {DELAY} µs", events.len(), transfers.count()))
}

/// Records one training over Gloo, over shared memory, and over NCCL's stand-in, whose collectives are late.
pub(crate) fn check(tally: &mut Tally) {
    let spec = Spec { steps: Some(STEPS), ..Spec::new("matrix", "odd-llama", "clipped", Stage::Three, 2, 2) };
    let recorded = |wire| -> Result<Vec<Vec<Span>>, String> {
        let folder = tempfile::tempdir().unwrap();
        let delay = DELAY.to_string();
        let mut workers = Workers::start_with(2, wire, &[("ZEROFOLD_STAND_IN_DELAY_US", &delay)]);
        workers.run(&Task::Record { spec: spec.clone(), folder: folder.path().to_owned() })?;
        Ok((0..2).map(|rank| spans(&folder.path().join(format!("{rank}.json")))).collect())
    };
    let result = recorded(Wire::Gloo).and_then(|gloo| {
        let shared = recorded(Wire::Shm)?;
        (0..2).try_for_each(|rank| same_spans(&gloo[rank], &shared[rank]).map_err(|error| format!("shm: {error}")))?;
        let events = recorded(Wire::NcclStandIn)?;
        compare(&gloo[0], &events[0])?;
        compare(&gloo[1], &events[1])
    });
    tally.check("timeline/the same spans over gloo and shm and from events of streams", result);
}
