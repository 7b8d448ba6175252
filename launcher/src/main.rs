//! The command `launch`; the map of the program is in `lib.rs`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

use zerofold_launcher::cli::{self, CliError, Meant};
use zerofold_launcher::error::{EXIT_USAGE, LaunchError};
use zerofold_launcher::logs::{self, LogFormat};
use zerofold_launcher::terminal::Terminal;
use zerofold_launcher::{
    bench, checkpoints, compare, config_command, cost, data_command, doctor, evaluate, generate, hosts, hub, plan,
    run_report, train, watch,
};

#[global_allocator]
static ALLOCATOR: zerofold_data::Allocator = zerofold_data::Allocator;

fn main() -> ExitCode {
    let began = Instant::now();
    let meant = cli::parse(std::env::args_os(), std::io::stdin().is_terminal());
    let format = match LogFormat::of(typed_format(&meant)) {
        Ok(format) => format,
        Err(error) => return fail(&error, LogFormat::Text),
    };
    logs::begin(format);
    let ended = match meant {
        Ok(Meant::Train(options)) => train::train(&options, format, began),
        Ok(Meant::Plan(options)) => plan::plan(&options, &Terminal::new(false)),
        Ok(Meant::Cost(options)) => cost::cost(&options, &Terminal::new(false)),
        Ok(Meant::Doctor(options)) => doctor::doctor(&options, &Terminal::new(false)),
        Ok(Meant::Token(file)) => hosts::make_token(file.as_deref()),
        Ok(Meant::Bench(options)) => bench::bench(&options, &Terminal::new(false)),
        Ok(Meant::Compare(options)) => compare::compare(&options, &Terminal::new(false)),
        Ok(Meant::Config(options)) => config_command::config(&options, &Terminal::new(false)),
        Ok(Meant::Data(options)) => data_command::data(&options, &Terminal::new(false)),
        Ok(Meant::Status(options)) => watch::status(&options, &Terminal::new(false)),
        Ok(Meant::Report(options)) => run_report::report(&options, &Terminal::new(false)),
        Ok(Meant::Checkpoint(run)) => checkpoints::ask(&run, &Terminal::new(false)),
        Ok(Meant::Inspect(options)) => checkpoints::inspect(&options, &Terminal::new(false)),
        Ok(Meant::Verify(options)) => checkpoints::verify(&options, &Terminal::new(false)),
        Ok(Meant::Diff(options)) => checkpoints::diff(&options, &Terminal::new(false)),
        Ok(Meant::Export(options)) => checkpoints::export(&options, &Terminal::new(false)),
        Ok(Meant::Push(options)) => hub::push(&options, &Terminal::new(false)),
        Ok(Meant::Evaluate(options)) => evaluate::evaluate(&options),
        Ok(Meant::Generate(options)) => generate::generate(*options),
        Err(CliError::Launch(error)) => Err(error),
        Err(CliError::Clap(error)) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error, format),
    }
}

/// The form of messages that the command line asks for.
fn typed_format(meant: &Result<Meant, CliError>) -> Option<LogFormat> {
    match meant {
        Ok(Meant::Train(options)) => options.log_format,
        _ => None,
    }
}

fn fail(error: &LaunchError, format: LogFormat) -> ExitCode {
    Terminal::with_format(true, format).complain(&format!("error: {error}"));
    ExitCode::from(error.exit_code())
}
