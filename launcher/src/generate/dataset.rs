//! A data set answered by the ranks of a job, over which the model may be sharded: how many answers are exactly right.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use zerofold_configs::{ComputeDtype, GenerateRequest, HubName, Resolved};
use zerofold_data::{Message, RowReader, Sources, TemplateSource};
use zerofold_plan::Head;

use super::GenerateOptions;
use crate::error::LaunchError;
use crate::run_folder::RunFolder;
use crate::short_job::{self, ShortJobs, keep_if_failed, set};
use crate::terminal::Terminal;
use crate::{chat_template, format, initial_model, job};

/// How often the answers are counted.
const LOOK: Duration = Duration::from_millis(500);

/// Answers, writes the answers and tells how many are right; returns the exit code. To be called on the main thread, which workers
/// die with.
///
/// # Errors
/// A model or data that cannot be used, an output that cannot be written.
pub(super) fn answer(options: &GenerateOptions) -> Result<u8, LaunchError> {
    let terminal = Arc::new(Terminal::new(options.quiet));
    let folder = tempfile::tempdir().map_err(LaunchError::system("make a temporary folder"))?;
    let run = RunFolder::new(folder.path().join("run"));
    let config = configuration(options, &run, &terminal)?;
    let jobs = ShortJobs::begin(terminal.clone(), options.timeout)?;
    let output = options.request.output.as_deref().map(Output::create).transpose()?;
    run.create(config.num_processes, true)?;
    initial_model::anywhere(&config).write(&run.config())?;
    let mapping = config.training.column_mapping.as_ref().map(|mapping| mapping.pairs().clone()).unwrap_or_default();
    let request = GenerateRequest { column_mapping: mapping, ..options.request.clone() };
    let answered = by_ranks(&request, &config, (&jobs, &run))?;
    if let ControlFlow::Break(code) = answered {
        if let (Some(output), Ok(lines)) = (output, answers(&run, &config))
            && !lines.is_empty()
        {
            let answers = format::plural(lines.len() as u64, "answer");
            let path = output.keep(&lines)?;
            terminal.complain(&format!("note: the {answers} so far are in {}", path.display()));
        }
        return Ok(keep_if_failed(folder, code));
    }
    let lines = answers(&run, &config)?;
    if let Some(output) = output
        && let Err(error) = output.write(&lines)
    {
        let kept = folder.keep();
        terminal.complain(&format!("note: the answers stay in {}, a file for each rank", kept.join("run").display()));
        return Err(error);
    }
    terminal.result(&summary(&lines));
    Ok(0)
}

/// Lets the ranks of a configuration, whose folder is there, answer the request's data set ([`answers`] has what they answered). Breaks
/// as [`ShortJobs::run`] does.
///
/// # Errors
/// Files that cannot be written.
pub(crate) fn by_ranks(
    request: &GenerateRequest,
    config: &Resolved,
    (jobs, run): (&ShortJobs, &RunFolder),
) -> Result<ControlFlow<u8>, LaunchError> {
    let request = GenerateRequest {
        model: initial_model::anywhere(config).training.model_name_or_path,
        chat_template: config.chat_template.clone(),
        eos_token: config.training.eos_token.clone(),
        ..request.clone()
    };
    let json = serde_json::to_string(&request).map_err(|error| {
        let message = format!("the request cannot be written as JSON: {error}");
        LaunchError::usage(message, "the paths of model and data must be valid UTF-8")
    })?;
    let path = run.root().join(GenerateRequest::FILE);
    std::fs::write(&path, json).map_err(LaunchError::system(format!("write {}", path.display())))?;
    let progress = Progress::begin(jobs.terminal(), parts(run, config));
    let ended = jobs.run("answer", config, run)?;
    drop(progress);
    Ok(ended.map_continue(|_| ()))
}

/// The files of the ranks' answers.
fn parts(run: &RunFolder, config: &Resolved) -> Vec<PathBuf> {
    (0..config.num_processes).map(|rank| GenerateRequest::answers(run.root(), rank as usize)).collect()
}

