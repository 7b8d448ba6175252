//! Data files and a model folder in, token ids and labels out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;
use zerofold_configs::ProblemType;

use crate::cache;
use crate::classes::Classes;
use crate::columns::{Columns, Shape};
use crate::dataset::{FileRows, IGNORED, TokenizedDataset};
use crate::encode::{EncodedRow, Encoder};
use crate::error::{DataError, Fault};
use crate::report::{DataReport, RowKind, Segment};
use crate::rows::{Expected, no_row, parse_object};
use crate::source::{RawRow, RawRows, Sources};
use crate::template::ChatTemplate;
use crate::tidy::{Tidied, tidy};
use crate::tokenizer::Tokenizer;
use crate::writer::DatasetWriter;

/// Rows in a share of a thread: small, so that all end at nearly the same time.
pub(crate) const SHARE: usize = 32;

/// What to prepare, and how.
#[derive(Debug, Clone, Copy)]
pub struct Prepare<'a> {
    /// The Hugging Face folder with the tokenizer and the chat template.
    pub model_directory: &'a Path,
    /// The data files.
    pub sources: &'a Sources,
    /// How their columns are called.
    pub columns: &'a Columns,
    /// Longest row, in tokens; what is beyond is cut off at the end. None for rows that are cut into pieces later.
    pub max_length: Option<u32>,
    /// Learn from the assistant's tokens only, of rows that are conversations.
    pub assistant_only_loss: bool,
    /// The text of the chat template; without one, that of the model folder.
    pub chat_template: Option<&'a str>,
    /// The day that `strftime_now` tells the template ([`crate::today`]); without one, the moment at which a row is rendered.
    pub template_date: Option<&'a str>,
    /// The token that ends a turn; without one, the tokenizer's.
    pub eos_token: Option<&'a str>,
    /// Of a classifier, the classes that its rows are of; `columns` are then those of a classifier.
    pub classes: Option<&'a Classes>,
    /// Learn from completions only, of rows that have them; as TRL: yes for these, unless it says no.
    pub completion_only_loss: Option<bool>,
    /// The folder in which tokenised data sets are kept.
    pub cache: &'a Path,
}

/// A data set ready for training, and what to tell about it.
#[derive(Debug)]
pub struct Prepared {
    /// The rows.
    pub dataset: TokenizedDataset,
    /// The counts.
    pub report: DataReport,
    /// [`TokenizedDataset::digest`] of the rows.
    pub digest: String,
    /// The file in the cache that holds them.
    pub file: PathBuf,
    /// It was there, and whole.
    pub from_cache: bool,
    /// What was removed of the cache before it was made.
    pub tidied: Tidied,
}

impl Prepared {
    /// Puts the file at `path` too: by another name for it where the file system allows, else as a copy. What was there
    /// before is replaced.
    ///
    /// # Errors
    /// [`DataError::Io`] when the folder cannot be written.
    pub fn put(&self, path: &Path) -> Result<(), DataError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let put = || -> io::Result<()> {
            fs::create_dir_all(folder)?;
            let temporary = tempfile::TempDir::new_in(folder)?;
            let whole = temporary.path().join("rows");
            fs::hard_link(&self.file, &whole).or_else(|_| fs::copy(&self.file, &whole).map(drop))?;
            fs::rename(whole, path)?;
            fs::File::open(folder)?.sync_all()
        };
        put().map_err(DataError::io("write the tokenised data set", path))
    }
}

