//! Damaged configurations: whatever a file holds, it resolves or is refused, in bounded time and memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zerofold_configs::{Inputs, resolve};

const MUTATIONS: u64 = 600;
/// A configuration takes well under a millisecond; the machine may be busy.
const LONGEST: Duration = Duration::from_secs(3);
/// Peak memory of this process, in KiB.
const MOST_MEMORY: u64 = 128 << 10;

/// SplitMix64: numbers that a seed decides.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// The table's files.
fn files() -> Vec<PathBuf> {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/table");
    let mut files = Vec::new();
    for folder in std::fs::read_dir(table).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            files.push(file.unwrap().path());
        }
    }
    files.retain(|file| !file.ends_with("expected.yaml"));
    files.sort();
    files
}

/// What a scalar is replaced with.
const VALUES: [&str; 22] = [
    "[]",
    "{}",
    "{\"a\": {\"b\": [1, {}]}}",
    "!tag x",
    "!!binary aGk=",
    "1e400",
    "-1e308",
    "99999999999999999999999999999999999999",
    "-9223372036854775808",
    "18446744073709551616",
    "0.1e-400",
    ".nan",
    "\"\"",
    "\"\\u0000\"",
    "'\u{202e}\u{feff}'",
    "&a [*a]",
    "*nothing",
    "true",
    "null",
    "0x7fffffffffffffff",
    "1_0_0",
    "\"auto\"",
];

/// `text` with one thing wrong with it, and what.
fn damage(text: &[u8], random: &mut Random) -> (&'static str, Vec<u8>) {
    let at = random.below(text.len() + 1);
    let insert = |part: &[u8]| [&text[..at], part, &text[at..]].concat();
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    match random.below(12) {
        0 => ("cut", text[..at].to_vec()),
        1 => ("invalid UTF-8", insert(&[0xff, 0xfe, 0xc3, 0x28])),
        2 => {
            let mut text = text.to_vec();
            if let Some(byte) = text.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
            ("a bit", text)
        }
        3 => {
            let line = random.below(lines.len());
            let again = lines[..=line].iter().chain(&lines[line..]).copied().collect::<Vec<_>>();
            ("a line twice", again.concat())
        }
        4 | 5 => {
            let line = random.below(lines.len());
            let value = *random.pick(&VALUES);
            let mut text = Vec::new();
            for (index, bytes) in lines.iter().enumerate() {
                match bytes.iter().position(|byte| *byte == b':') {
                    Some(colon) if index == line => {
                        text.extend_from_slice(&bytes[..colon]);
                        let comma = if bytes.trim_ascii_end().ends_with(b",") { "," } else { "" };
                        text.extend_from_slice(format!(": {value}{comma}\n").as_bytes());
                    }
                    _ => text.extend_from_slice(bytes),
                }
            }
            ("a value", text)
        }
        6 => {
            let open = *random.pick(&["[", "{", "{\"a\":", "[[", "- ", "? ", "a: [", "\""]);
            ("deep nesting", insert(open.repeat(1 + random.below(100_000)).as_bytes()))
        }
        7 => {
            let width = 2 + random.below(9);
            let bomb = (1..20).map(|level| {
                let inner = vec![format!("*b{}", level - 1); width].join(", ");
                format!("b{level}: &b{level} [{inner}]\n")
            });
            ("aliases", [text, b"\nb0: &b0 [x, x, x]\n", bomb.collect::<String>().as_bytes()].concat())
        }
        8 => {
            let long = "1, ".repeat(random.below(5_000));
            let aliases = "  - *long\n".repeat(random.below(20));
            ("long aliases", [text, format!("\nlong: &long [{long}]\nall:\n{aliases}").as_bytes()].concat())
        }
        9 => ("zeros", insert(&[0; 3])),
        10 => {
            let block: String = (0..random.below(600)).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
            ("indentation", [text, b"\n", block.as_bytes()].concat())
        }
        _ => {
            let mut shuffled = lines.clone();
            let (one, other) = (random.below(lines.len()), random.below(lines.len()));
            shuffled.swap(one, other);
            ("lines swapped", shuffled.concat())
        }
    }
}

/// Peak memory of this process in KiB, as Linux tells it.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn damaged_files_resolve_or_are_refused() {
    let files = files();
    let folder = tempfile::tempdir().unwrap();
    // What some of them name.
    std::fs::copy(
        files.iter().find(|file| file.ends_with("deepspeed/guide.json")).unwrap(),
        folder.path().join("guide.json"),
    )
    .unwrap();
    let (mut refused, mut longest) = (0, Duration::ZERO);
    for seed in 0..MUTATIONS {
        let mut random = Random(seed);
        let file = random.pick(&files).clone();
        let (what, text) = damage(&std::fs::read(&file).unwrap(), &mut random);
        let name = format!("damaged.{}", file.extension().unwrap().to_string_lossy());
        let path = folder.path().join(&name);
        std::fs::write(&path, &text).unwrap();
        let required = [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o")];
        let flags = required.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let inputs = Inputs { config: Some(path.display().to_string()), flags, devices: 2, ..Inputs::default() };
        let began = Instant::now();
        let told = catch_unwind(AssertUnwindSafe(|| resolve(&inputs)));
        let took = began.elapsed();
        let case = || format!("seed {seed}: {what} in {}", file.display());
        match told {
            Err(_) => panic!("{} panics", case()),
            Ok(Err(error)) => {
                refused += 1;
                let message = error.to_string();
                assert!(message.len() < 20_000, "{}: {} bytes of message", case(), message.len());
            }
            Ok(Ok(_)) => {}
        }
        assert!(took < LONGEST, "{} takes {took:?}", case());
        longest = longest.max(took);
    }
    println!("{refused} of {MUTATIONS} refused, the longest took {longest:?}, peak {} MiB", peak() >> 10);
    assert!(refused > MUTATIONS / 2, "only {refused} are refused");
    assert!(peak() < MOST_MEMORY, "{} KiB", peak());
}
