//! A job of stand-in workers, and what tests look at.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder with a model and data just good enough for the checks before the start.
pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "eos_token_id": 2, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}"#;
        std::fs::write(model.join("config.json"), config).unwrap();
        let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}}"#;
        std::fs::write(model.join("tokenizer.json"), tokenizer).unwrap();
        std::fs::write(model.join("tokenizer_config.json"), r#"{"eos_token": "[UNK]"}"#).unwrap();
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        std::fs::write(model.join("model.safetensors"), weights).unwrap();
        std::fs::write(folder.path().join("data.jsonl"), "{\"input_ids\": [1, 0, 1, 2]}\n".repeat(8)).unwrap();
        Fixture { folder }
    }

    pub(crate) fn run_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let worker = stand_in_worker();
        let mut command = Command::new(env!("CARGO_BIN_EXE_launch"));
        command.args(words).current_dir(self.folder.path()).env("ZEROFOLD_WORKER", worker);
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", self.folder.path().join("hf"));
        command.env_remove("STAND_IN").env_remove("STAND_IN_STEPS").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn train(&self, roles: &str, more: &[&str]) -> Command {
        let base = ["--nproc", "2", "train", "--model_name_or_path", "model", "--dataset", "data.jsonl"];
        let rest = ["--output_dir", "run", "--max_steps", "3", "--logging_steps", "1"];
        let mut command = self.command(&[&base[..], &rest[..], more].concat());
        command.env("STAND_IN", roles);
        command
    }
}

fn stand_in_worker() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let worker = tests.ancestors().nth(2).unwrap().join("examples/stand_in_worker");
    assert!(worker.is_file(), "{} is missing: run the crate's tests without --test", worker.display());
    worker
}

/// Waits for the end, at most 15 s.
pub(crate) fn finish(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(15);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("launch hangs: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let output = finish(command.spawn().unwrap());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// The pids of the workers, from their logs, once all of them have written it.
pub(crate) fn worker_pids(run: &Path, count: u32) -> Vec<u32> {
    let pid = |rank| {
        let log = std::fs::read_to_string(run.join("logs").join(format!("rank-{rank}.log"))).ok()?;
        log.split_once("pid ")?.1.split_once(' ')?.0.parse().ok()
    };
    wait_for("pids in the logs", || (0..count).map(pid).collect::<Option<Vec<u32>>>())
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn is_alive(pid: u32) -> bool {
    // A zombie that nobody has reaped yet (the workers' new parent may be slow) runs no more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

pub(crate) fn assert_ended(pids: &[u32]) {
    wait_for("end of the workers", || pids.iter().all(|&pid| !is_alive(pid)).then_some(()));
}

#[track_caller]
pub(crate) fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

pub(crate) fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: kill takes numbers only; the child is not reaped yet.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}
