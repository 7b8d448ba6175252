//! The command `generate`: a worker takes over the terminal, the signals and the exit code.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use zerofold_configs::{GenerateRequest, HubName};

use crate::error::LaunchError;
use crate::hub::{Extent, ModelName};
use crate::initial_model::InitialModel;
use crate::terminal::Terminal;
use crate::{chat_template, model_folder, worker_command};

/// What the command line asks of `generate`.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// What the worker is asked; its model may still be one of the hub.
    pub request: GenerateRequest,
    /// Of a model of the hub: the branch, tag or commit.
    pub model_revision: Option<String>,
}

/// The longest argument that Linux hands to a program, with its final zero byte.
const MAX_ARGUMENT_BYTES: usize = 128 << 10;

/// Becomes the worker that generates; returns only if that fails. There is nothing to supervise with one process, so
/// `launch` does not stay between it and the terminal.
pub fn generate(options: GenerateOptions, terminal: &Terminal) -> LaunchError {
    match command(options, terminal) {
        Ok(mut command) => {
            let program = command.get_program().to_string_lossy().into_owned();
            let error = command.exec();
            LaunchError::system(format!("run {program}"))(error)
        }
        Err(error) => error,
    }
}

fn command(options: GenerateOptions, terminal: &Terminal) -> Result<Command, LaunchError> {
    let GenerateOptions { request, model_revision } = options;
    if let Some(name) = request.dataset.as_deref().and_then(Path::to_str).filter(|name| HubName::meant(name).is_some())
    {
        let message = format!("--dataset {name}: there is no such file, and generate takes no data of the hub");
        let hint = "download it (`hf download --repo-type dataset OWNER/NAME`) and name its file";
        return Err(LaunchError::usage(message, hint));
    }
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
    let request = GenerateRequest { model, checkpoint, chat_template, eos_token, ..request };
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
