//! Parquet: rows of a table, as JSON values. Lists, structs, dictionaries, large strings and nulls of Hugging Face data sets
//! become arrays, objects, texts and nulls.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::{ROW_LIMIT, RawContent, ReadRows, Unit};
use crate::error::{DataError, Fault};

const HINT: &str =
    "the file is damaged, or holds what is not read here: make it again (datasets: `dataset.to_parquet(path)`)";

pub(super) struct Table {
    rows: RowIter<'static>,
    next: u64,
    /// The number of the first row behind each row group.
    groups: Vec<u64>,
}

impl Table {
    pub(super) fn open(path: &Path, file: File) -> Result<Table, DataError> {
        let broken = |message: String| DataError::dataset(path, format!("not a Parquet file: {message}"), HINT);
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(broken)?;
        let mut groups = Vec::new();
        let mut rows = 0u64;
        for group in reader.metadata().row_groups() {
            let count = u64::try_from(group.num_rows()).ok().and_then(|count| rows.checked_add(count));
            rows = count.ok_or_else(|| broken(format!("a row group of {} rows", group.num_rows())))?;
            groups.push(rows);
        }
        Ok(Table { rows: reader.into_iter(), next: 0, groups })
    }
}

impl ReadRows for Table {
    fn next_row(&mut self) -> Result<Option<(u64, RawContent)>, (u64, Fault)> {
        let number = self.next;
        let rows = &mut self.rows;
        let fault = |message| (number, Fault::new(message, HINT));
        match guarded(|| rows.next().transpose()).map_err(fault)? {
            Some(row) => {
                let size = row.get_column_iter().map(|(name, field)| name.len() + size(field)).sum::<usize>();
                if size > ROW_LIMIT {
                    let message = format!("the row is longer than {} MiB", ROW_LIMIT >> 20);
                    return Err((number, Fault::new(message, "no row that is trained on is so long: take it out")));
                }
                self.next += 1;
                Ok(Some((number, RawContent::Value(object(&row)))))
            }
            None if self.groups.last().is_some_and(|&rows| rows != number) => {
                let all = self.groups.last().copied().unwrap_or(0);
                Err(fault(format!("the file ends here, but tells of {all} rows")))
            }
            None => Ok(None),
        }
    }

    fn unit(&self) -> Unit {
        Unit::Row
    }

    fn group_of(&self, number: u64) -> Option<usize> {
        Some(self.groups.partition_point(|&end| end <= number)).filter(|&group| group < self.groups.len())
    }
}

/// What the reader says; it panics on some files that no writer makes, and these are errors here.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| {
            let text = error.to_string();
            match text.split_once("Disabled feature at compile time: ") {
                Some((_, packing)) => {
                    format!("pages packed with {packing} are not read; those with Snappy, gzip, Zstandard and LZ4 are")
                }
                None => text,
            }
        }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(text.unwrap_or_else(|| "it cannot be read".to_owned()))
        }
    }
}

/// Bytes of a value, about as many as it takes as JSON.
fn size(field: &Field) -> usize {
    match field {
        Field::Str(text) => text.len(),
        Field::Bytes(bytes) => bytes.data().len(),
        Field::Group(row) => row.get_column_iter().map(|(name, field)| name.len() + size(field)).sum(),
        Field::ListInternal(list) => list.elements().iter().map(size).sum(),
        Field::MapInternal(map) => map.entries().iter().map(|(key, entry)| size(key) + size(entry)).sum(),
        _ => 8,
    }
}

fn object(row: &Row) -> Value {
    Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect::<Map<_, _>>())
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(switch) => Value::Bool(*switch),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => Value::Array(bytes.data().iter().map(|&byte| byte.into()).collect()),
        },
        Field::Group(row) => object(row),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => {
            let name = |key: &Field| match value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(key, entry)| (name(key), value(entry))).collect())
        }
        // Dates, times and decimals are no part of what is trained on.
        other => Value::String(other.to_string()),
    }
}
