//! Element types, and the keys beside them.

use super::{TRAINING, resolved, says, with_flags};
use crate::{ElementType, ElementTypes, NonFinite, Precision};

const CPU: &str = "distributed_type: MULTI_CPU\n";

#[test]
fn mixed_precision_has_four_names() {
    let table = [
        ("", "", Precision::No, "default"),
        ("mixed_precision: fp16\n", "", Precision::Fp16, "job.yaml:2"),
        ("mixed_precision: FP16\n", "  fp16: true\n", Precision::Fp16, "job.yaml:2"),
        ("fp16: true\n", "", Precision::Fp16, "job.yaml:2"),
        ("fp16: true\n", "  fp16: true\n", Precision::Fp16, "job.yaml:7"),
        ("", "  fp16: true\n", Precision::Fp16, "job.yaml:6"),
        ("", "  fp16: true\n  bf16: false\n", Precision::Fp16, "job.yaml:6"),
        ("", "  fp16: false\n  bf16: true\n", Precision::Bf16, "job.yaml:7"),
        ("mixed_precision: bf16\n", "  fp16: false\n", Precision::Bf16, "job.yaml:2"),
        ("fp16: false\n", "  fp16: false\n  bf16: false\n", Precision::No, "job.yaml:2"),
        ("mixed_precision: 'no'\n", "  bf16: false\n", Precision::No, "job.yaml:2"),
    ];
    for (accelerate, more, precision, place) in table {
        let job = resolved(&format!("{CPU}{accelerate}"), more).unwrap();
        assert_eq!(job.mixed_precision, precision, "{accelerate}{more}");
        // Of several that say the same, any place is right.
        if accelerate.is_empty() || more.is_empty() {
            assert_eq!(job.provenance["mixed_precision"], place, "{accelerate}{more}");
        }
    }
    let conflicts = [
        (
            "mixed_precision: bf16\n",
            "  fp16: true\n",
            ["mixed_precision: bf16 (job.yaml:2:18)", "fp16: true (job.yaml:7:9)"],
        ),
        (
            "mixed_precision: 'no'\nfp16: true\n",
            "",
            ["mixed_precision: no (job.yaml:2:18)", "fp16: true (job.yaml:3:7)"],
        ),
        ("fp16: true\n", "  bf16: true\n", ["training.bf16: true (job.yaml:7:9)", "fp16: true (job.yaml:2:7)"]),
        (
            "",
            "  fp16: true\n  bf16: true\n",
            ["training.bf16: true (job.yaml:7:9)", "training.fp16: true (job.yaml:6:9)"],
        ),
        ("fp16: true\n", "  fp16: false\n", ["fp16: true (job.yaml:2:7)", "training.fp16: false (job.yaml:7:9)"]),
    ];
    for (accelerate, more, places) in conflicts {
        let message = resolved(&format!("{CPU}{accelerate}"), more).unwrap_err();
        says(&message, &[places[0], places[1], " disagree\nhint: "]);
    }
    let file = format!("{CPU}mixed_precision: bf16\n{TRAINING}");
    let flags: [(&str, &str, Precision); 4] = [
        ("fp16", "true", Precision::Fp16),
        ("mixed_precision", "fp16", Precision::Fp16),
        ("bf16", "false", Precision::No),
        ("fp16", "false", Precision::Bf16),
    ];
    for (name, value, precision) in flags {
        assert_eq!(with_flags(&file, &[(name, value)], &[]).unwrap().mixed_precision, precision, "--{name} {value}");
    }
    let eight = resolved(&format!("{CPU}mixed_precision: fp8\n"), "").unwrap_err();
    says(&eight, &["mixed_precision: fp8 is not built yet\nhint: use bf16, fp16 or no"]);
}

