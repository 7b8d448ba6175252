//! Checkpoints looked at from outside: `launch inspect`, `verify`, `diff` and `export`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use zerofold_tests::{Ended, Scene, json, model};

const BATCHES: &str = "--per_device_train_batch_size 2 --max_steps 4 --save_steps 2 --learning_rate 1e-3";

/// A run of four steps, with checkpoints of steps 2 and 4.
fn four_steps(scene: &Scene, model: &str, run: &str, words: &str) -> PathBuf {
    scene.train(model, run, BATCHES).words(words).run().assert_done();
    scene.path(run)
}

fn step(run: &Path, step: u32) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step:08}"))
}

fn command(scene: &Scene, words: &str, paths: &[&Path]) -> Ended {
    let add = |command: &mut Command| {
        command.args(paths);
    };
    scene.launch(words).adjust(add).run()
}

fn export(scene: &Scene, checkpoint: &Path, output: &str, words: &str) -> Ended {
    let add = |command: &mut Command| {
        command.arg(checkpoint);
    };
    scene.launch("export").words(words).with("--output", scene.path(output)).adjust(add).run()
}

#[track_caller]
fn answer(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}\n{ended}"))
}

/// Changes bytes of a file, counted from its end.
fn write_before_end(path: &Path, from_end: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("the scene can be written");
    let length = file.metadata().expect("the file is there").len();
    file.write_all_at(bytes, length - from_end).expect("the scene can be written");
}

#[track_caller]
fn assert_same_model(exported: &Path, trained: &Path) {
    for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read(exported) == read(trained), "{name} differs");
    }
}

#[test]
fn an_export_is_byte_for_byte_what_the_job_wrote() {
    let scene = Scene::new();
    for (name, source, words) in [
        // bfloat16 in its files, and no head of its own.
        ("tied", "tiny-llama-tied", "--nproc 2 --zero_stage 3"),
        ("sharded", "tiny-llama-sharded", "--nproc 3 --zero_stage 1 --save_dtype float16"),
        ("whole", "tiny-llama", "--nproc 2 --zero_stage 2 --fsdp_auto_wrap_policy NO_WRAP"),
    ] {
        let run = four_steps(&scene, source, name, words);
        let output = format!("exports/{name}");
        let ended = export(&scene, &run, &output, "");
        ended.assert_done();
        assert!(ended.out.contains("(step 4, "), "{ended}");
        assert_same_model(&scene.path(&output), &run.join("model"));
        command(&scene, "verify", &[&scene.path(&output)]).assert_done();
        let card = std::fs::read_to_string(scene.path(&output).join("README.md")).unwrap();
        for fact in [&format!("| base model | `{source}` |"), "| optimizer steps | 4 |", "| learning_rate | 0.001 |"] {
            assert!(card.contains(fact), "{fact} is not in\n{card}");
        }
        assert!(!card.contains(scene.path("").to_str().unwrap()), "{card}");
    }

    // Rounding is all that the export and its checkpoint differ by, and none in float32.
    let newest = step(&scene.path("tied"), 4);
    let rounded = command(&scene, "diff", &[&newest, &scene.path("exports/tied")]);
    assert_eq!(rounded.code, Some(1), "{rounded}");
    assert!(rounded.out.contains("one is the other rounded to bfloat16"), "{rounded}");
    export(&scene, &newest, "exact", "--dtype float32").assert_done();
    assert_eq!(json(&scene.path("exact/config.json"))["torch_dtype"], "float32");
    let exact = command(&scene, "diff", &[&newest, &scene.path("exact")]);
    assert_eq!((exact.code, exact.out.contains("\nequal: 20 tensors, 57,072 values\n")), (Some(0), true), "{exact}");
    // What save_dtype says, `source` goes past.
    export(&scene, &scene.path("sharded"), "as-source", "--dtype source").assert_done();
    assert_eq!(json(&scene.path("as-source/config.json"))["dtype"], "float32");
    let earlier = command(&scene, "diff --json", &[&step(&scene.path("tied"), 2), &scene.path("exact")]);
    let answer = answer(&earlier);
    assert_eq!((earlier.code, &answer["equal"], &answer["a"]["step"]), (Some(1), &false.into(), &2.into()));
    assert!(answer["norm"].as_f64().unwrap() > 0.0 && answer["rounded"].is_null(), "{answer}");
}

