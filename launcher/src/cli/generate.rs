//! What a command line with `generate` means.

use clap::ArgMatches;
use zerofold_configs::{ComputeDtype, GenerateRequest};

use crate::error::LaunchError;
use crate::generate::GenerateOptions;

pub(super) fn meant(matches: &ArgMatches, on_terminal: bool) -> Result<GenerateOptions, LaunchError> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let mut request = GenerateRequest::new(text("model").unwrap_or_default());
    let message = text("chat");
    request.system = text("system");
    request.dataset = text("dataset").map(Into::into);
    request.output = text("output").map(Into::into);
    request.limit = matches.get_one::<u64>("limit").map(|&limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let plain = text("prompt");
    // Nothing asked for, and a person sits there: a chat.
    request.chat = message.is_some() || (on_terminal && plain.is_none() && request.dataset.is_none());
    request.prompt = plain.or(message.filter(|message| !message.is_empty()));
    if let Some(&count) = matches.get_one("max_new_tokens") {
        request.max_new_tokens = count;
    }
    if let Some(&temperature) = matches.get_one("temperature") {
        request.temperature = temperature;
    }
    if let Some(&top_p) = matches.get_one("top_p") {
        request.top_p = top_p;
    }
    if let Some(&top_k) = matches.get_one("top_k") {
        request.top_k = top_k;
    }
    if let Some(&seed) = matches.get_one("seed") {
        request.seed = seed;
    }
    if let Some(dtype) = text("dtype").as_deref().and_then(ComputeDtype::from_name) {
        request.dtype = dtype;
    }
    if request.system.is_some() && !request.chat && request.dataset.is_none() {
        return Err(LaunchError::usage("--system needs a chat", "give --chat TEXT in place of --prompt TEXT"));
    }
    Ok(GenerateOptions { request, model_revision: text("model_revision") })
}
