//! The command `verify`.

use std::path::{Path, PathBuf};

use zerofold_checkpoint::{Examined, Fault, examine_checkpoint, examine_model};

use super::place::{Place, is_published};
use super::print_json;
use super::remote::Remote;
use crate::error::{EXIT_FAILED, LaunchError};
use crate::format;
use crate::terminal::Terminal;

/// Names of parameters that stand in a line; JSON has all of them.
const NAMES_SHOWN: usize = 8;

const WHAT_TO_DO: &str = "hint: a file that was copied can be copied again from where it came; a run goes on from a step \
    that is whole with --resume STEP";

/// What the command line asks of `verify`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Checkpoints, runs and model folders.
    pub paths: Vec<PathBuf>,
    /// Print JSON.
    pub json: bool,
}

/// Reads every byte of what lies at the paths, and prints a line for each checkpoint and model folder, with what is wrong
/// below it. Returns the exit code: 1 if anything is wrong.
pub fn verify(options: &VerifyOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let (mut all, mut unfinished) = (Vec::new(), Vec::new());
    let mut tell = |examined: Examined| {
        if !options.json {
            lines(&examined).iter().for_each(|line| terminal.result(line));
        }
        all.push(examined);
    };
    for path in &options.paths {
        match Remote::of(path) {
            Ok(None) => {}
            Ok(Some(remote)) => {
                if !remote.chosen().iter().any(|stored| stored.is_published()) {
                    tell(unusable(path, "it has no published checkpoint".to_owned()));
                }
                for stored in remote.chosen() {
                    let url = PathBuf::from(remote.store.step_url(stored.step));
                    match stored.is_published() {
                        true => tell(remote.examine(stored).unwrap_or_else(|error| unusable(&url, first_line(&error)))),
                        false => unfinished.push(url),
                    }
                }
                continue;
            }
            Err(error) => {
                tell(unusable(path, first_line(&error)));
                continue;
            }
        }
        match Place::of(path) {
            Ok(Place::Step(step)) => tell(examine_checkpoint(&step)),
            Ok(Place::Model(folder)) => tell(examine_model(&folder)),
            Ok(Place::Run(_, steps)) => {
                if !steps.iter().any(|step| is_published(step)) {
                    tell(unusable(path, "it has no published checkpoint".to_owned()));
                }
                for step in steps {
                    // Never published, so never a checkpoint; perhaps it is being written just now.
                    match is_published(&step) {
                        true => tell(examine_checkpoint(&step)),
                        false => unfinished.push(step),
                    }
                }
            }
            Err(error) => tell(unusable(path, first_line(&error))),
        }
    }
    let bad = all.iter().any(|examined| !examined.faults.is_empty());
    if options.json {
        print_json(&all, terminal);
    } else {
        for step in unfinished {
            terminal
                .say(&format!("no checkpoint: {} has no manifest.json, its save was never finished", step.display()));
        }
        if all.iter().flat_map(|examined| &examined.faults).any(|fault| fault.file.is_some()) {
            terminal.complain(WHAT_TO_DO);
        }
    }
    Ok(if bad { EXIT_FAILED } else { 0 })
}

fn first_line(error: &LaunchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn unusable(path: &Path, reason: String) -> Examined {
    let fault = Fault { file: None, reason, parameters: Vec::new() };
    Examined { path: path.to_owned(), faults: vec![fault], ..Examined::default() }
}

/// One line, and one or two for each fault.
fn lines(examined: &Examined) -> Vec<String> {
    let path = examined.path.display();
    let (files, parameters) = (examined.files as u64, examined.parameters as u64);
    let facts = format!("{}, {}", format::plural(files, "file"), format::bytes(examined.bytes));
    if examined.faults.is_empty() {
        return vec![format!("whole    {path}: {facts}, {}", format::plural(parameters, "tensor"))];
    }
    let mut lines = Vec::new();
    match &examined.faults[..] {
        [Fault { file: None, reason, .. }] => lines.push(format!("damaged  {path}: {reason}")),
        faults => {
            lines.push(format!("damaged  {path}: {}", format::plural(faults.len() as u64, "fault")));
            for fault in faults {
                let file = fault.file.as_deref().map(|file| format!("{file}: ")).unwrap_or_default();
                lines.push(format!("         {file}{}", fault.reason));
                if !fault.parameters.is_empty() {
                    lines.push(format!("         affected: {}", names(&fault.parameters)));
                }
            }
        }
    }
    lines
}

fn names(parameters: &[String]) -> String {
    let shown = parameters[..parameters.len().min(NAMES_SHOWN)].join(", ");
    match parameters.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more (--json names all)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_folder_and_the_faults_below() {
        let whole = Examined { path: "a".into(), files: 1, bytes: 17, parameters: 2, faults: Vec::new() };
        assert_eq!(lines(&whole), ["whole    a: 1 file, 17 bytes, 2 tensors"]);
        let fault = |file: Option<&str>, count: usize| Fault {
            file: file.map(str::to_owned),
            reason: "it is missing".to_owned(),
            parameters: (0..count).map(|number| format!("p{number}")).collect(),
        };
        let told = lines(&Examined { faults: vec![fault(None, 0)], ..whole.clone() });
        assert_eq!(told, ["damaged  a: it is missing"]);
        let told = lines(&Examined { faults: vec![fault(Some("f"), 10)], ..whole });
        let expected = [
            "damaged  a: 1 fault",
            "         f: it is missing",
            "         affected: p0, p1, p2, p3, p4, p5, p6, p7 and 2 more (--json names all)",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_no_checkpoint_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let verify = |paths: Vec<PathBuf>| verify(&VerifyOptions { paths, json: false }, &Terminal::silent()).unwrap();
        assert_eq!(verify(vec![folder.path().join("none")]), EXIT_FAILED);
        assert_eq!(verify(vec![folder.path().to_owned()]), EXIT_FAILED);
        std::fs::create_dir_all(folder.path().join("checkpoints/step-00000005")).unwrap();
        assert_eq!(verify(vec![folder.path().to_owned()]), EXIT_FAILED);
        assert_eq!(verify(Vec::new()), 0);
    }
}
