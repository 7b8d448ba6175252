//! One worker's process: started, listened to, signalled, reaped.
//!
//! Contract:
//! 1. The process dies with `launch`, however `launch` ends: PDEATHSIG. It follows the *thread* that spawns, so workers
//!    are spawned from the main thread only, which lives as long as the process.
//! 2. It leads a process group of its own: Ctrl-C at the terminal reaches `launch` alone, and a signal to the worker
//!    reaches what it started.
//! 3. [`Event::Exited`] comes exactly once, after the last line of output that the worker wrote itself.
//! 4. The process is reaped by its owner only, after that event, so that a pid is never signalled after it was given to
//!    another process.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;

use super::verdict::{Ending, Exit};
use crate::event::Event;
use crate::logs::{self, LogFormat};
use crate::terminal::Terminal;

/// How many lines of stderr are kept for the error report.
const LAST_LINES: usize = 20;
/// Longer lines are cut on the terminal; the log has them whole.
const TERMINAL_LINE_BYTES: usize = 2048;
/// Longer lines reach the log in pieces.
const LOG_PIECE_BYTES: usize = 64 << 10;
/// How long output is awaited after the worker ended: what it started itself may still hold the pipes.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// Why a worker could not be started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The log cannot be opened.
    #[error("cannot write the log of rank {rank}, {}: {source}", path.display())]
    Log {
        /// The rank.
        rank: u32,
        /// The log.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The program cannot be run.
    #[error("cannot start rank {rank}: {}: {source}\nhint: `worker` is looked for beside `launch`; ZEROFOLD_WORKER names another place", program.display())]
    Program {
        /// The rank.
        rank: u32,
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A running worker.
pub struct Worker {
    process: std::process::Child,
    pid: libc::pid_t,
    reaped: bool,
    output: Arc<Output>,
}

/// Where a worker's output goes.
struct Output {
    rank: u32,
    log: Mutex<File>,
    last: Mutex<VecDeque<String>>,
    terminal: Arc<Terminal>,
}

impl Worker {
    /// Starts `command` as `rank`. Must be called on the main thread (contract 1).
    pub fn spawn(
        rank: u32,
        command: &mut Command,
        log_path: &Path,
        terminal: Arc<Terminal>,
        events: Sender<Event>,
    ) -> Result<Worker, SpawnError> {
        let log_failed = |source| SpawnError::Log { rank, path: log_path.to_owned(), source };
        let log = File::options().create(true).append(true).open(log_path).map_err(log_failed)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        die_with_parent(command);
        let program = PathBuf::from(command.get_program());
        let mut process = command.spawn().map_err(|source| SpawnError::Program { rank, program, source })?;
        let pid = process.id() as libc::pid_t;

        let output = Arc::new(Output { rank, log: Mutex::new(log), last: Mutex::default(), terminal });
        let (done, pumps) = mpsc::channel();
        if let Some(stdout) = process.stdout.take() {
            pump(stdout, output.clone(), false, done.clone());
        }
        if let Some(stderr) = process.stderr.take() {
            pump(stderr, output.clone(), true, done);
        }
        let written = output.clone();
        std::thread::spawn(move || {
            let ending = wait_without_reaping(pid);
            // The worker is a zombie now, its pid still its own: what is left of its group ends with it.
            signal_group(pid, libc::SIGKILL);
            while pumps.recv_timeout(LAST_OUTPUT).is_ok() {}
            let last_lines = written.last.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
            let _ = events.send(Event::Exited { rank, exit: Exit { ending, last_lines } });
        });
        Ok(Worker { process, pid, reaped: false, output })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The last line that it wrote to stderr.
    pub fn last_line(&self) -> Option<String> {
        self.output.last.lock().unwrap_or_else(PoisonError::into_inner).back().cloned()
    }

    /// What the system says it does, where that alone explains its silence.
    pub fn state(&self) -> Option<&'static str> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The program's name stands in parentheses and may hold anything.
        match stat.rsplit_once(") ")?.1.chars().next()? {
            'T' | 't' => Some("its process is stopped (SIGSTOP or a debugger)"),
            'D' => Some("its process waits for a disk or a device (state D)"),
            _ => None,
        }
    }

    /// Sends a signal to it and to what it started. Does nothing once it is reaped.
    pub fn signal(&self, signal: libc::c_int) {
        if !self.reaped {
            signal_group(self.pid, signal);
        }
    }

    /// Neither signals nor waits for it any more: it was sent SIGKILL and ends when the kernel lets it.
    pub fn leave_behind(&mut self) {
        self.reaped = true;
    }

    /// Frees the process's entry, after its [`Event::Exited`].
    pub fn reap(&mut self) {
        self.reaped = self.reaped || self.process.wait().is_ok();
    }
}

impl Drop for Worker {
    /// No worker outlives its owner, on whatever path the owner leaves.
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        self.reap();
    }
}

/// Makes the kernel kill the child when the spawning thread ends.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id() as libc::pid_t;
    let prepare = move || {
        // SAFETY: prctl and getppid are async-signal-safe and touch no memory of ours.
        let (armed, now) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
        if armed != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // The parent may have died before the signal was armed; then nobody will ever send it.
        if now != parent { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
    };
    // SAFETY: the closure runs between fork and exec and makes async-signal-safe calls only; it does not allocate.
    unsafe { command.pre_exec(prepare) };
}

fn signal_group(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: kill takes numbers only. The group is the worker's own: it was made before exec and its leader is not
    // reaped yet. An error means that nobody is left in it.
    unsafe { libc::kill(-pid, signal) };
}

fn wait_without_reaping(pid: libc::pid_t) -> Ending {
    loop {
        // SAFETY: an all-zero siginfo_t is a valid value of this plain C struct.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is valid for writing for the whole call; `pid` is a child that is not reaped yet.
        let waited = unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, libc::WEXITED | libc::WNOWAIT) };
        if waited == 0 {
            // SAFETY: waitid succeeded, so the SIGCHLD fields of `info` are set.
            let status = unsafe { info.si_status() };
            return if info.si_code == libc::CLD_EXITED { Ending::Code(status) } else { Ending::Signal(status) };
        }
        if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
            return Ending::Code(-1);
        }
    }
}

