//! The hub of the tests, for other clients: serves the model folder of the first argument as `owner/model`, and the lines of the
//! file of the second as the data set `owner/data` (the last ten of them as its test split), on a free port; prints its address
//! and runs until standard input ends. `scripts/compare hub` uses it.

use std::io::Read;
use std::path::Path;

fn main() {
    let hub = zerofold_tests::Hub::new();
    let folder = std::env::args().nth(1).expect("a model folder");
    hub.publish("owner/model", Path::new(&folder));
    if let Some(rows) = std::env::args().nth(2) {
        let rows = std::fs::read_to_string(rows).expect("a file of rows");
        let lines: Vec<&str> = rows.lines().collect();
        let (train, test) = lines.split_at(lines.len().saturating_sub(10));
        let file = |split: &str, lines: &[&str]| {
            (format!("data/{split}-00000-of-00001.jsonl"), format!("{}\n", lines.join("\n")).into_bytes())
        };
        let readme = ("README.md".to_owned(), b"---\nlicense: mit\n---\n# Rows\n".to_vec());
        hub.commit("datasets/owner/data", vec![readme, file("train", train), file("test", test)]);
    }
    hub.take_parts_of(100_000);
    println!("{}", hub.endpoint());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
