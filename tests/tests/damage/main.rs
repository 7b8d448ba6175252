//! Every kind of damage to a checkpoint is refused by name, `--resume` falls back to the newest whole one of the same model and
//! data and goes on bit by bit as if nothing had been, and nothing that was there is deleted.

mod kinds;
mod manifests;
mod shards;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use kinds::{Content, Kind, Tool, contents, edit_manifest};
use serde_json::json;
use zerofold_checkpoint::{Manifest, open_step};
use zerofold_tests::{Ended, Job, Metrics, Scene};

const MODEL: &str = "tiny-llama-tied";
const JOB: &str = "--nproc 2 --zero_stage 3 --per_device_train_batch_size 2 --save_steps 1 --train_sampling_strategy random \
                   --learning_rate 1e-3 --lr_scheduler_type constant";

fn train<'a>(scene: &'a Scene, model: &str, run: &str, steps: u32) -> Job<'a> {
    scene.train(model, run, JOB).words(&format!("--max_steps {steps}"))
}

/// An uninterrupted run of three steps, each with a checkpoint.
fn three_steps(scene: &Scene) {
    train(scene, MODEL, "whole", 3).run().assert_done();
}

fn step(scene: &Scene, run: &str, step: u32) -> PathBuf {
    scene.path(run).join(format!("checkpoints/step-{step:08}"))
}

fn resume(scene: &Scene, run: &str) -> Ended {
    train(scene, MODEL, run, 3).words("--resume").run()
}

/// A command on a path.
fn command(scene: &Scene, name: &str, path: &Path) -> Ended {
    let add = |command: &mut std::process::Command| {
        command.arg(path);
    };
    limited(scene.launch(name).adjust(add)).run()
}

/// Whatever a manifest says, no program needs much memory to refuse it.
fn limited(job: Job<'_>) -> Job<'_> {
    job.adjust(|command| {
        let limit = || {
            let limit = libc::rlimit { rlim_cur: manifests::MEMORY, rlim_max: manifests::MEMORY };
            // SAFETY: setrlimit is async-signal-safe, and `limit` outlives the call.
            let failed = unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limit) };
            if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: the closure runs between fork and exec, makes one such call and does not allocate.
        unsafe { command.pre_exec(limit) };
    })
}

#[track_caller]
fn assert_parts(text: &str, parts: &[impl AsRef<str>], what: &str, ended: &Ended) {
    for part in parts.iter().map(AsRef::as_ref) {
        assert!(text.contains(part), "{what}: {part:?} is not in {text:?}\n{ended}");
    }
    assert!(!ended.err.contains("panicked"), "{what}\n{ended}");
}

/// What `--resume` says of a step that it skips.
#[track_caller]
fn skipped<'a>(ended: &'a Ended, step: &Path, what: &str) -> &'a str {
    let begin = format!("skipped {}: ", step.display());
    let line = ended.err.lines().find(|line| line.starts_with(&begin));
    line.unwrap_or_else(|| panic!("{what}: {} was not skipped\n{ended}", step.display()))
}

