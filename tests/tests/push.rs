//! `launch push`: a model folder becomes one commit of a repository of the hub, or nothing of it does.

use std::path::Path;
use std::process::Command;

use zerofold_tests::{Ended, Fault, Hub, Scene, WRITER, change_weights, fixture, model};

const ID: &str = "me/tuned";

fn ask(hub: &Hub) -> impl FnOnce(&mut Command) + use<> {
    let endpoint = hub.endpoint();
    move |command| {
        command.env("HF_ENDPOINT", endpoint).env_remove("HF_HUB_OFFLINE").env("HF_TOKEN", WRITER);
    }
}

fn push(scene: &Scene, hub: &Hub, folder: &Path, words: &str) -> Ended {
    let add = |command: &mut Command| {
        command.arg(folder);
    };
    scene.launch("push").adjust(add).with("--repo", ID).words(words).adjust(ask(hub)).run()
}

#[track_caller]
fn assert_pushed(hub: &Hub, branch: &str, folder: &Path) {
    let mut there = hub.files(ID, branch);
    there.remove(".gitattributes");
    let names: Vec<String> = there.keys().cloned().collect();
    let mut own: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    own.sort();
    assert_eq!(names, own);
    for (name, bytes) in there {
        assert!(std::fs::read(folder.join(&name)).unwrap() == bytes, "{name} differs");
    }
}

#[test]
fn a_runs_model_is_pushed_and_trained_from_there() {
    let (scene, hub) = (Scene::new(), Hub::new());
    scene.train("tiny-llama", "run", "--nproc 1 --max_steps 1").run().assert_done();
    let (run, folder) = (scene.path("run"), scene.path("run/model"));
    hub.take_parts_of(100_000);
    let first = push(&scene, &hub, &run, "--private --message Once");
    first.assert_done();
    first.assert_says(&["uploading 1 large file ("]);
    assert!(first.out.starts_with(&format!("{}/{ID}/commit/", hub.endpoint())), "{first}");
    assert!(hub.is_private(ID));
    assert_pushed(&hub, "main", &folder);
    assert_eq!(hub.commits(ID, "main"), 2);
    let parts = hub.take_requests().into_iter().filter(|it| it.starts_with("PUT /upload/")).count();
    assert_eq!(parts, 7, "of 100,000 bytes each");

    // What is there is not sent again, and no commit is made for nothing.
    let again = push(&scene, &hub, &folder, "");
    again.assert_done();
    again.assert_says(&["there is nothing to commit"]);
    assert_eq!(hub.commits(ID, "main"), 2);
    assert!(!hub.take_requests().iter().any(|it| it.starts_with("PUT ") || it.contains("/commit/")));
    // A branch, made of main; of what changed only.
    let changed = scene.copy(&folder, "changed");
    std::fs::write(changed.join("generation_config.json"), "{}").unwrap();
    push(&scene, &hub, &changed, "--revision tries/1").assert_done();
    assert_pushed(&hub, "tries/1", &changed);
    assert_pushed(&hub, "main", &folder);
    assert!(!hub.take_requests().iter().any(|it| it.starts_with("PUT ")));

    let train = scene.launch("train --nproc 1 --max_steps 1").with("--model_name_or_path", ID);
    let train = train.with("--dataset", fixture("data/rows.jsonl")).with("--output_dir", scene.path("again"));
    train.words("--gradient_checkpointing false").adjust(ask(&hub)).run().assert_done();
}

#[test]
fn weights_that_were_cut_otherwise_go_in_the_same_commit() {
    let (scene, hub) = (Scene::new(), Hub::new());
    hub.publish(ID, &model("tiny-llama-sharded"));
    let before = hub.commits(ID, "main");
    let ended = push(&scene, &hub, &model("tiny-llama"), "");
    ended.assert_done();
    ended.assert_says(&["note: model.safetensors.index.json belongs to the model that was there"]);
    assert_pushed(&hub, "main", &model("tiny-llama"));
    assert_eq!(hub.commits(ID, "main"), before + 1);
}

