//! `--profile`: the timeline of some steps, as a viewer reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use zerofold_tests::{Metrics, Scene, json};

/// Times are written in nanoseconds, as microseconds with a fraction.
const ROUNDING: f64 = 1e-3;

#[derive(Clone, Debug)]
struct Span {
    rank: u64,
    /// The track without the number of its lane.
    track: String,
    thread: u64,
    name: String,
    kind: String,
    from: f64,
    to: f64,
    args: Value,
}

/// The spans of a timeline, after a look at its form: every event has what the format wants, and no two spans of a thread
/// overlap unless one lies in the other, which only the host's do.
fn spans(events: &[Value]) -> Vec<Span> {
    let number = |event: &Value, key: &str| event[key].as_u64().unwrap_or_else(|| panic!("{key} in {event}"));
    let mut names = BTreeMap::new();
    let mut spans = Vec::new();
    for event in events {
        let (rank, thread) = (number(event, "pid"), number(event, "tid"));
        let from = event["ts"].as_f64().unwrap_or_else(|| panic!("ts in {event}"));
        let name = event["name"].as_str().unwrap().to_owned();
        match event["ph"].as_str().unwrap() {
            "M" if name == "thread_name" => {
                names.insert((rank, thread), event["args"]["name"].as_str().unwrap().to_owned());
            }
            "M" => assert!(["process_name", "process_sort_index", "thread_sort_index"].contains(&name.as_str())),
            "X" => {
                let duration = event["dur"].as_f64().unwrap();
                assert!(duration >= 0.0 && from >= 0.0, "{event}");
                let args = event["args"].clone();
                let kind = args["kind"].as_str().unwrap_or_default().to_owned();
                let track = names.get(&(rank, thread)).unwrap_or_else(|| panic!("no thread {thread}"));
                let track = track.split(' ').next().unwrap().to_owned();
                spans.push(Span { rank, track, thread, name, kind, from, to: from + duration, args });
            }
            other => panic!("{other} in {event}"),
        }
    }
    let mut threads: BTreeMap<(u64, u64), Vec<&Span>> = BTreeMap::new();
    spans.iter().for_each(|span| threads.entry((span.rank, span.thread)).or_default().push(span));
    for thread in threads.values_mut() {
        thread.sort_by(|left, right| left.from.total_cmp(&right.from).then(right.to.total_cmp(&left.to)));
        let mut open: Vec<&Span> = Vec::new();
        for &span in thread.iter() {
            open.retain(|outer| outer.to > span.from + ROUNDING);
            if let Some(outer) = open.last() {
                let inside = outer.track == "host" && span.to <= outer.to + ROUNDING;
                assert!(inside, "{span:?}\noverlaps\n{outer:?}");
            }
            open.push(span);
        }
    }
    spans
}

fn profile(run: &Path) -> Vec<Span> {
    let whole = json(&run.join("profile.json"));
    spans(whole["traceEvents"].as_array().expect("a list of events"))
}

/// The spans that began in a step of a rank.
fn of_step(spans: &[Span], rank: u64, step: u64) -> Vec<&Span> {
    let name = format!("step {step}");
    let steps: Vec<&Span> = spans.iter().filter(|span| span.rank == rank && span.name == name).collect();
    let [whole] = steps.as_slice() else { panic!("{} spans are called {name}", steps.len()) };
    assert_eq!(whole.track, "host");
    spans.iter().filter(|span| span.rank == rank && (whole.from..whole.to).contains(&span.from)).collect()
}

fn profile_files(run: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| name.starts_with("profile")).collect()
}

