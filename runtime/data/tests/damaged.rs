//! Damaged files of every format, from seeds: an error with its place and what to do, or rows; never a panic, never long.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use zerofold_data::{Columns, RowReader, Sources};

/// Files that are damaged in turn.
const FILES: u64 = 520;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data/files")
}

fn below(generator: &mut ChaCha8Rng, bound: usize) -> usize {
    (generator.next_u64() % bound.max(1) as u64) as usize
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// Whole files: of each format, as they are found.
fn whole() -> Vec<(String, Vec<u8>)> {
    let lines = std::fs::read(fixtures().join("chat.jsonl")).unwrap();
    let text = String::from_utf8(lines.clone()).unwrap();
    let array = format!("[{}]", text.lines().collect::<Vec<_>>().join(","));
    let object = format!("{{\"version\": 1, \"data\": {array}}}");
    let mut files = vec![
        ("a.jsonl.gz".to_owned(), gzip(&lines)),
        ("a.jsonl.zst".to_owned(), zstd::encode_all(&lines[..], 3).unwrap()),
        ("a.jsonl".to_owned(), lines),
        ("a.json".to_owned(), array.into_bytes()),
        ("b.json".to_owned(), object.into_bytes()),
    ];
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "parquet") {
            files.push((path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

fn damage(bytes: &mut Vec<u8>, generator: &mut ChaCha8Rng) {
    let at = below(generator, bytes.len());
    match below(generator, 8) {
        0 => bytes.truncate(at),
        1 => (0..=below(generator, 8)).for_each(|_| {
            let at = below(generator, bytes.len());
            bytes[at] ^= 1 << below(generator, 8);
        }),
        2 => drop(bytes.drain(at..(at + 1 + below(generator, 40)).min(bytes.len()))),
        3 => drop(bytes.splice(at..at, b"[{".repeat(200_000))),
        4 => drop(bytes.splice(at..at, *b"\xff\xc0\xed\xa0\x80")),
        5 => drop(bytes.splice(at..at, b"1e99999999999999999999".repeat(3))),
        // The tail is where Parquet tells of itself.
        6 => (0..4).for_each(|_| {
            let tail = bytes.len().min(600);
            let at = bytes.len() - 1 - below(generator, tail);
            bytes[at] = below(generator, 256) as u8;
        }),
        _ => {
            let length = below(generator, 60);
            let run: Vec<u8> = (0..length).map(|_| below(generator, 256) as u8).collect();
            drop(bytes.splice(at..(at + length).min(bytes.len()), run));
        }
    }
}

#[test]
fn damaged_files_are_errors_with_a_place_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let files = whole();
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    std::panic::set_hook(Box::new(|_| {}));
    let mut failures = Vec::new();
    for seed in 0..FILES {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let (name, mut bytes) = files[seed as usize % files.len()].clone();
        damage(&mut bytes, &mut generator);
        let path = folder.path().join(&name);
        std::fs::write(&path, &bytes).unwrap();
        let began = Instant::now();
        let read = catch_unwind(AssertUnwindSafe(|| {
            let sources = Sources::find(&[path.to_str().unwrap()])?;
            RowReader::new(&sources, &Columns::default()).try_for_each(|row| row.map(drop))
        }));
        slowest = slowest.max(began.elapsed());
        match read {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                refused += 1;
                let error = error.to_string();
                if !error.contains(&name) || !error.contains("\nhint: ") {
                    failures.push(format!("seed {seed}, {name}: no place or no hint: {error}"));
                }
            }
            Err(_) => failures.push(format!("seed {seed}, {name}: panicked")),
        }
    }
    drop(std::panic::take_hook());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(refused > FILES / 2, "only {refused} of {FILES} files were refused");
    assert!(slowest < Duration::from_secs(10), "the slowest took {slowest:?}");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap()
        .trim()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(peak < 2 << 20, "peak memory {peak} kB");
}
