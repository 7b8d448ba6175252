//! What is sharded, and in which types: FSDP's words in a file, copies, units, precision, and numbers that are not finite.

use std::path::{Path, PathBuf};

use serde_json::Value;
use zerofold_tests::{
    CURVE_MODEL, Curve, Ended, Job, Metrics, Scene, assert_close, assert_nothing_half_written, change_weights,
    checkpoints, json, model, random_rows,
};

/// A file of type FSDP over four processes, with these entries in `fsdp_config` and these lines behind it.
fn fsdp(entries: &str, rest: &str) -> String {
    format!("distributed_type: FSDP\nnum_processes: 4\nfsdp_config: {{{entries}}}\n{rest}")
}

/// Trains as PyTorch did, under the configuration `yaml`, in the run folder `run`.
fn follow<'a>(scene: &'a Scene, curve: &Curve, run: &str, yaml: &str) -> Job<'a> {
    let config = scene.write(&format!("{run}.yaml"), yaml);
    let sizes = "--per_device_train_batch_size 1 --gradient_accumulation_steps 2 --save_strategy no";
    scene.train(CURVE_MODEL, run, &curve.flags()).with("--config", config).words(sizes)
}

fn model_bytes(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("model/model.safetensors")).expect("a model was written")
}

/// Bytes that rank 0 sent in each step, and what the plan said.
fn sent(run: &Path) -> (Vec<u64>, u64) {
    let of_step = |step: Value| step["sent_bytes"].as_u64().expect("every step tells what it sent");
    let planned = &json(&run.join("plan.json"))["planned"]["plan"]["sent_bytes_per_step"];
    (Metrics::of(run).steps().into_iter().map(of_step).collect(), planned.as_u64().expect("it was planned"))
}

#[test]
fn every_strategy_of_fsdp_equals_pytorch() {
    let scene = Scene::new();
    let curve = Curve::named("batch_8");
    let copies = "parallelism_config: {parallelism_config_dp_replicate_size: 2}\n";
    let halves = "fsdp_transformer_layer_cls_to_wrap: 'LlamaAttention,LlamaMLP'";
    let cases = [
        ("full", "fsdp_sharding_strategy: FULL_SHARD", "", "ZeRO stage 3 (FULL_SHARD)"),
        ("grad-op", "fsdp_sharding_strategy: SHARD_GRAD_OP", "", "(SHARD_GRAD_OP)"),
        ("kept", "fsdp_version: 2, fsdp_reshard_after_forward: false", "", "(SHARD_GRAD_OP)"),
        ("groups", "fsdp_version: 2, fsdp_reshard_after_forward: 2", "", "as shards of groups of 2 ranks"),
        ("hybrid", "fsdp_sharding_strategy: HYBRID_SHARD", copies, "(HYBRID_SHARD); hybrid: 2 copies × 2 shards"),
        (
            "hybrid-2",
            "fsdp_sharding_strategy: HYBRID_SHARD_ZERO2",
            copies,
            "(HYBRID_SHARD_ZERO2); hybrid: 2 copies × 2",
        ),
        ("none", "fsdp_sharding_strategy: NO_SHARD", "", "ZeRO stage 0 (DDP)"),
        ("by-size", "fsdp_auto_wrap_policy: SIZE_BASED_WRAP, fsdp_min_num_params: 30000", "", "units: at least 30,000"),
        ("whole", "fsdp_auto_wrap_policy: NO_WRAP", "", "units: the whole model is one"),
        ("halves", halves, "", "units: attention and MLP of each block"),
    ];
    for (run, entries, rest, told) in cases {
        let ended = follow(&scene, &curve, run, &fsdp(entries, rest)).run();
        ended.assert_done();
        assert!(ended.out.contains(told), "{run}: {told:?} was not said\n{ended}");
        curve.assert_equals(run, &Metrics::of(&scene.path(run)), 1e-5);
        let (sent, planned) = sent(&scene.path(run));
        for sent in sent {
            // Beside parameters and gradients only a few numbers are exchanged.
            assert!(sent.abs_diff(planned) < 2048, "{run}: {sent} bytes were sent in a step, planned {planned}");
        }
    }
    // Where parameters wait between uses changes no sum.
    for run in ["grad-op", "kept", "groups"] {
        let (one, other) = (scene.path(run), scene.path("full"));
        assert_eq!(Metrics::of(&one).exact(), Metrics::of(&other).exact(), "{run}");
        assert!(model_bytes(&one) == model_bytes(&other), "{run}: the models differ");
    }
}