/// Reads, renders, encodes, masks and cuts all rows, on all cores; the result depends on neither their number nor their
/// speed. What was made before from the same data, model and options is taken from the cache.
///
/// # Errors
/// The first faulty row with its file and place; a data set in which nothing is supervised; a model folder without a
/// usable tokenizer or template; a cache that cannot be written.
pub fn prepare(options: &Prepare<'_>) -> Result<Prepared, DataError> {
    if let Some(most) = options.max_length.filter(|&most| most < 2) {
        return Err(DataError::Plan {
            message: format!("max_length is {most}"),
            hint: "a row needs at least 2 tokens: one to read, one to predict".into(),
        });
    }
    let before = cache::identities(options.sources)?;
    let file = cache::place(options)?;
    let mut damaged = false;
    match cache::take(&file, options.sources.written()) {
        Some(Some(prepared)) => return Ok(prepared),
        Some(None) => damaged = true,
        None => {}
    }
    let tidied = tidy(options.cache, SystemTime::now());
    let mut preparation = Preparation::new(options)?;
    let mut rows = RawRows::new(options.sources);
    loop {
        let chunk = rows.chunk();
        preparation.add(chunk.rows, &rows)?;
        match chunk.error {
            Some(error) => return Err(error),
            None if chunk.ended => break,
            None => {}
        }
    }
    // What is kept under the hash of a file must not be made from what the file became meanwhile.
    cache::check_unchanged(options.sources, &before)?;
    let mut prepared = preparation.finish(&file)?;
    prepared.tidied = tidied;
    if damaged {
        prepared.report.warnings.push(format!("{} was damaged and is made anew", file.display()));
    }
    Ok(prepared)
}

/// All that is known while rows come.
struct Preparation<'a> {
    options: &'a Prepare<'a>,
    writer: DatasetWriter,
    /// There from the first row on.
    encoder: Option<(Encoder<'a>, Expected)>,
    files: Vec<FileRows>,
    unused: BTreeSet<String>,
    dropped: usize,
    truncated: usize,
    longest: usize,
    stops: bool,
    /// Rows with an answer that does not end, and where the first stands.
    unended: (usize, String),
    /// Rows whose prompt's tokens do not begin them, and where the first stands.
    split_tokens: (usize, String),
    /// Rows of each class.
    of_class: Vec<u64>,
    /// Ids and labels of the first row kept, and what a classifier tells of it.
    first: Option<(Vec<u32>, Vec<i32>, Option<String>)>,
}

/// What became of a share of rows.
#[derive(Default)]
struct Share {
    /// File and number of each, and the row.
    rows: Vec<(usize, u64, EncodedRow)>,
    unused: BTreeSet<String>,
    /// Where it ended before its last row.
    fault: Option<(usize, u64, Fault)>,
}

