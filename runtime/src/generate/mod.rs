//! Text from a model folder: `worker generate` and `worker logits`.
//!
//! [`run`] decides among three ways: a prompt, standard input, or a chat at the terminal ([`chat`]); the text goes to standard output,
//! everything else to standard error. A data set is answered by the ranks of a job ([`dataset`], `worker answer`), each with rows of
//! its own. All of them go through [`Generator`], which feeds tokens through a model, whole in memory ([`weights`]) or sharded, with
//! key-value caches ([`sequence`]) and chooses the next ones ([`sample`]).

mod chat;
mod dataset;
mod generator;
mod sample;
mod sequence;
mod weights;

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};
use zerofold_configs::{ComputeDtype, GenerateRequest};
use zerofold_data::{ChatTemplate, Message, Role, TemplateSource, Tokenizer};

pub use dataset::answer_as_rank;
pub use generator::{Generator, Options};
pub use sample::{SampleOptions, Sampler};
pub use sequence::{Segmented, Sequence, Visit, next_logits};
pub use weights::WholeModel;

/// Answers a request that names no data set; the text goes to standard output.
///
/// # Errors
/// A request that contradicts itself, a model folder that cannot be used, a prompt that is too long.
pub fn run(request: &GenerateRequest) -> Result<()> {
    check(request)?;
    use_all_cores();
    let _no_gradients = tch::no_grad_guard();
    let result = answer(request);
    match &result {
        // Whoever reads our output has seen enough.
        Err(error) if is_broken_pipe(error) => Ok(()),
        _ => result,
    }
}

/// Writes the logits of given token ids: `input_ids` (int64, `[B, T]`) in one safetensors file, `logits` (float32,
/// `[B, T, vocabulary]`; of an encoder `[B, labels]`) in the other.
///
/// # Errors
/// A model folder or files that cannot be used.
pub fn logits(model_dir: &Path, ids: &Path, out: &Path) -> Result<()> {
    use_all_cores();
    let _no_gradients = tch::no_grad_guard();
    let input_ids =
        token_ids(ids, "input_ids")?.with_context(|| format!("{} holds no tensor input_ids", ids.display()))?;
    let model = WholeModel::load(model_dir, None, Kind::Float)?;
    let logits = model.logits(&input_ids)?;
    Tensor::write_safetensors(&[("logits", &logits)], out).with_context(|| format!("cannot write {}", out.display()))
}

/// Writes what an encoder makes of given token ids: `input_ids`, and their `token_type_ids` where they are not all 0 (int64, `[B, T]`),
/// in one safetensors file, `last_hidden_state` (float32, `[B, T, H]`) in the other.
///
/// # Errors
/// As [`logits`], and a model that is no encoder.
pub fn hidden_states(model_dir: &Path, ids: &Path, out: &Path) -> Result<()> {
    use_all_cores();
    let _no_gradients = tch::no_grad_guard();
    let input_ids =
        token_ids(ids, "input_ids")?.with_context(|| format!("{} holds no tensor input_ids", ids.display()))?;
    let types = token_ids(ids, "token_type_ids")?;
    let hidden = WholeModel::load_encoder(model_dir)?.hidden(&input_ids, types.as_ref())?;
    Tensor::write_safetensors(&[("last_hidden_state", &hidden)], out)
        .with_context(|| format!("cannot write {}", out.display()))
}

/// A tensor of ids `[B, T]` in a safetensors file; none where it is not there.
fn token_ids(path: &Path, name: &str) -> Result<Option<Tensor>> {
    let tensors = Tensor::read_safetensors(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Some((_, ids)) = tensors.into_iter().find(|(found, _)| found == name) else { return Ok(None) };
    ensure!(
        ids.f_kind()? == Kind::Int64 && ids.dim() == 2,
        "{}: {name} must be int64 of shape [rows, positions], not {:?} of shape {:?}",
        path.display(),
        ids.f_kind()?,
        ids.size()
    );
    Ok(Some(ids))
}

fn answer(request: &GenerateRequest) -> Result<()> {
    let kind = match request.dtype {
        ComputeDtype::Float32 => Kind::Float,
        ComputeDtype::Bfloat16 => Kind::BFloat16,
    };
    let model = WholeModel::load(&request.model, request.checkpoint.as_deref(), kind)?;
    let mut generator = generator(request, Box::new(model))?;
    let prompt = match &request.prompt {
        Some(prompt) => prompt.clone(),
        None if std::io::stdin().is_terminal() => {
            let template = template(request, &generator)?;
            return chat::run(&mut generator, &template, request.system.as_deref());
        }
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
            text
        }
    };
    let ids = if request.chat {
        let mut messages = system_messages(request.system.as_deref());
        messages.push(Message::new(Role::User, prompt));
        let text = template(request, &generator)?.render(&messages.into(), true)?;
        generator.encode(&text, false)?
    } else {
        generator.encode(&prompt, true)?
    };
    if std::io::stdout().is_terminal() {
        generator.generate(&ids, &mut print_piece)?;
        return print_piece("\n");
    }
    // Nobody watches: the text as decoded in one go, which differs from the pieces where a model writes broken UTF-8.
    let text = generator.generate(&ids, &mut |_| Ok(()))?;
    print_piece(&format!("{text}\n"))
}

/// A generator as the request asks for it.
fn generator(request: &GenerateRequest, model: Box<dyn Segmented>) -> Result<Generator> {
    let options = Options {
        max_new_tokens: request.max_new_tokens as usize,
        sample: SampleOptions {
            temperature: request.temperature,
            top_k: request.top_k as usize,
            top_p: request.top_p,
            seed: request.seed,
        },
    };
    let mut generator = Generator::new(model, Tokenizer::load(&request.model)?, options)?;
    if let Some(token) = &request.eos_token {
        generator.end_with(token)?;
    }
    Ok(generator)
}

/// The chat template of the request, or the model's own.
fn template(request: &GenerateRequest, generator: &Generator) -> Result<ChatTemplate> {
    let source = match &request.chat_template {
        Some(text) => TemplateSource { text: text.clone(), place: "chat_template_path".into() },
        None => TemplateSource::of_model(&request.model)?,
    };
    Ok(ChatTemplate::compile(source, generator.special().clone())?)
}

/// What a request must not say together.
fn check(request: &GenerateRequest) -> Result<()> {
    ensure!(
        request.dataset.is_none() && request.output.is_none() && request.limit.is_none(),
        "a data set is answered by ranks\nhint: launch generate --dataset FILE starts them"
    );
    ensure!(
        request.system.is_none() || request.chat || request.prompt.is_none(),
        "a system message needs the chat template\nhint: add --chat"
    );
    Ok(())
}

/// The conversation so far: the system message, if there is one.
fn system_messages(system: Option<&str>) -> Vec<Message> {
    system.map(|text| Message::new(Role::System, text)).into_iter().collect()
}

/// Shows a piece of text at once.
fn print_piece(piece: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(piece.as_bytes())?;
    Ok(out.flush()?)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// All cores, unless the user's OMP_NUM_THREADS says otherwise (libtorch reads that itself).
fn use_all_cores() {
    if std::env::var_os("OMP_NUM_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        tch::set_num_threads(i32::try_from(cores).unwrap_or(1));
    }
}

#[cfg(test)]
mod tests;