#[test]
fn float16_trains_with_a_loss_scale() {
    let scene = Scene::new();
    let curve = Curve::named("batch_8");
    let ended = follow(&scene, &curve, "run", &fsdp("", "mixed_precision: fp16\n")).run();
    ended.assert_done();
    assert!(ended.out.contains("compute float16, masters float32, reductions float32, dynamic loss scale"), "{ended}");
    let metrics = Metrics::of(&scene.path("run"));
    curve.assert_equals("float16", &metrics, 5e-3);
    for step in metrics.steps() {
        assert_eq!(step["loss_scale"], 65536.0, "{step}");
        assert_eq!(step.get("skipped"), None, "{step}");
    }
    // No other type has a scale.
    follow(&scene, &curve, "bf16", &fsdp("", "mixed_precision: bf16\n")).run().assert_done();
    assert_eq!(Metrics::of(&scene.path("bf16")).steps()[0].get("loss_scale"), None);
}

/// Six steps over four processes, saved after three and at the end; a schedule that ends with the run.
const SIX_STEPS: &str = "--max_steps 6 --save_steps 3 --per_device_train_batch_size 2 --learning_rate 1e-3 \
                         --lr_scheduler_type cosine --warmup_steps 2 --weight_decay 0.1 --train_sampling_strategy random";

/// A whole run of six steps in `whole`, of a model folder under the configuration `yaml`.
fn six_steps(scene: &Scene, folder: &Path, yaml: &str) {
    six(scene, folder, "whole", yaml, "").assert_done();
    assert_eq!(Metrics::of(&scene.path("whole")).count(), 6);
}

fn six(scene: &Scene, folder: &Path, run: &str, yaml: &str, words: &str) -> Ended {
    let config = scene.write(&format!("{run}.yaml"), yaml);
    let job = scene.train("tiny-llama", run, SIX_STEPS).with("--config", config);
    job.with("--model_name_or_path", folder).words(words).run()
}

/// A copy of `whole`, gone on with after its third step under the configuration `yaml`.
fn resume_copy(scene: &Scene, folder: &Path, run: &str, yaml: &str) -> PathBuf {
    let path = scene.copy(&scene.path("whole"), run);
    let ended = six(scene, folder, run, yaml, "--resume step-00000003");
    ended.assert_done();
    assert!(ended.out.contains("resuming after step 3 "), "{ended}");
    path
}

#[track_caller]
fn assert_identical(one: &Path, other: &Path) {
    assert_eq!(Metrics::of(one).exact(), Metrics::of(other).exact());
    assert!(model_bytes(one) == model_bytes(other), "the models differ");
}

#[test]
fn pure_bfloat16_trains_and_resumes_bit_identically() {
    let scene = Scene::new();
    let yaml = fsdp("", "mixed_precision: bf16\ntraining: {master_dtype: bfloat16}\n");
    six_steps(&scene, &model("tiny-llama"), &yaml);
    let resumed = resume_copy(&scene, &model("tiny-llama"), "resumed", &yaml);
    assert_identical(&resumed, &scene.path("whole"));
    // Half the state: masters and moments of two bytes, gradients of two.
    let measured = &json(&scene.path("whole/plan.json"))["measured"];
    let bytes = |part: &str| measured[part].as_u64().expect("it was measured");
    assert_eq!((bytes("masters"), bytes("moments")), (0, 2 * bytes("parameters")), "{measured}");
    assert_eq!(bytes("gradients"), bytes("parameters"), "{measured}");
    // It trains, less exactly than with float32 masters.
    six(&scene, &model("tiny-llama"), "masters", &fsdp("", "mixed_precision: bf16\n"), "").assert_done();
    let (pure, masters) = (Metrics::of(&scene.path("whole")).steps(), Metrics::of(&scene.path("masters")).steps());
    for (pure, masters) in pure.iter().zip(&masters) {
        assert_close("loss", &pure["loss"], &masters["loss"], 0.01);
    }
    assert_ne!(pure[5]["loss"], masters[5]["loss"]);
}

