//! The one place that writes to the terminal, so that a progress line and other lines do not tear each other.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::environment::NO_COLOR;
use crate::logs::{self, LogFormat};

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Voice {
    /// Everything.
    Full,
    /// Errors, and where the result is.
    Quiet,
    /// Nothing: tests.
    Silent,
}

/// Standard output and standard error of `launch`, with at most one progress line.
pub struct Terminal {
    voice: Voice,
    format: LogFormat,
    live: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Terminal {
    /// The process's own terminal. `quiet` leaves only errors and results.
    pub fn new(quiet: bool) -> Self {
        Terminal::with_format(quiet, LogFormat::Text)
    }

    /// The same, whose lines have this form. Where they are objects there is no progress line.
    pub fn with_format(quiet: bool, format: LogFormat) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let person = !quiet && !dumb && format == LogFormat::Text;
        let live = person && std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Terminal { voice: if quiet { Voice::Quiet } else { Voice::Full }, format, live, bar: Mutex::new(None) }
    }

    /// Writes nothing.
    pub fn silent() -> Self {
        Terminal { voice: Voice::Silent, format: LogFormat::Text, live: false, bar: Mutex::new(None) }
    }

    /// The form of its lines.
    pub fn format(&self) -> LogFormat {
        self.format
    }

    /// Whether a progress line can be shown.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Whether colours are seen, and wanted: <https://no-color.org>.
    pub fn has_color(&self) -> bool {
        self.live && std::env::var_os(NO_COLOR).is_none_or(|value| value.is_empty())
    }

    /// A line of the job's story; not in quiet.
    pub fn say(&self, text: &str) {
        if self.voice == Voice::Full {
            self.write(false, text);
        }
    }

    /// A line that is told in quiet as well: where the result is.
    pub fn result(&self, text: &str) {
        if self.voice != Voice::Silent {
            self.write(false, text);
        }
    }

    /// A line on standard error.
    pub fn complain(&self, text: &str) {
        if self.voice != Voice::Silent {
            self.write(true, text);
        }
    }

    /// A line of the story on standard error, beside an answer on standard output; not in quiet.
    pub fn tell(&self, text: &str) {
        if self.voice == Voice::Full {
            self.write(true, text);
        }
    }

    /// A line that a worker wrote to its standard error: as text, or the object that it is.
    pub fn worker_line(&self, rank: u32, line: &str) {
        if self.voice == Voice::Full {
            match self.format {
                LogFormat::Text => self.write_line(true, &format!("[rank {rank}] {line}")),
                LogFormat::Json => self.write_line(true, line),
            }
        }
    }

    /// Shows a progress line of `total` steps, `done` of which lie behind. Does nothing where there is no terminal.
    pub fn start_progress(&self, total: u64, done: u64) {
        // What does not fit is cut: a line that wraps could not be redrawn.
        self.start_bar("step {pos}/{len} {bar:10} {wide_msg}", total, done);
    }

    /// Shows a progress line of `bytes` that are on their way. Does nothing where there is no terminal.
    pub fn start_transfer(&self, bytes: u64) {
        self.start_bar("{bytes}/{total_bytes} {bar:10} {bytes_per_sec} {eta} {wide_msg}", bytes, 0);
    }

    /// Shows a line that counts something whose end is not known, in these words. Does nothing where there is no terminal.
    pub fn start_count(&self, words: &str) {
        self.start_bar(&format!("{{pos}} {words}"), 0, 0);
    }

    fn start_bar(&self, template: &str, total: u64, done: u64) {
        if !self.live {
            return;
        }
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout()).with_style(style);
        bar.set_position(done);
        bar.set_message("starting");
        *self.bar() = Some(bar);
    }

    /// Moves the progress line.
    pub fn progress(&self, position: u64, message: String) {
        if let Some(bar) = self.bar().as_ref() {
            bar.set_position(position);
            bar.set_message(message);
        }
    }

    /// Takes the progress line away.
    pub fn end_progress(&self) {
        if let Some(bar) = self.bar().take() {
            bar.finish_and_clear();
        }
    }

    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, to_stderr: bool, text: &str) {
        match self.format {
            LogFormat::Text => self.write_line(to_stderr, text),
            LogFormat::Json => self.write_line(to_stderr, &logs::object(text, None).0),
        }
    }

    fn write_line(&self, to_stderr: bool, text: &str) {
        // A closed pipe (`launch … | head`) must not end the job, so errors of writing are nobody's.
        let write = || {
            let _ = match to_stderr {
                true => writeln!(std::io::stderr().lock(), "{text}"),
                false => writeln!(std::io::stdout().lock(), "{text}"),
            };
        };
        match self.bar().as_ref() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}