impl<'a> Preparation<'a> {
    fn new(options: &'a Prepare<'a>) -> Result<Preparation<'a>, DataError> {
        Ok(Preparation {
            options,
            writer: DatasetWriter::new(options.cache)?,
            encoder: None,
            files: Vec::new(),
            unused: BTreeSet::new(),
            dropped: 0,
            truncated: 0,
            longest: 0,
            stops: false,
            unended: (0, String::new()),
            split_tokens: (0, String::new()),
            of_class: vec![0; options.classes.map_or(0, Classes::count)],
            first: None,
        })
    }

    fn path(&self, file: usize) -> String {
        self.options.sources.files()[file].shown()
    }

    /// Encodes a chunk of rows, side by side, and writes them in order.
    fn add(&mut self, chunk: Vec<RawRow>, rows: &RawRows<'_>) -> Result<(), DataError> {
        let Some(first) = chunk.first() else {
            return Ok(());
        };
        let columns = self.options.columns;
        if self.encoder.is_none() {
            let (file, number) = (first.file, first.number);
            let parsed = read(columns, first).map_err(|fault| rows.fault(file, number, fault))?;
            let place = rows.units()[file].words(&self.path(file), number);
            self.encoder = Some((Encoder::new(self.options, &parsed.1)?, Expected { shape: parsed.0, place }));
        }
        let Some((encoder, expected)) = &self.encoder else {
            unreachable!("made above");
        };
        let mut chunk: Vec<Option<RawRow>> = chunk.into_iter().map(Some).collect();
        let shares: Vec<Share> =
            chunk.par_chunks_mut(SHARE).map(|rows| encode_share(rows, columns, encoder, expected)).collect();
        for share in shares {
            for (file, number, row) in share.rows {
                self.keep(file, number, row, rows)?;
            }
            self.unused.extend(share.unused);
            if let Some((file, number, fault)) = share.fault {
                return Err(rows.fault(file, number, fault));
            }
        }
        Ok(())
    }

    fn keep(&mut self, file: usize, number: u64, row: EncodedRow, rows: &RawRows<'_>) -> Result<(), DataError> {
        while self.files.len() <= file {
            let next = self.files.len();
            let path = self.options.sources.files()[next].path().to_path_buf();
            self.files.push(FileRows { path, unit: rows.units()[next], first_row: self.writer.rows() });
        }
        let place = self.files[file].unit.words(&self.path(file), number);
        if row.split_token {
            count_first(&mut self.split_tokens, &place);
        }
        if !row.is_supervised() {
            self.dropped += 1;
            return Ok(());
        }
        if !row.ended {
            count_first(&mut self.unended, &place);
        }
        let cache = self.options.cache;
        let classified = row.classified.as_ref().map_or(Ok(()), |row| self.writer.classify(row.second, &row.values));
        let written = classified.and_then(|()| self.writer.push(number, &row.ids, &row.labels));
        written.map_err(DataError::io("write tokenised data into the folder", cache))?;
        self.truncated += usize::from(row.truncated);
        self.longest = self.longest.max(row.ids.len());
        self.stops |= row.stops;
        if let (Some(classes), Some(classified)) = (self.options.classes, &row.classified) {
            classes.tally(&row.labels, &classified.values, &mut self.of_class);
        }
        if self.first.is_none() {
            let told = self.encoder.as_ref().and_then(|(encoder, _)| encoder.told(&row));
            self.first = Some((row.ids, row.labels, told));
        }
        Ok(())
    }

    fn finish(self, file: &Path) -> Result<Prepared, DataError> {
        let Some((encoder, _)) = &self.encoder else {
            return Err(no_row(self.options.sources));
        };
        let Some((ids, labels, told)) = &self.first else {
            let rows = if self.dropped == 1 { "its only row".to_owned() } else { format!("its {} rows", self.dropped) };
            let (cut, hint) = match self.options.max_length {
                Some(most) => {
                    let hint = "raise max_length if the answers are cut off; else give labels other than -100";
                    (format!(" (with max_length {most})"), hint)
                }
                None => (String::new(), "give labels other than -100"),
            };
            let message = format!("nothing in {rows} is supervised{cut}");
            return Err(DataError::dataset(self.options.sources.written().as_ref(), message, hint));
        };
        let example = example(ids, labels, told.as_deref(), encoder.tokenizer.as_ref())?;
        let report = DataReport {
            source: self.options.sources.written().to_owned(),
            files: self.options.sources.files().len(),
            kind: encoder.kind(),
            loss: encoder.loss(),
            rows: self.writer.rows() as usize,
            dropped: self.dropped,
            truncated: self.truncated,
            tokens: self.writer.tokens() as usize,
            supervised_tokens: self.writer.supervised() as usize,
            longest: self.longest,
            classes: self.options.classes.map_or(Vec::new(), |classes| classes.with_rows(&self.of_class)),
            example,
            warnings: self.warnings(encoder),
            lessons: self.lessons(encoder),
        };
        let text = serde_json::to_string(&report).unwrap_or_default();
        let metadata = BTreeMap::from([("report".to_owned(), text)]);
        let (dataset, digest) = self.writer.finish(file, &self.files, metadata)?;
        Ok(Prepared { dataset, report, digest, file: file.to_path_buf(), from_cache: false, tidied: Tidied::default() })
    }

    fn warnings(&self, encoder: &Encoder<'_>) -> Vec<String> {
        let mut warnings = Vec::new();
        let kind = encoder.kind();
        if self.options.columns.names_text() && !matches!(kind, RowKind::Texts | RowKind::Classified) {
            warnings.push(format!("dataset_text_field has no effect: the rows are {}", kind.words()));
        }
        if !self.unused.is_empty() {
            let names: Vec<&str> = self.unused.iter().map(String::as_str).collect();
            warnings.push(format!("columns that are not used: {}", names.join(", ")));
        }
        let (count, place) = &self.split_tokens;
        if *count > 0 {
            let rows = if *count == 1 { "1 row".to_owned() } else { format!("{count} rows") };
            warnings.push(format!(
                "in {rows} the tokens of the prompt are not those that the whole begins with (first: {place}): the loss is on \
                 everything from where they differ; end prompts where a word ends"
            ));
        }
        warnings
    }

    fn lessons(&self, encoder: &Encoder<'_>) -> Vec<String> {
        let mut lessons = Vec::new();
        let ids = encoder.tokenizer.as_ref().map_or(&[][..], Tokenizer::eos_ids);
        if !ids.is_empty() && !self.stops {
            lessons
                .push(format!("no supervised token ends a generation (ids {ids:?}): the model does not learn to stop"));
        }
        if encoder.template.as_ref().is_some_and(ChatTemplate::passes_over_the_generation_prompt) {
            lessons.push(
                "the chat template passes over add_generation_prompt: what stands before an answer is learned with it, and what \
                 is generated begins without it"
                    .to_owned(),
            );
        }
        let classes = self.options.classes.map_or(Vec::new(), |classes| classes.with_rows(&self.of_class));
        let without: Vec<&str> = classes.iter().filter(|(_, rows)| *rows == 0).map(|(name, _)| name.as_str()).collect();
        if !without.is_empty() {
            let (some, more) =
                (without.iter().take(8).copied().collect::<Vec<_>>().join(", "), without.len().saturating_sub(8));
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            lessons.push(format!("no row is of {some}{more}: the model does not learn to tell it"));
        }
        let of_one = self.options.classes.is_some_and(|classes| classes.problem == ProblemType::SingleLabel);
        if let ([(only, _)], true) = (classes.as_slice(), of_one) {
            lessons.push(format!("there is one class alone, {only}: nothing can be told apart"));
        }
        let (count, place) = &self.unended;
        if *count > 0 {
            lessons.push(format!(
                "{place}: an answer ends without an end-of-turn token that is learned (as in {count} of {} rows): the model \
                 does not learn to stop there",
                self.writer.rows()
            ));
        }
        lessons
    }
}

