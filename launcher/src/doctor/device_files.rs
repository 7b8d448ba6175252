//! The files by which programs reach NVIDIA GPUs.

use std::fs::File;
use std::path::Path;

use super::finding::{Finding, Group, Verdict};

/// All checks of this file. `folder` is `/dev`; `version` is what the kernel's module says of itself, empty without one;
/// `severe` is how bad it is when something is missing.
pub(super) fn findings(folder: &Path, version: &str, severe: Verdict) -> Vec<Finding> {
    let names = names(folder);
    let mut findings = vec![module(version, &names, severe)];
    if names.is_empty() {
        return findings;
    }
    for name in &names {
        let path = folder.join(name);
        if let Err(error) = File::options().read(true).write(true).open(&path) {
            findings.push(Finding::new(Group::Libraries, "device files", format!("{}: {error}", path.display())).when(
                true,
                severe,
                "let this user read and write it: `ls -l` shows its group (`usermod -aG video USER` for video), or start \
                 the container with --gpus all",
            ));
        }
    }
    if !names.iter().any(|name| name == "nvidia-uvm") {
        let path = folder.join("nvidia-uvm");
        findings.push(Finding::new(Group::Libraries, "device files", format!("{} is missing", path.display())).when(
            true,
            severe,
            "CUDA cannot start without it: `nvidia-modprobe -u -c=0` as root makes it, or start the container with --gpus all",
        ));
    }
    if findings.len() == 1 {
        findings.push(Finding::new(Group::Libraries, "device files", format!("{} can be opened", names.join(", "))));
    }
    findings
}

/// The files of GPUs, and those two that CUDA opens besides.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| {
        name.strip_prefix("nvidia").is_some_and(|rest| {
            rest == "ctl" || rest == "-uvm" || (!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
        })
    });
    names.sort();
    names
}

fn module(version: &str, names: &[String], severe: Verdict) -> Finding {
    // `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue …`
    let number = version.split_whitespace().find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()));
    let value = match (number, names.is_empty()) {
        (Some(number), false) => format!("NVIDIA {number}"),
        (Some(number), true) => format!("NVIDIA {number}, but no GPU in /dev"),
        (None, false) => "not told by the kernel (/proc/driver/nvidia/version)".to_owned(),
        (None, true) => "no NVIDIA GPU is known to the kernel".to_owned(),
    };
    Finding::new(Group::Libraries, "kernel module", value).when(
        names.is_empty(),
        severe,
        "a job here computes on the CPU; for GPUs install NVIDIA's driver and look at `nvidia-smi`, or start the container \
         with --gpus all",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\n";

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        folder
    }

    #[test]
    fn a_machine_without_gpus_is_no_problem_until_gpus_are_asked_for() {
        let empty = folder(&["null", "nvidia-caps"]);
        let judge = |severe| findings(empty.path(), "", severe).iter().map(|it| it.verdict).collect::<Vec<_>>();
        assert_eq!(judge(Verdict::Note), [Verdict::Note]);
        assert_eq!(judge(Verdict::Problem), [Verdict::Problem]);
    }

    #[test]
    fn files_are_opened_and_missing_ones_named() {
        let whole = folder(&["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"]);
        let found = findings(whole.path(), VERSION, Verdict::Problem);
        let values: Vec<&str> = found.iter().map(|it| it.value.as_str()).collect();
        assert_eq!(values, ["NVIDIA 580.95.05", "nvidia-uvm, nvidia0, nvidia1, nvidiactl can be opened"]);
        assert!(found.iter().all(|it| it.verdict == Verdict::Ok));

        let without = folder(&["nvidia0", "nvidiactl"]);
        let found = findings(without.path(), VERSION, Verdict::Problem);
        assert_eq!(found.last().unwrap().verdict, Verdict::Problem);
        assert!(found.last().unwrap().value.ends_with("nvidia-uvm is missing"), "{found:?}");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_told_with_its_path() {
        // A folder in its place: it cannot be opened for writing, whoever the user is.
        let locked = folder(&["nvidiactl", "nvidia-uvm"]);
        std::fs::create_dir(locked.path().join("nvidia0")).unwrap();
        let found = findings(locked.path(), VERSION, Verdict::Problem);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].value.contains("nvidia0: ") && found[1].verdict == Verdict::Problem, "{found:?}");
    }
}
