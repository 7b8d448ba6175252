//! Which files a data set is: paths, patterns and folders in, files out, in a settled order.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::DataError;

/// What stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Lines,
    /// One JSON array of objects, by itself or as a field of an object.
    Json,
    /// Parquet.
    Parquet,
}

impl Format {
    /// What stands in a file of this name; none where it is not one that a folder of data would be read for.
    pub fn of_name(name: &str) -> Option<Format> {
        Some(DataFile::of(Path::new(name), true).ok()??.format)
    }
}

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all.
    Plain,
    /// gzip, several members too.
    Gzip,
    /// Zstandard, several frames too.
    Zstandard,
}

/// One file of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    path: PathBuf,
    format: Format,
    compression: Compression,
}

impl DataFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What stands in it, by its name.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How it is packed, by its name.
    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    pub(crate) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// By its name. A file of an unknown ending is taken for JSONL, unless `listed` (found in a folder): then it is none.
    pub(crate) fn of(path: &Path, listed: bool) -> Result<Option<DataFile>, DataError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let (name, compression) = match name.rsplit_once('.') {
            Some((rest, "gz")) => (rest, Compression::Gzip),
            Some((rest, "zst" | "zstd")) => (rest, Compression::Zstandard),
            _ => (name.as_str(), Compression::Plain),
        };
        let refuse = |message: &str, hint: &str| match listed {
            true => Ok(None),
            false => Err(DataError::dataset(path, message, hint)),
        };
        let format = match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("json") => Format::Json,
            Some("parquet" | "pq") if compression == Compression::Plain => Format::Parquet,
            Some("parquet" | "pq") => {
                return refuse(
                    "Parquet inside of another compression is not read",
                    "unpack it: Parquet packs its pages itself",
                );
            }
            Some(
                "arrow" | "csv" | "tsv" | "xz" | "bz2" | "zip" | "tar" | "tgz" | "lz4" | "pt" | "pkl" | "bin" | "idx",
            ) => {
                let hint = "write it as JSONL or Parquet (datasets: `dataset.to_json(path)`, `dataset.to_parquet(path)`); packed \
                            files may be .gz or .zst";
                return refuse("JSONL, JSON and Parquet are read, this is something else by its name", hint);
            }
            Some("jsonl" | "ndjson" | "jsonlines") => Format::Lines,
            _ if listed => return Ok(None),
            _ => Format::Lines,
        };
        Ok(Some(DataFile { path: path.to_path_buf(), format, compression }))
    }
}

/// The files of a data set, all of one format, in the order in which they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    files: Vec<DataFile>,
    written: String,
}

impl Sources {
    /// Finds the files that `names` mean: each is the path of a file, of a folder (its data files, by name; folders inside
    /// are passed over), or a pattern with `*`, `?` or `[…]` (the files it matches, by name). The order of the names is kept.
    ///
    /// # Errors
    /// [`DataError::Io`] for what is not there or cannot be read; [`DataError::Dataset`] where a pattern or a folder has no
    /// data file, where formats differ, where training and held-out files would be taken together.
    pub fn find<N: AsRef<str>>(names: &[N]) -> Result<Sources, DataError> {
        let mut files = Vec::new();
        for name in names {
            files.extend(of_name(name.as_ref())?);
        }
        let written = names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
        let Some(first) = files.first() else {
            return Err(DataError::dataset(
                Path::new(&written),
                "no data file is named",
                "name a file, a folder or a pattern",
            ));
        };
        if let Some(other) = files.iter().find(|file| file.format != first.format) {
            let (there, here) = (first.path.display(), words(first.format));
            let message = format!("is {}, but {there} is {here}", words(other.format));
            let hint = "a data set has files of one format; name them by a pattern, such as data/*.parquet";
            return Err(DataError::dataset(&other.path, message, hint));
        }
        Ok(Sources { files, written })
    }

    /// The same, called by other words in messages.
    pub fn called(self, written: impl Into<String>) -> Sources {
        Sources { written: written.into(), ..self }
    }

    /// The files.
    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// What was written, for messages.
    pub fn written(&self) -> &str {
        &self.written
    }
}

fn words(format: Format) -> &'static str {
    match format {
        Format::Lines => "JSONL",
        Format::Json => "JSON",
        Format::Parquet => "Parquet",
    }
}

fn of_name(name: &str) -> Result<Vec<DataFile>, DataError> {
    let path = Path::new(name);
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => of_folder(path),
        Ok(_) => Ok(DataFile::of(path, false)?.into_iter().collect()),
        Err(_) if name.contains(['*', '?', '[']) => of_pattern(name),
        Err(error) => Err(DataError::io("open the data set", path)(error)),
    }
}

fn of_folder(folder: &Path) -> Result<Vec<DataFile>, DataError> {
    let unreadable = DataError::io("list the folder", folder);
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(unreadable)?;
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(['.', '_']));
    let mut files = Vec::new();
    for path in paths.iter().filter(|path| path.is_file() && !hidden(path)) {
        files.extend(DataFile::of(path, true)?);
    }
    if files.is_empty() {
        let hint = "data files end in .jsonl, .json or .parquet (the first two also in .gz and .zst); folders inside are not \
                    looked into";
        return Err(DataError::dataset(folder, "there is no data file in this folder", hint));
    }
    check_splits(folder, &files)?;
    Ok(files)
}

/// Folders as the hub has them hold training and held-out rows side by side; trained on together, the latter would tell
/// nothing any more.
fn check_splits(folder: &Path, files: &[DataFile]) -> Result<(), DataError> {
    let split = |file: &&DataFile, names: &[&str]| {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        names.iter().any(|split| name.strip_prefix(split).is_some_and(|rest| rest.starts_with(['-', '.', '_'])))
    };
    let train = files.iter().find(|file| split(file, &["train"]));
    let held_out = files.iter().find(|file| split(file, &["test", "validation", "valid", "val", "dev", "eval"]));
    match (train, held_out) {
        (Some(train), Some(held_out)) => {
            let name = |file: &DataFile| file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let message = format!("holds both {} and {}", name(train), name(held_out));
            let hint = format!("name one of the two by a pattern, such as {}", folder.join("train*").display());
            Err(DataError::dataset(folder, message, hint))
        }
        _ => Ok(()),
    }
}

fn of_pattern(pattern: &str) -> Result<Vec<DataFile>, DataError> {
    let path = Path::new(pattern);
    let broken = |error: glob::PatternError| {
        DataError::dataset(path, format!("not a pattern: {error}"), "`*`, `?`, `[…]` and `**` stand for parts of names")
    };
    let mut files = Vec::new();
    // As in a shell, and as of folders: `*` does not find hidden files.
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::default() };
    for found in glob::glob_with(pattern, options).map_err(broken)? {
        let found = found.map_err(|error| {
            let path = error.path().to_path_buf();
            DataError::Io { action: "list the folder", path, source: error.into() }
        })?;
        if found.is_file() {
            files.extend(DataFile::of(&found, false)?);
        }
    }
    if files.is_empty() {
        return Err(DataError::dataset(path, "no file matches", "the pattern counts from the working directory"));
    }
    Ok(files)
}
