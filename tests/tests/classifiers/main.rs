//! Classifiers of sequences through the whole program: rows of text and labels, sharded training, figures, the exported model.

mod beginnings;
mod commands;
mod training;

use std::path::{Path, PathBuf};

use serde_json::Value;
use zerofold_checkpoint::ModelFiles;
use zerofold_tests::{Ended, Metrics, Scene, assert_close, fixture, json};

/// A fixture with what is expected of it.
struct Case {
    folder: PathBuf,
    expected: Value,
}

impl Case {
    fn named(name: &str) -> Case {
        let folder = fixture("classifiers").join(name);
        let expected = json(&folder.join("curve.json"));
        Case { folder, expected }
    }

    fn all() -> Vec<(String, Case)> {
        let entries = std::fs::read_dir(fixture("classifiers")).unwrap().map(|entry| entry.unwrap().path());
        let folders = entries.filter(|path| path.is_dir());
        let named = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let mut names: Vec<String> = folders.map(named).collect();
        names.sort();
        assert!(names.len() >= 8, "{names:?}");
        names.into_iter().map(|name| (name.clone(), Case::named(&name))).collect()
    }

    /// Trains it as the fixture's recipe says.
    fn train(&self, scene: &Scene, run: &str, words: &str) -> Ended {
        let number = |key: &str| self.expected["recipe"][key].to_string();
        let ended = scene
            .launch("train --train_sampling_strategy sequential --logging_steps 1 --gradient_checkpointing false")
            .with("--model_name_or_path", &self.folder)
            .with("--dataset", self.folder.join("train.jsonl"))
            .with("--output_dir", scene.path(run))
            .with("--max_steps", number("max_steps"))
            .with("--learning_rate", number("learning_rate"))
            .with("--warmup_steps", number("warmup_steps"))
            .with("--weight_decay", number("weight_decay"))
            .words("--save_strategy no")
            .words(words)
            .run();
        ended.assert_done();
        ended
    }

    fn assert_curve(&self, about: &str, run: &Path, tolerance: f64) {
        let steps = Metrics::of(run).steps();
        let expected = self.expected["steps"].as_array().unwrap();
        assert_eq!(steps.len(), expected.len(), "{about}");
        for (step, expected) in steps.iter().zip(expected) {
            for key in ["loss", "grad_norm"] {
                assert_close(&format!("{about}, {key}"), &step[key], &expected[key], tolerance);
            }
        }
    }
}

/// What is compared to the bit: losses and gradient norms.
fn bits(run: &Path) -> Vec<(u64, u64)> {
    let number = |step: &Value, key: &str| step[key].as_f64().unwrap().to_bits();
    Metrics::of(run).steps().iter().map(|step| (number(step, "loss"), number(step, "grad_norm"))).collect()
}

/// Every value of a tensor in a model folder.
fn tensor(folder: &Path, name: &str) -> Vec<f32> {
    let files = ModelFiles::open(folder).unwrap();
    let mut values = vec![0.0; files.entry(name).unwrap().shape.iter().product()];
    files.read_f32(name, 0..values.len(), &mut values).unwrap();
    values
}