/// A run whose only checkpoint is damaged: no worker is started, and nothing is touched.
fn assert_refused(scene: &Scene, kind: &Kind) {
    let run = scene.path("run");
    let damaged = scene.copy(&step(scene, "whole", 3), "run/checkpoints/step-00000003");
    kind.strike(&damaged);
    let before = contents(&run);
    let ended = limited(train(scene, MODEL, "run", 3).words("--resume")).run();
    let what = format!("{}, --resume", kind.name);
    let (report, parts) = match kind.seen_by {
        Tool::Resume => (ended.report(), &["step-00000003"][..]),
        _ => (skipped(&ended, &damaged, &what), &["none of its 1 checkpoints is a whole one of this model"][..]),
    };
    assert_parts(report, &kind.told, &what, &ended);
    ended.assert_failed(2, &[parts, &["hint: "]].concat());
    let logs = fs::read_dir(run.join("logs")).map_or(0, |logs| logs.count());
    assert_eq!(logs, 0, "{what}: a worker was started");

    for (tool, name) in [(Tool::Verify, "verify"), (Tool::Inspect, "inspect")] {
        let what = format!("{}, {name}", kind.name);
        let ended = command(scene, name, &damaged);
        match (kind.seen_by >= tool, tool) {
            (false, _) => ended.assert_done(),
            (true, Tool::Verify) => {
                assert_eq!(ended.code, Some(1), "{what}\n{ended}");
                assert_parts(&ended.out, &[vec!["damaged  ".to_owned()], kind.verified()].concat(), &what, &ended);
            }
            (true, _) => {
                ended.assert_failed(2, &["step-00000003"]);
                assert_parts(ended.report(), &kind.told, &what, &ended);
            }
        }
    }
    let after: Vec<_> = contents(&run.join("checkpoints"));
    let before: Vec<_> = before
        .into_iter()
        .filter_map(|(path, content)| Some((path.strip_prefix("checkpoints").ok()?.to_owned(), content)))
        .filter(|(path, _)| !path.as_os_str().is_empty())
        .collect();
    assert!(after == before, "{}: something was touched", kind.name);
}

/// All of them are looked at, though one is not refused.
#[track_caller]
fn assert_all_refused(scene: &Scene, kinds: &[Kind]) {
    let wrong = |kind: &&Kind| {
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| assert_refused(scene, kind)));
        let _ = fs::remove_dir_all(scene.path("run"));
        looked.is_err()
    };
    let names: Vec<&str> = kinds.iter().filter(wrong).map(|kind| kind.name).collect();
    assert!(names.is_empty(), "not refused as they should be: {names:?}");
    println!("{} kinds", kinds.len());
}

#[test]
fn each_kind_of_damage_to_a_shard_is_refused_by_name() {
    let scene = Scene::new();
    three_steps(&scene);
    assert_all_refused(&scene, &shards::kinds());
}

#[test]
fn each_kind_of_damage_to_a_manifest_is_refused_by_name() {
    let scene = Scene::new();
    three_steps(&scene);
    assert_all_refused(&scene, &manifests::kinds());
}

/// Goes on with a copy of the whole run in which something was done, after step `from`; all that lay in the folders of the steps
/// before is there as it was, and that of the later ones beside the new ones.
#[track_caller]
fn assert_falls_back(scene: &Scene, what: &str, from: u32, damage: impl FnOnce(&Path)) -> Ended {
    let run = scene.copy(&scene.path("whole"), "run");
    fs::remove_dir_all(run.join("model")).unwrap();
    damage(&run);
    let before = contents(&run.join("checkpoints"));
    let ended = resume(scene, "run");
    assert_eq!(ended.code, Some(0), "{what}\n{ended}");
    assert!(ended.out.contains(&format!("resuming after step {from} from ")), "{what}\n{ended}");
    let whole = scene.path("whole");
    assert_eq!(Metrics::of(&run).exact(), Metrics::of(&whole).exact(), "{what}");
    let model = |run: &Path| fs::read(run.join("model/model.safetensors")).unwrap();
    assert!(model(&run) == model(&whole), "{what}: the models differ");

    let after = contents(&run.join("checkpoints"));
    let is_there = |path: &Path, content: &Content| {
        after.iter().any(|(other, there)| {
            let name = other.iter().next().unwrap_or_default().to_string_lossy();
            let kept = name.split(".replaced-").next().unwrap_or_default();
            there == content && Path::new(kept).join(other.iter().skip(1).collect::<PathBuf>()) == path
        })
    };
    for (path, content) in &before {
        assert!(is_there(path, content), "{what}: {} is gone", path.display());
    }
    ended
}

