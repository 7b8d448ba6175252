//! Data of the Hugging Face hub: which files of a repository a configuration and a split mean, downloaded into the shared cache,
//! trained on and evaluated on; against a hub of this machine (`zerofold_tests::Hub`).

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use zerofold_tests::{Ended, Fault, Hub, Metrics, Scene, fixture, model};

const STEP: &str = "--nproc 1 --gradient_checkpointing false --max_steps 1 --per_device_train_batch_size 2 --seed 1 \
                    --train_sampling_strategy sequential";
const EVALUATED: &str = "--eval_strategy steps --eval_steps 1";
const ID: &str = "owner/data";
const REPO: &str = "datasets/owner/data";
const TRAIN: [&str; 2] = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"];
const TEST: &str = "data/test-00000-of-00001.parquet";
const VALIDATION: &str = "data/validation-00000-of-00001.parquet";

/// A command that may ask the hub, and no other.
fn ask(hub: &Hub, token: Option<&str>) -> impl FnOnce(&mut Command) + use<> {
    let (endpoint, token) = (hub.endpoint(), token.map(str::to_owned));
    move |command| {
        command.env("HF_ENDPOINT", endpoint).env_remove("HF_HUB_OFFLINE");
        if let Some(token) = token {
            command.env("HF_TOKEN", token);
        }
    }
}

fn train(scene: &Scene, data: &str, run: &str, words: &str, adjust: impl FnOnce(&mut Command)) -> Ended {
    let job = scene.launch("train").with("--model_name_or_path", model("tiny-llama")).with("--dataset", data);
    job.with("--output_dir", scene.path(run)).words(STEP).words(words).adjust(adjust).run()
}

fn tokens(name: &str) -> PathBuf {
    fixture(&format!("data/files/tokens-{name}.parquet"))
}

fn file(name: &str, path: PathBuf) -> (String, Vec<u8>) {
    (name.to_owned(), std::fs::read(path).unwrap())
}

fn text(name: &str, text: &str) -> (String, Vec<u8>) {
    (name.to_owned(), text.as_bytes().to_vec())
}

/// Puts training, held-out and other rows into the repository; gives the commit.
fn publish(hub: &Hub) -> String {
    hub.commit(
        REPO,
        vec![
            file(TRAIN[0], tokens("int32")),
            file(TRAIN[1], fixture("data/files/tokens-large.parquet")),
            file(TEST, tokens("int16")),
            file(VALIDATION, tokens("int64")),
            text("README.md", "---\nlicense: mit\n---\n# Rows\n"),
            text("rows.csv", "a,b\n"),
        ],
    )
}

