//! Models of the Hugging Face hub: downloaded into the shared cache, used from it, and pushed; against a hub of this machine
//! (`zerofold_tests::Hub`).

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use zerofold_tests::{Ended, Fault, Hub, Scene, SmallDisk, fixture, model, wait_for};

const STEP: &str = "--nproc 1 --gradient_checkpointing false --max_steps 1 --per_device_train_batch_size 2 --seed 1";
const ID: &str = "owner/model";

/// A command that may ask the hub, and no other.
fn ask(hub: &Hub, token: Option<&str>) -> impl FnOnce(&mut Command) {
    let (endpoint, token) = (hub.endpoint(), token.map(str::to_owned));
    move |command| {
        command.env("HF_ENDPOINT", endpoint).env_remove("HF_HUB_OFFLINE");
        if let Some(token) = token {
            command.env("HF_TOKEN", token);
        }
    }
}

fn train(scene: &Scene, name: &str, run: &str, words: &str, adjust: impl FnOnce(&mut Command)) -> Ended {
    let job = scene.launch("train").with("--model_name_or_path", name).with("--dataset", fixture("data/rows.jsonl"));
    job.with("--output_dir", scene.path(run)).words(STEP).words(words).adjust(adjust).run()
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn cached(scene: &Scene, name: &str) -> PathBuf {
    scene.path("hf/hub/models--owner--model").join(name)
}

/// Names of whole and of begun blobs.
fn blobs(scene: &Scene) -> (usize, usize) {
    let names = std::fs::read_dir(cached(scene, "blobs")).into_iter().flatten();
    let names: Vec<String> = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    let begun = names.iter().filter(|name| name.ends_with(".incomplete")).count();
    (names.len() - begun, begun)
}

#[track_caller]
fn assert_same_model(one: &Path, other: &Path) {
    for name in
        ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read(one) == read(other), "{name} differs");
    }
}

#[test]
fn a_model_of_the_hub_trains_as_its_folder_does_and_is_downloaded_once() {
    let (scene, hub) = (Scene::new(), Hub::new());
    let commit = hub.publish(ID, &model("tiny-llama-sharded"));
    train(&scene, model("tiny-llama-sharded").to_str().unwrap(), "local", "", |_| ()).assert_done();

    let first = train(&scene, ID, "first", "", ask(&hub, None));
    first.assert_done();
    first.assert_says(&["downloading 1 file of owner/model at ", "downloading 7 files of owner/model at "]);
    assert!(first.out.contains(&format!("model  owner/model at {} (main)", &commit[..7])), "{first}");
    assert_same_model(&scene.path("first/model"), &scene.path("local/model"));
    let config = read(scene.path("first/config.resolved.yaml"));
    for part in ["hub_model:", "id: owner/model", "revision: main", &format!("commit: {commit}")] {
        assert!(config.contains(part), "{part}\n{config}");
    }
    let metrics = read(scene.path("first/metrics.jsonl"));
    let told: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!((&told["model"], &told["model_commit"]), (&ID.into(), &commit.clone().into()));
    // The layout is huggingface_hub's.
    assert_eq!(read(cached(&scene, "refs/main")), commit);
    let link = std::fs::read_link(cached(&scene, "snapshots").join(&commit).join("config.json")).unwrap();
    assert!(link.starts_with("../../blobs"), "{link:?}");
    assert_eq!(blobs(&scene), (8, 0));

    // A branch may have moved: one question, and nothing is downloaded.
    hub.take_requests();
    train(&scene, ID, "second", "", ask(&hub, None)).assert_done();
    assert_eq!(hub.take_requests(), ["GET /api/models/owner/model/revision/main"]);
    // A commit is what it is.
    train(&scene, ID, "pinned", &format!("--model_revision {commit}"), ask(&hub, None)).assert_done();
    assert_eq!(hub.take_requests(), [""; 0]);
    let dead = hub.endpoint();
    drop(hub);
    train(&scene, ID, "offline", "", |_| ()).assert_done();
    let unplugged = train(&scene, ID, "unplugged", "", |command| {
        command.env("HF_ENDPOINT", dead).env_remove("HF_HUB_OFFLINE");
    });
    unplugged.assert_done();
    unplugged.assert_says(&["does not answer", "using its commit ", "from the cache"]);
    assert_same_model(&scene.path("unplugged/model"), &scene.path("local/model"));
}

