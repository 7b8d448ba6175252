//! `backend: shm`: the ranks of one host over shared memory.

use std::path::Path;

use zerofold_tests::{CURVE_MODEL, Curve, Metrics, Scene, signal};

fn model_bytes(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("model/model.safetensors")).expect("a model was written")
}

/// What rank 0 sent in each step.
fn sent(run: &Path) -> Vec<u64> {
    Metrics::of(run).steps().iter().map(|step| step["sent_bytes"].as_u64().expect("every step tells")).collect()
}

#[test]
fn a_job_has_the_bits_that_it_has_over_gloo() {
    let scene = Scene::new();
    let curve = Curve::named("batch_8");
    for (stage, precision) in [(0, "no"), (1, "bf16"), (2, "bf16"), (3, "no"), (3, "bf16")] {
        let runs = ["gloo", "shm"].map(|backend| {
            let run = format!("{backend}-{stage}-{precision}");
            let sizes = "--nproc 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --save_strategy no";
            let layout = format!("--zero_stage {stage} --mixed_precision {precision} --backend {backend}");
            let ended = scene.train(CURVE_MODEL, &run, &curve.flags()).words(sizes).words(&layout).run();
            ended.assert_done();
            scene.path(&run)
        });
        let [gloo, shm] = &runs;
        assert_eq!(Metrics::of(gloo).exact(), Metrics::of(shm).exact(), "stage {stage}, {precision}");
        assert_eq!(model_bytes(gloo), model_bytes(shm), "stage {stage}, {precision}");
        assert_eq!(sent(gloo), sent(shm), "stage {stage}, {precision}");
    }
}

#[test]
fn a_killed_worker_ends_the_job_and_nothing_stays() {
    let scene = Scene::new();
    let run = scene.path("run");
    let endless = "--nproc 2 --per_device_train_batch_size 2 --max_steps 100000 --save_steps 100000";
    let job = scene.train("tiny-llama", "run", endless).words("--zero_stage 3 --backend shm");
    let mut running = job.start();
    running.wait_for("3 steps", || (Metrics::of(&run).count() >= 3).then_some(()));
    let victim = scene.rank(1);
    signal(victim.pid, libc::SIGKILL);
    let ended = running.finish();
    let death = format!("error: rank 1 (pid {}) was killed by SIGKILL", victim.pid);
    ended.assert_failed(1, &[&death, "hint: "]);
    assert!(scene.processes().is_empty(), "{:?}", scene.processes());
}
