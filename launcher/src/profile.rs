//! The timeline of a run: what its ranks wrote, put together in one file for a viewer.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::PathBuf;

use zerofold_configs::{ProfileSteps, Resolved};

use crate::error::LaunchError;
use crate::run_folder::RunFolder;

/// A warning about steps that this run will not take: it goes on after `done` and ends with `total`.
pub fn out_of_reach(steps: ProfileSteps, done: u64, total: u64) -> Option<String> {
    let (first, last) = (steps.first(), steps.last());
    let problem = if first > total {
        format!("the run ends with step {total}, so there will be no timeline")
    } else if last <= done {
        format!("the run goes on after step {done}, so there will be no timeline")
    } else if last > total {
        format!("the run ends with step {total}, so the timeline will too")
    } else if first <= done {
        format!("the run goes on after step {done}, so the timeline will begin later")
    } else {
        return None;
    };
    Some(format!("warning: profile is {steps}, but {problem}"))
}

/// Puts the parts of all ranks together in `profile.json`, and removes them. None when there are none.
pub fn put_together(config: &Resolved, run: &RunFolder) -> Result<Option<PathBuf>, LaunchError> {
    let parts = (0..config.num_processes).map(|rank| config.profile_part(rank)).filter(|part| part.exists());
    let parts: Vec<PathBuf> = parts.collect();
    if parts.is_empty() {
        return Ok(None);
    }
    let whole = run.profile();
    merge(&parts, &whole).map_err(LaunchError::system(format!("write {}", whole.display())))?;
    for part in &parts {
        std::fs::remove_file(part).map_err(LaunchError::system(format!("remove {}", part.display())))?;
    }
    Ok(Some(whole))
}

/// A part has one event a line, each with a comma behind it; what does not end with one was cut off.
fn merge(parts: &[PathBuf], whole: &std::path::Path) -> io::Result<()> {
    let partial = whole.with_extension("json.partial");
    let mut file = BufWriter::new(File::create(&partial)?);
    file.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    let mut separator = "\n";
    for part in parts {
        for line in BufReader::new(File::open(part)?).lines() {
            if let Some(event) = line?.strip_suffix(',') {
                write!(file, "{separator}{event}")?;
                separator = ",\n";
            }
        }
    }
    file.write_all(b"\n]}\n")?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&partial, whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_will_not_be_taken_are_told() {
        let steps = ProfileSteps::parse("5..8").unwrap();
        assert_eq!(out_of_reach(steps, 0, 8), None);
        assert_eq!(out_of_reach(steps, 4, 100), None);
        let cases = [
            ((0, 4), "ends with step 4, so there will be no timeline"),
            ((8, 20), "goes on after step 8, so there will be no timeline"),
            ((0, 6), "ends with step 6, so the timeline will too"),
            ((5, 20), "goes on after step 5, so the timeline will begin later"),
        ];
        for ((done, total), words) in cases {
            let warning = out_of_reach(steps, done, total).unwrap();
            assert!(warning.starts_with("warning: profile is 5..8, but ") && warning.contains(words), "{warning}");
        }
    }

    #[test]
    fn parts_become_one_file_of_json() {
        let folder = tempfile::tempdir().unwrap();
        let part = |rank: u32, text: &str| {
            let path = folder.path().join(format!("profile-rank-{rank}.json"));
            std::fs::write(&path, text).unwrap();
            path
        };
        let parts = [part(0, "[\n{\"pid\":0},\n{\"pid\":0},\n"), part(1, "[\n{\"pid\":1},\n{\"pid\":1,\"na")];
        let whole = folder.path().join("profile.json");
        merge(&parts, &whole).unwrap();
        let merged: serde_json::Value = serde_json::from_slice(&std::fs::read(&whole).unwrap()).unwrap();
        assert_eq!(merged["traceEvents"], serde_json::json!([{"pid": 0}, {"pid": 0}, {"pid": 1}]));
        assert!(!folder.path().join("profile.json.partial").exists());
    }
}
