//! What is measured on held-out rows, and what follows from it.

use zerofold_tests::{Metrics, Scene, assert_close, fixture, json};

#[test]
fn loss_and_token_accuracy_are_those_of_pytorch() {
    for name in ["qwen3", "gemma2", "gpt2"] {
        let scene = Scene::new();
        let model = scene.family(name);
        let ended = scene
            .launch(
                "train --nproc 2 --zero_stage 3 --max_steps 1 --eval_on_start --eval_strategy epoch --save_strategy no",
            )
            .with("--model_name_or_path", &model)
            .with("--dataset", fixture("families/rows.jsonl"))
            .with("--eval_dataset", fixture("families/rows.jsonl"))
            .with("--output_dir", scene.path("run"))
            .run();
        ended.assert_done();
        let expected = &json(&fixture("families").join(name).join("curve.json"))["evaluation"];
        let first = &Metrics::of(&scene.path("run")).evaluations()[0];
        assert_close(name, &first["eval_loss"], &expected["loss"], 1e-5);
        assert_close(name, &first["eval_mean_token_accuracy"], &expected["token_accuracy"], 1e-9);
        assert!(ended.out.contains("% of tokens right"), "{ended}");
        let step = &Metrics::of(&scene.path("run")).steps()[0];
        let accuracy = step["mean_token_accuracy"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&accuracy), "{step}");
    }
}

#[test]
fn training_ends_when_the_held_out_loss_falls_no_more() {
    let scene = Scene::new();
    let train = |words: &str| {
        scene
            .train("tiny-llama", "run", "--nproc 2 --zero_stage 2 --per_device_train_batch_size 2")
            .with("--eval_dataset", fixture("data/rows.jsonl"))
            // Nothing changes, so no evaluation after the first is lower.
            .words("--max_steps 9 --learning_rate 1e-30 --eval_strategy steps --eval_steps 1 --save_steps 1")
            .words("--early_stopping_patience 2 --load_best_model_at_end true")
            .words(words)
            .run()
    };
    let ended = train("");
    ended.assert_done();
    let told = "training ends early after step 3: 2 evaluations of which none was better";
    assert!(ended.out.contains(told), "{ended}");
    assert_eq!(Metrics::of(&scene.path("run")).count(), 3);
    assert!(scene.path("run/model/model.safetensors").exists());
    // A run that ended so is at its end; with more patience it goes on from where it was.
    let again = train("--resume --early_stopping_patience 4");
    again.assert_done();
    assert!(again.out.contains("training ends early after step 5: 4 evaluations"), "{again}");
    assert_eq!(Metrics::of(&scene.path("run")).count(), 5);
}

#[test]
fn a_learning_rate_that_follows_the_held_out_loss_falls_and_is_resumed() {
    let scene = Scene::new();
    let train = |run: &str, words: &str| {
        scene
            .train("tiny-llama", run, "--nproc 2 --zero_stage 2 --per_device_train_batch_size 2 --max_steps 8")
            .with("--eval_dataset", fixture("data/chat.jsonl"))
            .words("--eval_on_start --eval_strategy steps --eval_steps 1 --save_steps 4 --learning_rate 1e-2")
            .words("--lr_scheduler_type reduce_lr_on_plateau")
            // No loss is a tenth of the one before.
            .with("--lr_scheduler_kwargs", "{patience: 1, factor: 0.5, threshold: 0.9}")
            .words(words)
            .run()
    };
    let ended = train("whole", "");
    ended.assert_done();
    // The evaluation after the first step is the best; that before it does not count. Then every two are a plateau.
    let steps = Metrics::of(&scene.path("whole")).steps();
    let rates: Vec<f64> = steps.iter().map(|step| step["learning_rate"].as_f64().unwrap()).collect();
    assert_eq!(rates, [1e-2, 1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3, 1.25e-3]);
    assert!(ended.err.contains("on a plateau: the learning rate falls from 1e-2 to 5e-3"), "{ended}");
    // One of the two lies before the checkpoint, the other behind it.
    scene.copy(&scene.path("whole"), "resumed");
    train("resumed", "--resume step-00000004").assert_done();
    let [whole, resumed] = ["whole", "resumed"].map(|run| Metrics::of(&scene.path(run)).exact());
    assert_eq!(whole, resumed);
    let [whole, resumed] = ["whole", "resumed"].map(|run| scene.path(run).join("model/model.safetensors"));
    assert!(std::fs::read(whole).unwrap() == std::fs::read(resumed).unwrap(), "the models differ");
}
