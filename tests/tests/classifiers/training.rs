//! What is trained: losses, figures, bits, and which model is the best.

use serde_json::Value;
use zerofold_tests::{Metrics, Scene, assert_close};

use super::{Case, bits, tensor};

#[test]
fn losses_and_figures_are_those_of_transformers() {
    for (name, case) in Case::all() {
        let scene = Scene::new();
        for stage in [0, 3] {
            let (about, run) = (format!("{name} at stage {stage}"), format!("run-{stage}"));
            let words = format!(
                "--nproc 2 --zero_stage {stage} --per_device_train_batch_size 4 --eval_strategy epoch --eval_on_start \
                 --eval_dataset {}",
                case.folder.join("eval.jsonl").display()
            );
            case.train(&scene, &run, &words);
            let run = scene.path(&run);
            case.assert_curve(&about, &run, 1e-5);
            let evaluations = Metrics::of(&run).evaluations();
            let ends = [("before", evaluations.first()), ("after", evaluations.last())];
            for (when, found) in ends {
                for (figure, expected) in case.expected["evaluation"][when].as_object().unwrap() {
                    let found = &found.unwrap()[format!("eval_{figure}")];
                    match expected.as_f64() {
                        Some(0.0) => assert_eq!(found.as_f64(), Some(0.0), "{about}, {figure} {when}"),
                        _ => assert_close(&format!("{about}, {figure} {when}"), found, expected, 1e-4),
                    }
                }
                assert!(found.unwrap().get("eval_mean_token_accuracy").is_none(), "{about}");
            }
        }
    }
}

#[test]
fn stages_have_the_same_bits_and_processes_the_same_losses() {
    for name in ["bert-pairs", "roberta-two-numbers", "llama-several", "gemma2"] {
        let (case, scene) = (Case::named(name), Scene::new());
        for stage in 0..4 {
            case.train(
                &scene,
                &format!("stage-{stage}"),
                &format!("--nproc 2 --zero_stage {stage} --per_device_train_batch_size 4"),
            );
            assert_eq!(
                bits(&scene.path(&format!("stage-{stage}"))),
                bits(&scene.path("stage-0")),
                "{name}, stage {stage}"
            );
        }
        // The last micro-batch of a step is short, and one rank has none.
        case.train(&scene, "alone", "--per_device_train_batch_size 4 --gradient_accumulation_steps 2");
        case.train(
            &scene,
            "recomputed",
            "--nproc 4 --zero_stage 3 --per_device_train_batch_size 2 --gradient_checkpointing true",
        );
        case.train(
            &scene,
            "padding-free",
            "--nproc 2 --zero_stage 3 --per_device_train_batch_size 4 --padding_free true",
        );
        for run in ["alone", "recomputed", "padding-free"] {
            case.assert_curve(&format!("{name}, {run}"), &scene.path(run), 1e-5);
        }
    }
}

#[test]
fn heads_are_trained_first_and_layers_open_from_the_top() {
    let (case, scene) = (Case::named("bert-pairs"), Scene::new());
    let words =
        "--gradual_unfreezing steps --gradual_unfreezing_steps 2 --gradual_unfreezing_start head --eval_strategy no";
    for stage in 0..4 {
        let run = format!("stage-{stage}");
        case.train(&scene, &run, &format!("--nproc 2 --zero_stage {stage} --per_device_train_batch_size 4 {words}"));
        assert_eq!(bits(&scene.path(&run)), bits(&scene.path("stage-0")), "stage {stage}");
    }
    let (trained, before) = (scene.path("stage-3/model"), &case.folder);
    let changed = |name: &str| tensor(&trained, name) != tensor(before, name);
    assert!(changed("classifier.weight") && changed("bert.encoder.layer.1.output.dense.weight"));
    assert!(changed("bert.encoder.layer.0.output.dense.weight"), "the third opening is at step 5");
    assert!(!changed("bert.embeddings.word_embeddings.weight"));
}

#[test]
fn the_best_model_is_that_of_the_figure_that_is_asked_for() {
    let (case, scene) = (Case::named("llama"), Scene::new());
    let train = |run: &str, words: &str| {
        let eval = case.folder.join("eval.jsonl");
        let evaluated = format!(
            "--nproc 2 --zero_stage 3 --per_device_train_batch_size 4 --eval_dataset {} --eval_strategy steps --eval_steps 1 \
             --save_strategy steps --save_steps 1",
            eval.display()
        );
        case.train(&scene, run, &format!("{evaluated} {words}"));
        Metrics::of(&scene.path(run)).evaluations()
    };
    let evaluations = train("run", "--load_best_model_at_end true --metric_for_best_model eval_f1");
    let f1 = |evaluation: &Value| evaluation["eval_f1"].as_f64().unwrap();
    let best = evaluations.iter().max_by(|one, other| f1(one).total_cmp(&f1(other))).unwrap();
    // The first of those that are alike is kept.
    let best = evaluations.iter().find(|evaluation| f1(evaluation) == f1(best)).unwrap();
    let lowest = evaluations
        .iter()
        .min_by(|one, other| one["eval_loss"].as_f64().unwrap().total_cmp(&other["eval_loss"].as_f64().unwrap()));
    assert_ne!(best["step"], lowest.unwrap()["step"], "the fixture tells them apart");
    let step = format!("run/checkpoints/step-{:08}", best["step"].as_u64().unwrap());
    scene.launch(&format!("export {step} --output exported")).run().assert_done();
    for name in ["score.weight", "model.layers.1.mlp.up_proj.weight"] {
        assert_eq!(tensor(&scene.path("run/model"), name), tensor(&scene.path("exported"), name), "{name}");
    }
    // Accuracy does not change from the third step on at this rate: the count is of it, though the loss still falls.
    let stopped =
        train("patient", "--metric_for_best_model accuracy --early_stopping_patience 2 --learning_rate 1e-30");
    assert_eq!(stopped.len(), 3);
}
