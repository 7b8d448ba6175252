//! Checkpoints in an object store: a real S3 server, lines to it that are cut, and a run that goes on from it alone.

mod proxy;
mod server;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use zerofold_tests::{Ended, Job, Metrics, Scene, checkpoints, json, model, wait_for};

use proxy::Proxy;
use server::{ACCESS_KEY, BUCKET, SECRET_KEY, Server, published};

const MODEL: &str = "tiny-llama";
/// What the learning rate is in a step does not depend on how many follow.
const JOB: &str = "--nproc 2 --zero_stage 3 --per_device_train_batch_size 5 --save_steps 2 --learning_rate 1e-3 \
                   --train_sampling_strategy random --lr_scheduler_type constant_with_warmup --warmup_steps 100";
const FIRST: &str = "rank-00000-of-00002.g1.safetensors";
const SECOND: &str = "rank-00001-of-00002.g1.safetensors";

/// The environment in which `launch` reaches this store, and no other.
fn reaching<'a>(job: Job<'a>, address: SocketAddr) -> Job<'a> {
    job.adjust(|command| {
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_uppercase();
            if upper.starts_with("AWS_") || upper.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.env("AWS_ENDPOINT_URL", format!("http://{address}")).env("AWS_REGION", "us-east-1");
        command.env("ZEROFOLD_STORE_PATIENCE", "3");
    })
}

/// `launch train` in the run folder `run`, with the prefix of the same name.
fn train<'a>(scene: &'a Scene, run: &str, address: SocketAddr, words: &str) -> Job<'a> {
    let job = scene.train(MODEL, run, JOB).words(words).words(&format!("--checkpoint_store s3://{BUCKET}/{run}"));
    reaching(job, address)
}

/// A command that looks at checkpoints, with a TMPDIR of its own that is empty again in the end.
fn look(scene: &Scene, address: SocketAddr, words: &str) -> Ended {
    let temporary = scene.path("temporary");
    std::fs::create_dir_all(&temporary).unwrap();
    let ended = reaching(scene.launch(words), address).adjust(|command| {
        command.env("TMPDIR", &temporary);
    });
    let ended = ended.run();
    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?} stays\n{ended}");
    ended
}

fn model_bytes(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("model/model.safetensors")).expect("a model was written")
}

/// The run did the last steps of `whole`, and wrote its model.
#[track_caller]
fn assert_ends_as(run: &Path, whole: &Path) {
    let (own, all) = (Metrics::of(run).exact(), Metrics::of(whole).exact());
    assert!(!own.is_empty() && own.len() <= all.len());
    assert_eq!(own, all[all.len() - own.len()..]);
    assert!(model_bytes(run) == model_bytes(whole), "the models differ");
}

/// A run of this many steps that has no store.
fn whole(scene: &Scene, steps: u32) -> PathBuf {
    scene.train(MODEL, "whole", JOB).words(&format!("--max_steps {steps}")).run().assert_done();
    scene.path("whole")
}

/// The steps of which anything is in the store, by name. (The server keeps empty folders, which are no objects.)
fn stored(objects: &Path) -> Vec<String> {
    names(objects).into_iter().filter(|name| !names(&objects.join(name)).is_empty()).collect()
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_goes_on_from_the_store_alone() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let whole = whole(&scene, 9);
    let ended = train(&scene, "run", server.address(), "--max_steps 4").run();
    ended.assert_done();
    assert!(ended.out.contains("checkpoint of step 4 in the store: s3://models/run/step-00000004 ("), "{ended}");
    // The same names with the same bytes as on the disk, and nothing else.
    let (run, objects) = (scene.path("run"), server.objects("run"));
    assert_eq!(published(&objects).last(), Some(&4));
    assert!(names(&objects).iter().all(|name| name.starts_with("step-")), "{:?}", names(&objects));
    for name in [FIRST, SECOND, "manifest.json"] {
        let read = |folder: &Path| std::fs::read(folder.join("step-00000004").join(name)).unwrap();
        assert!(read(&objects) == read(&run.join("checkpoints")), "{name}");
    }
    // A new run does not go over it.
    std::fs::remove_dir_all(&run).unwrap();
    let again = train(&scene, "run", server.address(), "--max_steps 4").run();
    again.assert_failed(
        2,
        &["s3://models/run holds checkpoints of a run, the newest after step 4", "hint: give --resume"],
    );
    assert!(!run.exists());

    let ended = train(&scene, "run", server.address(), "--max_steps 9 --resume").run();
    ended.assert_done();
    assert!(ended.out.contains("fetching s3://models/run/step-00000004\n"), "{ended}");
    assert!(ended.out.contains("resuming after step 4 from "), "{ended}");
    assert_ends_as(&run, &whole);
    assert_eq!(Metrics::of(&run).count(), 5);
    assert_eq!(published(&objects).last(), Some(&9));
    let manifest = json(&objects.join("step-00000009/manifest.json"));
    assert_eq!(manifest["generation"], 2, "shards of the two jobs have other names");

    // By name, and with the folder's own where both have it: nothing is fetched.
    std::fs::remove_dir_all(&run).unwrap();
    let ended = train(&scene, "run", server.address(), "--max_steps 5 --resume step-00000004").run();
    ended.assert_done();
    assert!(ended.out.contains("resuming after step 4 from "), "{ended}");
    ended.assert_says(&["set aside s3://models/run/step-00000009: its step will be done again"]);
    assert_eq!(published(&objects).last(), Some(&5));
    let ended = train(&scene, "run", server.address(), "--max_steps 6 --resume").run();
    ended.assert_done();
    assert!(!ended.out.contains("fetching ") && ended.out.contains("resuming after step 5 "), "{ended}");
    train(&scene, "run", server.address(), "--resume 7").run().assert_failed(2, &["there is no checkpoint "]);
}