#[test]
fn runs_of_other_layouts_have_equal_checkpoints() {
    let scene = Scene::new();
    // The norm is summed unit by unit, so that of other units may round otherwise: nothing is clipped.
    let one = four_steps(&scene, "tiny-llama", "one", "--nproc 2 --zero_stage 1 --max_grad_norm 0");
    let words = "--nproc 2 --zero_stage 3 --fsdp_auto_wrap_policy NO_WRAP --max_grad_norm 0";
    let other = four_steps(&scene, "tiny-llama", "other", words);
    // One micro-batch a step: all stages add in the same order.
    let same = command(&scene, "diff", &[&one, &other]);
    assert_eq!(same.code, Some(0), "{same}");
    assert!(same.out.contains("equal: 90 tensors"), "{same}");

    let summary = |run: &Path| answer(&command(&scene, "inspect --tensors --json", &[run]));
    let (one, other) = (summary(&one), summary(&other));
    for key in ["kind", "step", "ranks", "parameters", "tensor_count", "dtypes"] {
        assert_eq!(one[key], other[key], "{key}");
    }
    assert_eq!((&one["stage"], &other["stage"]), (&1.into(), &3.into()));
    assert_eq!(one["units"].as_array().unwrap().len(), 5);
    assert_eq!(other["units"].as_array().unwrap().len(), 1);
    assert_eq!(one["published_steps"], serde_json::json!([2, 4]));
    assert_eq!(one["state"]["data"]["global_batch"], 4);
    let folder = summary(&model("tiny-llama"));
    let shapes = |summary: &Value| {
        let tensors = summary["tensors"].as_array().unwrap().iter();
        let mut shapes: Vec<_> = tensors.map(|it| (it["name"].to_string(), it["shape"].to_string())).collect();
        shapes.sort();
        shapes
    };
    assert_eq!(shapes(&one), shapes(&other));
    assert_eq!(shapes(&one), shapes(&folder));
    assert_eq!(folder["kind"], "model");
    let text = command(&scene, "inspect", &[&scene.path("one")]);
    text.assert_done();
    for part in ["saved by 2 ranks at stage 1", "epoch 0 and 16 of 192 rows", "170,432 parameters in 30 tensors"] {
        assert!(text.out.contains(part), "{part:?}\n{text}");
    }
}

#[test]
fn damage_is_named_with_what_it_may_have_hit() {
    let scene = Scene::new();
    let run = four_steps(&scene, "tiny-llama", "run", "--nproc 2 --zero_stage 3");
    let whole = command(&scene, "verify", &[&run, &run.join("model")]);
    whole.assert_done();
    assert_eq!(whole.out.lines().filter(|line| line.starts_with("whole ")).count(), 3, "{whole}");

    type Damage = fn(&Path);
    let second = "rank-00001-of-00002.g1.safetensors";
    let damages: [(&str, Damage, &[&str]); 6] = [
        ("flipped", |path| write_before_end(path, 260, &[0x55]), &["its hash is ", "model.embed_tokens.weight"]),
        (
            "cut",
            |path| {
                let file = File::options().write(true).open(path).unwrap();
                file.set_len(file.metadata().unwrap().len() - 300).unwrap();
            },
            // What is gone is the end of exp_avg_sq of the last unit.
            &[" bytes, the manifest says ", "affected: lm_head.weight, model.norm.weight\n"],
        ),
        ("missing", |path| std::fs::remove_file(path).unwrap(), &["it is missing", "model.embed_tokens.weight"]),
        ("not-finite", |path| write_before_end(path, 400, &f32::NAN.to_le_bytes()), &["is NaN", "exp_avg_sq of "]),
        ("foreign", |path| std::fs::write(path, "hello").unwrap(), &["it has 5 bytes, the manifest says "]),
        (
            "header",
            |path| {
                let file = File::options().write(true).open(path).unwrap();
                file.write_all_at(&[0xff; 8], 0).unwrap();
            },
            &["a header of 18446744073709551615 bytes"],
        ),
    ];
    for (name, damage, parts) in damages {
        let copy = scene.copy(&run, name);
        damage(&step(&copy, 4).join(second));
        let ended = command(&scene, "verify", &[&copy]);
        assert_eq!(ended.code, Some(1), "{ended}");
        assert!(ended.out.contains("whole ") && ended.out.contains("damaged  "), "{ended}");
        for part in parts.iter().chain([&second]) {
            assert!(ended.out.contains(part), "{name}: {part:?}\n{ended}");
        }
        let ended = export(&scene, &copy, "refused", "");
        ended.assert_failed(2, &["step-00000004", second]);
        assert!(!scene.path("refused").exists());
    }
    let told = answer(&command(&scene, "verify --json", &[&scene.path("cut")]));
    assert_eq!((&told[0]["faults"], &told[1]["faults"][0]["file"]), (&serde_json::json!([]), &second.into()));
}