#[test]
fn every_unit_is_seen_at_work_and_on_its_way_and_the_next_one_comes_meanwhile() {
    let scene = Scene::new();
    let words = "--nproc 2 --zero_stage 3 --max_steps 4 --per_device_train_batch_size 2 --save_strategy no";
    let ended = scene.train("tiny-llama", "run", words).words("--profile 2..3").run();
    ended.assert_done();
    assert!(ended.out.contains("profile.json (open it at https://ui.perfetto.dev)"), "{ended}");
    let run = scene.path("run");
    assert_eq!(profile_files(&run), ["profile.json".to_owned()].into(), "the parts are gone");
    let spans = profile(&run);
    assert_eq!(spans.iter().map(|span| span.rank).collect::<BTreeSet<_>>(), [0, 1].into());
    let gathered = |span: &&Span| span.track == "gathers" && span.name != "numbers";
    let units: BTreeSet<&str> = spans.iter().filter(gathered).map(|span| span.name.as_str()).collect();
    assert!(["embedding", "layer 0", "layer 1", "head"].iter().all(|unit| units.contains(unit)), "{units:?}");
    for (rank, step) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        let spans = of_step(&spans, rank, step);
        let find = |track: &str, name: &str, kind: &str| {
            let mut found = spans.iter().filter(|it| it.track == track && it.name == name && it.kind == kind);
            *found.next().unwrap_or_else(|| panic!("rank {rank}, step {step}: no {track} {name} {kind}\n{spans:#?}"))
        };
        for unit in &units {
            let [forward, backward] = ["forward", "backward"].map(|kind| find("compute", unit, kind));
            let [gather, reduction] = ["gathers", "reductions"].map(|track| find(track, unit, ""));
            assert!(gather.from < forward.from && forward.to <= backward.from && backward.to <= reduction.to);
            assert!(gather.to <= forward.from + ROUNDING, "a unit is used when it is there");
            for transfer in [gather, reduction] {
                assert!(
                    transfer.args["bytes"].as_u64() > Some(0) && transfer.args["sequence"].is_u64(),
                    "{transfer:?}"
                );
            }
        }
        for (unit, next) in [("embedding", "layer 0"), ("layer 0", "layer 1")] {
            let (compute, gather) = (find("compute", unit, "forward"), find("gathers", next, ""));
            assert!(gather.from < compute.to && gather.to > compute.from, "{next} is not on its way behind {unit}");
        }
        for phase in ["data", "forward", "backward", "optimizer", "wait"] {
            find("host", phase, "");
        }
        for name in ["gradient norm", "clip", "optimizer"] {
            find("compute", name, "");
        }
    }
    assert!(!spans.iter().any(|span| ["step 1", "step 4"].contains(&span.name.as_str())));
    let sequences: Vec<u64> =
        spans.iter().filter(|span| span.rank == 0).filter_map(|span| span.args["sequence"].as_u64()).collect();
    assert_eq!(sequences.iter().collect::<BTreeSet<_>>().len(), sequences.len(), "no collective is told twice");

    scene.train("tiny-llama", "plain", words).run().assert_done();
    assert_eq!(profile_files(&scene.path("plain")), BTreeSet::new(), "nothing without the flag");
    assert_eq!(Metrics::of(&run).exact(), Metrics::of(&scene.path("plain")).exact(), "recording changes nothing");
}

#[test]
fn recomputation_and_parameters_that_arrive_after_the_last_step_are_told() {
    let scene = Scene::new();
    let words =
        "--nproc 2 --zero_stage 1 --max_steps 2 --save_strategy no --gradient_checkpointing true --profile 1..1";
    scene.train("tiny-llama", "run", words).run().assert_done();
    let spans = profile(&scene.path("run"));
    assert!(spans.iter().any(|span| span.kind == "recompute" && span.name == "layer 1"));
    for unit in ["embedding", "layer 0", "layer 1"] {
        for track in ["gathers", "reductions"] {
            let found = |rank| spans.iter().any(|it| it.rank == rank && it.track == track && it.name == unit);
            assert!(found(0) && found(1), "no {track} of {unit}");
        }
    }
    assert!(spans.iter().filter(|span| span.track == "gathers").map(|span| span.thread).max() > Some(200), "lanes");
}

#[test]
fn a_crash_leaves_what_each_rank_recorded() {
    let scene = Scene::new();
    let words = "--nproc 2 --zero_stage 3 --max_steps 100000 --save_strategy no --profile 1..2";
    let mut running = scene.train("tiny-llama", "run", words).start();
    let run = scene.path("run");
    running.wait_for("four steps", || (Metrics::of(&run).count() >= 4).then_some(()));
    zerofold_tests::signal(scene.rank(1).pid, libc::SIGKILL);
    assert_ne!(running.finish().code, Some(0));
    assert_eq!(profile_files(&run), [0, 1].map(|rank| format!("profile-rank-{rank}.json")).into());
    for rank in 0..2 {
        let text = std::fs::read_to_string(run.join(format!("profile-rank-{rank}.json"))).unwrap();
        // As viewers do it: the bracket at the end may lack.
        let events: Vec<Value> = serde_json::from_str(&format!("{}]", text.trim_end_matches(",\n"))).unwrap();
        let spans = spans(&events);
        assert!(spans.iter().any(|span| span.name == "step 2") && spans.iter().all(|span| span.rank == rank));
    }
}

#[test]
fn steps_that_are_none_or_will_not_come_are_told() {
    let scene = Scene::new();
    let words = "--max_steps 1 --save_strategy no";
    for (steps, says) in [("8..5", "profile is 8..5"), ("x", "profile is x"), ("0..3", "profile is 0..3")] {
        let ended = scene.train("tiny-llama", "refused", words).words("--profile").words(steps).run();
        ended.assert_failed(2, &[says, "5..8 is the steps 5, 6, 7 and 8"]);
        assert!(!scene.path("refused").exists());
    }
    let ended = scene.train("tiny-llama", "run", words).words("--profile steps 5..8").run();
    ended.assert_done();
    ended.assert_says(&["warning: profile is 5..8, but the run ends with step 1, so there will be no timeline"]);
    assert_eq!(profile_files(&scene.path("run")), BTreeSet::new());
}