fn cached(scene: &Scene, name: &str) -> PathBuf {
    scene.path("hf/hub/datasets--owner--data").join(name)
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// The losses of a run's steps and evaluations, to the last bit.
fn losses(scene: &Scene, run: &str) -> Vec<(Option<f64>, Option<f64>)> {
    let lines = read(scene.path(run).join("metrics.jsonl"));
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let losses = lines.map(|line| (line["loss"].as_f64(), line["eval_loss"].as_f64()));
    losses.filter(|losses| *losses != (None, None)).collect()
}

#[test]
fn data_of_the_hub_train_and_are_evaluated_as_their_files_are() {
    let (scene, hub) = (Scene::new(), Hub::new());
    let commit = publish(&hub);
    let both = format!("dataset: [{}, {}]\n", tokens("int32").display(), tokens("large").display());
    let both = scene.write("local.yaml", both);
    let local = scene.launch("train").with("--model_name_or_path", model("tiny-llama")).with("--config", both);
    let local = local.with("--output_dir", scene.path("local")).with("--eval_dataset", tokens("int16"));
    local.words(STEP).words(EVALUATED).run().assert_done();

    let first = train(&scene, ID, "first", EVALUATED, ask(&hub, None));
    first.assert_done();
    first.assert_says(&["downloading 1 file of owner/data at ", "downloading 2 files of owner/data at "]);
    let told = format!("data   owner/data at {} (main), default, train (2 files): 6 rows", &commit[..7]);
    assert!(first.out.contains(&told), "{told}\n{first}");
    assert_eq!(losses(&scene, "first"), losses(&scene, "local"));
    assert_eq!(Metrics::of(&scene.path("first")).steps().len(), 1);
    let requests = hub.take_requests();
    assert!(requests.iter().all(|it| !it.contains("validation") && !it.contains("rows.csv")), "{requests:?}");
    let config = read(scene.path("first/config.resolved.yaml"));
    for part in [
        "dataset: owner/data\n",
        "eval_dataset: owner/data\n",
        "hub_data:",
        &format!("commit: {commit}\n"),
        "split: test",
    ] {
        assert!(config.contains(part), "{part}\n{config}");
    }
    let metrics = read(scene.path("first/metrics.jsonl"));
    for (line, split) in metrics.lines().zip(["train", "test"]) {
        let told: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&told["dataset"], &told["dataset_commit"]), (&ID.into(), &commit.clone().into()));
        assert_eq!((&told["dataset_config"], &told["dataset_split"]), (&"default".into(), &split.into()));
    }
    // The layout is huggingface_hub's.
    assert_eq!(read(cached(&scene, "refs/main")), commit);
    let link = std::fs::read_link(cached(&scene, "snapshots").join(&commit).join(TEST)).unwrap();
    assert!(link.starts_with("../../../blobs"), "{link:?}");
    assert!(!cached(&scene, "snapshots").join(&commit).join(VALIDATION).exists());

    // A branch may have moved: one question, and nothing is downloaded. Nor is anything where nobody may be asked.
    train(&scene, ID, "second", EVALUATED, ask(&hub, None)).assert_done();
    assert_eq!(hub.take_requests(), ["GET /api/datasets/owner/data/revision/main"]);
    train(&scene, ID, "offline", EVALUATED, |_| ()).assert_done();
    let allow = ask(&hub, None);
    let by_its_own_word = train(&scene, ID, "offline-2", EVALUATED, |command| {
        allow(command);
        command.env("HF_DATASETS_OFFLINE", "1");
    });
    by_its_own_word.assert_done();
    assert_eq!(hub.take_requests(), [""; 0]);
    let other = train(&scene, ID, "refused", "--dataset_train_split validation", |_| ());
    other.assert_failed(
        2,
        &["there is no such file or folder; ", "HF_HUB_OFFLINE", "no whole copy of its revision main"],
    );
    let dead = hub.endpoint();
    drop(hub);
    let unplugged = train(&scene, ID, "unplugged", EVALUATED, |command| {
        command.env("HF_ENDPOINT", dead).env_remove("HF_HUB_OFFLINE");
    });
    unplugged.assert_done();
    unplugged.assert_says(&["does not answer", "using its commit ", "from the cache"]);
    assert_eq!(losses(&scene, "unplugged"), losses(&scene, "local"));
}

#[test]
fn a_run_goes_on_with_the_commit_of_its_data() {
    let (scene, hub) = (Scene::new(), Hub::new());
    let commit = publish(&hub);
    let words = format!("--max_steps 2 --save_steps 1 {EVALUATED}");
    train(&scene, ID, "run", &words, ask(&hub, None)).assert_done();
    std::fs::remove_dir_all(scene.path("run/checkpoints/step-00000002")).unwrap();
    let whole = losses(&scene, "run");
    let moved = hub.commit(
        REPO,
        vec![file(TRAIN[0], tokens("int16")), file("data/train-00002-of-00003.parquet", tokens("int64"))],
    );
    assert_ne!(commit, moved);
    hub.take_requests();
    let resumed = format!("{words} --resume");
    // Another commit is other data.
    let other = train(&scene, &format!("{ID}@{moved}"), "run", &resumed, ask(&hub, None));
    other.assert_failed(2, &["was saved by a job with other data"]);
    hub.take_requests();
    train(&scene, ID, "run", &resumed, ask(&hub, None)).assert_done();
    assert_eq!(hub.take_requests(), [""; 0]);
    assert_eq!(losses(&scene, "run"), whole);
    assert!(read(scene.path("run/config.resolved.yaml")).contains(&format!("commit: {commit}\n")));
    // Another cache, filled anew: the same commit.
    std::fs::remove_dir_all(scene.path("run/checkpoints/step-00000002")).unwrap();
    std::fs::remove_dir_all(scene.path("hf")).unwrap();
    std::fs::remove_dir_all(scene.path("cache")).unwrap();
    train(&scene, ID, "run", &resumed, ask(&hub, None)).assert_done();
    assert_eq!(losses(&scene, "run"), whole);
    assert!(cached(&scene, "snapshots").join(&commit).is_dir());
    assert!(!cached(&scene, "snapshots").join(&moved).exists());
    // The same job by its configuration, and by the commit that it tells.
    let again = scene.launch("config show --config run/config.resolved.yaml").run();
    again.assert_done();
    assert!(again.out.contains(&format!("{ID}@{commit}")), "{again}");
}

