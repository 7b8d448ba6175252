//! Processes of this host as others see them: which one it is, and whether it still lives.

use std::fs;
use std::io;

/// A process, told apart from a later one with the same number by when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Its number.
    pub(super) number: u32,
    /// When it began, in the kernel's ticks.
    pub(super) began: u64,
}

impl Process {
    /// This one.
    pub(super) fn own() -> io::Result<Self> {
        let number = std::process::id();
        let (_, began) = status(number).ok_or_else(|| io::Error::other("/proc does not tell of this process"))?;
        Ok(Process { number, began })
    }

    /// False once it ended, also while its parent has not asked for its status.
    pub(super) fn lives(&self) -> bool {
        status(self.number).is_some_and(|(state, began)| began == self.began && !matches!(state, b'Z' | b'X' | b'x'))
    }
}

/// State and beginning of a process.
fn status(number: u32) -> Option<(u8, u64)> {
    let line = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = line.get(line.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // The state is the third field, the beginning the 22nd.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_lives_until_it_ends_even_if_nobody_asks_for_its_status() {
        assert!(Process::own().unwrap().lives());
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (_, began) = status(child.id()).unwrap();
        let process = Process { number: child.id(), began };
        assert!(process.lives());
        assert!(!Process { began: began + 1, ..process }.lives(), "another process with that number");
        child.kill().unwrap();
        // Its output ends when it does.
        std::io::Read::read_to_end(child.stdout.as_mut().unwrap(), &mut Vec::new()).unwrap();
        while process.lives() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!process.lives());
    }
}