/// One of each family, each with what is skipped.
#[test]
fn the_run_goes_on_from_the_newest_whole_checkpoint_with_the_same_bits() {
    let scene = Scene::new();
    three_steps(&scene);
    let all: Vec<Kind> = shards::kinds().into_iter().chain(manifests::kinds()).collect();
    let kind = |name: &str| all.iter().find(|kind| kind.name == name).unwrap_or_else(|| panic!("no kind {name}"));
    let alone = [
        "cut by a byte",
        "missing",
        "a pipe",
        "a bit in the middle",
        "tensors that overlap",
        "half a manifest",
        "version 3",
        "two parameters swapped",
        "a name that leads up",
        "lengths without bound",
        "no place in the data",
        "other data",
    ];
    for name in alone {
        let kind = kind(name);
        let ended = assert_falls_back(&scene, name, 2, |run| kind.strike(&run.join("checkpoints/step-00000003")));
        assert_parts(skipped(&ended, &step(&scene, "run", 3), name), &kind.told, name, &ended);
        fs::remove_dir_all(scene.path("run")).unwrap();
    }
    let together =
        [("a pipe for a manifest", "cut to half"), ("other data", "another row"), ("a folder", "an empty manifest")];
    for (newest, second) in together {
        let what = format!("{newest}, and {second}");
        let ended = assert_falls_back(&scene, &what, 1, |run| {
            kind(newest).strike(&run.join("checkpoints/step-00000003"));
            kind(second).strike(&run.join("checkpoints/step-00000002"));
        });
        for (step, name) in [(step(&scene, "run", 3), newest), (step(&scene, "run", 2), second)] {
            assert_parts(skipped(&ended, &step, &what), &kind(name).told, &what, &ended);
        }
        fs::remove_dir_all(scene.path("run")).unwrap();
    }
}

#[test]
fn where_every_checkpoint_is_damaged_nothing_is_started_and_nothing_deleted() {
    let scene = Scene::new();
    three_steps(&scene);
    let run = scene.path("whole");
    shards::cut(&step(&scene, "whole", 1), |bytes| bytes / 3);
    shards::flip(&step(&scene, "whole", 2), |bytes| bytes / 2);
    fs::write(step(&scene, "whole", 3).join("manifest.json"), "").unwrap();
    let before = contents(&run);
    let ended = resume(&scene, "whole");
    ended.assert_failed(2, &["none of its 3 checkpoints is a whole one of this model", "hint: leave --resume out"]);
    for (number, part) in [(1, " are missing"), (2, "has the hash "), (3, "EOF")] {
        assert_parts(skipped(&ended, &step(&scene, "whole", number), part), &[part], part, &ended);
    }
    // The lock has another pid in it.
    let others = |all: Vec<(PathBuf, Content)>| -> Vec<_> {
        all.into_iter().filter(|(path, _)| path != Path::new("launch.lock")).collect()
    };
    assert!(others(before) == others(contents(&run)), "something was touched");
}

/// What is named as if it were a checkpoint, and belongs to somebody.
#[test]
fn what_is_no_checkpoint_is_told_and_kept() {
    let scene = Scene::new();
    three_steps(&scene);
    let ended = assert_falls_back(&scene, "strangers", 2, |run| {
        shards::flip(&run.join("checkpoints/step-00000003"), |bytes| bytes / 2);
        for name in ["step-00000099", "step-99999999999999999999", "step-abc", "others"] {
            let folder = run.join("checkpoints").join(name);
            fs::create_dir_all(folder.join("figures")).unwrap();
            fs::write(folder.join("thesis.tex"), name).unwrap();
        }
        fs::write(run.join("checkpoints/step-00000098"), "a file").unwrap();
        fs::create_dir(run.join("checkpoints/step-00000002/mine")).unwrap();
    });
    let checkpoints = scene.path("run").join("checkpoints");
    for (name, part) in [
        ("step-00000099", "it has no manifest.json"),
        ("step-00000098", "it is no folder"),
        ("step-99999999999999999999", "its name is not that of a step"),
        ("step-abc", "its name is not that of a step"),
    ] {
        assert_parts(skipped(&ended, &checkpoints.join(name), name), &[part], name, &ended);
    }
    ended.assert_says(&["moved ", "step-00000098.replaced-", "step-00000099.replaced-", "step-00000003.replaced-"]);
}

/// The manifest as a job of another model, or with other names of parameters, would have published it.
fn publish_again(step: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = open_step(step).unwrap().manifest;
    change(&mut manifest);
    let sealed = serde_json::to_string_pretty(&manifest.sealed()).unwrap();
    fs::write(kinds::manifest(step), sealed).unwrap();
    open_step(step).unwrap();
}

