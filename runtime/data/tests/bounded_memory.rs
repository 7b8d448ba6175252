//! Memory does not grow with the data: seen in a process of its own, which this test starts.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use zerofold_data::{Columns, Prepare, Sources, prepare};

/// Names the data set to tokenise, in the process that is looked at.
const VARIABLE: &str = "ZEROFOLD_TEST_DATA";

/// Memory of this process that is no file, in kB.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The most that tokenising took.
fn peak_of(path: &Path) -> u64 {
    let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/tiny-llama");
        let prepared = prepare(&Prepare {
            model_directory: &model,
            sources: &Sources::find(&[path.to_str().unwrap()]).unwrap(),
            columns: &Columns::default(),
            max_length: Some(4096),
            assistant_only_loss: true,
            chat_template: None,
            template_date: None,
            eos_token: None,
            completion_only_loss: None,
            classes: None,
            cache: &path.with_extension("cache"),
        });
        done.store(true, Ordering::Relaxed);
        assert!(!prepared.unwrap().from_cache);
    });
    peak.load(Ordering::Relaxed)
}

#[test]
fn four_times_the_data_take_no_more_memory() {
    if let Some(path) = std::env::var_os(VARIABLE) {
        println!("peak {}", peak_of(Path::new(&path)));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let row: String = (0..2000).map(|index| format!("{}, ", index % 300)).collect();
    let row = format!("{{\"input_ids\": [{}7]}}", row);
    // In a file with this name: what stands before the rows, between them and behind them.
    let peak = |name: &str, mebibytes: usize, [before, between, behind]: [&str; 3]| -> u64 {
        let path = folder.path().join(name);
        let mut file = BufWriter::new(std::fs::File::create(&path).unwrap());
        write!(file, "{before}{row}").unwrap();
        (1..(mebibytes << 20) / row.len()).for_each(|_| write!(file, "{between}{row}").unwrap());
        write!(file, "{behind}").unwrap();
        drop(file);
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "four_times_the_data_take_no_more_memory", "--nocapture"])
            .env(VARIABLE, &path)
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(ended.status.success(), "{out}\n{}", String::from_utf8_lossy(&ended.stderr));
        out.lines().find_map(|line| line.split("peak ").nth(1)?.split(' ').next()?.trim().parse().ok()).unwrap()
    };
    let lines = ["", "\n", "\n"];
    let (small, large) = (peak("small.jsonl", 48, lines), peak("large.jsonl", 192, lines));
    assert!(large < small + (24 << 10), "48 MiB of rows took {small} kB, 192 MiB {large} kB");
    assert!(large < 256 << 10, "{large} kB");
    // A whole data set on one line. Of an object a line of at most 64 MiB is looked at before its rows are read.
    let array = peak("array.json", 48, ["[", ", ", "]"]);
    assert!(array < small + (24 << 10), "48 MiB of lines took {small} kB, of an array {array} kB");
    let object = peak("object.json", 48, ["{\"data\": [", ", ", "]}"]);
    assert!(object < small + (24 << 10) + (64 << 10), "48 MiB of lines took {small} kB, of an object {object} kB");
}
