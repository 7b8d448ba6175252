//! Tokenised data sets that are kept, each under the hash of all that it was made from.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use blake3::{Hash, Hasher};

use crate::dataset::TokenizedDataset;
use crate::error::DataError;
use crate::prepare::{Prepare, Prepared};
use crate::report::DataReport;
use crate::source::{DataFile, Sources};
use crate::tidy::Tidied;

/// The hash of this crate's source and of the versions of all crates: another build may make other tokens of the same rows.
const BUILD: &str = env!("ZEROFOLD_DATA_BUILD");

/// The files of a model folder that have a say in tokens and masks.
const MODEL_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
];

/// Data files of this size and more are not read again to know their hash, while file system and times say that they are as
/// they were, in bytes.
const LARGE: u64 = 64 << 20;

/// A file that was changed so short a time ago may be changed again without a trace in its times.
const SETTLED: Duration = Duration::from_secs(10);

/// Where in the cache the rows of `options` are: a name made from the bytes of the data files, the model's tokenizer and
/// template, the options, and the version of all this. Names of files are in it too, since the rows tell where they stand.
///
/// # Errors
/// [`DataError::Io`] for a file that cannot be read.
pub(crate) fn place(options: &Prepare<'_>) -> Result<PathBuf, DataError> {
    let mut hasher = Hasher::new();
    let mut add = |name: &str, bytes: &[u8]| {
        for part in [name.as_bytes(), bytes] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    };
    add("build", BUILD.as_bytes());
    let settings = (options.max_length, options.assistant_only_loss, options.completion_only_loss, options.columns);
    add("options", format!("{settings:?}").as_bytes());
    add("template", format!("{:?} {:?}", options.chat_template, options.eos_token).as_bytes());
    if let Some(date) = options.template_date {
        add("template_date", date.as_bytes());
    }
    if let Some(classes) = options.classes {
        add("classes", format!("{classes:?}").as_bytes());
    }
    for name in MODEL_FILES {
        let path = options.model_directory.join(name);
        if path.exists() {
            add(name, &fs::read(&path).map_err(DataError::io("read the file", &path))?);
        }
    }
    for file in options.sources.files() {
        let digest = digest(file.path(), &options.cache.join("digests"))?;
        add(&format!("{:?} {}", file.format(), file.shown()), digest.as_bytes());
    }
    let name = hasher.finalize().to_hex();
    Ok(options.cache.join(format!("{name}.safetensors")))
}

/// The name of data sets of these files put end to end, each of which has a name by its bytes.
pub(crate) fn joined<'a>(files: impl Iterator<Item = &'a Path>) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(BUILD.as_bytes());
    for file in files {
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update(b"/");
    }
    hasher.finalize()
}

/// The rows in a file of the cache, made of data that were named so, with what was told when they were made. Every byte is read:
/// none where there is no such file, `Some(None)` where it is damaged.
pub(crate) fn take(path: &Path, source: &str) -> Option<Option<Prepared>> {
    if !path.exists() {
        return None;
    }
    let whole = || {
        let dataset = TokenizedDataset::load(path).ok()?;
        let mut report: DataReport = serde_json::from_str(dataset.metadata.get("report")?).ok()?;
        // The same files may have been named otherwise.
        report.source = source.to_owned();
        let digest = dataset.digest();
        let places = blake3::hash(bytemuck::cast_slice(&dataset.places.numbers)).to_hex();
        let same = dataset.metadata.get("digest") == Some(&digest)
            && dataset.metadata.get("places_digest").is_some_and(|digest| *digest == *places)
            && report.rows == dataset.rows();
        let (file, tidied) = (path.to_path_buf(), Tidied::default());
        same.then(|| Prepared { dataset, report, digest, file, from_cache: true, tidied })
    };
    // Before it is read, which takes long: who tidies meanwhile leaves it.
    touch(path);
    Some(whole())
}

/// Marks a file of the cache as used now. Where that is not permitted it is removed earlier than it might be, and made anew.
fn touch(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// The BLAKE3 hash of a file's bytes. Of a large file it is written down in `index`, under a name made from the file's place,
/// size, number and times, and read from there.
fn digest(path: &Path, index: &Path) -> Result<Hash, DataError> {
    let mut file = File::open(path).map_err(DataError::io("open the data set", path))?;
    let failed = || DataError::io("read the data set", path);
    let known = file.metadata().map_err(failed())?;
    let entry = (known.len() >= LARGE).then(|| index.join(identity(path, &known)));
    if let Some(entry) = &entry
        && let Ok(text) = fs::read_to_string(entry)
        && let Ok(digest) = Hash::from_hex(text.trim())
    {
        touch(entry);
        return Ok(digest);
    }
    let mut hasher = Hasher::new();
    hasher.update_reader(&mut file).map_err(failed())?;
    let digest = hasher.finalize();
    let settled = known.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    if let Some(entry) = entry.filter(|_| settled.is_some_and(|age| age > SETTLED)) {
        // Without the entry the file is read again next time, so a failure changes nothing.
        let _ = fs::create_dir_all(index).and_then(|()| {
            let temporary = tempfile::NamedTempFile::new_in(index)?;
            fs::write(temporary.path(), digest.to_hex().as_bytes())?;
            temporary.persist(entry)?;
            Ok(())
        });
    }
    Ok(digest)
}

/// What changes when one of the files does.
///
/// # Errors
/// [`DataError::Io`] for a file that is not there any more.
pub(crate) fn identities(sources: &Sources) -> Result<Vec<String>, DataError> {
    let identity = |file: &DataFile| {
        let known = fs::metadata(file.path()).map_err(DataError::io("open the data set", file.path()))?;
        if !known.is_file() {
            let hint = "data are read more than once: write them into a file first";
            return Err(DataError::dataset(file.path(), "is a pipe or a device, not a file", hint));
        }
        Ok(identity(file.path(), &known))
    };
    sources.files().iter().map(identity).collect()
}

/// That the files are what they were when their [`identities`] were taken.
///
/// # Errors
/// [`DataError::Dataset`] when one is not; [`DataError::Io`] for a file that is not there any more.
pub(crate) fn check_unchanged(sources: &Sources, before: &[String]) -> Result<(), DataError> {
    if identities(sources)? == before {
        return Ok(());
    }
    let hint = "start again when nothing writes to the data any more";
    Err(DataError::dataset(sources.written().as_ref(), "a file changed while it was read", hint))
}

/// What changes when a file's bytes change.
fn identity(path: &Path, known: &Metadata) -> String {
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let (size, device, number) = (known.size(), known.dev(), known.ino());
    let times = (known.mtime(), known.mtime_nsec(), known.ctime(), known.ctime_nsec());
    blake3::hash(format!("{place:?} {size} {device} {number} {times:?}").as_bytes()).to_hex().to_string()
}