#[test]
fn configurations_and_splits_are_those_of_the_readme() {
    let (scene, hub) = (Scene::new(), Hub::new());
    let readme = "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train_sft\n    path: en/*.parquet\n  - split: held\n    path: en.parquet\n- config_name: de\n  data_dir: de\n---\n";
    let files = vec![
        text("README.md", readme),
        file("en/1.parquet", tokens("int32")),
        file("en.parquet", tokens("int16")),
        file("de/train.parquet", tokens("int64")),
    ];
    hub.commit(REPO, files);
    let ask = || ask(&hub, None);
    let refused = |words: &str, parts: &[&str]| {
        let ended = train(&scene, ID, "refused", words, ask());
        ended.assert_failed(2, parts);
        assert!(!scene.path("refused").exists(), "{ended}");
    };
    refused("", &["owner/data: it has several configurations, and none is named: en, de", "hint: set dataset_config"]);
    refused("--dataset_config fr", &["it has no configuration fr: it has en, de"]);
    refused("--dataset_config en", &["its configuration en has no split train: it has train_sft, held"]);
    refused(
        &format!("--dataset_config en --dataset_train_split train_sft {EVALUATED}"),
        &[
            "its configuration en has no split test: it has train_sft, held",
            "hint: set dataset_test_split to one of them, or eval_dataset to other data",
        ],
    );
    refused("--dataset_config en --dataset_train_split train_sft[:10%]", &["takes one whole split"]);
    let words = format!("--dataset_config en --dataset_train_split train_sft --dataset_test_split held {EVALUATED}");
    let ended = train(&scene, ID, "en", &words, ask());
    ended.assert_done();
    assert!(
        ended.out.contains("(main), en, train_sft: 3 rows") && ended.out.contains("(main), en, held: 3 rows"),
        "{ended}"
    );
    // What is held out may be of another repository, which has its own configurations, or of this machine.
    publish_other(&hub);
    let words = format!("--dataset_config de {EVALUATED} --eval_dataset owner/other");
    let ended = train(&scene, ID, "de", &words, ask());
    ended.assert_done();
    assert!(ended.out.contains("owner/other at ") && ended.out.contains(", default, test: 3 rows"), "{ended}");
    let words = format!("--dataset_config de {EVALUATED} --eval_dataset {}", tokens("int16").display());
    train(&scene, ID, "beside", &words, ask()).assert_done();
}

fn publish_other(hub: &Hub) {
    hub.commit(
        "datasets/owner/other",
        vec![file("test.parquet", tokens("int32")), file("train.parquet", tokens("int32"))],
    );
}