#[test]
fn a_run_goes_on_with_the_commit_that_it_began_with() {
    let (scene, hub) = (Scene::new(), Hub::new());
    let commit = hub.publish(ID, &model("tiny-llama"));
    train(&scene, ID, "run", "--max_steps 2 --save_steps 1", ask(&hub, None)).assert_done();
    std::fs::remove_dir_all(scene.path("run/checkpoints/step-00000002")).unwrap();
    let moved = hub.publish(ID, &model("tiny-llama-tied"));
    assert_ne!(commit, moved);
    let other = format!("--max_steps 2 --resume --model_revision {moved}");
    train(&scene, ID, "run", &other, ask(&hub, None)).assert_failed(
        2,
        &["the run in it trains owner/model at ", "hint: resume with the same model: --model_name_or_path owner/model"],
    );
    hub.take_requests();
    train(&scene, ID, "run", "--max_steps 2 --resume", ask(&hub, None)).assert_done();
    assert_eq!(hub.take_requests(), [""; 0]);
    assert!(read(scene.path("run/config.resolved.yaml")).contains(&format!("commit: {commit}\n")));

    // Another cache, filled anew: the same commit.
    std::fs::remove_dir_all(scene.path("run/checkpoints/step-00000002")).unwrap();
    std::fs::remove_dir_all(scene.path("hf")).unwrap();
    let endpoint = hub.endpoint();
    let elsewhere = scene.path("elsewhere");
    train(&scene, ID, "run", "--max_steps 2 --resume", |command| {
        command.env("HF_ENDPOINT", endpoint).env_remove("HF_HUB_OFFLINE").env("HF_HUB_CACHE", elsewhere);
    })
    .assert_done();
    assert!(scene.path("elsewhere/models--owner--model/snapshots").join(&commit).is_dir());
    assert!(!scene.path("elsewhere/models--owner--model/snapshots").join(&moved).exists());
}

#[test]
fn what_huggingface_hub_downloaded_is_used() {
    let scene = Scene::new();
    let commit = "89abcdef01".repeat(4);
    let source = model("tiny-llama");
    let snapshot = cached(&scene, "snapshots").join(&commit);
    for folder in [&snapshot, &cached(&scene, "blobs"), &cached(&scene, "refs")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    for (number, entry) in std::fs::read_dir(&source).unwrap().enumerate() {
        let entry = entry.unwrap();
        let blob = format!("{number:040x}");
        std::fs::copy(entry.path(), cached(&scene, "blobs").join(&blob)).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(entry.file_name())).unwrap();
    }
    // Without a line's end, as the Python package writes it.
    std::fs::write(cached(&scene, "refs/main"), &commit).unwrap();
    train(&scene, ID, "run", "", |_| ()).assert_done();
    train(&scene, source.to_str().unwrap(), "local", "", |_| ()).assert_done();
    assert_same_model(&scene.path("run/model"), &scene.path("local/model"));
    // What is not whole is not used.
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    let ended = train(&scene, ID, "refused", "", |_| ());
    ended.assert_failed(2, &["there is no such folder", "HF_HUB_OFFLINE", "has no whole copy of its revision main"]);
}

#[test]
fn a_download_that_breaks_off_goes_on_and_nothing_half_is_used() {
    let (scene, hub) = (Scene::new(), Hub::new());
    hub.publish(ID, &model("tiny-llama"));
    hub.let_fail(Fault::cut("GET /cdn/", 100_000, 2));
    hub.let_fail(Fault::status("GET /owner/model/resolve", 503, "", 1));
    train(&scene, ID, "cut", "", ask(&hub, None)).assert_done();
    assert_eq!(hub.faults_left(), 0);
    let ranges: Vec<_> =
        hub.take_requests().into_iter().filter(|it| it.contains("/cdn/") && it.contains("bytes=")).collect();
    let ends = |index: usize, end: &str| ranges[index].ends_with(end);
    assert!(ranges.len() == 2 && ends(0, " bytes=100000-") && ends(1, " bytes=200000-"), "{ranges:?}");

    // Nothing comes any more: what came is kept, and is no model.
    std::fs::remove_dir_all(scene.path("hf")).unwrap();
    hub.let_fail(Fault::cut("GET /cdn/", 50_000, 1));
    hub.let_fail(Fault::cut("GET /cdn/", 0, 1000));
    let broken = train(&scene, ID, "broken", "", ask(&hub, None));
    broken.assert_failed(1, &["owner/model: ", "does not answer: ", "hint: see that this machine reaches it"]);
    assert_eq!(blobs(&scene).1, 1);
    train(&scene, ID, "still-broken", "", |_| ()).assert_failed(2, &["has no whole copy"]);
    drop(hub);
    let hub = Hub::new();
    hub.publish(ID, &model("tiny-llama"));
    train(&scene, ID, "mended", "", ask(&hub, None)).assert_done();
    assert!(hub.take_requests().iter().any(|it| it.ends_with(" bytes=50000-")));
    assert_eq!(blobs(&scene).1, 0);
    assert_same_model(&scene.path("mended/model"), &scene.path("cut/model"));

    // Bytes that are not those of the hash, after a part that is not either.
    std::fs::remove_dir_all(scene.path("hf")).unwrap();
    hub.spoil("model.safetensors");
    let spoilt = train(&scene, ID, "spoilt", "", ask(&hub, None));
    spoilt.assert_failed(1, &["model.safetensors arrived with the SHA-256 ", "hint: what arrived was deleted"]);
    train(&scene, ID, "still-spoilt", "", |_| ()).assert_failed(2, &["has no whole copy"]);
    hub.spoil("");
    let weights = std::fs::read(model("tiny-llama/model.safetensors")).unwrap();
    let hash = format!("{:x}", <sha2::Sha256 as sha2::Digest>::digest(&weights));
    std::fs::write(cached(&scene, "blobs").join(format!("{hash}.incomplete")), vec![7; 1000]).unwrap();
    train(&scene, ID, "done-over", "", ask(&hub, None)).assert_done();
    assert_same_model(&scene.path("done-over/model"), &scene.path("cut/model"));
}

