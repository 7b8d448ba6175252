//! Configuration files as people have them already.

use zerofold_tests::{Metrics, Scene, fixture, model};

/// What `accelerate config` writes for DeepSpeed, without a section of ours.
const ACCELERATE_ZERO2: &str = "\
compute_environment: LOCAL_MACHINE
debug: false
deepspeed_config:
  deepspeed_multinode_launcher: standard
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: false
  zero_stage: 2
distributed_type: DEEPSPEED
downcast_bf16: 'no'
machine_rank: 0
main_training_function: main
mixed_precision: 'bf16'
num_machines: 1
num_processes: 3
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
";

#[test]
fn an_accelerate_file_without_our_section_works_with_flags() {
    let scene = Scene::new();
    scene.write("zero2.yaml", ACCELERATE_ZERO2);
    let train = |run: &str| {
        let job = scene
            .launch("train --max_steps 2")
            .with("--config_file", "zero2.yaml")
            .with("--output_dir", scene.path(run));
        job.with("--model_name_or_path", model("tiny-llama")).with("--dataset", fixture("data/rows.jsonl"))
    };
    train("as-written").run().assert_done();
    train("fewer").words("--nproc 2 --mixed_precision no").run().assert_done();
    for (run, expected) in [
        ("as-written", ["num_processes: 3", "  stage: 2", "mixed_precision: bf16"]),
        ("fewer", ["num_processes: 2", "  stage: 2", "mixed_precision: no"]),
    ] {
        let resolved = std::fs::read_to_string(scene.path(run).join("config.resolved.yaml")).unwrap();
        for line in expected {
            assert!(resolved.lines().any(|found| found == line), "{run}: {line:?} is not in\n{resolved}");
        }
        assert!(resolved.contains("stage: zero2.yaml:8"), "{resolved}");
        assert_eq!(Metrics::of(&scene.path(run)).count(), 2);
        let logs = std::fs::read_dir(scene.path(run).join("logs")).unwrap().count();
        assert_eq!(logs, if run == "fewer" { 2 } else { 3 });
    }
}

#[test]
fn the_result_of_a_run_says_where_each_value_came_from() {
    let scene = Scene::new();
    let file =
        "distributed_type: MULTI_CPU\nnum_processes: 2\ntraining:\n  learning_rate: 0.5\n  max_steps: 7\n  seed: 3\n";
    scene.write("job.yaml", file);
    let job = scene
        .train("tiny-llama", "run", "--max_steps 1 --set seed=4 --learning_rate 0.001")
        .with("--config", "job.yaml");
    job.run().assert_done();
    let resolved = std::fs::read_to_string(scene.path("run/config.resolved.yaml")).unwrap();
    for line in ["  max_steps: 1", "  seed: 4", "  learning_rate: 0.001", "num_processes: 2"] {
        assert!(resolved.lines().any(|found| found == line), "{line:?} is not in\n{resolved}");
    }
    for line in ["  max_steps: flag --max_steps", "  num_processes: job.yaml:2", "  weight_decay: default"] {
        assert!(resolved.lines().any(|found| found == line), "{line:?} is not in\n{resolved}");
    }
}