#[test]
fn what_breaks_off_changes_nothing_and_what_passes_is_tried_again() {
    let (scene, hub) = (Scene::new(), Hub::new());
    hub.publish(ID, &model("tiny-llama-tied"));
    let (before, commits) = (hub.files(ID, "main"), hub.commits(ID, "main"));
    let folder = model("tiny-llama");
    let unchanged = || assert!(hub.files(ID, "main") == before && hub.commits(ID, "main") == commits);

    hub.let_fail(Fault::cut("PUT /upload/", 200_000, 5));
    let broken = push(&scene, &hub, &folder, "");
    broken.assert_failed(1, &["me/tuned: ", "does not answer: "]);
    unchanged();
    hub.let_fail(Fault::status("PUT /upload/", 403, "", 1));
    push(&scene, &hub, &folder, "")
        .assert_failed(1, &["model.safetensors was not taken", "hint: nothing was committed"]);
    hub.let_fail(Fault::status("POST /verify", 404, "", 1));
    push(&scene, &hub, &folder, "").assert_failed(2, &["hint: "]);
    unchanged();
    // The upload is there now, and only the commit is missing.
    hub.let_fail(Fault::status("POST /api/models/me/tuned/commit", 412, "", 1));
    push(&scene, &hub, &folder, "").assert_failed(1, &["somebody else changed main meanwhile", "push again"]);
    hub.let_fail(Fault::status("POST /api/models/me/tuned/commit", 500, "", 1));
    push(&scene, &hub, &folder, "").assert_failed(1, &["/me/tuned/commits/main shows whether the commit arrived"]);
    unchanged();
    hub.take_requests();
    push(&scene, &hub, &folder, "").assert_done();
    assert!(!hub.take_requests().iter().any(|it| it.starts_with("PUT ")), "it was uploaded before");
    assert_pushed(&hub, "main", &folder);

    // One cut in a part, one error of the storage: only that part is sent again.
    let hub = Hub::new();
    hub.take_parts_of(200_000);
    hub.let_fail(Fault::cut("PUT /upload/", 100_000, 1));
    hub.let_fail(Fault::status("PUT /upload/", 500, "", 1));
    push(&scene, &hub, &folder, "").assert_done();
    assert_eq!(hub.faults_left(), 0);
    assert_pushed(&hub, "main", &folder);
    assert_eq!(hub.take_requests().into_iter().filter(|it| it.starts_with("PUT ")).count(), 6);
}

#[test]
fn what_may_not_be_pushed_is_refused_before_the_hub_hears_of_it() {
    let (scene, hub) = (Scene::new(), Hub::new());
    let folder = model("tiny-llama");
    let endpoint = hub.endpoint();
    let nobody = scene.launch("push").with("--repo", ID).adjust(|command| {
        command.arg(&folder).env("HF_ENDPOINT", endpoint).env_remove("HF_HUB_OFFLINE");
    });
    nobody.run().assert_failed(2, &["there is no token to push with", "settings/tokens, and set HF_TOKEN to it"]);
    let refused =
        |folder: &Path, words: &str, parts: &[&str]| push(&scene, &hub, folder, words).assert_failed(2, parts);
    refused(&scene.path("nowhere"), "", &["there is no folder ", "hint: give a model folder"]);
    refused(&fixture("data"), "", &["is no model folder: it has no config.json"]);
    refused(&folder, "--repo model", &["can be no repository", "OWNER/NAME"]);
    let spoilt = scene.copy(&folder, "spoilt");
    change_weights(&spoilt, "model.norm.weight", 0..1, |_| f32::NAN);
    refused(&spoilt, "", &["is not whole, and was not pushed: model.safetensors: ", "NaN", "launch verify"]);
    assert_eq!(hub.take_requests(), [""; 0]);
    hub.publish(ID, &model("tiny-llama-tied"));
    refused(&folder, "--private", &["it is there already, and public"]);
    assert_eq!(hub.commits(ID, "main"), 1);
}