#[test]
fn what_the_hub_does_not_give_is_one_clear_error() {
    let (scene, hub) = (Scene::new(), Hub::new());
    publish(&hub);
    let refused = |data: &str, words: &str, token: Option<&str>, parts: &[&str]| {
        let ended = train(&scene, data, "refused", words, ask(&hub, token));
        ended.assert_failed(2, parts);
        assert!(!scene.path("refused").exists(), "{ended}");
    };
    let none = "there is no such file or folder, and the hub has no such data set";
    refused("owner/none", "", None, &["owner/none: ", none, "set HF_TOKEN"]);
    std::fs::create_dir(scene.path("owner")).unwrap();
    std::fs::write(scene.path("owner/rows"), "").unwrap();
    refused("owner/row", "", None, &[none, "did you mean the file or folder owner/rows?"]);
    refused("imdb", "", None, &["imdb: there is no such file or folder", "named with its owner: OWNER/imdb"]);
    let file = train(&scene, "owner/data.jsonl", "file", "", ask(&hub, None));
    file.assert_failed(2, &["owner/data.jsonl: cannot open the data set: No such file"]);
    refused(
        &format!("{ID}@none"),
        "",
        None,
        &["not the revision that was asked for", "/datasets/owner/data/tree/main"],
    );
    refused(&format!("{ID}@../../x"), "", None, &["can be no revision"]);
    let rows = fixture("data/rows.jsonl");
    let rows = rows.to_str().unwrap();
    refused(rows, "--dataset_config en", None, &["dataset_config is en", "is no data set of the hub"]);
    refused(rows, "--dataset_train_split dev", None, &["dataset_train_split is dev", "files have no splits"]);
    refused(rows, EVALUATED, None, &["not set: eval_dataset"]);
    let unused = train(&scene, rows, "unused", "--dataset_test_split dev", |_| ());
    unused.assert_done();
    let told = "dataset_test_split: dev (flag --dataset_test_split) has no effect: nothing is evaluated";
    assert!(unused.out.contains(told), "{unused}");
    hub.change(REPO, |repo| repo.gated = true);
    refused(ID, "", None, &["it is gated", "/datasets/owner/data, then set HF_TOKEN"]);
    refused(ID, "", Some("hf_reader"), &["it is gated", "with the account of your token"]);
    hub.change(REPO, |repo| (repo.gated, repo.private) = (false, true));
    refused(ID, "", None, &["the hub has no such data set, or it is private", "set HF_TOKEN"]);
    train(&scene, ID, "private", "", ask(&hub, Some(zerofold_tests::WRITER))).assert_done();

    hub.commit("datasets/owner/program", vec![text("program.py", "x"), text("README.md", "# x\n")]);
    let own_copy = "owner/program@refs/convert/parquet";
    refused("owner/program", "", None, &["its rows come from a program (program.py)", own_copy]);
    hub.commit("datasets/owner/tables", vec![text("train.csv", "a,b\n")]);
    refused("owner/tables", "", None, &["its split train is of .csv files"]);
    hub.commit("datasets/owner/head", vec![text("a.jsonl", "{}"), text("README.md", "---\nconfigs: [a\n---\n")]);
    refused("owner/head", "", None, &["the head of its README.md cannot be read"]);
    // Neither a file nor what a README names leaves the repository's own folder.
    hub.commit("datasets/owner/climbs", vec![text("../../../../train.jsonl", "{}"), text("README.md", "")]);
    refused("owner/climbs", "", None, &["it has no data files"]);
    let names = "---\nconfigs:\n- config_name: default\n  data_files: ../../../../train.jsonl\n---\n";
    hub.commit("datasets/owner/names", vec![text("../../../../train.jsonl", "{}"), text("README.md", names)]);
    refused("owner/names", "", None, &["its split train has no file that is read here"]);
    assert!(!scene.path("train.jsonl").exists());
    // A path that is there goes before.
    let local = scene.path("owner/data");
    std::fs::create_dir(&local).unwrap();
    std::fs::copy(rows, local.join("train.jsonl")).unwrap();
    hub.take_requests();
    train(&scene, ID, "local", "", ask(&hub, None)).assert_done();
    assert_eq!(hub.take_requests(), [""; 0]);
}

#[test]
fn a_download_that_breaks_off_goes_on_and_nothing_half_is_used() {
    let (scene, hub) = (Scene::new(), Hub::new());
    publish(&hub);
    hub.let_fail(Fault::cut("GET /cdn/", 500, 1));
    train(&scene, ID, "cut", "", ask(&hub, None)).assert_done();
    assert!(hub.take_requests().iter().any(|it| it.contains("/cdn/") && it.ends_with(" bytes=500-")));
    std::fs::remove_dir_all(scene.path("hf")).unwrap();
    hub.spoil(TRAIN[1]);
    let spoilt = train(&scene, ID, "spoilt", "", ask(&hub, None));
    spoilt.assert_failed(
        1,
        &["data/train-00001-of-00002.parquet arrived with the SHA-256 ", "hint: what arrived was deleted"],
    );
    train(&scene, ID, "still-spoilt", "", |_| ()).assert_failed(2, &["has no whole copy"]);
    hub.spoil("");
    train(&scene, ID, "mended", "", ask(&hub, None)).assert_done();
    assert_eq!(losses(&scene, "mended"), losses(&scene, "cut"));
}

