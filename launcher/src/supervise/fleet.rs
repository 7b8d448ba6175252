//! The processes of one membership of the job, wherever they run.

use super::child::Worker;

/// Where a rank runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its process.
    pub pid: u32,
    /// The host that the process is on; empty where the job has one host.
    pub host: String,
}

/// What supervision does to processes. Every rank's end is told by an [`Event::Exited`](crate::event::Event::Exited).
pub trait Fleet {
    /// Where each rank runs, by rank.
    fn places(&self) -> Vec<Place>;

    /// Sends a signal to every process that has not ended.
    fn signal(&self, signal: libc::c_int);

    /// Frees what is left of a process that has ended.
    fn reap(&mut self, rank: u32);

    /// Waits for a process no longer, whatever becomes of it.
    fn leave_behind(&mut self, rank: u32);

    /// The last line that a rank wrote to stderr.
    fn last_line(&self, rank: u32) -> Option<String>;

    /// What the system says a rank's process does, where that alone explains its silence.
    fn state(&self, rank: u32) -> Option<String>;
}

impl Fleet for Vec<Worker> {
    fn places(&self) -> Vec<Place> {
        self.iter().map(|worker| Place { pid: worker.pid(), host: String::new() }).collect()
    }

    fn signal(&self, signal: libc::c_int) {
        self.iter().for_each(|worker| worker.signal(signal));
    }

    fn reap(&mut self, rank: u32) {
        if let Some(worker) = self.get_mut(rank as usize) {
            worker.reap();
        }
    }

    fn leave_behind(&mut self, rank: u32) {
        if let Some(worker) = self.get_mut(rank as usize) {
            worker.leave_behind();
        }
    }

    fn last_line(&self, rank: u32) -> Option<String> {
        self.get(rank as usize)?.last_line()
    }

    fn state(&self, rank: u32) -> Option<String> {
        self.get(rank as usize)?.state().map(str::to_owned)
    }
}
