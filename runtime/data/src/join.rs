//! Several prepared data sets as one, which knows whose rows are whose.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cache;
use crate::dataset::FileRows;
use crate::error::DataError;
use crate::prepare::Prepared;
use crate::report::DataReport;
use crate::tidy::Tidied;
use crate::writer::DatasetWriter;

/// Puts the rows of `parts` end to end, each part a source of the whole; what was joined before is taken from the cache. One
/// part stays as it is. The report has the sums, and all warnings; its kind, its loss and its example are those of the first
/// part.
///
/// # Errors
/// [`DataError::Plan`] for no parts; [`DataError::Io`] for a cache that cannot be written.
pub fn join(mut parts: Vec<Prepared>, cache: &Path) -> Result<Prepared, DataError> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let Some(report) = sum(&parts) else {
        let hint = "name at least one source of rows".to_owned();
        return Err(DataError::Plan { message: "data of no source".to_owned(), hint });
    };
    let path = cache.join(format!("{}.safetensors", cache::joined(parts.iter().map(|part| &*part.file)).to_hex()));
    // A damaged one is made anew of its parts, which are whole.
    if let Some(Some(prepared)) = cache::take(&path, &report.source) {
        return Ok(prepared);
    }
    let mut writer = DatasetWriter::new(cache)?;
    let mut files: Vec<FileRows> = Vec::new();
    for dataset in parts.iter().map(|part| &part.dataset) {
        let before = writer.rows();
        let of_part = dataset.places.files.iter().cloned();
        files.extend(of_part.map(|file| FileRows { first_row: before + file.first_row, ..file }));
        for row in 0..dataset.rows() {
            let (ids, labels) = dataset.row(row);
            let classified = match dataset.is_classified() {
                true => writer.classify(dataset.seconds[row], dataset.values(row)),
                false => Ok(()),
            };
            let written = classified.and_then(|()| writer.push(dataset.places.numbers[row], ids, labels));
            written.map_err(DataError::io("write tokenised data into the folder", cache))?;
        }
    }
    let rows: Vec<usize> = parts.iter().map(|part| part.dataset.rows()).collect();
    let text = |value: serde_json::Result<String>| value.unwrap_or_default();
    let metadata = BTreeMap::from([
        ("report".to_owned(), text(serde_json::to_string(&report))),
        ("sources".to_owned(), text(serde_json::to_string(&rows))),
    ]);
    let (dataset, digest) = writer.finish(&path, &files, metadata)?;
    Ok(Prepared { dataset, report, digest, file: path, from_cache: false, tidied: Tidied::default() })
}

fn sum(parts: &[Prepared]) -> Option<DataReport> {
    let reports = || parts.iter().map(|part| &part.report);
    let first = reports().next()?.clone();
    let total = |of: fn(&DataReport) -> usize| reports().map(of).sum();
    Some(DataReport {
        source: reports().map(|report| report.source.as_str()).collect::<Vec<_>>().join(", "),
        files: total(|report| report.files),
        rows: total(|report| report.rows),
        dropped: total(|report| report.dropped),
        truncated: total(|report| report.truncated),
        tokens: total(|report| report.tokens),
        supervised_tokens: total(|report| report.supervised_tokens),
        longest: reports().map(|report| report.longest).max().unwrap_or(0),
        classes: sum_of_classes(reports()),
        warnings: reports().flat_map(|report| report.warnings.clone()).collect(),
        lessons: reports().flat_map(|report| report.lessons.clone()).collect(),
        ..first
    })
}

/// The rows of each class in all parts, which have the same classes.
fn sum_of_classes<'a>(reports: impl Iterator<Item = &'a DataReport>) -> Vec<(String, u64)> {
    let mut sums: Vec<(String, u64)> = Vec::new();
    for (at, (name, rows)) in reports.flat_map(|report| report.classes.iter().enumerate()) {
        match sums.get_mut(at) {
            Some((_, sum)) => *sum += rows,
            None => sums.push((name.clone(), *rows)),
        }
    }
    sums
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
