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
    let told = "training ends early after step 3: 2 evaluations without a lower held-out loss";
    assert!(ended.out.contains(told), "{ended}");
    assert_eq!(Metrics::of(&scene.path("run")).count(), 3);
    assert!(scene.path("run/model/model.safetensors").exists());
    // A run that ended so is at its end; with more patience it goes on from where it was.
    let again = train("--resume --early_stopping_patience 4");
    again.assert_done();
    assert!(again.out.contains("training ends early after step 5: 4 evaluations"), "{again}");
    assert_eq!(Metrics::of(&scene.path("run")).count(), 5);
}
