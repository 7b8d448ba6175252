//! What plain single-process PyTorch did with the fixture model on the fixture rows.

use serde_json::Value;

use crate::{Metrics, assert_close, fixture, json};

/// The model that PyTorch trained.
pub const CURVE_MODEL: &str = "tiny-llama-tied";

/// One training: `batch_8` (20 steps of 8 rows) or `batch_24` (8 steps of 24).
#[derive(Clone, Debug)]
pub struct Curve(Value);

impl Curve {
    /// The training of this name.
    pub fn named(name: &str) -> Curve {
        let curve = json(&fixture("training/tiny-llama-tied.json"))["curves"][name].clone();
        assert!(curve.is_object(), "the fixture has no curve {name}");
        Curve(curve)
    }

    /// Its recipe as flags of `launch train`.
    pub fn flags(&self) -> String {
        let keys = ["max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1"];
        let keys = keys.into_iter().chain(["adam_beta2", "adam_epsilon", "max_grad_norm"]);
        let flag = |key| format!("--{key} {} ", self.0["recipe"][key].to_string().trim_matches('"'));
        keys.map(flag).collect()
    }

    /// Asserts that a run took the same steps, with losses that differ by at most `tolerance` relative to PyTorch's, and
    /// gradient norms by ten times that: PyTorch sums squares parameter by parameter.
    #[track_caller]
    pub fn assert_equals(&self, name: &str, metrics: &Metrics, tolerance: f64) {
        let expected = self.0["steps"].as_array().expect("a curve has steps");
        let steps = metrics.steps();
        assert_eq!(steps.len(), expected.len(), "{name}");
        for (ours, theirs) in steps.iter().zip(expected) {
            let name = format!("{name}, step {}", theirs["step"]);
            assert_close(&format!("{name}: loss"), &ours["loss"], &theirs["loss"], tolerance);
            assert_close(&format!("{name}: gradient norm"), &ours["grad_norm"], &theirs["grad_norm"], 10.0 * tolerance);
            for key in ["step", "tokens", "supervised_tokens"] {
                assert_eq!(ours[key], theirs[key], "{name}: {key}");
            }
        }
    }
}
