//! `launch doctor` and `launch bench` with the real worker. How fast this machine is, no test may say.

use serde_json::Value;
use zerofold_tests::{Ended, Scene};

fn answer(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}\n{ended}"))
}

fn finding<'a>(answer: &'a Value, what: &str) -> &'a Value {
    let findings = answer["findings"].as_array().expect("findings");
    findings.iter().find(|finding| finding["what"] == what).unwrap_or_else(|| panic!("no {what}: {answer:#}"))
}

/// What `rates` must hold for two ranks on the CPU.
#[track_caller]
fn assert_rates(rates: &Value) {
    assert_eq!((&rates["device"], &rates["backend"]), (&"cpu".into(), &"gloo".into()));
    assert_eq!((rates["ranks"].as_u64(), rates["threads"].as_u64()), (Some(2), Some(1)));
    let products = rates["products"].as_array().unwrap();
    let types: Vec<_> = products.iter().map(|product| product["dtype"].as_str().unwrap()).collect();
    assert_eq!(types, ["float32", "bfloat16"]);
    for product in products {
        let [each, all] = ["flops_per_rank", "flops"].map(|name| product[name].as_f64().unwrap());
        // Two ranks: at least twice the slower one; and no processor does 10 petaflop/s.
        assert!(each > 1e6 && all >= 2.0 * each * 0.999 && all < 1e16, "{product}");
    }
    let copied = rates["copy"]["bytes_per_second"].as_f64().unwrap();
    assert!(copied > 1e6 && copied < 1e14, "{copied}");
    let collectives = rates["collectives"].as_array().unwrap();
    let sizes = |name: &str, backend: &str| -> Vec<u64> {
        let of_name = collectives.iter().filter(|it| it["collective"] == name && it["backend"] == backend);
        of_name.map(|it| it["bytes"].as_u64().unwrap()).collect()
    };
    for backend in ["gloo", "shm"] {
        let expected = vec![64 << 10, 1 << 20, 16 << 20];
        assert_eq!((sizes("all_gather", backend), sizes("reduce_scatter", backend)), (expected.clone(), expected));
    }
    for it in collectives {
        let [bytes, seconds, rate] = ["bytes", "seconds", "bytes_per_second"].map(|name| it[name].as_f64().unwrap());
        assert!(seconds > 0.0 && (bytes / seconds / rate - 1.0).abs() < 1e-9, "{it}");
        assert!(it["repetitions"].as_u64() > Some(1), "{it}");
    }
}

#[test]
fn doctor_looks_at_this_machine_and_measures_it() {
    let scene = Scene::new();
    let ended = scene.launch("--nproc 2 doctor --device cpu --quick --json --output_dir runs/first").run();
    ended.assert_done();
    let answer = answer(&ended);
    assert_eq!(answer["job"]["num_processes"], 2);
    for finding in answer["findings"].as_array().unwrap() {
        let verdict = finding["verdict"].as_str().unwrap();
        assert!(["ok", "note", "warning"].contains(&verdict), "{finding}");
        assert_eq!(verdict == "ok", finding["hint"].is_null(), "{finding}");
        assert!(["system", "libraries", "rates"].contains(&finding["group"].as_str().unwrap()), "{finding}");
    }
    for what in ["kernel", "processors", "memory", "clock", "shared memory", "open files", "ports", "libtorch"] {
        assert!(!finding(&answer, what)["value"].as_str().unwrap().is_empty());
    }
    // The run folder does not exist: the disk under it was tried, and nothing is left there.
    assert!(finding(&answer, "disk speed")["value"].as_str().unwrap().contains("64.0 MiB written"));
    assert!(!scene.path("runs").exists());
    assert!(answer["worker"]["libtorch"].as_str().unwrap().starts_with("2.13."), "{answer:#}");
    assert_eq!(answer["worker"]["attention"][0]["kernel"], "flash");
    assert_rates(&answer["rates"]);
}

#[test]
fn bench_prints_the_rates_alone() {
    let scene = Scene::new();
    let ended = scene.launch("bench --device cpu --nproc 2 --quick --json").run();
    ended.assert_done();
    assert_rates(&answer(&ended));
}

#[test]
fn a_job_on_gpus_that_are_not_there_is_told_what_is_missing() {
    let scene = Scene::new();
    let hide = |command: &mut std::process::Command| {
        command.env("CUDA_VISIBLE_DEVICES", "");
    };
    let ended = scene.launch("doctor --device cuda --quick").adjust(hide).run();
    assert_eq!(ended.code, Some(1), "{ended}");
    for part in ["libtorch and GPUs\n", "  problem  ", "\nwhat to do\n  problem: ", "nvidia-smi", "not measured"] {
        assert!(ended.out.contains(part), "{part:?}\n{ended}");
    }
    let ended = scene.launch("bench --device cuda --quick").adjust(hide).run();
    ended.assert_failed(1, &["cannot measure: ", "\nhint: "]);
}

#[test]
fn without_a_worker_the_rest_is_looked_at() {
    let scene = Scene::new();
    let elsewhere = |command: &mut std::process::Command| {
        command.env("ZEROFOLD_WORKER", "/no/such/worker");
    };
    let ended = scene.launch("doctor --quick --json").adjust(elsewhere).run();
    assert_eq!(ended.code, Some(1), "{ended}");
    let answer = answer(&ended);
    let worker = finding(&answer, "worker");
    assert_eq!(worker["verdict"], "problem");
    assert!(worker["value"].as_str().unwrap().contains("/no/such/worker"), "{worker}");
    assert!(!finding(&answer, "memory").is_null() && answer["rates"].is_null());
}
