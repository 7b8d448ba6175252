//! What plain single-process PyTorch did with a model on rows.

use serde_json::Value;

use crate::{Metrics, assert_close, fixture, json};

/// The model that PyTorch trained.
pub const CURVE_MODEL: &str = "tiny-llama-tied";

/// One training, as a fixture tells of it.
#[derive(Clone, Debug)]
pub struct Curve {
    recipe: Value,
    steps: Value,
}

impl Curve {
    /// A training of [`CURVE_MODEL`] on the fixture rows: `batch_8` (20 steps of 8 rows) or `batch_24` (8 steps of 24).
    pub fn named(name: &str) -> Curve {
        let curve = &json(&fixture("training/tiny-llama-tied.json"))["curves"][name];
        Curve::of(&curve["recipe"], &curve["steps"])
    }

    /// The training of a recipe, under the names of TrainingArguments, that took these steps.
    pub fn of(recipe: &Value, steps: &Value) -> Curve {
        assert!(recipe.is_object() && steps.is_array(), "no curve: recipe {recipe}, steps {steps}");
        Curve { recipe: recipe.clone(), steps: steps.clone() }
    }

    /// Its recipe as flags of `launch train`.
    pub fn flags(&self) -> String {
        let keys = ["max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1"];
        let keys = keys.into_iter().chain(["adam_beta2", "adam_epsilon", "max_grad_norm"]);
        let flag = |key| format!("--{key} {} ", self.recipe[key].to_string().trim_matches('"'));
        keys.map(flag).collect()
    }

    /// Asserts that a run took the same steps, with losses that differ by at most `tolerance` relative to PyTorch's, and
    /// gradient norms by ten times that: PyTorch sums squares parameter by parameter. What else the fixture counts is equal.
    #[track_caller]
    pub fn assert_equals(&self, name: &str, metrics: &Metrics, tolerance: f64) {
        let expected = self.steps.as_array().expect("a curve has steps");
        let steps = metrics.steps();
        assert_eq!(steps.len(), expected.len(), "{name}");
        for (ours, theirs) in steps.iter().zip(expected) {
            let name = format!("{name}, step {}", theirs["step"]);
            assert_close(&format!("{name}: loss"), &ours["loss"], &theirs["loss"], tolerance);
            assert_close(&format!("{name}: gradient norm"), &ours["grad_norm"], &theirs["grad_norm"], 10.0 * tolerance);
            for (label, loss) in theirs["loss_by_source"].as_object().into_iter().flatten() {
                let ours = &ours["loss_by_source"][label.as_str()];
                match loss.is_null() {
                    true => assert!(ours.is_null(), "{name}: a loss of {label}, {ours}"),
                    false => assert_close(&format!("{name}: loss of {label}"), ours, loss, tolerance),
                }
            }
            for key in ["step", "tokens", "supervised_tokens"] {
                if let Some(theirs) = theirs.get(key) {
                    assert_eq!(&ours[key], theirs, "{name}: {key}");
                }
            }
        }
    }
}
