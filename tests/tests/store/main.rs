//! Checkpoints in an object store: a real S3 server, lines to it that are cut, and a run that goes on from it alone.

mod commands;
mod damage;
mod faults;
mod proxy;
mod server;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use zerofold_tests::{Ended, Job, Metrics, Scene, checkpoints, json};

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
fn the_best_checkpoint_comes_from_the_store_too() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let best = "--eval_steps 2 --eval_strategy steps --load_best_model_at_end --save_total_limit 1 \
                --lr_scheduler_type constant";
    // The more it learns of one token, the worse it knows the other.
    let data = |name: &str, token: u32| {
        let row = serde_json::json!({ "input_ids": vec![token; 16] }).to_string() + "\n";
        std::fs::write(scene.path(name), row.repeat(60)).unwrap();
        scene.path(name)
    };
    let (one, other) = (data("one.jsonl", 5), data("other.jsonl", 7));
    let job = |words: &str| {
        let job = train(&scene, "run", server.address(), best).words(words);
        job.with("--dataset", &one).with("--eval_dataset", &other).run()
    };
    job("--max_steps 6").assert_done();
    let (run, stored) = (scene.path("run"), published(&server.objects("run")));
    let &[best, newest] = &stored[..] else { panic!("the best and the newest: {stored:?}") };
    let model = model_bytes(&run);
    std::fs::remove_dir_all(&run).unwrap();
    // There is nothing left to train, and the model is that of the best.
    let ended = job("--max_steps 6 --resume");
    ended.assert_done();
    for step in [best, newest] {
        assert!(ended.out.contains(&format!("fetching s3://models/run/step-{step:08}")), "{step}\n{ended}");
    }
    assert!(model_bytes(&run) == model, "the models differ");
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