#[test]
fn a_checkpoint_of_copies_resumes_without_copies_and_with_them() {
    let scene = Scene::new();
    let tiny = model("tiny-llama");
    let copies = "parallelism_config: {parallelism_config_dp_replicate_size: 2}\n";
    let hybrid = fsdp("fsdp_sharding_strategy: HYBRID_SHARD", copies);
    six_steps(&scene, &tiny, &hybrid);
    let [third, _] = &checkpoints(&scene.path("whole"))[..] else { panic!("two checkpoints were due") };
    let shards = std::fs::read_dir(third)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "safetensors"));
    assert_eq!(shards.count(), 2, "one copy writes for all");

    let same = resume_copy(&scene, &tiny, "same", &hybrid);
    assert_identical(&same, &scene.path("whole"));
    let expected = Metrics::of(&scene.path("whole")).steps();
    for (run, strategy) in [("stage-3", "FULL_SHARD"), ("stage-0", "NO_SHARD")] {
        let yaml = fsdp(&format!("fsdp_sharding_strategy: {strategy}"), "");
        let resumed = Metrics::of(&resume_copy(&scene, &tiny, run, &yaml)).steps();
        assert_eq!(resumed.len(), expected.len(), "{run}");
        for (ours, theirs) in resumed.iter().zip(&expected) {
            assert_eq!(ours["step"], theirs["step"], "{run}");
            assert_close(&format!("{run}, step {}: loss", ours["step"]), &ours["loss"], &theirs["loss"], 1e-5);
            assert_close(&format!("{run}: gradient norm"), &ours["grad_norm"], &theirs["grad_norm"], 1e-4);
        }
    }
}

#[test]
fn float16_that_overflows_resumes_with_its_loss_scale() {
    let scene = Scene::new();
    // Logits, and gradients with them, are eight times as large.
    let folder = scene.copy(&model("tiny-llama"), "steep");
    change_weights(&folder, "lm_head.weight", 0..320 * 64, |weight| 8.0 * weight);
    let yaml = fsdp("", "mixed_precision: fp16\n");
    six_steps(&scene, &folder, &yaml);
    let steps = Metrics::of(&scene.path("whole")).steps();
    let scales: Vec<f64> = steps.iter().map(|step| step["loss_scale"].as_f64().unwrap()).collect();
    let skipped: Vec<bool> = steps.iter().map(|step| step.get("skipped").is_some()).collect();
    // The second overflow halves the scale, and so does every later one. Saved in between.
    assert_eq!((scales[0], skipped[0], skipped[1]), (65536.0, true, true), "{steps:?}");
    for step in 1..6 {
        let falls = skipped[step - 1] && step > 1;
        assert_eq!(scales[step], if falls { scales[step - 1] / 2.0 } else { scales[step - 1] }, "{steps:?}");
    }
    assert!(skipped.contains(&false), "{steps:?}");

    let resumed = resume_copy(&scene, &folder, "resumed", &yaml);
    assert_identical(&resumed, &scene.path("whole"));
    let state = |run: &Path| json(&checkpoints(run)[1].join("manifest.json"))["state"].clone();
    assert_eq!(state(&resumed), state(&scene.path("whole")));
    let told = |run: &Path| Metrics::of(run).steps().iter().map(|step| step["loss_scale"].clone()).collect::<Vec<_>>();
    assert_eq!(told(&resumed), told(&scene.path("whole")));
}

/// A token that only one row has: rank 1's second in the second step of two ranks with two rows each.
const RARE_TOKEN: u64 = 310;
const RARE_ROW: usize = 7;

/// Trains four steps of two ranks on a changed model, with the rare token in its row.
fn with_a_rare_token<'a>(scene: &'a Scene, change: impl FnOnce(&Path)) -> Job<'a> {
    let folder = scene.copy(&model("tiny-llama"), "changed");
    change(&folder);
    let mut rows: Vec<Value> = random_rows(32, 8).lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    for (number, row) in rows.iter_mut().enumerate() {
        let ids = row["input_ids"].as_array_mut().unwrap();
        assert!(ids.iter().all(|id| id.as_u64() < Some(RARE_TOKEN)));
        if number == RARE_ROW {
            ids[4] = RARE_TOKEN.into();
        }
    }
    // An empty line and a row without anything to learn stand before it, so it is in the tenth line.
    let nothing = "\n{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, -100]}\n";
    let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let rows = rows.replacen('\n', &format!("\n{nothing}"), 1);
    let words = "--nproc 2 --max_steps 4 --per_device_train_batch_size 2 --warmup_steps 1 --learning_rate 1e-6";
    let job = scene.train("tiny-llama", "run", words).with("--dataset", scene.write("rows.jsonl", rows));
    job.with("--model_name_or_path", &folder)
}

/// The row of the rare token in the embedding.
fn rare_embedding() -> std::ops::Range<usize> {
    RARE_TOKEN as usize * 64..(RARE_TOKEN as usize + 1) * 64
}