#[test]
fn element_types_follow_the_masters_unless_told() {
    use ElementType::{Bfloat16, Float16, Float32};
    let types = |compute, master, reduce, accumulate| ElementTypes { compute, master, reduce, accumulate };
    let table = [
        ("'no'", "", ElementTypes::of(Float32)),
        ("bf16", "", ElementTypes::of(Bfloat16)),
        ("fp16", "", ElementTypes::of(Float16)),
        ("fp16", "reduce_dtype: float16", types(Float16, Float32, Float16, Float32)),
        ("fp16", "reduce_dtype: bfloat16", types(Float16, Float32, Bfloat16, Float32)),
        ("fp16", "master_dtype: float32", ElementTypes::of(Float16)),
        ("bf16", "reduce_dtype: bfloat16", types(Bfloat16, Float32, Bfloat16, Float32)),
        ("bf16", "grad_accum_dtype: bfloat16", types(Bfloat16, Float32, Float32, Bfloat16)),
        ("'no'", "master_dtype: bfloat16", types(Bfloat16, Bfloat16, Bfloat16, Bfloat16)),
        ("bf16", "master_dtype: BFLOAT16", types(Bfloat16, Bfloat16, Bfloat16, Bfloat16)),
        (
            "bf16",
            "master_dtype: bfloat16, reduce_dtype: float32, grad_accum_dtype: float32",
            types(Bfloat16, Bfloat16, Float32, Float32),
        ),
    ];
    for (precision, entries, expected) in table {
        let more: String = entries.split(", ").filter(|entry| !entry.is_empty()).map(|e| format!("  {e}\n")).collect();
        let job = resolved(&format!("{CPU}mixed_precision: {precision}\n"), &more).unwrap();
        assert_eq!(job.element_types(), expected, "{precision} {entries}");
        assert!(job.notes.is_empty(), "{:?}", job.notes);
    }
    let job = resolved(CPU, "  master_dtype: bfloat16\n").unwrap();
    let places = ["master_dtype", "reduce_dtype", "grad_accum_dtype"].map(|key| job.provenance[key].as_str());
    assert_eq!(places, ["job.yaml:6", "default", "default"]);
    let flags = [("master_dtype", "bfloat16"), ("reduce-dtype", "float32")];
    let job = with_flags(TRAINING, &flags, &[]).unwrap();
    assert_eq!(job.element_types(), types(Bfloat16, Bfloat16, Float32, Bfloat16));
    assert_eq!(job.provenance["reduce_dtype"], "flag --reduce-dtype");
}

#[test]
fn element_types_that_cannot_be_say_why() {
    let refused = |precision: &str, more: &str| {
        resolved(&format!("{CPU}mixed_precision: {precision}\n"), &format!("  {more}\n")).unwrap_err()
    };
    says(&refused("bf16", "master_dtype: float16"), &["training.master_dtype is float16", "one of float32, bfloat16"]);
    says(&refused("bf16", "grad_accum_dtype: float16"), &["one of float32, bfloat16"]);
    says(
        &refused("fp16", "master_dtype: bfloat16"),
        &[
            "master_dtype: bfloat16 (job.yaml:7:17)",
            "mixed_precision: fp16 (job.yaml:2:18) disagree",
            "float32 masters",
        ],
    );
    says(
        &refused("bf16", "reduce_dtype: float16"),
        &["reduce_dtype is float16", "it goes with mixed_precision: fp16, and mixed_precision is bf16", "loss scale"],
    );
    says(&refused("bf16", "reduce_dtype: bf16"), &["one of float32, bfloat16, float16"]);
}

#[test]
fn what_is_done_with_gradients_and_blocks() {
    let job = with_flags(TRAINING, &[], &[]).unwrap();
    assert_eq!((job.nonfinite_gradients, job.gradient_checkpointing_every), (NonFinite::Stop, 1));
    let flags = [("nonfinite_gradients", "skip"), ("gradient_checkpointing_every", "2")];
    let job = with_flags(TRAINING, &flags, &[]).unwrap();
    assert_eq!((job.nonfinite_gradients, job.gradient_checkpointing_every), (NonFinite::Skip, 2));
    assert_eq!(job.provenance["nonfinite_gradients"], "flag --nonfinite_gradients");
    says(&with_flags(TRAINING, &[("nonfinite_gradients", "ignore")], &[]).unwrap_err(), &["one of stop, skip"]);
    says(&with_flags(TRAINING, &[("gradient_checkpointing_every", "0")], &[]).unwrap_err(), &["1 or more"]);
    let told = resolved("", "  gradient_checkpointing: false\n  gradient_checkpointing_every: 2\n").unwrap().notes;
    let note = "training.gradient_checkpointing_every: 2 (job.yaml:6) has no effect: gradient_checkpointing is false \
        (job.yaml:5)";
    assert_eq!(told, [note]);
}
