//! Data sets put end to end.

use std::fs;

use crate::columns::Columns;
use crate::dataset::TokenizedDataset;
use crate::prepare::{Prepare, Prepared, prepare};
use crate::source::Sources;

use super::*;

/// Rows of ids from a file of this text.
fn part(folder: &Path, name: &str, text: &str) -> Prepared {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::write(folder.join("config.json"), r#"{"vocab_size": 100}"#).unwrap();
    let (sources, columns) = (Sources::find(&[path.display().to_string()]).unwrap(), Columns::default());
    prepare(&Prepare {
        model_directory: folder,
        sources: &sources,
        columns: &columns,
        max_length: Some(16),
        assistant_only_loss: true,
        chat_template: None,
        template_date: None,
        eos_token: None,
        completion_only_loss: None,
        classes: None,
        cache: &folder.join("cache"),
    })
    .unwrap()
}

const FIRST: &str = "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4], \"labels\": [4]}\n{\"input_ids\": [5, 6]}\n";
const SECOND: &str = "\n{\"input_ids\": [7, 8, 9, 10], \"labels\": [-100, -100, 9, -100]}\n";

#[test]
fn rows_lie_end_to_end_and_tell_where_they_stood() {
    let folder = tempfile::tempdir().unwrap();
    let join = || {
        let parts = vec![part(folder.path(), "a.jsonl", FIRST), part(folder.path(), "b.jsonl", SECOND)];
        join(parts, &folder.path().join("cache")).unwrap()
    };
    let joined = join();
    let dataset = &joined.dataset;
    // Of the row of one token nothing is learned.
    assert_eq!((dataset.rows(), dataset.sources()), (3, vec![2, 1]));
    assert_eq!(dataset.row(1), (&[5, 6][..], &[5, 6][..]));
    assert_eq!(dataset.row(2), (&[7, 8, 9, 10][..], &[-100, -100, 9, -100][..]));
    for (row, place) in [(0, "line 1 of "), (1, "line 3 of "), (2, "line 2 of ")] {
        let words = dataset.places.words(row);
        let file = if row < 2 { "a.jsonl" } else { "b.jsonl" };
        assert!(words.starts_with(place) && words.ends_with(file), "row {row}: {words}");
    }
    let DataReport { files, rows, dropped, tokens, supervised_tokens, longest, .. } = joined.report;
    assert_eq!((files, rows, dropped, tokens, supervised_tokens, longest), (2, 3, 1, 9, 4, 4));
    // The file tells the same again, and a damaged one is made anew.
    let again = join();
    assert!(again.from_cache && !joined.from_cache);
    assert_eq!((&again.dataset, again.dataset.sources(), &again.digest), (dataset, vec![2, 1], &joined.digest));
    let mut bytes = fs::read(&joined.file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&joined.file, bytes).unwrap();
    let anew = join();
    assert!(!anew.from_cache);
    assert_eq!(anew.digest, joined.digest);
    assert_eq!(TokenizedDataset::load(&anew.file).unwrap().sources(), [2, 1]);
}

#[test]
fn one_part_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let alone = part(folder.path(), "a.jsonl", FIRST);
    let file = alone.file.clone();
    let joined = join(vec![alone], &folder.path().join("cache")).unwrap();
    assert_eq!((joined.file, joined.dataset.sources()), (file, vec![2]));
    assert!(join(Vec::new(), folder.path()).is_err());
}
