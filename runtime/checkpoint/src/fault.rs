//! Points at which tests let something happen to a process, to see that nothing is lost by it and that it is told rightly.
//!
//! `ZEROFOLD_FAULT=WHO@POINT#COUNT/GENERATION=ACTION`: when process WHO (a rank, `launch`, or `all`) reaches POINT for the
//! COUNT-th time (the first, where it is left out) in that membership of the job (any, where it is left out), the [`Action`]
//! happens, as the system, a person or a bug might bring it about at any time. Without the variable nothing happens.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Before a rank begins to write its part.
pub const BEGIN: &str = "begin";
/// Before each piece that a rank writes.
pub const WRITING: &str = "writing";
/// A rank's part is synced to disk, and `launch` does not know yet.
pub const WRITTEN: &str = "written";
/// `launch` has all parts, and no manifest is there.
pub const COLLECTED: &str = "collected";
/// The manifest is there, and nobody was told.
pub const PUBLISHED: &str = "published";
/// A checkpoint that need not stay has lost its manifest, and nothing else.
pub const DELETING: &str = "deleting";
/// Before each piece of a checkpoint that `launch` sends to a store.
pub const UPLOADING: &str = "uploading";
/// All files of a checkpoint are in the store, and its manifest is not.
pub const UPLOADED: &str = "uploaded";
/// A checkpoint in the store that need not stay has lost its manifest, and nothing else.
pub const DELETING_STORED: &str = "deleting-stored";

/// A model's files are written and synced, and not read back yet.
pub const EXPORTED: &str = "exported";

/// Before a rank puts its rows of a step together.
pub const DATA: &str = "data";
/// Before a rank's first collective of a step.
pub const STEP: &str = "step";
/// Before the forward pass of a micro-batch.
pub const FORWARD: &str = "forward";

/// All of them.
pub const POINTS: [&str; 13] = [
    BEGIN,
    WRITING,
    WRITTEN,
    COLLECTED,
    PUBLISHED,
    DELETING,
    UPLOADING,
    UPLOADED,
    DELETING_STORED,
    EXPORTED,
    DATA,
    STEP,
    FORWARD,
];

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// `kill`, `stop`, `segv`: the process gets this signal.
    Signal(libc::c_int),
    /// `exit0`, `exit1`: it ends at once with this code.
    Exit(i32),
    /// `panic`.
    Panic,
    /// `sleep`: the thread never goes on; the others of the process do.
    Sleep,
    /// `spin`: the same, and it keeps a processor busy.
    Spin,
    /// `memory`: it takes memory until the system refuses, which is how the standard library ends a process.
    Memory,
    /// `stray`: it is left to the caller, which does something that nobody else does.
    Stray,
}

impl Action {
    fn named(name: &str) -> Option<Action> {
        Some(match name {
            "kill" => Action::Signal(libc::SIGKILL),
            "stop" => Action::Signal(libc::SIGSTOP),
            "segv" => Action::Signal(libc::SIGSEGV),
            "exit0" => Action::Exit(0),
            "exit1" => Action::Exit(1),
            "panic" => Action::Panic,
            "sleep" => Action::Sleep,
            "spin" => Action::Spin,
            "memory" => Action::Memory,
            "stray" => Action::Stray,
            _ => return None,
        })
    }
}

struct Fault {
    point: String,
    count: u64,
    action: Action,
}

/// This process has reached a point. Returns whether the caller is to go astray.
pub fn reach(point: &str) -> bool {
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);
    let own = || {
        let variable = |name| std::env::var(name).ok();
        let who = variable("RANK").unwrap_or("launch".to_owned());
        read(&variable("ZEROFOLD_FAULT")?, &who, variable("ZEROFOLD_GENERATION").as_deref())
    };
    match FAULT.get_or_init(own) {
        Some(fault) if fault.point == point && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == fault.count => {
            happen(fault.action)
        }
        _ => false,
    }
}

fn happen(action: Action) -> bool {
    match action {
        // SAFETY: all take numbers only. The standard library's own handler would let a SIGSEGV that no instruction caused
        // pass once.
        Action::Signal(signal) => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::kill(libc::getpid(), signal);
        },
        // SAFETY: takes a number only. Nothing is cleaned up, as after a call of `exit` deep inside a library.
        Action::Exit(code) => unsafe { libc::_exit(code) },
        Action::Panic => panic!("a panic was asked for by ZEROFOLD_FAULT"),
        Action::Sleep => loop {
            std::thread::park();
        },
        Action::Spin => loop {
            std::hint::spin_loop();
        },
        Action::Memory => {
            let mut taken: Vec<Vec<u8>> = Vec::new();
            loop {
                taken.push(vec![1; 64 << 20]);
            }
        }
        Action::Stray => return true,
    }
    false
}

/// What `text` asks of the process `who` in this `generation`; nothing where it is not understood.
fn read(text: &str, who: &str, generation: Option<&str>) -> Option<Fault> {
    let (whom, rest) = text.split_once('@')?;
    let (place, action) = rest.split_once('=')?;
    let (place, when) = place.split_once('/').map_or((place, None), |(place, when)| (place, Some(when)));
    let (point, count) = place.split_once('#').unwrap_or((place, "1"));
    let meant = (whom == who || whom == "all" && who != "launch") && (when.is_none() || when == generation);
    let action = Action::named(action)?;
    meant.then_some(Fault { point: point.to_owned(), count: count.parse().ok()?, action })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_for_whom_they_name() {
        let found =
            |text: &str, who: &str| read(text, who, Some("2")).map(|fault| (fault.point, fault.count, fault.action));
        let written = Some(("written".to_owned(), 2, Action::Signal(libc::SIGKILL)));
        assert_eq!(found("1@written#2=kill", "1"), written);
        assert_eq!(found("1@written#2/2=kill", "1"), written);
        assert_eq!(found("1@written#2/1=kill", "1"), None);
        assert_eq!(found("all@written#2=kill", "0"), written);
        assert_eq!(found("all@written#2=kill", "launch"), None);
        let stopped = Some(("published".to_owned(), 1, Action::Signal(libc::SIGSTOP)));
        assert_eq!(found("launch@published=stop", "launch"), stopped);
        for other in ["", "1@written#2=kill", "0@written#x=kill", "0@written=explode", "0@written"] {
            assert_eq!(found(other, "0"), None, "{other}");
        }
    }
}