/// Reads one stream to its end, line by line.
fn pump(stream: impl Read + Send + 'static, output: Arc<Output>, to_terminal: bool, done: Sender<()>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(LOG_PIECE_BYTES as u64).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => output.line(&line, to_terminal),
            }
        }
        let _ = done.send(());
    });
}

impl Output {
    fn line(&self, line: &[u8], to_terminal: bool) {
        let object = (self.terminal.format() == LogFormat::Json).then(|| {
            let text = String::from_utf8_lossy(line);
            logs::object(text.trim_end_matches(['\r', '\n']), Some(self.rank))
        });
        let logged = object.as_ref().map(|(object, _)| format!("{object}\n"));
        // A full disk must not end a job that could still save elsewhere; the terminal has the line.
        let log = logged.as_ref().map_or(line, String::as_bytes);
        let _ = self.log.lock().unwrap_or_else(PoisonError::into_inner).write_all(log);
        if !to_terminal {
            return;
        }
        let text = match &object {
            Some((object, message)) => {
                self.terminal.worker_line(self.rank, object);
                readable(message.as_bytes())
            }
            None => {
                let text = readable(line);
                self.terminal.worker_line(self.rank, &text);
                text
            }
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(text);
    }
}

/// A line as the terminal shows it: without its end, valid UTF-8, bounded.
fn readable(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let shown = &line[..line.len().min(TERMINAL_LINE_BYTES)];
    let mut text = String::from_utf8_lossy(shown).into_owned();
    if shown.len() < line.len() {
        text.push_str(&format!(" … ({} bytes more in the log)", line.len() - shown.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn run(script: &str) -> (Exit, String) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("rank-0.log");
        let (events, received) = mpsc::channel();
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        let mut worker = Worker::spawn(0, &mut command, &log, Arc::new(Terminal::silent()), events).unwrap();
        let Event::Exited { rank: 0, exit } = received.recv_timeout(Duration::from_secs(20)).unwrap() else { panic!() };
        worker.reap();
        assert!(received.recv().is_err(), "the end is told once");
        (exit, std::fs::read_to_string(&log).unwrap())
    }

    #[test]
    fn an_exit_code_comes_with_the_last_lines_and_the_log_is_whole() {
        let (exit, log) = run("echo out; i=0; while [ $i -lt 30 ]; do echo line $i >&2; i=$((i+1)); done; exit 3");
        assert_eq!(exit.ending, Ending::Code(3));
        assert_eq!(exit.last_lines.len(), LAST_LINES);
        assert_eq!(exit.last_lines.last().unwrap(), "line 29");
        assert!(log.contains("out\n") && log.contains("line 0\n"));
    }

    #[test]
    fn a_signal_is_told_and_an_unfinished_line_kept() {
        let (exit, _) = run("printf 'no newline' >&2; kill -KILL $$");
        assert_eq!(exit.ending, Ending::Signal(libc::SIGKILL));
        assert_eq!(exit.last_lines, ["no newline"]);
    }

    #[test]
    fn what_a_worker_started_ends_with_it() {
        // The grandchild holds stderr open; without the group's end this would take 60 s.
        let (exit, _) = run("sleep 60 & exit 0");
        assert_eq!(exit.ending, Ending::Code(0));
    }

    #[test]
    fn long_lines_are_cut_and_bad_bytes_replaced() {
        assert_eq!(readable(b"a\xffb\r\n"), "a\u{fffd}b");
        let text = readable(&[b'x'; TERMINAL_LINE_BYTES + 5]);
        assert!(text.ends_with("… (5 bytes more in the log)"), "{text}");
    }

    #[test]
    fn a_missing_program_names_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (events, _received) = mpsc::channel();
        let mut command = Command::new("/nonexistent/worker");
        let log = folder.path().join("log");
        let spawned = Worker::spawn(3, &mut command, &log, Arc::new(Terminal::silent()), events);
        let error = spawned.err().unwrap();
        let message = error.to_string();
        assert!(message.contains("rank 3: /nonexistent/worker") && message.contains("ZEROFOLD_WORKER"), "{message}");
    }
}
