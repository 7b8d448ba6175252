//! A data set answered by the ranks of a job, over which the model may be sharded: how many answers are exactly right.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use zerofold_configs::{ComputeDtype, GenerateRequest, HubName, Inputs, Outline, Resolved, outline};
use zerofold_data::{Columns, RowReader, Sources};
use zerofold_plan::{Head, ModelConfig};

use super::GenerateOptions;
use crate::error::LaunchError;
use crate::hub::{self, Extent};
use crate::run_folder::RunFolder;
use crate::short_job::{ShortJobs, over};
use crate::terminal::Terminal;
use crate::{chat_template, initial_model, model_folder};

/// How often the answers are counted.
const LOOK: Duration = Duration::from_millis(500);

/// Answers, writes the answers and tells how many are right; returns the exit code. To be called on the main thread, which workers
/// die with.
///
/// # Errors
/// A model or data that cannot be used, an output that cannot be written.
pub(super) fn answer(options: &GenerateOptions) -> Result<u8, LaunchError> {
    let terminal = Arc::new(Terminal::new(false));
    let folder = tempfile::tempdir().map_err(LaunchError::system("make a temporary folder"))?;
    let run = RunFolder::new(folder.path().join("run"));
    let config = configuration(options, &run, &terminal)?;
    let output = options.request.output.as_deref().map(Output::create).transpose()?;
    run.create(config.num_processes, true)?;
    initial_model::anywhere(&config).write(&run.config())?;
    let jobs = ShortJobs::begin(terminal.clone(), options.timeout)?;
    let progress = Progress::begin(&terminal, &run, config.num_processes);
    let answered = by_ranks(&options.request, &config, (&jobs, &run));
    drop(progress);
    let lines = match answered? {
        ControlFlow::Continue(lines) => lines,
        ControlFlow::Break(code) => return Ok(over(folder, code)),
    };
    if let Some(output) = output {
        output.write(&lines)?;
    }
    terminal.result(&summary(&lines));
    Ok(0)
}

/// What the ranks of a configuration, whose folder is there, answer to the request's data set: a line of JSON for each row, in their
/// order. Breaks as [`ShortJobs::run`] does.
///
/// # Errors
/// Files that cannot be written or read.
pub(crate) fn by_ranks(
    request: &GenerateRequest,
    config: &Resolved,
    (jobs, run): (&ShortJobs, &RunFolder),
) -> Result<ControlFlow<u8, Vec<String>>, LaunchError> {
    let training = &config.training;
    let request = GenerateRequest {
        model: initial_model::anywhere(config).training.model_name_or_path,
        chat_template: config.chat_template.clone(),
        eos_token: training.eos_token.clone(),
        ..request.clone()
    };
    let path = run.root().join(GenerateRequest::FILE);
    let json = serde_json::to_string(&request).unwrap_or_default();
    std::fs::write(&path, json).map_err(LaunchError::system(format!("write {}", path.display())))?;
    if let ControlFlow::Break(code) = jobs.run("answer", config, run)? {
        return Ok(ControlFlow::Break(code));
    }
    let mut lines = BTreeMap::new();
    for rank in 0..config.num_processes {
        let path = GenerateRequest::answers(run.root(), rank as usize);
        let text = std::fs::read_to_string(&path).map_err(LaunchError::system(format!("read {}", path.display())))?;
        let numbered = text.lines().filter_map(|line| line.split_once('\t'));
        lines.extend(numbered.filter_map(|(number, line)| Some((number.parse::<u64>().ok()?, line.to_owned()))));
    }
    Ok(ControlFlow::Continue(lines.into_values().collect()))
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
    // What cannot be read is told before the model is loaded.
    let (sources, columns) = (Sources::find(&[&dataset])?, Columns::default());
    let _first = RowReader::new(&sources, &columns).next().transpose()?;
    let mut inputs = options.inputs.clone();
    set(&mut inputs, "output_dir", &run.root().display().to_string());
    set(&mut inputs, "model_name_or_path", &request.model.display().to_string());
    set(&mut inputs, "dataset", &dataset);
    if let Some(revision) = &options.model_revision {
        set(&mut inputs, "model_revision", revision);
    }
    match options.dtype {
        Some(ComputeDtype::Bfloat16) => set(&mut inputs, "bf16", "true"),
        Some(ComputeDtype::Float32) => ["bf16", "fp16"].iter().for_each(|key| set(&mut inputs, key, "false")),
        None => {}
    }
    let Outline { resolved: mut config, topology, .. } = outline(&inputs)?;
    if !topology.is_alone() {
        return Err(LaunchError::usage(
            "a data set is answered on one host, and this job has several",
            "leave --nnodes and num_machines out; --nproc says how many processes there are",
        ));
    }
    config = initial_model::settle(config)?;
    hub::bring(&mut config, None, Extent::Whole, terminal)?;
    let folder = &config.training.model_name_or_path;
    model_folder::check(folder)?;
    let model = ModelConfig::read(folder)?;
    model_folder::check_layer_classes(&config, &model)?;
    if model.head != Head::Language {
        let message = format!("{} is a {}, which answers nothing", request.model.display(), model.architecture);
        let hint = "`launch evaluate` tells how well a classifier does";
        return Err(LaunchError::usage(message, hint));
    }
    chat_template::settle(&mut config, terminal)?;
    if let Some(step) = &config.initial_checkpoint {
        zerofold_checkpoint::verify(step)?;
    }
    Ok(config)
}

fn set(inputs: &mut Inputs, name: &str, value: &str) {
    inputs.flags.retain(|(other, _)| other != name);
    inputs.flags.push((name.to_owned(), value.to_owned()));
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
    file: std::fs::File,
}

impl Output {
    fn create(path: &Path) -> Result<Self, LaunchError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(LaunchError::system(format!("create {}", folder.display())))?;
        }
        let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = std::fs::File::create(&partial);
        let file = file.map_err(LaunchError::system(format!("create {}", partial.display())))?;
        Ok(Output { path: path.to_owned(), partial, file })
    }

    fn write(mut self, lines: &[String]) -> Result<(), LaunchError> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        let written = written.and_then(|()| std::fs::rename(&self.partial, &self.path));
        written.map_err(LaunchError::system(format!("write {}", self.path.display())))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Renamed, or of no use.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// Counts the answers on the terminal for as long as it lives.
struct Progress(Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>);

impl Progress {
    fn begin(terminal: &Terminal, run: &RunFolder, ranks: u32) -> Self {
        if !terminal.is_live() {
            return Progress(None);
        }
        let (end, ended) = mpsc::channel();
        let root = run.root().to_owned();
        let count = move || {
            let of_rank = |rank| std::fs::read(GenerateRequest::answers(&root, rank as usize)).unwrap_or_default();
            (0..ranks).map(|rank| of_rank(rank).iter().filter(|&&byte| byte == b'\n').count()).sum::<usize>()
        };
        let thread = std::thread::spawn(move || {
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                eprint!("\r{} answered", count());
            }
            eprint!("\r\x1b[K");
        });
        Progress(Some((end, thread)))
    }
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
        Output::create(&path).unwrap().write(&["{}".to_owned()]).unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), names()), ("{}\n", 1));
    }
}