#[test]
fn a_lost_connection_costs_an_upload_and_nothing_else() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let proxy = Proxy::to(server.address());
    let (run, objects) = (scene.path("run"), server.objects("run"));
    train(&scene, "run", proxy.address(), "--max_steps 2").run().assert_done();
    assert_eq!(published(&objects), [2]);

    // In the second of two files: probe, listing and the first one need less.
    let bytes = std::fs::metadata(objects.join("step-00000002").join(FIRST)).unwrap().len();
    proxy.cut_after(bytes + bytes / 2);
    let ended = train(&scene, "run", proxy.address(), "--max_steps 4 --resume").run();
    ended.assert_done();
    assert!(proxy.is_cut(), "{ended}");
    ended.assert_says(&[
        "error: the checkpoint of step 4 is not in s3://models/run/step-00000004: cannot write ",
        "hint: ",
    ]);
    assert!(ended.out.contains("1 upload failed, the last one of step 4: cannot write "), "{ended}");
    assert!(ended.out.contains("this job put no checkpoint into the store"), "{ended}");
    assert_eq!(published(&objects), [2]);
    assert!(run.join("checkpoints/step-00000004/manifest.json").is_file());

    // At the start nobody waits for long, and nothing is touched.
    let ended = train(&scene, "run", proxy.address(), "--max_steps 6 --resume").run();
    ended.assert_failed(2, &["error: cannot write to s3://models/run: ", "hint: AWS_ENDPOINT_URL says"]);

    // Once it is back, the next save arrives, and what the lost one left is cleared away.
    proxy.mend();
    let ended = train(&scene, "run", proxy.address(), "--max_steps 6 --resume").run();
    ended.assert_done();
    assert!(ended.out.contains("resuming after step 4 from "), "{ended}");
    assert_eq!(published(&objects), [2, 6]);
    assert_eq!(stored(&objects), ["step-00000002", "step-00000006"]);
    look(&scene, server.address(), "verify s3://models/run").assert_done();
}

#[test]
fn a_line_that_is_mended_in_time_costs_nothing() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let proxy = Proxy::to(server.address());
    proxy.cut_after(300_000);
    let job = train(&scene, "run", proxy.address(), "--max_steps 2").adjust(|command| {
        command.env("ZEROFOLD_STORE_PATIENCE", "60");
    });
    let running = job.start();
    wait_for("the cut", || proxy.is_cut().then_some(()));
    proxy.mend();
    let ended = running.finish();
    ended.assert_done();
    assert!(!ended.err.contains("error: "), "{ended}");
    assert_eq!(published(&server.objects("run")), [2]);
    look(&scene, server.address(), "verify s3://models/run").assert_done();
}

#[test]
fn what_is_asked_to_stop_does_not_wait_for_ever() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let proxy = Proxy::to(server.address());
    let words = "--max_steps 100000 --save_steps 100000 --grace 4";
    let mut running = train(&scene, "run", proxy.address(), words)
        .adjust(|command| {
            command.env("ZEROFOLD_STORE_PATIENCE", "600");
        })
        .start();
    let run = scene.path("run");
    running.wait_for("a step", || (Metrics::of(&run).count() >= 1).then_some(()));
    proxy.cut_after(0);
    // The save that SIGTERM asks for cannot be uploaded.
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert_eq!(ended.code, Some(143), "{ended}");
    ended.assert_says(&[
        "waiting until the checkpoint of step ",
        "(at most 4 s; again to give it up at once)",
        "it was given up before its end",
        "--resume",
    ]);
    scene.assert_nobody_left();
    assert_eq!(published(&server.objects("run")), [0; 0]);
}