#[test]
fn what_another_program_downloaded_is_used_as_far_as_it_is_whole() {
    let (scene, hub) = (Scene::new(), Hub::new());
    publish(&hub);
    train(&scene, ID, "first", "", ask(&hub, None)).assert_done();
    // huggingface_hub keeps no list of a commit's files.
    std::fs::remove_dir_all(cached(&scene, ".files")).unwrap();
    let known = train(&scene, ID, "known", "", |_| ());
    known.assert_done();
    known.assert_says(&["note: owner/data: which files its commit ", "taking the 2 files of its split train"]);
    assert_eq!(losses(&scene, "known"), losses(&scene, "first"));
    let commit = read(cached(&scene, "refs/main"));
    std::fs::remove_file(cached(&scene, "snapshots").join(commit).join(TRAIN[1])).unwrap();
    train(&scene, ID, "part", "", |_| ()).assert_failed(2, &["has no whole copy of its revision main"]);
}

#[test]
fn of_several_hosts_the_one_that_tokenises_downloads() {
    let (scene, hub) = (Scene::new(), Hub::new());
    publish(&hub);
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let host = |node_rank: &str| {
        let job = scene.launch("train --nnodes 2 --backend gloo").with("--model_name_or_path", model("tiny-llama"));
        let job = job.with("--dataset", ID).with("--output_dir", scene.path("run")).words(STEP).words(EVALUATED);
        let job = job.with("--node-rank", node_rank).with("--rdzv-endpoint", &endpoint);
        job.adjust(|command| {
            command.env("ZEROFOLD_TOKEN", "a-token-of-these-tests-0123456789");
        })
    };
    let coordinator = host("0").adjust(ask(&hub, None)).start();
    // The other one has an empty cache of its own, and may ask nobody.
    let elsewhere = scene.path("elsewhere");
    let other = host("1").adjust(|command| {
        command.env("HF_HOME", &elsewhere);
    });
    let other = other.start();
    coordinator.finish().assert_done();
    other.finish().assert_done();
    assert!(!elsewhere.exists());
    assert_eq!(losses(&scene, "run").len(), 2);
}

#[test]
fn every_command_that_takes_data_takes_those_of_the_hub() {
    let (scene, hub) = (Scene::new(), Hub::new());
    publish(&hub);
    hub.change(REPO, |repo| repo.branch("v1"));
    let launch = |words: &str| scene.launch(words).adjust(ask(&hub, None)).run();
    let checked =
        launch("data check --data owner/data@v1 --dataset_train_split validation --eval_dataset owner/data --json");
    assert!(checked.out.contains("owner/data at ") && checked.out.contains("(v1), default, validation"), "{checked}");
    let refused = launch("data check --data owner/data --dataset_config en");
    refused
        .assert_failed(2, &["it has no configuration en: its only one is default", "hint: leave dataset_config out"]);
    let job = "--model_name_or_path m --dataset owner/data --output_dir out";
    let path = model("tiny-llama");
    let job = job.replace(" m ", &format!(" {} ", path.display()));
    hub.take_requests();
    let check = launch(&format!("config check {job}"));
    check.assert_done();
    assert!(check.out.contains("data   owner/data: no such file or folder, so it is taken from the hub"), "{check}");
    launch(&format!("config check {job} --dataset data.jsonl --dataset_config en"))
        .assert_failed(2, &["dataset_config is en"]);
    launch(&format!("plan {job}")).assert_done();
    launch("generate --model m --dataset owner/data")
        .assert_failed(2, &["--dataset owner/data: there is no such file, and generate takes no data of the hub"]);
    assert_eq!(hub.take_requests(), [""; 0]);
    launch(&format!("compare --stages 0 --steps 1 --rounds 1 --nproc 1 {job}")).assert_done();
}
