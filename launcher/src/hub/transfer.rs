//! Bytes on their way, and how that is told.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::format;
use crate::terminal::Terminal;

/// Where there is no progress line, a line is written as often.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

/// Files that are downloaded or uploaded.
pub(super) struct Transfer<'a> {
    terminal: &'a Terminal,
    verb: &'static str,
    total: u64,
    done: Cell<u64>,
    began: Instant,
    told: Cell<Instant>,
}

impl<'a> Transfer<'a> {
    /// Starts to tell of `total` bytes; `verb` is what becomes of them (`downloaded`).
    pub(super) fn new(terminal: &'a Terminal, verb: &'static str, total: u64) -> Transfer<'a> {
        terminal.start_transfer(total);
        let now = Instant::now();
        Transfer { terminal, verb, total, done: Cell::new(0), began: now, told: Cell::new(now) }
    }

    /// More bytes have gone over, of this file.
    pub(super) fn add(&self, bytes: u64, file: &str) {
        self.done.set(self.done.get() + bytes);
        self.terminal.progress(self.done.get(), file.to_owned());
        if !self.terminal.is_live() && self.told.get().elapsed() >= BETWEEN_LINES {
            self.told.set(Instant::now());
            self.terminal.tell(&self.words());
        }
    }

    /// Bytes have to go over again.
    pub(super) fn take_back(&self, bytes: u64) {
        self.done.set(self.done.get().saturating_sub(bytes));
    }

    /// A line beside the progress.
    pub(super) fn tell(&self, text: &str) {
        self.terminal.tell(text);
    }

    fn words(&self) -> String {
        let (done, total) = (self.done.get(), self.total);
        let left = self.began.elapsed().as_secs_f64() * total.saturating_sub(done) as f64 / done.max(1) as f64;
        let left = Duration::try_from_secs_f64(left).unwrap_or_default();
        format!(
            "{} {} of {}, about {} left",
            self.verb,
            format::bytes(done),
            format::bytes(total),
            format::duration(left)
        )
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.terminal.end_progress();
    }
}