#[test]
fn a_checkpoint_of_another_model_or_of_other_data_is_not_gone_on_from() {
    let scene = Scene::new();
    three_steps(&scene);
    train(&scene, "tiny-llama", "larger", 5).run().assert_done();
    train(&scene, MODEL, "seeded", 5).words("--seed 7").run().assert_done();
    let newer = |run: &Path, from: &str| scene.copy(&step(&scene, from, 5), &relative(&scene, run, 5));
    type Strange<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>, &'a [&'a str]);
    let cases: [Strange<'_>; 3] = [
        (
            "another size",
            Box::new(|run| drop(newer(run, "larger"))),
            &[
                "it was saved from another model: lm_head.weight is no such parameter in the model, and [320, 64] in the checkpoint",
            ],
        ),
        (
            "other names",
            Box::new(|run| {
                let folder = newer(run, "seeded");
                publish_again(&folder, |manifest| {
                    for parameter in manifest.units.iter_mut().flat_map(|unit| &mut unit.parameters) {
                        parameter.name = parameter.name.replace("self_attn", "attention");
                    }
                });
            }),
            &[
                "it was saved from another model: model.layers.0.attention.k_proj.weight is no such parameter in the model",
            ],
        ),
        (
            "other data",
            Box::new(|run| drop(newer(run, "seeded"))),
            &[
                "it was saved by a job with other data: seed of the order of the rows 7 there, 42 here (data_seed, else seed)",
            ],
        ),
    ];
    for (what, copy, parts) in &cases {
        let ended = assert_falls_back(&scene, what, 2, |run| {
            copy(run);
            shards::flip(&run.join("checkpoints/step-00000003"), |bytes| bytes / 2);
        });
        assert_parts(skipped(&ended, &step(&scene, "run", 5), what), parts, what, &ended);
        fs::remove_dir_all(scene.path("run")).unwrap();

        // By name, or where there is nothing else, it is an error.
        for (words, others) in [("--resume 5", true), ("--resume", false)] {
            let run = scene.copy(&scene.path("whole"), "run");
            copy(&run);
            if !others {
                (1..=3).for_each(|number| fs::remove_dir_all(step(&scene, "run", number)).unwrap());
            }
            let before = contents(&run.join("checkpoints"));
            let ended = train(&scene, MODEL, "run", 3).words(words).run();
            ended.assert_failed(2, &["hint: "]);
            let told = parts[0].strip_prefix("it ").unwrap();
            assert!(ended.err.contains("step-00000005") && ended.err.contains(told), "{what}\n{ended}");
            assert!(before == contents(&run.join("checkpoints")), "{what}: something was touched");
            fs::remove_dir_all(&run).unwrap();
        }
    }
    // Who asks for other data is not led to an older checkpoint: none of them fits.
    let ended = train(&scene, MODEL, "whole", 5).words("--seed 7 --resume").run();
    ended
        .assert_failed(2, &["step-00000003 was saved by a job with other data: seed of", "hint: resume with the data"]);
    assert!(!ended.err.contains("skipped "), "{ended}");
}

/// Where a step's folder of a run is, in the scene.
fn relative(scene: &Scene, run: &Path, step: u32) -> String {
    let run = run.strip_prefix(scene.path("")).unwrap().display().to_string();
    format!("{run}/checkpoints/step-{step:08}")
}

/// A manifest that was edited by hand, on purpose, goes without its seal.
#[test]
fn a_manifest_without_a_seal_is_one_of_before_there_were_seals() {
    let scene = Scene::new();
    three_steps(&scene);
    edit_manifest(&step(&scene, "whole", 3), |manifest| {
        assert!(manifest["seal"].is_string());
        manifest.as_object_mut().unwrap().remove("seal");
        manifest["note"] = json!("by hand");
    });
    command(&scene, "verify", &step(&scene, "whole", 3)).assert_done();
    train(&scene, MODEL, "whole", 4).words("--resume").run().assert_done();
}