/// Three steps in the store, and its objects under other prefixes, each spoiled in its own way.
#[test]
fn damage_in_the_store_is_named_and_the_older_step_is_taken() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let whole = whole(&scene, 6);
    for steps in [2, 4, 6] {
        let resume = if steps > 2 { "--resume" } else { "" };
        let words = format!("--max_steps {steps} {resume}");
        train(&scene, "run", server.address(), &words).run().assert_done();
    }
    assert_eq!(published(&server.objects("run")), [2, 4, 6]);
    let file = |step: &Path| names(step).into_iter().find(|name| name.starts_with("rank-00001")).unwrap();
    type Damage = fn(&Path, &str);
    let damages: [(&str, Damage, &str); 6] = [
        (
            "flipped",
            |step, file| {
                let mut bytes = std::fs::read(step.join(file)).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(step.join(file), bytes).unwrap();
            },
            " has the hash ",
        ),
        ("missing", |step, file| std::fs::remove_file(step.join(file)).unwrap(), " is missing"),
        (
            "cut",
            |step, file| {
                let file = std::fs::File::options().write(true).open(step.join(file)).unwrap();
                file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            },
            " bytes, its manifest says ",
        ),
        (
            "outside",
            |step, _| {
                let manifest = step.join("manifest.json");
                let text = std::fs::read_to_string(&manifest).unwrap();
                let tricked = text.replace("\"rank-00001", "\"../../rank-00001");
                assert!(tricked != text);
                std::fs::write(&manifest, tricked).unwrap();
            },
            "is not of the form rank-NNNNN",
        ),
        (
            "half-a-manifest",
            |step, _| {
                let manifest = step.join("manifest.json");
                let text = std::fs::read_to_string(&manifest).unwrap();
                std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
            },
            "cannot make sense of ",
        ),
        (
            "another-step",
            |step, _| {
                let manifest = step.join("manifest.json");
                let text = std::fs::read_to_string(&manifest).unwrap();
                std::fs::write(&manifest, text.replace("\"step\": 6,", "\"step\": 8,")).unwrap();
            },
            "is of step 8",
        ),
    ];
    for (name, damage, expected) in damages {
        scene.copy(&server.objects("run"), &format!("store/{BUCKET}/{name}"));
        let newest = server.objects(name).join("step-00000006");
        damage(&newest, &file(&newest));
        let ended = train(&scene, name, server.address(), "--max_steps 6 --resume").run();
        ended.assert_done();
        ended.assert_says(&[&format!("skipped s3://models/{name}/step-00000006: "), expected]);
        assert!(ended.out.contains("resuming after step 4 from "), "{name}\n{ended}");
        assert_ends_as(&scene.path(name), &whole);
        // The step was saved anew, beside what was set aside.
        assert_eq!(published(&server.objects(name)), [2, 4, 6], "{name}");
        assert!(names(&newest).iter().any(|name| name.starts_with("manifest.json.replaced-")), "{name}");
        look(&scene, server.address(), &format!("verify s3://models/{name}/step-00000006")).assert_done();
        let steps = names(&scene.path(name).join("checkpoints"));
        assert_eq!(steps, ["step-00000004", "step-00000006"], "{name}: nothing half stays");
    }

    // With none that is whole there is nothing to go on from.
    scene.copy(&server.objects("run"), &format!("store/{BUCKET}/none"));
    for step in published(&server.objects("none")) {
        std::fs::remove_file(
            server.objects("none").join(format!("step-{step:08}")).join(FIRST.replace("g1", &format!("g{}", step / 2))),
        )
        .unwrap();
    }
    let ended = train(&scene, "none", server.address(), "--max_steps 6 --resume").run();
    ended.assert_failed(
        2,
        &["none of 3 checkpoints in it and in s3://models/none is whole", "hint: leave --resume out"],
    );
}

