//! Writes a configuration as a file.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use zerofold_configs::{Form, Inputs, compose, outline};

use super::Target;
use crate::error::LaunchError;
use crate::terminal::Terminal;

pub(super) fn write(inputs: &Inputs, form: Form, target: &Target, terminal: &Terminal) -> Result<(), LaunchError> {
    // Another program's file is for other machines too: read as on one that has GPUs, where nothing but this machine says otherwise.
    let elsewhere = Inputs { devices: inputs.devices.max(1), ..inputs.clone() };
    let (outline, inputs) = match form {
        Form::Zerofold => (outline(inputs)?, inputs),
        Form::Accelerate | Form::DeepSpeed => match outline(&elsewhere) {
            Ok(outline) => (outline, &elsewhere),
            // A backend that is for the CPU, say.
            Err(_) => (outline(inputs)?, inputs),
        },
    };
    let composed = compose(&outline, form, inputs)?;
    for note in &outline.resolved.notes {
        terminal.complain(&format!("note: {note}"));
    }
    for left_out in &composed.left_out {
        terminal.complain(&left_out.to_string());
    }
    let Some(path) = &target.output else {
        terminal.result(composed.text.trim_end());
        return Ok(());
    };
    write_file(path, &composed.text, target.force)?;
    terminal.tell(&format!("wrote {}", path.display()));
    Ok(())
}

fn write_file(path: &Path, text: &str, force: bool) -> Result<(), LaunchError> {
    let mut options = OpenOptions::new();
    options.write(true);
    match force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    let shown = path.display();
    match options.open(path).and_then(|mut file| file.write_all(text.as_bytes())) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Err(LaunchError::usage(format!("{shown} is there already"), "name another file, or pass --force"))
        }
        Err(error) => Err(LaunchError::system(format!("write {shown}"))(error)),
    }
}
