//! A run folder as it is read for the report.

use std::fs::File;
use std::io::{BufReader, ErrorKind};
use std::path::Path;

use serde_json::Value;

use super::history::History;
use crate::error::LaunchError;
use crate::plan::PlanRecord;
use crate::run_folder::RunFolder;

/// More of a configuration or a plan is not read.
const MOST_BYTES: u64 = 16 << 20;

/// Everything that is drawn of a run.
pub(super) struct Run {
    /// What it is called on the page: the end of its path, as much of it as tells it from the others.
    pub(super) name: String,
    pub(super) path: String,
    pub(super) history: History,
    /// `plan.json`, where it can be read.
    pub(super) plan: Option<PlanRecord>,
    /// `config.resolved.yaml` as it stands there.
    pub(super) configuration: Option<String>,
    /// The same, to look things up in.
    pub(super) values: Value,
}

impl Run {
    /// Reads a folder, which must be one of a run.
    pub(super) fn read(path: &Path) -> Result<Run, LaunchError> {
        let folder = RunFolder::new(path);
        let refused = |message: String, hint: &str| LaunchError::RunFolder {
            path: path.to_owned(),
            message,
            hint: hint.to_owned(),
        };
        if !path.is_dir() {
            return Err(refused("there is no such folder".to_owned(), "give the output_dir of a run"));
        }
        let metrics = folder.metrics();
        let history = match File::open(&metrics) {
            Err(error) if error.kind() == ErrorKind::NotFound && !folder.config().exists() => {
                let hint = "give the output_dir of a run, which has config.resolved.yaml and metrics.jsonl";
                return Err(refused("it is no run".to_owned(), hint));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(History::default()),
            other => other.and_then(|file| History::read(BufReader::new(file))),
        };
        let history = history.map_err(LaunchError::system(format!("read {}", metrics.display())))?;
        let configuration = text(&folder.config())?;
        let values = configuration.as_deref().and_then(|text| serde_yaml::from_str(text).ok()).unwrap_or_default();
        let plan = text(&folder.plan())?.and_then(|text| serde_json::from_str(&text).ok());
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string();
        Ok(Run { name: path.clone(), path, history, plan, configuration, values })
    }

    /// A value of its configuration, such as `training.learning_rate`.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.values, |value, name| value.get(name)).filter(|value| !value.is_null())
    }

    /// The same in words; empty where there is none.
    pub(super) fn words(&self, key: &str) -> String {
        self.value(key).map(words).unwrap_or_default()
    }
}

/// A value as it would be written.
pub(super) fn words(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Calls each run by the end of its path, as long as it must be to be told from the others.
pub(super) fn name(runs: &mut [Run]) {
    let ends = |path: &str, parts: usize| {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        names[names.len().saturating_sub(parts)..].join("/")
    };
    let paths: Vec<String> = runs.iter().map(|run| run.path.clone()).collect();
    let longest = paths.iter().map(|path| path.split('/').count()).max().unwrap_or(1);
    for (index, run) in runs.iter_mut().enumerate() {
        let alone = |parts: &usize| {
            let mine = ends(&paths[index], *parts);
            paths.iter().enumerate().all(|(other, path)| other == index || ends(path, *parts) != mine)
        };
        run.name = (1..=longest).find(alone).map_or_else(|| run.path.clone(), |parts| ends(&paths[index], parts));
    }
}

/// A file of bounded length; none where there is no such file.
fn text(path: &Path) -> Result<Option<String>, LaunchError> {
    use std::io::Read;
    let read = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    });
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(LaunchError::system(format!("read {}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_called_by_what_tells_them_apart() {
        let run = |path: &str| Run {
            name: String::new(),
            path: path.to_owned(),
            history: History::default(),
            plan: None,
            configuration: None,
            values: Value::Null,
        };
        let mut runs = [run("/a/runs/first"), run("/a/runs/second"), run("/b/runs/first")];
        name(&mut runs);
        assert_eq!(runs.map(|run| run.name), ["a/runs/first", "second", "b/runs/first"]);
        let mut one = [run("/a/runs/first")];
        name(&mut one);
        assert_eq!(one[0].name, "first");
        let mut same = [run("/a/first"), run("/a/first")];
        name(&mut same);
        assert_eq!(same[0].name, "/a/first");
    }

    #[test]
    fn what_is_no_run_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = |path: &Path| Run::read(path).err().unwrap().to_string();
        assert!(told(&folder.path().join("none")).contains("there is no such folder\nhint: "));
        assert!(told(folder.path()).contains("it is no run\nhint: "));
        std::fs::write(folder.path().join("config.resolved.yaml"), "training:\n  seed: 7\n  dataset: a\n").unwrap();
        let run = Run::read(folder.path()).unwrap();
        assert_eq!((run.words("training.seed"), run.words("training.dataset")), ("7".to_owned(), "a".to_owned()));
        assert_eq!((run.words("nothing.here"), run.history), (String::new(), History::default()));
    }
}