/// Finite weights with which the first block's MLP overflows for the rare token alone: what comes out of one of its
/// channels is the square of an enormous number where the rare token is, and exactly 0, with a gradient of 0, elsewhere.
fn mlp_overflows(folder: &Path) {
    for token in 0..320 {
        change_weights(folder, "model.embed_tokens.weight", token * 64..token * 64 + 1, |_| 0.0);
    }
    change_weights(folder, "model.embed_tokens.weight", rare_embedding().start..rare_embedding().start + 1, |_| 1.0);
    change_weights(folder, "model.layers.0.self_attn.o_proj.weight", 0..64, |_| 0.0);
    for name in ["gate_proj", "up_proj"] {
        let name = format!("model.layers.0.mlp.{name}.weight");
        change_weights(folder, &name, 0..64, |_| 0.0);
        change_weights(folder, &name, 0..1, |_| 1e20);
    }
}

/// Finite weights with which the first block's scores overflow for the rare token alone: one channel is made enormous by
/// the first norm, and only the rare token has anything in it. (A large embedding alone does nothing: it is normed.)
fn scores_overflow(folder: &Path) {
    for token in 0..320 {
        change_weights(folder, "model.embed_tokens.weight", token * 64..token * 64 + 1, |_| 0.0);
    }
    change_weights(folder, "model.embed_tokens.weight", rare_embedding().start..rare_embedding().start + 1, |_| 1.0);
    change_weights(folder, "model.layers.0.input_layernorm.weight", 0..1, |_| 1e20);
}

#[test]
fn a_forward_that_is_not_finite_is_named_with_its_row_and_rank() {
    for stage in [0, 2, 3] {
        let scene = Scene::new();
        // With four rows each the rare row is rank 1's last of the first step.
        let words = format!("--zero_stage {stage} --per_device_train_batch_size 4");
        let ended = with_a_rare_token(&scene, scores_overflow).words(&words).run();
        ended.assert_failed(
            1,
            &[
                "step 1: loss NaN",
                "not finite, so the step was not taken",
                "the forward of unit layer 0 is the first that is not finite, in line 10 of ",
                "rows.jsonl, on rank 1",
                "hint: no step was taken yet, so learning_rate has no part in it",
                "nonfinite_gradients: skip",
            ],
        );
        assert_eq!(Metrics::of(&scene.path("run")).count(), 0);
        assert_nothing_half_written(&scene.path("run"));
    }
}

/// Finite weights with which the first block's MLP is finite forwards and not backwards, for the rare token alone: one
/// channel of its gate is 0 for every token, so that nothing comes out of it, but its derivative is not 0, and what the
/// channel's gradient is multiplied with is enormous where the rare token is.
fn gate_gradient_overflows(folder: &Path) {
    for token in 0..320 {
        change_weights(folder, "model.embed_tokens.weight", token * 64..token * 64 + 1, |_| 0.0);
    }
    change_weights(folder, "model.embed_tokens.weight", rare_embedding().start..rare_embedding().start + 1, |_| 1.0);
    change_weights(folder, "model.layers.0.self_attn.o_proj.weight", 0..64, |_| 0.0);
    change_weights(folder, "model.layers.0.mlp.gate_proj.weight", 0..64, |_| 0.0);
    change_weights(folder, "model.layers.0.mlp.up_proj.weight", 0..64, |_| 0.0);
    change_weights(folder, "model.layers.0.mlp.up_proj.weight", 0..1, |_| 1e30);
    for output in 0..64 {
        change_weights(folder, "model.layers.0.mlp.down_proj.weight", output * 160..output * 160 + 1, |_| 1e18);
    }
}

#[test]
fn a_gradient_that_is_not_finite_is_named_with_its_row_and_rank() {
    for stage in [0, 3] {
        let scene = Scene::new();
        let words = format!("--zero_stage {stage}");
        let ended = with_a_rare_token(&scene, gate_gradient_overflows).words(&words).run();
        ended.assert_failed(
            1,
            &[
                "step 2: loss ",
                "gradient norm NaN",
                "the gradient of model.layers.0.mlp.gate_proj.weight (unit layer 0) is the first that is not finite, \
                 in line 10 of ",
                "rows.jsonl, on rank 1",
                "hint: a lower learning_rate or a warm-up may help; nonfinite_gradients: skip",
            ],
        );
        // The loss itself was finite.
        assert!(!ended.err.contains("loss NaN"), "{}", ended.err);
        assert_eq!(Metrics::of(&scene.path("run")).count(), 1);
    }
}