#[test]
fn a_killed_download_is_gone_on_with() {
    let (scene, hub) = (Scene::new(), Hub::new());
    hub.publish(ID, &model("tiny-llama"));
    hub.let_fail(Fault::cut("GET /cdn/", 300_000, 1));
    // Then the storage is busy, and launch waits to ask again.
    hub.let_fail(Fault::status("GET /cdn/", 503, "", 1000));
    let running = scene.launch("generate --prompt a").with("--model", ID).adjust(ask(&hub, None)).start();
    let part = || {
        let mut found = std::fs::read_dir(cached(&scene, "blobs")).ok()?.flatten();
        let part = found.find(|entry| entry.path().to_string_lossy().ends_with(".incomplete"))?;
        part.metadata().ok().filter(|part| part.len() == 300_000)
    };
    wait_for("the first part", part);
    drop(running);
    assert!(part().is_some());
    drop(hub);
    let hub = Hub::new();
    hub.publish(ID, &model("tiny-llama"));
    scene
        .launch("generate --prompt a --max_new_tokens 2")
        .with("--model", ID)
        .adjust(ask(&hub, None))
        .run()
        .assert_done();
    assert!(hub.take_requests().iter().any(|it| it.ends_with(" bytes=300000-")));
    assert_eq!(blobs(&scene).1, 0);
}

#[test]
fn a_disk_that_is_too_small_is_told_before_the_download() {
    let (scene, hub) = (Scene::new(), Hub::new());
    hub.publish(ID, &model("tiny-llama"));
    let path = scene.path("small");
    // Mounting is not permitted everywhere.
    let Some(_disk) = SmallDisk::mount(&path, 400 << 10) else { return };
    let allow = ask(&hub, None);
    let ended = train(&scene, ID, "run", "", |command| {
        allow(command);
        command.env("HF_HUB_CACHE", &path);
    });
    ended.assert_failed(
        1,
        &["owner/model: ", "small", "hint: free some space, or set HF_HOME to a folder on another disk"],
    );
    assert!(!hub.take_requests().iter().any(|it| it.contains("/cdn/")));
}

