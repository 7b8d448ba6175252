//! Files of tokenised rows: written, mapped, damaged.

use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::writer::DatasetWriter;

fn sample() -> TokenizedDataset {
    let mut dataset = TokenizedDataset::new();
    dataset.push(2, &[1, 2, 3], &[1, IGNORED, 3]);
    dataset.push(5, &[4, u32::MAX], &[IGNORED, IGNORED]);
    dataset
}

fn file(name: &str, unit: Unit, first_row: u64) -> FileRows {
    FileRows { path: name.into(), unit, first_row }
}

#[test]
fn written_rows_are_mapped_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.safetensors");
    let mut writer = DatasetWriter::new(folder.path()).unwrap();
    let held = sample();
    for row in 0..held.rows() {
        let (ids, labels) = held.row(row);
        writer.push(held.places.numbers[row], ids, labels).unwrap();
    }
    let files = [file("empty.jsonl", Unit::Line, 0), file("a.jsonl", Unit::Line, 0), file("b.parquet", Unit::Row, 1)];
    let (mapped, digest) = writer.finish(&path, &files, BTreeMap::new()).unwrap();
    assert_eq!(mapped, held);
    assert_eq!((mapped.digest(), held.digest()), (digest.clone(), digest));
    assert_eq!(mapped.largest_token(), Some(u32::MAX));
    assert_eq!([0, 1].map(|row| mapped.places.words(row)), ["line 2 of a.jsonl", "row 5 of b.parquet"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no leftover beside the file");
    let mut grown = mapped.clone();
    grown.push(9, &[7], &[7]);
    assert_eq!((grown.rows(), mapped.rows()), (3, 2), "the file is not changed");
}

#[test]
fn rows_of_a_classifier_are_mapped_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.safetensors");
    let mut writer = DatasetWriter::new(folder.path()).unwrap();
    writer.classify(2, &[0.5, -1.0]).unwrap();
    writer.push(1, &[1, 2, 3], &[0, IGNORED, IGNORED]).unwrap();
    writer.classify(1, &[1.0, 2.0]).unwrap();
    writer.push(2, &[4], &[0]).unwrap();
    assert_eq!((writer.rows(), writer.supervised()), (2, 2));
    let (mapped, digest) = writer.finish(&path, &[file("a.jsonl", Unit::Line, 0)], BTreeMap::new()).unwrap();
    assert!(mapped.is_classified());
    assert_eq!(
        (mapped.seconds[0], mapped.values(0), mapped.values(1)),
        (2, [0.5, -1.0].as_slice(), [1.0, 2.0].as_slice())
    );
    assert_eq!((mapped.digest(), mapped.supervised_tokens()), (digest, 2));
    let mut other = mapped.clone();
    other.values.held()[3] = 3.0;
    assert!(other != mapped && other.digest() != mapped.digest());
    other.values.held().push(1.0);
    assert!(other.check().unwrap_err().contains("5 values"));
}

#[test]
fn the_first_token_of_a_row_is_never_counted_as_supervised() {
    assert_eq!(sample().supervised_tokens(), 1);
    assert_eq!((sample().rows(), sample().tokens()), (2, 5));
    assert_eq!(sample().row(1).0, [4, u32::MAX]);
}

#[test]
fn damaged_files_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.safetensors");
    type Damage = fn(&mut TokenizedDataset);
    let cases: [(Damage, &str); 6] = [
        (|dataset| dataset.labels.held().truncate(4), "5 input_ids but 4 labels"),
        (|dataset| dataset.offsets = Words::Held(vec![0, 4, 3, 5]), "offsets do not rise at row 1"),
        (|dataset| dataset.offsets = Words::Held(vec![0, 0, 5]), "offsets do not rise at row 0"),
        (|dataset| dataset.offsets = Words::Held(vec![0, 3]), "end with the number of tokens, 5"),
        (|dataset| dataset.offsets.held().clear(), "begin with 0"),
        (|dataset| dataset.places.numbers.held().truncate(1), "2 rows but 1 places"),
    ];
    for (damage, expected) in cases {
        let mut dataset = sample();
        damage(&mut dataset);
        assert!(dataset.check().unwrap_err().contains(expected), "{expected}");
    }
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        TokenizedDataset::load(&path).unwrap_err().to_string()
    };
    let mut writer = DatasetWriter::new(folder.path()).unwrap();
    writer.push(1, &[1, 2], &[1, 2]).unwrap();
    writer.finish(&path, &[file("a", Unit::Line, 0)], BTreeMap::new()).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        let error = error(&whole[..length]);
        assert!(error.contains("rows.safetensors: ") && error.contains("tokenised data set"), "{length}: {error}");
    }
    assert!(error(b"no tensors here").contains("not a tokenised data set"));
}