#[test]
fn a_step_that_is_not_finite_is_left_out_when_asked_to() {
    let scene = Scene::new();
    // Updates so small that the zeros which keep other rows finite stay as good as zero.
    let words = "--zero_stage 3 --nonfinite_gradients skip --learning_rate 1e-30";
    let ended = with_a_rare_token(&scene, mlp_overflows).words(words).run();
    ended.assert_done();
    ended.assert_says(&["warning: step 2 was skipped (loss NaN, gradient norm NaN)", "the forward of unit layer 0"]);
    assert!(ended.out.contains("\n1 of 4 steps were skipped\n"), "{ended}");
    let steps = Metrics::of(&scene.path("run")).steps();
    assert_eq!(steps.len(), 4);
    for (number, step) in (1..).zip(&steps) {
        let skipped = step.get("skipped").and_then(Value::as_str);
        assert_eq!(step["loss"].is_null(), number == 2, "{step}");
        assert_eq!(step["grad_norm"].is_null(), number == 2, "{step}");
        assert_eq!(skipped.is_some_and(|reason| reason.contains("not finite")), number == 2, "{step}");
    }
    // A skipped step does not count for the schedule: the third has the learning rate that the second would have had.
    assert_eq!(steps[2]["learning_rate"], steps[1]["learning_rate"]);
    assert_ne!(steps[3]["learning_rate"], steps[2]["learning_rate"]);
}

#[test]
fn a_parameter_that_is_not_finite_ends_the_run_whatever_was_asked() {
    let infinite = |folder: &Path| {
        change_weights(folder, "model.embed_tokens.weight", rare_embedding(), |_| f32::INFINITY);
    };
    let nan = |folder: &Path| change_weights(folder, "model.norm.weight", 3..4, |_| f32::NAN);
    let skip = "--zero_stage 3 --nonfinite_gradients skip";
    let itself = "(unit embedding) itself is not finite";
    let scene = Scene::new();
    let ended = with_a_rare_token(&scene, infinite).words(skip).run();
    let hint = "hint: the model's files hold it (an embedding's row is first read when its token comes), or an update";
    ended.assert_failed(1, &["step 2: loss NaN", "model.embed_tokens.weight", itself, hint, "skip cannot help"]);
    assert_eq!(Metrics::of(&scene.path("run")).count(), 1);

    let scene = Scene::new();
    let ended = with_a_rare_token(&scene, nan).words(skip).run();
    let hint = "hint: no step was taken yet, so the model's files hold it";
    ended.assert_failed(1, &["step 1: loss NaN", "the parameter model.norm.weight", hint]);
    assert!(!ended.report().contains("learning_rate"), "{ended}");
    // Told once; the log has it as well.
    assert_eq!(ended.err.matches("the parameter model.norm.weight").count(), 1, "{ended}");
    let log = std::fs::read_to_string(scene.path("run/logs/rank-0.log")).unwrap();
    assert!(log.contains("error: step 1: loss NaN"), "{log}");
    assert_nothing_half_written(&scene.path("run"));
}

#[test]
fn a_run_in_which_no_step_was_taken_fails() {
    let scene = Scene::new();
    let words = "--nonfinite_gradients skip --per_device_train_batch_size 4 --max_steps 2";
    let ended = with_a_rare_token(&scene, scores_overflow).words(words).run();
    ended.assert_failed(1, &["none of 2 steps was taken", "hint: "]);
    ended.assert_says(&["warning: step 2 was skipped"]);
    assert_eq!(Metrics::of(&scene.path("run")).count(), 2);
    assert!(!scene.path("run/model").exists());
}

#[test]
fn a_parameter_that_overflows_in_float16_is_named() {
    let scene = Scene::new();
    let job = with_a_rare_token(&scene, |folder| {
        change_weights(folder, "model.embed_tokens.weight", rare_embedding(), |_| 1e38);
    });
    let ended = job.words("--zero_stage 3 --mixed_precision fp16").run();
    ended.assert_failed(
        1,
        &["step 2: ", "the parameter model.embed_tokens.weight (unit embedding) itself is not finite"],
    );
    assert_eq!(Metrics::of(&scene.path("run")).count(), 1);
}

#[test]
fn a_layer_class_that_the_model_does_not_have_is_refused_before_anything_starts() {
    let scene = Scene::new();
    let config = scene.write("job.yaml", fsdp("fsdp_transformer_layer_cls_to_wrap: LlmaDecoderLayer", ""));
    let train = |words: &str| scene.train("tiny-llama", "run", "--max_steps 1").with("--config", &config).words(words);
    let parts = ["job.yaml:3", "LlmaDecoderLayer", "fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer"];
    train("").run().assert_failed(2, &parts);
    assert!(!scene.path("run").exists(), "nothing was begun");
    let right = "--fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer";
    train(right).run().assert_done();
}
