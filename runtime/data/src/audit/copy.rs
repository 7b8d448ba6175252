//! A copy of the training data without the rows of some findings.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Audited;
use super::kind::FindingKind;
use crate::cache;
use crate::error::DataError;
use crate::source::{Compression, DataFile, Format, RawContent, RawRows};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// The file.
    pub path: PathBuf,
    /// Its rows.
    pub rows: u64,
    /// The rows that were left out, each counted under the first kind of those asked for that it has.
    pub dropped: Vec<Dropped>,
}

/// Rows that were left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Because of this.
    pub kind: FindingKind,
    /// So many.
    pub rows: u64,
}

impl Audited<'_> {
    /// Writes the training rows of which none of `kinds` is found to a new file of JSONL, in their order: lines of JSONL byte for byte,
    /// elements of an array with their line breaks as blanks, rows of Parquet as JSON. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`DataError::Dataset`] for a file that is there already or has the name of another format, for files that are not as they
    /// were audited, and when no row would be left; [`DataError::Io`] when it cannot be written; the error of a file that cannot be read to its end,
    /// unless [`FindingKind::Unreadable`] is among the kinds: then the rest of that file is left out.
    pub fn write_copy(&self, kinds: &[FindingKind], path: &Path) -> Result<Copied, DataError> {
        check_copy(path)?;
        let failed = || DataError::io("write the copy", path);
        let folder = folder_of(path);
        // As any new file is made: only the user's mask takes rights away.
        let mut builder = tempfile::Builder::new();
        let temporary = builder.permissions(Permissions::from_mode(0o666)).tempfile_in(folder).map_err(failed())?;
        let mut copied = Copied {
            path: path.to_path_buf(),
            rows: 0,
            dropped: kinds.iter().map(|&kind| Dropped { kind, rows: 0 }).collect(),
        };
        let mut output = BufWriter::with_capacity(1 << 18, temporary.as_file());
        self.copy_rows(kinds, &mut copied, |content| write_row(content, &mut output).map_err(failed()))?;
        output.flush().map_err(failed())?;
        drop(output);
        cache::check_unchanged(self.training, &self.identities)?;
        if copied.rows == 0 {
            let hint = "drop fewer kinds";
            return Err(DataError::dataset(path, "not written: no row would be left", hint));
        }
        temporary.as_file().sync_all().map_err(failed())?;
        temporary.persist_noclobber(path).map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => there_already(path),
            _ => failed()(error.error),
        })?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed())?;
        Ok(copied)
    }

    fn copy_rows(
        &self,
        kinds: &[FindingKind],
        copied: &mut Copied,
        mut write: impl FnMut(&RawContent) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let mut raw = RawRows::new(self.training);
        let mut marks = self.marks.iter();
        loop {
            match raw.next() {
                None => return Ok(()),
                // That no row is missing is checked by the files' times.
                Some(Ok(row)) => {
                    let found = marks.next().copied().unwrap_or_default();
                    match copied.dropped.iter_mut().find(|dropped| found.has(dropped.kind)) {
                        Some(dropped) => dropped.rows += 1,
                        None => {
                            write(&row.content)?;
                            copied.rows += 1;
                        }
                    }
                }
                Some(Err(_)) if kinds.contains(&FindingKind::Unreadable) => {
                    let unreadable = copied.dropped.iter_mut().find(|dropped| dropped.kind == FindingKind::Unreadable);
                    unreadable.into_iter().for_each(|dropped| dropped.rows += 1);
                    raw.skip_file();
                }
                Some(Err(DataError::Row { place, message, hint })) => {
                    let hint = format!("{hint}; or drop unreadable rows too, and with them the rest of this file");
                    return Err(DataError::Row { place, message, hint });
                }
                Some(Err(error)) => return Err(error),
            }
        }
    }
}

/// Tells before hours of reading what [`Audited::write_copy`] would refuse: a file that is there, and a name by which the copy
/// would not be read back as it is written.
///
/// # Errors
/// [`DataError::Dataset`].
pub fn check_copy(path: &Path) -> Result<(), DataError> {
    if path.symlink_metadata().is_ok() {
        return Err(there_already(path));
    }
    if !folder_of(path).is_dir() {
        return Err(DataError::dataset(path, "its folder is not there", "make the folder first, or name another"));
    }
    match DataFile::of(path, false) {
        Ok(Some(file)) if file.format() == Format::Lines && file.compression() == Compression::Plain => Ok(()),
        _ => {
            let hint = "give it a name that ends in .jsonl";
            Err(DataError::dataset(
                path,
                "the copy is JSONL, and by this name it would be read as something else",
                hint,
            ))
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn there_already(path: &Path) -> DataError {
    DataError::dataset(path, "is there already", "name another file: nothing is overwritten")
}

fn write_row(content: &RawContent, output: &mut impl Write) -> std::io::Result<()> {
    match content {
        RawContent::Json(bytes) => {
            let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
            match line.contains(&b'\n') {
                // An element of an array. JSON has no line breaks inside of texts.
                true => {
                    let blank = |&byte: &u8| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte };
                    output.write_all(&line.trim_ascii().iter().map(blank).collect::<Vec<u8>>())?;
                }
                false => output.write_all(line)?,
            }
        }
        RawContent::Value(value) => serde_json::to_writer(&mut *output, value)?,
    }
    output.write_all(b"\n")
}