/// What the ranks answered so far: a line of JSON for each row, in their order.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn answers(run: &RunFolder, config: &Resolved) -> Result<Vec<String>, LaunchError> {
    let mut lines = BTreeMap::new();
    for path in parts(run, config).into_iter().filter(|path| path.exists()) {
        let text = std::fs::read_to_string(&path).map_err(LaunchError::system(format!("read {}", path.display())))?;
        let numbered = text.lines().filter_map(|line| line.split_once('\t'));
        lines.extend(numbered.filter_map(|(number, line)| Some((number.parse::<u64>().ok()?, line.to_owned()))));
    }
    Ok(lines.into_values().collect())
}

/// The configuration of the ranks, which needs less than a training; the model is here then.
fn configuration(options: &GenerateOptions, run: &RunFolder, terminal: &Terminal) -> Result<Resolved, LaunchError> {
    let request = &options.request;
    let dataset = request.dataset.as_deref().unwrap_or(Path::new("")).display().to_string();
    if HubName::meant(&dataset).is_some() {
        let message = format!("--dataset {dataset}: there is no such file, and generate takes no data of the hub");
        let hint = "download it (`hf download --repo-type dataset OWNER/NAME`) and name its file";
        return Err(LaunchError::usage(message, hint));
    }
    if dataset.trim_start().starts_with('[') {
        let message = format!("--dataset {dataset}: generate takes one name, which may be a folder or a pattern");
        return Err(LaunchError::usage(message, "answer one after the other"));
    }
    let is_same = |output: &Path| {
        let whole = |path: &Path| path.canonicalize().ok();
        whole(output).is_some_and(|output| Some(output) == whole(Path::new(&dataset)))
    };
    if request.output.as_deref().is_some_and(is_same) {
        let message = format!("--output {dataset} is the data set itself");
        return Err(LaunchError::usage(message, "name another file"));
    }
    let mut inputs = options.inputs.clone();
    set(&mut inputs, "output_dir", &run.root().display().to_string());
    set(&mut inputs, "model_name_or_path", &request.model.display().to_string());
    set(&mut inputs, "dataset", &dataset);
    if let Some(revision) = &options.model_revision {
        set(&mut inputs, "model_revision", revision);
    }
    let of_types = ["bf16", "fp16", "mixed_precision"];
    let typed = inputs.flags.iter().find(|(name, _)| of_types.contains(&name.as_str()));
    if let (Some(dtype), Some((name, value))) = (options.dtype, typed) {
        let message = format!("--dtype {dtype} and --{name} {value} both say the type to compute in");
        return Err(LaunchError::usage(message, "give one of the two"));
    }
    match options.dtype {
        Some(ComputeDtype::Bfloat16) => set(&mut inputs, "bf16", "true"),
        Some(ComputeDtype::Float32) => ["bf16", "fp16"].iter().for_each(|key| set(&mut inputs, key, "false")),
        None => {}
    }
    let mut config = initial_model::settle(short_job::configuration(&inputs, "a data set is answered")?.resolved)?;
    config.notes.iter().for_each(|note| terminal.tell(&format!("note: {note}")));
    // What cannot be read is told before the model is loaded.
    let first = RowReader::new(&Sources::find(&[&dataset])?, &job::columns(&config, None)?).next();
    if let Some((place, row)) = first.transpose()? {
        let answerable = row.into_conversation().is_some_and(|it| it.messages.iter().any(Message::is_assistant));
        if !answerable {
            let hint = "give rows of `messages`, each with the right answer as its last assistant turn";
            return Err(LaunchError::usage(format!("{place}: the row is no conversation with an answer"), hint));
        }
    }
    let model = short_job::bring_model(&mut config, terminal)?;
    if model.head != Head::Language {
        let message = format!("{} is a {}, which answers nothing", request.model.display(), model.architecture);
        let hint = "`launch evaluate` tells how well a classifier does";
        return Err(LaunchError::usage(message, hint));
    }
    chat_template::settle(&mut config, terminal)?;
    if config.chat_template.is_none() {
        TemplateSource::of_model(&config.training.model_name_or_path)?;
    }
    if let Some(step) = &config.initial_checkpoint {
        zerofold_checkpoint::verify(step)?;
    }
    Ok(config)
}

