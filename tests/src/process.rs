//! Processes: started, awaited, found and signalled.

use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use crate::wait_for;

/// A process that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Its rank; `None` for `launch`.
    pub rank: Option<u32>,
}

impl Process {
    /// A line of its `/proc/PID/status` in bytes, such as `VmHWM`, the most memory that it ever had; `None` once it has ended.
    pub fn status_bytes(&self, name: &str) -> Option<u64> {
        let line = self.line("status", name)?;
        Some(line.strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    }

    /// Whether a signal has stopped it.
    pub fn is_stopped(&self) -> bool {
        self.line("status", "State").is_some_and(|state| state.starts_with('T'))
    }

    /// Bytes that it has read by calls to the system so far; `None` once it has ended.
    pub fn bytes_read(&self) -> Option<u64> {
        self.line("io", "rchar")?.parse().ok()
    }

    /// Whether a file of this folder is mapped into its memory, one without a name included.
    pub fn maps(&self, folder: &Path) -> bool {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap_or_default();
        maps.lines().any(|line| line.contains(&format!(" {}/", folder.display())))
    }

    fn line(&self, file: &str, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.pid)).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    }
}

/// The processes in whose environment `marker` is `value`, by pid. Zombies run no more and are not among them.
pub fn processes_of(marker: &str, value: &Path) -> Vec<Process> {
    let wanted = [marker.as_bytes(), b"=", value.as_os_str().as_bytes()].concat();
    let find = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let mut variables = environment.split(|&byte| byte == 0);
        if !variables.clone().any(|variable| variable == wanted) {
            return None;
        }
        let rank = variables.find_map(|variable| variable.strip_prefix(b"RANK="));
        let rank = rank.and_then(|rank| std::str::from_utf8(rank).ok()?.parse().ok());
        Some(Process { pid, rank })
    };
    let entries = std::fs::read_dir("/proc").expect("/proc can be read");
    let mut found: Vec<Process> = entries.filter_map(|entry| find(entry.ok()?)).collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// Sends a signal to one process.
pub fn signal(pid: u32, number: libc::c_int) {
    // SAFETY: kill takes numbers only.
    unsafe { libc::kill(pid as libc::pid_t, number) };
}

/// A started `launch`. Dropped before its end, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    ended: bool,
}

impl Running {
    /// Starts `command`; its output goes to files in `folder`, which never fill up as pipes do.
    pub(crate) fn start(mut command: Command, folder: &Path) -> Running {
        let numbered = |end: &str| {
            let mut paths = (0..).map(|number| folder.join(format!("launch-{number}.{end}")));
            paths.find(|path| !path.exists()).expect("a free name")
        };
        let (out, err) = (numbered("out"), numbered("err"));
        let create = |path: &Path| File::create(path).expect("the scene can be written");
        let child = command.stdout(create(&out)).stderr(create(&err)).spawn().expect("launch can be started");
        Running { child, out, err, ended: false }
    }

    /// The pid of `launch`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to `launch` alone.
    pub fn signal(&self, number: libc::c_int) {
        signal(self.pid(), number);
    }

    /// Looks until `look` finds something.
    ///
    /// # Panics
    /// If `launch` ends before.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        wait_for(what, || {
            let found = look();
            if found.is_none()
                && let Some(status) = self.try_wait()
            {
                panic!("launch ended before {what}\n{}", self.ended(status));
            }
            found
        })
    }

    /// Waits for the end.
    #[track_caller]
    pub fn finish(mut self) -> Ended {
        let status = wait_for("the end of launch", || self.try_wait());
        self.ended(status)
    }

    /// Whether `launch` is no more.
    pub fn has_ended(&mut self) -> bool {
        self.try_wait().is_some()
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("launch is our child");
        self.ended = status.is_some();
        status
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        let text = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        Ended { code: status.code(), signal: status.signal(), out: text(&self.out), err: text(&self.err) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let ended = self.ended(ExitStatus::default());
            eprintln!("launch was killed by its test\n{ended}");
        }
    }
}

/// How `launch` ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ended {
    /// Asserts that it went well.
    #[track_caller]
    pub fn assert_done(&self) {
        assert_eq!(self.code, Some(0), "{self}");
    }

    /// Asserts that it failed with this code and exactly one error, whose report names each of `parts`.
    #[track_caller]
    pub fn assert_failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self}");
        let errors = self.err.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "not one error but {errors}\n{self}");
        let report = self.report();
        for part in parts {
            assert!(report.contains(part), "{part:?} is not in the report\n{self}");
        }
        assert!(!self.err.contains("panicked"), "{self}");
    }

    /// The error and what stands behind it; empty if there is none.
    pub fn report(&self) -> &str {
        match self.err.starts_with("error: ") {
            true => &self.err,
            false => self.err.find("\nerror: ").map_or("", |at| &self.err[at + 1..]),
        }
    }

    /// Asserts that each of `parts` is in its standard error.
    #[track_caller]
    pub fn assert_says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.err.contains(part), "{part:?} was not said\n{self}");
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "code {:?}, signal {:?}", self.code, self.signal)?;
        writeln!(formatter, "--- standard output\n{}\n--- standard error\n{}", self.out, self.err)
    }
}
