//! The program that runs as worker, and the environment it gets.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use zerofold_configs::DeviceKind;

use crate::control::Contact;
use crate::environment as env;
use crate::error::LaunchError;

/// The first membership of a job. Each `--resume` in the same run folder is the next one, so that a process of an earlier one,
/// which was stopped and wakes up, writes to no file of a later one.
pub const FIRST_GENERATION: u64 = 1;

/// Finds the worker: `ZEROFOLD_WORKER`, else `worker` beside this executable.
///
/// # Errors
/// There is no such file, or it may not be run.
pub fn find_worker() -> Result<PathBuf, LaunchError> {
    let (path, hint) = match std::env::var_os(env::WORKER) {
        Some(path) => {
            (PathBuf::from(path), format!("{} names the worker; unset it to use the one beside launch", env::WORKER))
        }
        None => {
            let own = std::env::current_exe().map_err(LaunchError::system("find the path of launch itself"))?;
            let hint = format!("build it (scripts/launch does), or name another place by {}", env::WORKER);
            (own.with_file_name("worker"), hint)
        }
    };
    match path.is_file() {
        // With a folder in front it is never looked for on the PATH.
        true => std::path::absolute(&path).map_err(LaunchError::system(format!("find {}", path.display()))),
        false => Err(LaunchError::Worker { message: format!("there is no worker at {}", path.display()), hint }),
    }
}

/// The ranks that one launch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRanks {
    /// The first of them, in the job.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// The first of them, on its host.
    pub local_rank: u32,
    /// Ranks of the host, of all launches there that number their ranks together.
    pub on_host: u32,
    /// Ranks that share the machine's processors, of all launches of the job there.
    pub on_machine: u32,
}

impl LocalRanks {
    /// A job that is all here.
    pub fn all(world_size: u32) -> LocalRanks {
        LocalRanks { first: 0, count: world_size, local_rank: 0, on_host: world_size, on_machine: world_size }
    }

    /// The ranks, in the job.
    pub fn ranks(self) -> std::ops::Range<u32> {
        self.first..self.first + self.count
    }
}

/// What the workers of a job have in common.
pub struct JobEnvironment<'a> {
    /// The program.
    pub worker: &'a Path,
    /// How many ranks.
    pub world_size: u32,
    /// What it computes on.
    pub device: DeviceKind,
    /// The GPUs to use; none for all that can be seen.
    pub gpu_ids: Option<&'a [u32]>,
    /// How the control plane is reached.
    pub control: &'a Contact,
    /// Those of them that run here.
    pub local: LocalRanks,
    /// The address of the interface that collectives use; none for that of the control plane.
    pub interface: Option<&'a str>,
    /// This membership of the job.
    pub generation: u64,
    /// `config.resolved.yaml`; none for an errand that has no configuration.
    pub config: Option<&'a Path>,
    /// The step's folder to resume from.
    pub resume: Option<&'a Path>,
    /// How long `launch` waits for ranks.
    pub timeout: Duration,
}

impl JobEnvironment<'_> {
    /// The command by which one rank does `task`.
    pub fn command(&self, task: &str, rank: u32) -> Command {
        let mut command = Command::new(self.worker);
        let world_size = self.world_size.to_string();
        command
            .arg(task)
            .env(env::RANK, rank.to_string())
            .env(env::LOCAL_RANK, (rank - self.local.first + self.local.local_rank).to_string())
            .env(env::WORLD_SIZE, &world_size)
            .env(env::LOCAL_WORLD_SIZE, self.local.on_host.to_string())
            .env(env::MASTER_ADDR, &self.control.host)
            .env(env::MASTER_PORT, self.control.port.to_string())
            .env(env::CONTROL, self.control.url())
            .env(env::TOKEN, self.control.token.expose())
            .env(env::INTERFACE, self.interface.unwrap_or(&self.control.host))
            .env(env::GENERATION, self.generation.to_string())
            .env(env::TIMEOUT, self.timeout.as_secs().to_string());
        for (name, path) in [(env::CONFIG, self.config), (env::RESUME, self.resume)] {
            match path {
                Some(path) => command.env(name, path),
                None => command.env_remove(name),
            };
        }
        if std::env::var_os(env::OMP_NUM_THREADS).is_none() {
            command.env(env::OMP_NUM_THREADS, threads_per_rank(self.local.on_machine).to_string());
        }
        let mut unless_set = env::KERNEL_CACHES.to_vec();
        if self.device == DeviceKind::Cuda {
            // The older name counts less than the newer, so a user's setting under it would be lost.
            if std::env::var_os(env::CUDA_ALLOCATOR_OLD_NAME).is_none() {
                unless_set.push(env::CUDA_ALLOCATOR);
            }
        }
        for (name, value) in unless_set {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        if let Some(ids) = self.gpu_ids {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            command.env(env::CUDA_VISIBLE_DEVICES, ids.join(","));
        }
        command
    }
}

/// How many ranks share the processors that this process may use: those of all launches on the machine, unless this one was
/// given processors of its own (by `taskset`, a scheduler, a container).
pub(crate) fn sharing(on_host: u32, on_machine: u32) -> u32 {
    let usable = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    // SAFETY: it takes a number, and touches nothing of ours.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    match usize::try_from(online).is_ok_and(|online| usable < online) {
        true => on_host,
        false => on_machine.max(on_host),
    }
}

/// Threads of one rank: what the user said, else the processors this process may use, shared out among the ranks of this
/// host, at least 1.
pub fn threads_per_rank(on_machine: u32) -> usize {
    let said = std::env::var(env::OMP_NUM_THREADS).ok().and_then(|text| text.trim().parse().ok());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    said.unwrap_or((cores / on_machine.max(1) as usize).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_gets_the_environment_that_torchrun_gives() {
        let control = Contact::of(([127, 0, 0, 1], 29500).into(), zerofold_trust::Token::generate().unwrap(), true);
        let job = JobEnvironment {
            worker: Path::new("/bin/worker"),
            world_size: 4,
            device: DeviceKind::Cuda,
            gpu_ids: Some(&[0, 2, 4, 6]),
            control: &control,
            local: LocalRanks { first: 2, count: 2, local_rank: 1, on_host: 3, on_machine: 3 },
            interface: Some("10.0.0.7"),
            generation: 7,
            config: Some(Path::new("run/config.resolved.yaml")),
            resume: None,
            timeout: Duration::from_secs(1800),
        };
        let command = job.command("train", 3);
        let get = |name: &str| {
            let (_, value) = command.get_envs().find(|(key, _)| *key == name).unwrap();
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        let expected = [
            ("RANK", "3"),
            ("LOCAL_RANK", "2"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_WORLD_SIZE", "3"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", "29500"),
            ("ZEROFOLD_CONTROL", "https://127.0.0.1:29500"),
            ("ZEROFOLD_TOKEN", control.token.expose()),
            ("ZEROFOLD_INTERFACE", "10.0.0.7"),
            ("ZEROFOLD_CONFIG", "run/config.resolved.yaml"),
            ("ZEROFOLD_GENERATION", "7"),
            ("ZEROFOLD_TIMEOUT", "1800"),
            ("CUDA_VISIBLE_DEVICES", "0,2,4,6"),
            ("PYTORCH_ALLOC_CONF", "expandable_segments:True"),
        ];
        for (name, value) in expected {
            assert_eq!(get(name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(get("ZEROFOLD_RESUME"), None);
    }
}
