//! Workers that do something short and answer on their standard output: started, awaited, read.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::supervise::Ending;
use crate::supervise::child::die_with_parent;

/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// After a first failure, how long others may still tell the cause.
const GATHER: Duration = Duration::from_millis(500);
/// Lines of standard error that are told where it holds no error of our own.
const LAST_LINES: usize = 5;

/// A process that is killed when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the commands, all at the same time, to their end; returns what each wrote to its standard output. To be called on
/// the main thread, which they die with.
///
/// # Errors
/// What went wrong first, in words: a program that cannot be run, one that failed, or `limit` passed.
pub fn run(commands: Vec<Command>, limit: Duration) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("cannot make a temporary folder: {error}"))?;
    let path = |index: usize, name: &str| folder.path().join(format!("{index}.{name}"));
    let mut running = Vec::new();
    for (index, mut command) in commands.into_iter().enumerate() {
        let create = |name| File::create(path(index, name)).map_err(|error| format!("cannot write a file: {error}"));
        command.stdin(Stdio::null()).stdout(create("out")?).stderr(create("err")?);
        die_with_parent(&mut command);
        let program = command.get_program().to_string_lossy().into_owned();
        running.push(Running(command.spawn().map_err(|error| format!("cannot run {program}: {error}"))?));
    }
    let deadline = Instant::now() + limit;
    let mut first_failure: Option<(usize, ExitStatus, Instant)> = None;
    loop {
        let mut all_ended = true;
        for (index, process) in running.iter_mut().enumerate() {
            match process.0.try_wait().map_err(|error| format!("cannot wait for a worker: {error}"))? {
                Some(status) if !status.success() => {
                    first_failure.get_or_insert((index, status, Instant::now()));
                }
                Some(_) => {}
                None => all_ended = false,
            }
        }
        if let Some((index, status, at)) = first_failure
            && (all_ended || at.elapsed() > GATHER)
        {
            return Err(format!("worker {index} {}{}", ending(status), told(&path(index, "err"))));
        }
        if all_ended {
            let read =
                |index| std::fs::read(path(index, "out")).map_err(|error| format!("cannot read a file: {error}"));
            let text = |index| read(index).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            return (0..running.len()).map(text).collect();
        }
        if Instant::now() > deadline {
            return Err(format!("a worker did not answer within {} s", limit.as_secs()));
        }
        std::thread::sleep(LOOK);
    }
}

fn ending(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Code(code),
        (None, signal) => Ending::Signal(signal.unwrap_or_default()),
    }
}

/// The error at the end of a standard error, else its last lines; behind a colon, or nothing.
fn told(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_end();
    let own = text.strip_prefix("error: ").or_else(|| Some(text.rsplit_once("\nerror: ")?.1));
    let words = own.map_or_else(
        || {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
        },
        str::to_owned,
    );
    if words.is_empty() { words } else { format!(": {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(scripts: &[&str], limit: Duration) -> Result<Vec<String>, String> {
        let command = |script: &&str| {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(script);
            command
        };
        run(scripts.iter().map(command).collect(), limit)
    }

    #[test]
    fn answers_come_in_order() {
        let answers = shell(&["sleep 0.1; echo first", "echo second"], Duration::from_secs(20));
        assert_eq!(answers.unwrap(), ["first\n", "second\n"]);
    }

    #[test]
    fn a_failure_ends_the_others_and_is_told_in_its_own_words() {
        let began = Instant::now();
        let failing = "echo noise >&2; echo 'error: no card\nhint: buy one' >&2; exit 3";
        let error = shell(&["sleep 60", failing], Duration::from_secs(50));
        assert_eq!(error.unwrap_err(), "worker 1 exited with code 3: no card\nhint: buy one");
        let error = shell(&["kill -SEGV $$"], Duration::from_secs(20)).unwrap_err();
        assert_eq!(error, "worker 0 was killed by SIGSEGV");
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn silence_and_a_missing_program_are_errors() {
        let error = shell(&["sleep 60"], Duration::from_millis(50)).unwrap_err();
        assert!(error.contains("did not answer"), "{error}");
        let error = run(vec![Command::new("/nowhere/worker")], Duration::from_secs(1)).unwrap_err();
        assert!(error.contains("cannot run /nowhere/worker"), "{error}");
    }
}