#[test]
fn a_launch_killed_while_it_uploads_leaves_nothing_that_counts() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let whole = whole(&scene, 40);
    // Two parts a step: in the second file of the second step, and before the manifest of that.
    for (run, fault, left) in
        [("part", "uploading#4", 1), ("manifest", "uploaded#2", 1), ("deleting", "deleting-stored#1", 1)]
    {
        let words = "--max_steps 40 --save_total_limit 1";
        let killed = train(&scene, run, server.address(), words).adjust(|command| {
            command.env("ZEROFOLD_FAULT", format!("launch@{fault}=kill"));
        });
        let ended = killed.start().finish();
        assert_eq!(ended.signal, Some(libc::SIGKILL), "{fault} did not strike\n{ended}");
        scene.assert_nobody_left();
        let objects = server.objects(run);
        assert_eq!(published(&objects).len(), left, "{fault}: {:?}", published(&objects));
        let from = *published(&objects).last().unwrap();
        assert_eq!(stored(&objects).len(), 2, "{fault}: a step that is not whole is there too");
        std::fs::remove_dir_all(scene.path(run)).unwrap();
        let ended = train(&scene, run, server.address(), words).words("--resume").run();
        ended.assert_done();
        assert!(ended.out.contains(&format!("resuming after step {from} from ")), "{fault}\n{ended}");
        assert_ends_as(&scene.path(run), &whole);
        assert_eq!(published(&objects), [40], "{fault}");
        assert_eq!(stored(&objects), ["step-00000040"], "{fault}: what was killed is cleared away");
    }
}

#[test]
fn as_many_stay_in_the_store_as_are_asked_for() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    for steps in 1..=5 {
        let resume = if steps > 1 { "--resume" } else { "" };
        let words = format!("--save_total_limit 2 --save_keep_every 3 --max_steps {steps} {resume}");
        train(&scene, "run", server.address(), &words).run().assert_done();
        let kept: &[u64] = [&[1][..], &[1, 2], &[2, 3], &[3, 4], &[3, 4, 5]][steps - 1];
        assert_eq!(published(&server.objects("run")), kept);
        for step in kept {
            assert_eq!(names(&server.objects("run").join(format!("step-{step:08}"))).len(), 3);
        }
    }
    assert_eq!(server.parts(), 0);
}

/// More saves than can be uploaded: each is either there in its turn or said not to be, and the last one is there.
#[test]
fn what_waits_too_long_is_passed_over_and_told() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let ended = train(&scene, "run", server.address(), "--max_steps 40 --save_steps 1 --save_total_limit 1").run();
    ended.assert_done();
    let number = |line: &str| -> Option<u64> {
        line.split_once("checkpoint of step ")?.1.split_whitespace().next()?.parse().ok()
    };
    let uploaded: Vec<u64> =
        ended.out.lines().filter(|line| line.contains(" in the store: ")).filter_map(number).collect();
    let skipped: Vec<u64> =
        ended.err.lines().filter(|line| line.contains(" is not uploaded: ")).filter_map(number).collect();
    assert!(uploaded.is_sorted() && skipped.is_sorted(), "{ended}");
    let mut all = [uploaded.clone(), skipped].concat();
    all.sort_unstable();
    assert_eq!(all, (1..=40).collect::<Vec<u64>>(), "{ended}");
    assert_eq!(uploaded.last(), Some(&40));
    // What was held for its upload is gone since.
    assert_eq!(published(&server.objects("run")), [40]);
    assert_eq!(checkpoints(&scene.path("run")).len(), 1);
    assert_eq!(names(&scene.path("run/checkpoints")), ["step-00000040"]);
}

#[test]
fn a_store_that_cannot_be_used_is_told_before_anything_begins() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let plain = Server::without_conditions(scene.path("plain"));
    let refused = |job: Job<'_>, parts: &[&str]| {
        job.run().assert_failed(2, parts);
        assert!(!scene.path("run").exists());
    };
    let job = || train(&scene, "run", server.address(), "--max_steps 2");
    let wrong_key = job().adjust(|command| {
        command.env("AWS_ACCESS_KEY_ID", "AKOTHER");
    });
    refused(wrong_key, &["error: cannot write to s3://models/run: ", "hint: these credentials need"]);
    let wrong_secret = job().adjust(|command| {
        command.env("AWS_SECRET_ACCESS_KEY", "SKOTHER");
    });
    refused(wrong_secret, &["SignatureDoesNotMatch", "hint: set AWS_ACCESS_KEY_ID"]);
    let bucket = job().words("--checkpoint_store s3://nowhere/run");
    refused(bucket, &["cannot write to s3://nowhere/run: NoSuchBucket", "hint: create the bucket"]);
    let nobody = job().adjust(|command| {
        command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    });
    refused(nobody, &["cannot write to s3://models/run: ", "refused", "hint: AWS_ENDPOINT_URL says where"]);
    let nonsense = job().adjust(|command| {
        command.env("AWS_ENDPOINT_URL", "models.example");
    });
    refused(nonsense, &["s3://models/run", "hint: AWS_ENDPOINT_URL"]);
    let conditions = train(&scene, "run", plain.address(), "--max_steps 2");
    let endpoint = format!("({})", format_args!("http://{}", plain.address()));
    refused(conditions, &["the server of s3://models/run ", &endpoint, "If-None-Match: *", "hint: use a store with"]);
    let scheme = job().words("--checkpoint_store gs://models/run");
    refused(scheme, &["checkpoint_store is gs://models/run", "it must be s3://BUCKET or s3://BUCKET/PREFIX"]);
    // Nothing was left behind by trying.
    for server in [&server, &plain] {
        assert_eq!(names(&server.objects("run")), [""; 0]);
    }
}