#[test]
fn what_cannot_be_done_is_one_clear_error() {
    let scene = Scene::new();
    let run = four_steps(&scene, "tiny-llama-tied", "run", "--nproc 1");
    let refused = |words: &str, checkpoint: &Path, parts: &[&str]| {
        export(&scene, checkpoint, "refused", words).assert_failed(2, parts);
        let left: Vec<_> = std::fs::read_dir(scene.path("")).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("refused")), "{left:?}");
    };
    refused("", &scene.path("nowhere"), &["there is no ", "hint: give a checkpoint"]);
    refused("", &run.join("model"), &["is a model folder already", "hint: "]);
    refused("", &run.join("config.resolved.yaml"), &["is a file", "hint: give the folder"]);
    let other = model("tiny-llama").display().to_string();
    let parts = [
        "is not the model of ",
        "model.embed_tokens.weight is [320, 64] in the model, and [320, 48] in the checkpoint",
    ];
    refused(&format!("--model {other}"), &run, &parts);
    refused("--model ./nowhere", &run, &["--model is ./nowhere, and there is no config.json in it", "hint: "]);
    export(&scene, &run, "run", "").assert_failed(2, &["run exists already", "hint: nothing is written over"]);

    // A checkpoint alone, without its run, tells its job itself.
    let alone = scene.copy(&step(&run, 4), "step-00000004");
    export(&scene, &alone, "told", "").assert_done();
    assert_same_model(&scene.path("told"), &run.join("model"));
    // One of an earlier version does not.
    let mut manifest = json(&alone.join("manifest.json"));
    for key in ["job", "seal"] {
        manifest.as_object_mut().unwrap().remove(key).expect("a record of the job, and a seal");
    }
    std::fs::write(alone.join("manifest.json"), serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
    refused("", &alone, &["does not tell which model it trained", "hint: give --model NAME"]);
    let given = format!("--model {}", model("tiny-llama-tied").display());
    export(&scene, &alone, "alone", &given).assert_done();
    assert_same_model(&scene.path("alone"), &run.join("model"));
    let card = std::fs::read_to_string(scene.path("alone/README.md")).unwrap();
    assert!(card.contains("configuration was not there any more") && !card.contains("learning_rate"), "{card}");

    // Saves of another version, and saves that were never finished.
    let manifest = alone.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"format_version\": 2", "\"format_version\": 1")).unwrap();
    for words in ["inspect", "diff run"] {
        let ended = command(&scene, words, &[&alone]);
        ended.assert_failed(2, &["its format_version is 1; this program reads 2", "hint: use the version of launch"]);
    }
    std::fs::remove_file(&manifest).unwrap();
    command(&scene, "inspect", &[&alone]).assert_failed(2, &["is not whole: it has no manifest.json", "hint: "]);
    let ended = command(&scene, "verify", &[&alone]);
    assert_eq!((ended.code, ended.out.starts_with("damaged ")), (Some(1), true), "{ended}");
    command(&scene, "diff run nowhere", &[]).assert_failed(2, &["there is no nowhere"]);
}
