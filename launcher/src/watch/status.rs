//! The command `status`: what a run is doing, or how far it came.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use zerofold_proto::v1::StatusReply;

use super::ask::ask;
use super::control_file::ControlFile;
use super::table;
use crate::at_work;
use crate::error::{EXIT_FAILED, LaunchError};
use crate::format;
use crate::metrics::seconds_of;
use crate::run_folder::RunFolder;
use crate::terminal::Terminal;

/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// What the command line asks of `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusOptions {
    /// The run folder.
    pub run: PathBuf,
    /// Print JSON.
    pub json: bool,
    /// Ask again and again, with so much time between, until the job ends.
    pub watch: Option<Duration>,
    /// Holds the token of a job on several hosts; none for that of the environment.
    pub token_file: Option<PathBuf>,
}

/// Tells what the run is doing; returns the exit code, 1 when nothing is at work in it.
///
/// # Errors
/// There is no such run, or the launch at work in it cannot be asked.
pub fn status(options: &StatusOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let run = RunFolder::new(&options.run);
    if !options.run.is_dir() {
        return Err(refused(&run, "there is no such folder", "give the output_dir of a run"));
    }
    let mut seen = false;
    loop {
        match look(&run, options.token_file.as_deref())? {
            Look::AtWork(reply) => {
                seen = true;
                show(&reply, options, terminal);
            }
            Look::Over => {
                over(&run, options.json, terminal)?;
                // It may have ended while it was watched.
                return Ok(if seen { 0 } else { EXIT_FAILED });
            }
        }
        match options.watch {
            Some(pause) => std::thread::sleep(pause),
            None => return Ok(0),
        }
    }
}

/// Why a run that is at work does not go on, if it does not and can be asked.
pub(crate) fn held_up(run: &RunFolder) -> Option<String> {
    let Ok(Look::AtWork(reply)) = look(run, None) else { return None };
    let job = reply.job?;
    job.verdict.or_else(|| Some(format!("the job waits for {}", job.waiting_for?)))
}

enum Look {
    AtWork(Box<StatusReply>),
    Over,
}

fn look(run: &RunFolder, token_file: Option<&Path>) -> Result<Look, LaunchError> {
    let lock = run.lock_path();
    if !at_work::is_held(&lock) {
        return Ok(Look::Over);
    }
    let told = match ControlFile::read(&run.control())? {
        Some(told) => told,
        None if !at_work::is_held(&lock) => return Ok(Look::Over),
        None => {
            let hint = "it is about to start or to end: ask again in a moment";
            return Err(refused(run, "the launch at work in it does not tell where it can be asked", hint));
        }
    };
    match ask(&told, token_file) {
        Ok(reply) => Ok(Look::AtWork(Box::new(reply))),
        Err(_) if !at_work::is_held(&lock) => Ok(Look::Over),
        Err(reason) => {
            let message = format!("the launch at work in it does not answer: {reason}");
            Err(refused(run, &message, "ask on the host and in the container that it runs on and in"))
        }
    }
}

fn show(reply: &StatusReply, options: &StatusOptions, terminal: &Terminal) {
    if options.json {
        // One line for each look, so that a reader can follow.
        let text = match options.watch {
            Some(_) => serde_json::to_string(reply),
            None => serde_json::to_string_pretty(reply),
        };
        return terminal.result(&text.unwrap_or_default());
    }
    let mut text = table::lines(reply).join("\n");
    if options.watch.is_some() {
        match std::io::stdout().is_terminal() {
            true => text.insert_str(0, CLEAR),
            false => text.push('\n'),
        }
    }
    terminal.result(&text);
}

/// How far a run came at which nobody works.
fn over(run: &RunFolder, as_json: bool, terminal: &Terminal) -> Result<(), LaunchError> {
    let last = last_step(run)?;
    if as_json {
        let answer = json!({"job": null, "ranks": [], "last_step": last});
        terminal.result(&serde_json::to_string_pretty(&answer).unwrap_or_default());
        return Ok(());
    }
    let shown = run.root().display();
    let how_far = match &last {
        None => "no step was finished".to_owned(),
        Some(last) => {
            let number = |key: &str| last[key].as_f64();
            let ago = number("time").map(|time| (seconds_of(SystemTime::now()) - time).clamp(0.0, 1e10));
            let ago = ago.map(|ago| format!(", {} ago", format::duration(Duration::from_secs_f64(ago))));
            let loss = number("loss").map_or_else(|| "not finite".to_owned(), |loss| format!("{loss:.4}"));
            format!("its last step is {}{} (loss {loss})", last["step"], ago.unwrap_or_default())
        }
    };
    terminal.result(&format!("no launch is at work in {shown}; {how_far}"));
    Ok(())
}

/// The newest line of a step in `metrics.jsonl`.
fn last_step(run: &RunFolder) -> Result<Option<Value>, LaunchError> {
    let path = run.metrics();
    let failed = || LaunchError::system(format!("read {}", path.display()));
    let file = match std::fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed())?,
    };
    let mut last = None;
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(failed())?;
        // The last line of a killed run may be a piece of one.
        match serde_json::from_slice::<Value>(&line) {
            Ok(line) if line.get("loss").is_some() => last = Some(line),
            _ => {}
        }
    }
    Ok(last)
}

fn refused(run: &RunFolder, message: &str, hint: &str) -> LaunchError {
    LaunchError::RunFolder { path: run.root().to_owned(), message: message.to_owned(), hint: hint.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::control_file::Told;

    #[test]
    fn a_run_that_is_over_tells_its_last_step() {
        let folder = tempfile::tempdir().unwrap();
        let options = StatusOptions { run: folder.path().to_owned(), json: false, watch: None, token_file: None };
        assert_eq!(status(&options, &Terminal::silent()).unwrap(), EXIT_FAILED);
        let run = RunFolder::new(folder.path());
        assert_eq!(last_step(&run).unwrap(), None);
        let lines =
            "{\"step\":1,\"loss\":2.0}\n{\"step\":2,\"loss\":null}\n{\"step\":2,\"eval_loss\":1.0}\n{\"step\":3,\"lo";
        std::fs::write(run.metrics(), lines).unwrap();
        assert_eq!(last_step(&run).unwrap().unwrap()["step"], 2);
        assert_eq!(status(&options, &Terminal::silent()).unwrap(), EXIT_FAILED);
        let missing = StatusOptions { run: folder.path().join("none"), ..options };
        let told = status(&missing, &Terminal::silent()).unwrap_err().to_string();
        assert!(told.contains("there is no such folder\nhint: give the output_dir"), "{told}");
    }

    #[test]
    fn a_launch_that_does_not_answer_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        let held = run.lock(|line| panic!("{line}")).unwrap();
        let options = StatusOptions { run: folder.path().to_owned(), json: true, watch: None, token_file: None };
        let told = || status(&options, &Terminal::silent()).unwrap_err().to_string();
        assert!(told().contains("does not tell where it can be asked\nhint: "), "{}", told());
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = ControlFile::write(run.control(), &Told { address: nobody, metrics: None, tls: false, token: None })
            .unwrap();
        assert!(told().contains("does not answer: 127.0.0.1:"), "{}", told());
        drop((file, held));
        assert_eq!(status(&options, &Terminal::silent()).unwrap(), EXIT_FAILED);
    }
}
