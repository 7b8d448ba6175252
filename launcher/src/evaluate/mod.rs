//! The command `evaluate`: the held-out loss, perplexity and token accuracy of models on a data set. Nothing is trained.
//!
//! ```text
//! EvaluateOptions ─ each model: Candidate (checked, brought, tokenised) ─ ShortJobs (workers that load, answer, evaluate, leave)
//!                                                                       → Report ─┬ table
//!                                                                                 └ JSON
//! ```

mod answers;
mod candidate;
mod report;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use zerofold_configs::Inputs;
use zerofold_data::Loss;

use crate::error::{EXIT_FAILED, LaunchError};
use crate::short_job::{ShortJobs, keep_if_failed};
use crate::terminal::Terminal;
use crate::{announce, format};
use answers::Prompts;
use candidate::Candidate;
use report::Report;

/// What the command line asks of `evaluate`.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// The configuration, as written.
    pub inputs: Inputs,
    /// The models, the first of which the others are held against; none for the configuration's.
    pub models: Vec<String>,
    /// The held-out data, in place of the configuration's `eval_dataset`.
    pub dataset: Option<String>,
    /// Prompts that each model answers too.
    pub prompts: Option<PathBuf>,
    /// At most so many tokens of an answer.
    pub max_new_tokens: u32,
    /// Print JSON in place of the table.
    pub json: bool,
    /// Only errors and the result.
    pub quiet: bool,
    /// How long a rank may take to join, and be silent.
    pub timeout: Duration,
}

/// Evaluates and prints; returns the exit code. Must be called on the main thread, which workers die with.
///
/// # Errors
/// No model, no data, nothing of them that is supervised; a model that is not there; models of which one tells
/// other things than another.
pub fn evaluate(options: &EvaluateOptions) -> Result<u8, LaunchError> {
    let terminal = Arc::new(Terminal::new(options.quiet));
    let folder = tempfile::tempdir().map_err(LaunchError::system("make a temporary folder"))?;
    let prompts = options.prompts.as_deref().map(Prompts::read).transpose()?;
    let candidates = candidates(options, &folder, &terminal)?;
    let jobs = ShortJobs::begin(terminal.clone(), options.timeout)?;
    let (mut records, mut answers) = (Vec::new(), Vec::new());
    for candidate in &candidates {
        if let Some(prompts) = &prompts {
            match prompts.of_model(options, &jobs, candidate)? {
                ControlFlow::Continue(of_model) => answers.push(of_model),
                ControlFlow::Break(code) => return Ok(keep_if_failed(folder, code)),
            }
        }
        match jobs.run("evaluate", &candidate.config, &candidate.run)? {
            ControlFlow::Continue(Some(record)) => records.push(record),
            ControlFlow::Continue(None) => {
                let log = candidate.run.log(0);
                let words = "error: the ranks finished without a word of what they measured";
                terminal.complain(&format!("{words}\nlog: {}", log.display()));
                return Ok(keep_if_failed(folder, EXIT_FAILED));
            }
            ControlFlow::Break(code) => return Ok(keep_if_failed(folder, code)),
        }
    }
    let answers = prompts.map(|prompts| prompts.answered(&answers));
    let report = Report::new(&candidates, &records, answers);
    match options.json {
        true => terminal.result(&serde_json::to_string_pretty(&report).unwrap_or_default()),
        false => report.lines().iter().for_each(|line| terminal.result(line)),
    }
    Ok(0)
}

/// All models, ready to be evaluated: what is wrong with the last is told before the first is begun with.
fn candidates(options: &EvaluateOptions, folder: &TempDir, terminal: &Terminal) -> Result<Vec<Candidate>, LaunchError> {
    let names: Vec<Option<&str>> = match &options.models[..] {
        [] => vec![None],
        models => models.iter().map(|model| Some(model.as_str())).collect(),
    };
    let mut told = Vec::new();
    let mut tell_once = |text: &str| {
        if !told.iter().any(|other| other == text) {
            terminal.tell(text);
            told.push(text.to_owned());
        }
    };
    let mut candidates: Vec<Candidate> = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        let place = folder.path().join(index.to_string());
        let candidate = Candidate::prepare((options, name), place, candidates.first(), terminal)?;
        announce::warning(&candidate.config).iter().for_each(|text| tell_once(text));
        candidate.remarks.iter().for_each(|text| tell_once(text));
        candidates.push(candidate);
    }
    if let [first, others @ ..] = &candidates[..]
        && first.data.loss != Loss::Classes
        && let Some(other) = others.iter().find(|other| other.digest != first.digest)
    {
        terminal.complain(&format!(
            "note: {} and {} make other tokens of these rows (tokenizer or chat template), so their losses are not of the \
             same tokens",
            first.name, other.name
        ));
    }
    if let Some(first) = candidates.first() {
        terminal.tell(&format!(
            "{}{}, on {}",
            format::plural(first.data.rows as u64, "row"),
            match first.data.loss {
                Loss::Classes => String::new(),
                _ => format!(", {} to predict", format::plural(first.data.supervised_tokens as u64, "token")),
            },
            format::plural(u64::from(first.config.num_processes), "rank"),
        ));
    }
    Ok(candidates)
}
