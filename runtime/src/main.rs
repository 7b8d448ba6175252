//! The command `worker`: one rank of a job. Started by `launch`, not by hand.

use anyhow::Context;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(version, about = "One rank of a Zerofold job. Started by `launch`, not by hand.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train as the rank that the environment names.
    Train,
    /// Evaluate a model on held-out rows as the rank that the environment names.
    Evaluate,
    /// Answer a data set as the rank that the environment names.
    Answer,
    /// Generate text; the request is JSON as `launch generate` writes it.
    Generate {
        /// The request.
        request: String,
    },
    /// Tell what libtorch, the driver and NCCL say of this machine, as JSON.
    Doctor,
    /// Measure this machine as the rank that the environment names; the request is JSON as `launch bench` writes it.
    Bench {
        /// The request.
        request: String,
    },
    /// Write the logits of a model for given token ids, to compare with other implementations.
    Logits {
        /// A Hugging Face model folder.
        model: PathBuf,
        /// A safetensors file with int64 `input_ids` [rows, length].
        input_ids: PathBuf,
        /// Where to write float32 `logits` [rows, length, vocabulary].
        output: PathBuf,
    },
    /// Write the last hidden states of an encoder for given token ids, to compare with other implementations.
    HiddenStates {
        /// A Hugging Face model folder.
        model: PathBuf,
        /// A safetensors file with int64 `input_ids` [rows, length], and `token_type_ids` if they are not all 0.
        input_ids: PathBuf,
        /// Where to write float32 `last_hidden_state` [rows, length, hidden].
        output: PathBuf,
    },
}

#[global_allocator]
static ALLOCATOR: zerofold_data::Allocator = zerofold_data::Allocator;

fn main() -> ExitCode {
    print_messages();
    keep_freed_memory();
    zerofold_runtime::torch::count_memory();
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        // It was told already.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", zerofold_runtime::worker::told(&error));
            ExitCode::FAILURE
        }
    }
}

/// Messages go to standard error, which `launch` reads: as lines, or as one JSON object a line where it was asked for that.
fn print_messages() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ZEROFOLD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    match std::env::var("ZEROFOLD_LOG_FORMAT").as_deref() {
        Ok("json") => lines.json().flatten_event(true).with_env_filter(filter).init(),
        _ => lines.without_time().with_env_filter(filter).init(),
    }
}

/// Does what the command says; false where it failed and `launch` knows.
fn run(command: Command) -> anyhow::Result<bool> {
    match command {
        // These errors tell their causes themselves; a chain would tell them twice.
        Command::Train => zerofold_runtime::worker::train().map_err(|error| anyhow::Error::msg(error.to_string())),
        Command::Evaluate => {
            zerofold_runtime::evaluate::evaluate().map_err(|error| anyhow::Error::msg(error.to_string()))
        }
        Command::Answer => {
            zerofold_runtime::generate::answer_as_rank().map_err(|error| anyhow::Error::msg(error.to_string()))
        }
        Command::Generate { request } => {
            let request = serde_json::from_str(&request).context("the request is not what `launch generate` writes")?;
            zerofold_runtime::generate::run(&request).map(|()| true)
        }
        Command::Logits { model, input_ids, output } => {
            zerofold_runtime::generate::logits(&model, &input_ids, &output).map(|()| true)
        }
        Command::HiddenStates { model, input_ids, output } => {
            zerofold_runtime::generate::hidden_states(&model, &input_ids, &output).map(|()| true)
        }
        Command::Doctor => {
            println!("{}", serde_json::to_string(&zerofold_runtime::doctor::examine())?);
            Ok(true)
        }
        Command::Bench { request } => {
            let request = serde_json::from_str(&request).context("the request is not what `launch bench` writes")?;
            let rates = zerofold_runtime::bench::run(&request);
            rates.map(|()| true).map_err(|error| anyhow::Error::msg(error.to_string()))
        }
    }
}

/// Training allocates and frees the same large tensors at every step. By default each would be mapped and unmapped anew,
/// and every page faulted in again; this lets the allocator keep them.
fn keep_freed_memory() {
    // SAFETY: mallopt only sets parameters of the allocator, before other threads exist.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