/// Counts one more, and keeps the first one's place.
fn count_first((count, first): &mut (usize, String), place: &str) {
    if *count == 0 {
        *first = place.to_owned();
    }
    *count += 1;
}

/// The shape of a row, and the row.
pub(crate) fn read(columns: &Columns, row: &RawRow) -> Result<(Shape, crate::rows::Row), Fault> {
    let mut object = parse_object(row.content.clone())?;
    let shape = columns.shape(&object)?;
    Ok((shape, columns.parse(shape, &mut object)?))
}

fn encode_share(rows: &mut [Option<RawRow>], columns: &Columns, encoder: &Encoder<'_>, expected: &Expected) -> Share {
    let mut share = Share::default();
    for RawRow { file, number, content } in rows.iter_mut().filter_map(Option::take) {
        let encoded = parse_object(content).and_then(|mut object| {
            let shape = columns.shape(&object)?;
            expected.check(shape)?;
            let encoded = encoder.encode(columns.parse(shape, &mut object)?)?;
            columns.note_unused(shape, &object, &mut share.unused);
            Ok(encoded)
        });
        match encoded {
            Ok(row) => share.rows.push((file, number, row)),
            Err(fault) => {
                share.fault = Some((file, number, fault));
                break;
            }
        }
    }
    share
}

/// The first row in pieces that are supervised or not, as text (as numbers where there is no tokenizer). The first token
/// counts as not supervised: nothing predicts it. What a classifier tells comes behind the text, none of which is supervised.
pub(crate) fn example(
    ids: &[u32],
    labels: &[i32],
    told: Option<&str>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Segment>, DataError> {
    let learned = |index: usize| told.is_none() && index > 0 && labels[index] != IGNORED;
    let mut segments = Vec::new();
    let mut start = 0;
    for end in 1..=ids.len() {
        if end < ids.len() && learned(end) == learned(start) {
            continue;
        }
        let text = match tokenizer {
            Some(tokenizer) => tokenizer.decode(&ids[start..end], false)?,
            None => ids[start..end].iter().map(|id| format!("{id} ")).collect(),
        };
        segments.push(Segment { text, supervised: learned(start) });
        start = end;
    }
    segments.extend(told.map(|told| Segment { text: told.to_owned(), supervised: true }));
    Ok(segments)
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
