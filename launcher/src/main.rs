//! The command `launch`; the map of the program is in `lib.rs`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

use zerofold_launcher::cli::{self, CliError, Meant};
use zerofold_launcher::error::{EXIT_USAGE, LaunchError};
use zerofold_launcher::terminal::Terminal;
use zerofold_launcher::{bench, checkpoints, compare, doctor, environment, generate, hub, plan, train};

fn main() -> ExitCode {
    let began = Instant::now();
    let filter = tracing_subscriber::EnvFilter::try_from_env(environment::LOG)
        // What is wrong with a certificate is told once, by the error that it leads to.
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,rustls_platform_verifier=off"));
    let lines = tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false);
    lines.with_env_filter(filter).with_writer(std::io::stderr).init();
    let ended = match cli::parse(std::env::args_os(), std::io::stdin().is_terminal()) {
        Ok(Meant::Train(options)) => train::train(&options, began),
        Ok(Meant::Plan(options)) => plan::plan(&options, &Terminal::new(false)),
        Ok(Meant::Doctor(options)) => doctor::doctor(&options, &Terminal::new(false)),
        Ok(Meant::Bench(options)) => bench::bench(&options, &Terminal::new(false)),
        Ok(Meant::Compare(options)) => compare::compare(&options, &Terminal::new(false)),
        Ok(Meant::Checkpoint(run)) => checkpoints::ask(&run, &Terminal::new(false)),
        Ok(Meant::Inspect(options)) => checkpoints::inspect(&options, &Terminal::new(false)),
        Ok(Meant::Verify(options)) => checkpoints::verify(&options, &Terminal::new(false)),
        Ok(Meant::Diff(options)) => checkpoints::diff(&options, &Terminal::new(false)),
        Ok(Meant::Export(options)) => checkpoints::export(&options, &Terminal::new(false)),
        Ok(Meant::Push(options)) => hub::push(&options, &Terminal::new(false)),
        Ok(Meant::Generate(options)) => Err(generate::generate(*options, &Terminal::new(false))),
        Err(CliError::Launch(error)) => Err(error),
        Err(CliError::Clap(error)) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error),
    }
}

fn fail(error: &LaunchError) -> ExitCode {
    use std::io::Write;
    // A closed standard error must not change the exit code.
    let _ = writeln!(std::io::stderr(), "error: {error}");
    ExitCode::from(error.exit_code())
}
