//! The command `generate`: a worker takes over the terminal, the signals and the exit code; a data set is answered by the ranks of a
//! job ([`dataset`]).

mod dataset;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use zerofold_configs::{ComputeDtype, GenerateRequest, Inputs};

pub(crate) use dataset::{answers, by_ranks};

use crate::error::LaunchError;
use crate::hub::{Extent, ModelName};
use crate::initial_model::InitialModel;
use crate::terminal::Terminal;
use crate::{chat_template, model_folder, worker_command};

/// What the command line asks of `generate`.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// What the worker is asked; its model may still be one of the hub.
    pub request: GenerateRequest,
    /// The type to compute in, where it was typed.
    pub dtype: Option<ComputeDtype>,
    /// Of a model of the hub: the branch, tag or commit.
    pub model_revision: Option<String>,
    /// How a data set is answered: processes, sharding, rows side by side.
    pub inputs: Inputs,
    /// How long a rank may take to join, and be silent.
    pub timeout: Duration,
    /// Only errors and the result of a data set.
    pub quiet: bool,
}

/// The longest argument that Linux hands to a program, with its final zero byte.
const MAX_ARGUMENT_BYTES: usize = 128 << 10;

/// Answers a data set and returns the exit code, or becomes the worker that generates and returns only if that fails: there is nothing
/// to supervise with one process, so `launch` does not stay between it and the terminal.
///
/// # Errors
/// A model or data that cannot be used, a request that is too long.
pub fn generate(options: GenerateOptions) -> Result<u8, LaunchError> {
    if options.request.dataset.is_some() {
        return dataset::answer(&options);
    }
    let mut command = command(options, &Terminal::new(false))?;
    let program = command.get_program().to_string_lossy().into_owned();
    Err(LaunchError::system(format!("run {program}"))(command.exec()))
}

fn command(options: GenerateOptions, terminal: &Terminal) -> Result<Command, LaunchError> {
    let GenerateOptions { request, dtype, model_revision, .. } = options;
    let name = ModelName { name: &request.model, revision: model_revision.as_deref() };
    let model = InitialModel::of(&name.find(Extent::Whole, terminal)?.0)?;
    model_folder::check(&model.folder)?;
    if let Some(step) = &model.checkpoint {
        zerofold_checkpoint::verify(step)?;
    }
    let digest = chat_template::digest_of(model.chat_template.as_deref(), &model.folder);
    if let Some(warning) = chat_template::other_than_trained(&model.folder, digest.as_deref())? {
        terminal.complain(&warning);
    }
    model.note.iter().for_each(|note| terminal.complain(&format!("note: {note}")));
    let InitialModel { folder: model, checkpoint, chat_template, eos_token, .. } = model;
    let dtype = dtype.unwrap_or(request.dtype);
    let request = GenerateRequest { model, checkpoint, chat_template, eos_token, dtype, ..request };
    let worker = worker_command::find_worker()?;
    let json = serde_json::to_string(&request).map_err(|error| {
        let message = format!("the request cannot be written as JSON: {error}");
        LaunchError::usage(message, "paths and prompts must be valid UTF-8")
    })?;
    if json.len() >= MAX_ARGUMENT_BYTES {
        let message = format!("the prompt makes a request of {} bytes; at most {MAX_ARGUMENT_BYTES} fit", json.len());
        return Err(LaunchError::usage(message, "give long prompts on standard input or by --dataset"));
    }
    let mut command = Command::new(worker);
    command.arg("generate").arg(json);
    Ok(command)
}