#[test]
fn what_the_hub_does_not_give_is_one_clear_error() {
    let (scene, hub) = (Scene::new(), Hub::new());
    let refused = |name: &str, words: &str, token: Option<&str>, parts: &[&str]| {
        let ended = train(&scene, name, "refused", words, ask(&hub, token));
        ended.assert_failed(2, parts);
        assert!(!scene.path("refused").exists(), "{ended}");
    };
    hub.publish(ID, &model("tiny-llama"));
    std::fs::create_dir_all(scene.path("runs/zero3")).unwrap();
    refused(
        "owner/other",
        "",
        None,
        &["owner/other: there is no such folder, and the hub has no such model", "set HF_TOKEN"],
    );
    refused("runs/zero2", "", None, &["there is no such folder", "hint: did you mean the folder runs/zero3? Else: "]);
    refused("./owner/model", "", None, &["./owner/model: there is no such folder"]);
    refused(ID, "--model_revision none-such", None, &["not the revision that was asked for", "/owner/model/tree/main"]);
    refused(ID, "--model_revision ../../x", None, &["can be no revision"]);
    refused(ID, "", Some("hf_nobody"), &["the hub does not know the token", "settings/tokens"]);

    hub.change(ID, |repo| repo.gated = true);
    refused(ID, "", None, &["it is gated", "then set HF_TOKEN"]);
    refused(ID, "", Some("hf_reader"), &["it is gated", "with the account of your token"]);
    hub.change(ID, |repo| (repo.gated, repo.private) = (false, true));
    refused(ID, "", None, &["the hub has no such model, or it is private", "set HF_TOKEN"]);
    refused(ID, "", Some("hf_reader"), &["does not show it to the account of your token"]);
    train(&scene, ID, "private", "", ask(&hub, Some(zerofold_tests::WRITER))).assert_done();

    let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    hub.commit(
        "owner/pickle",
        vec![file("config.json", "{}"), file("tokenizer.json", "{}"), file("pytorch_model.bin", "x")],
    );
    refused("owner/pickle", "", None, &["its weights are a pickle (pytorch_model.bin)", "it was not downloaded"]);
    hub.commit("owner/bare", vec![file("README.md", "x")]);
    refused("owner/bare", "", None, &["owner/bare: it has no config.json"]);
    for (repo, index) in [("owner/climbs", "../../../../x"), ("owner/lacks", "model-00001-of-00001.safetensors")] {
        let index = format!(r#"{{"weight_map": {{"a": "{index}"}}}}"#);
        let files = [("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors.index.json", &index)];
        hub.commit(repo, files.iter().map(|(name, text)| file(name, text)).collect());
    }
    refused("owner/climbs", "", None, &["model.safetensors.index.json", "../../../../x"]);
    refused("owner/lacks", "", None, &["names model-00001-of-00001.safetensors, which is not there"]);
    assert!(!hub.take_requests().iter().any(|it| it.contains(".bin")), "a pickle was asked for");

    let dead = hub.endpoint();
    drop(hub);
    let ended = train(&scene, "owner/new", "refused", "", |command| {
        command.env("HF_ENDPOINT", dead).env_remove("HF_HUB_OFFLINE");
    });
    ended.assert_failed(1, &["does not answer: ", "HTTPS_PROXY", "HF_HUB_OFFLINE=1"]);
}

#[test]
fn every_command_takes_a_model_of_the_hub() {
    let (scene, hub) = (Scene::new(), Hub::new());
    let commit = hub.publish(ID, &model("tiny-llama"));
    hub.publish("legacy", &model("tiny-llama"));
    let launch = |words: &str| scene.launch(words).adjust(ask(&hub, None)).run();
    // A plan needs the shape alone.
    let plan = launch("plan --model owner/model --json");
    plan.assert_done();
    let answer: Value = serde_json::from_str(&plan.out).unwrap();
    assert_eq!(answer["model"]["parameters"], 170_432);
    assert_eq!(blobs(&scene), (1, 0));
    launch("plan --model_name_or_path legacy").assert_done();
    let told = launch("generate --model owner/model --prompt a --max_new_tokens 2");
    told.assert_done();
    let local = scene.launch("generate --prompt a --max_new_tokens 2").with("--model", model("tiny-llama")).run();
    assert_eq!(told.out, local.out);
    // A folder of the name goes before.
    let folder = scene.copy(&model("tiny-llama-tied"), "legacy");
    let local = launch("plan --model_name_or_path legacy --model_revision v1 --json");
    let answer: Value = serde_json::from_str(&local.out).unwrap();
    assert_eq!(answer["model"]["parameters"], 57_072);
    local.assert_says(&["note: model_revision (flag --model_revision) has no effect: legacy is a folder"]);
    std::fs::remove_dir_all(folder).unwrap();

    train(&scene, ID, "run", "--save_steps 1", ask(&hub, None)).assert_done();
    // A warm start from its checkpoint knows where the model came from, and asks nobody.
    let warm = train(&scene, "run", "warm", "", |_| ());
    warm.assert_done();
    assert!(warm.out.contains(&format!("model  owner/model at {} (main), weights of ", &commit[..7])), "{warm}");
    // The cache may be emptied: an export asks for the commit again, and for no weights where it has their type.
    std::fs::remove_dir_all(scene.path("hf")).unwrap();
    hub.publish(ID, &model("tiny-llama-tied"));
    launch("export run --output exported --dtype float32").assert_done();
    assert!(!cached(&scene, "snapshots").join(&commit).join("model.safetensors").exists());
    launch("export run --output whole").assert_done();
    assert_same_model(&scene.path("whole"), &scene.path("run/model"));
    let card = read(scene.path("exported/README.md"));
    assert!(card.contains("| base model | `owner/model` |") && !card.contains("snapshots"), "{card}");
    launch(&format!("export run --output given --model owner/model --model_revision {commit}")).assert_done();
    assert_same_model(&scene.path("given"), &scene.path("run/model"));
    let compare = scene.launch("compare --stages 0 --steps 1 --rounds 1 --nproc 1 --model_name_or_path legacy --json");
    let compare = compare.with("--dataset", fixture("data/rows.jsonl")).adjust(ask(&hub, None)).run();
    compare.assert_done();
    let answer: Value = serde_json::from_str(&compare.out).unwrap();
    assert!(answer["model"]["name"].as_str().unwrap().starts_with("legacy at "), "{}", answer["model"]);
}