#[test]
fn the_commands_that_look_at_checkpoints_take_urls() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let run = scene.path("run");
    for steps in [2, 4] {
        let words = format!("--max_steps {steps} {}", if steps > 2 { "--resume" } else { "" });
        train(&scene, "run", server.address(), &words).run().assert_done();
    }
    let look = |words: &str| look(&scene, server.address(), words);
    let answer = |words: &str| -> Value {
        let ended = look(words);
        ended.assert_done();
        serde_json::from_str(&ended.out).unwrap()
    };
    for (remote, local) in
        [("s3://models/run/", run.clone()), ("s3://models/run/step-00000002", run.join("checkpoints/step-00000002"))]
    {
        let (mut remote, mut local) = (
            answer(&format!("inspect --tensors --json {remote}")),
            answer(&format!("inspect --tensors --json {}", local.display())),
        );
        assert!(remote["path"].take().as_str().unwrap().starts_with("s3://models/run/step-"));
        local["path"].take();
        assert_eq!(remote, local);
    }
    let ended = look("verify s3://models/run");
    ended.assert_done();
    for step in ["step-00000002", "step-00000004"] {
        assert!(ended.out.contains(&format!("whole    s3://models/run/{step}: 2 files")), "{ended}");
    }
    let ended = look(&format!("diff s3://models/run {}", run.display()));
    ended.assert_done();
    assert!(ended.out.contains("A  s3://models/run/step-00000004 (step 4)"), "{ended}");
    let ended = look("diff s3://models/run s3://models/run/step-00000002");
    assert_eq!(ended.code, Some(1), "{ended}");
    let output = scene.path("exported");
    let export = format!("export s3://models/run --output {}", output.display());
    look(&export).assert_failed(2, &["does not tell which model", "hint: give --model FOLDER"]);
    look(&format!("{export} --model {}", model(MODEL).display())).assert_done();
    assert!(std::fs::read(output.join("model.safetensors")).unwrap() == model_bytes(&run));

    // Damage is looked at from end to end, and named.
    let newest = server.objects("run").join("step-00000004");
    let second = names(&newest).into_iter().find(|name| name.starts_with("rank-00001")).unwrap();
    let mut bytes = std::fs::read(newest.join(&second)).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    std::fs::write(newest.join(&second), bytes).unwrap();
    let ended = look("verify s3://models/run");
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.out.contains("damaged  s3://models/run/step-00000004: "), "{ended}");
    assert!(ended.out.contains(&format!("{second}: its hash is ")) && ended.out.contains("affected: "), "{ended}");
    look(&format!("diff s3://models/run {}", run.display()))
        .assert_failed(2, &["step-00000004 is not whole: ", &second]);
    look(&format!(
        "export s3://models/run --output {} --model {}",
        scene.path("other").display(),
        model(MODEL).display()
    ))
    .assert_failed(2, &["step-00000004 is not whole: ", &second]);
    assert!(!scene.path("other").exists());
    std::fs::remove_file(newest.join(&second)).unwrap();
    look("inspect s3://models/run").assert_failed(2, &["step-00000004 is not whole: ", &second, "is missing"]);
    let ended = look("verify s3://models/run/step-00000004");
    assert!(ended.out.contains(&format!("{second}: it is missing")), "{ended}");
    look("inspect s3://models/nothing")
        .assert_failed(2, &["there is no checkpoint in s3://models/nothing", "hint: give"]);
    look("inspect s3://models/run/step-00000003").assert_failed(2, &["there is no s3://models/run/step-00000003"]);
    look("inspect gs://models/run").assert_failed(2, &["gs://models/run must be s3://BUCKET"]);
}