/// How many of these answers are right.
fn summary(lines: &[String]) -> String {
    let right = |line: &&String| serde_json::from_str::<serde_json::Value>(line).is_ok_and(|it| it["match"] == true);
    let (rows, right) = (lines.len(), lines.iter().filter(right).count());
    let share = if rows == 0 { 0.0 } else { 100.0 * right as f64 / rows as f64 };
    format!("exact match {right}/{rows} ({share:.1} %)")
}

/// The output file, under another name until it is whole. It is created first: nobody wants to hear after an hour that it cannot be.
struct Output {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

impl Output {
    fn create(path: &Path) -> Result<Self, LaunchError> {
        if path.is_dir() {
            let message = format!("--output {} is a folder", path.display());
            return Err(LaunchError::usage(message, "name a file in it, such as answers.jsonl"));
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(LaunchError::system(format!("create {}", folder.display())))?;
        }
        let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = File::create(&partial);
        let file = file.map_err(LaunchError::system(format!("create {}", partial.display())))?;
        Ok(Output { path: path.to_owned(), partial, file })
    }

    fn write(mut self, lines: &[String]) -> Result<(), LaunchError> {
        let written = self.put(lines).and_then(|()| std::fs::rename(&self.partial, &self.path));
        written.map_err(LaunchError::system(format!("write {}", self.path.display())))
    }

    /// Leaves what is not all beside it; returns where.
    fn keep(mut self, lines: &[String]) -> Result<PathBuf, LaunchError> {
        self.put(lines).map_err(LaunchError::system(format!("write {}", self.partial.display())))?;
        Ok(std::mem::take(&mut self.partial))
    }

    fn put(&mut self, lines: &[String]) -> std::io::Result<()> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Renamed, or of no use.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// Counts the answers on the terminal for as long as it lives.
struct Progress(Option<(mpsc::Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// Of answers in these files, a line each, which need not be there yet.
    fn begin(terminal: &Arc<Terminal>, parts: Vec<PathBuf>) -> Self {
        if !terminal.is_live() {
            return Progress(None);
        }
        let (end, ended) = mpsc::channel();
        let terminal = terminal.clone();
        let thread = std::thread::spawn(move || {
            terminal.start_count("answered");
            let (mut read, mut answered) = (vec![0; parts.len()], 0);
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                answered += parts.iter().zip(&mut read).map(|(part, read)| lines_after(part, read)).sum::<u64>();
                terminal.progress(answered, String::new());
            }
            terminal.end_progress();
        });
        Progress(Some((end, thread)))
    }
}

/// How many lines a file has beyond what was read of it.
fn lines_after(path: &Path, read: &mut u64) -> u64 {
    let mut new = Vec::new();
    let found = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(*read))?;
        file.read_to_end(&mut new)
    });
    *read += found.unwrap_or(0) as u64;
    new.iter().filter(|&&byte| byte == b'\n').count() as u64
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_one_line() {
        let line = |right: bool| format!("{{\"answer\":\"\\\"match\\\":true\",\"match\":{right}}}");
        let lines: Vec<String> = (0..100).map(|at| line(at < 73)).collect();
        assert_eq!(summary(&lines), "exact match 73/100 (73.0 %)");
        assert_eq!(summary(&[]), "exact match 0/0 (0.0 %)");
    }

    #[test]
    fn an_output_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers/first.jsonl");
        drop(Output::create(&path).unwrap());
        let names = || std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(names(), 0);
        let kept = Output::create(&path).unwrap().keep(&["{}".to_owned()]).unwrap();
        assert_eq!((std::fs::read_to_string(&kept).unwrap().as_str(), names()), ("{}\n", 1));
        Output::create(&path).unwrap().write(&["{}".to_owned()]).unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), names()), ("{}\n", 1));
    }
}
