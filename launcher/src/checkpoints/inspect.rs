//! The command `inspect`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use zerofold_checkpoint::{FISHER, Found, ModelFiles, Places, STATES, open_step, publish::step_of};
use zerofold_data::{Cursor, Mixture, Sampling};

use super::place::{Place, is_published};
use super::print_json;
use super::remote::Remote;
use crate::columns;
use crate::error::LaunchError;
use crate::format;
use crate::terminal::Terminal;

/// What the command line asks of `inspect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectOptions {
    /// A checkpoint, a run or a model folder.
    pub path: PathBuf,
    /// List every parameter.
    pub tensors: bool,
    /// Print JSON.
    pub json: bool,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Summary {
    /// `checkpoint` or `model`.
    kind: &'static str,
    path: PathBuf,
    #[serde(flatten)]
    saved: Option<Saved>,
    /// Numbers that the model consists of.
    parameters: u64,
    /// Tensors that they stand in.
    tensor_count: u64,
    /// How the files spell the types of these tensors.
    dtypes: BTreeSet<String>,
    /// Bytes of all files.
    bytes: u64,
    files: Vec<StoredFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Tensor>>,
}

/// What only a checkpoint tells.
#[derive(Debug, Serialize)]
struct Saved {
    format_version: u32,
    step: u64,
    generation: u64,
    ranks: u32,
    stage: u8,
    /// The published steps beside it.
    published_steps: Vec<u64>,
    /// Whether the Fisher information of elastic weight consolidation is in it.
    has_fisher: bool,
    state: serde_json::Value,
    units: Vec<Unit>,
}

#[derive(Debug, Serialize)]
struct Unit {
    name: String,
    parameters: u64,
    tensor_count: u64,
    /// Elements, padding included.
    length: u64,
}

impl Unit {
    fn counts(&self) -> [u64; 3] {
        [self.tensor_count, self.parameters, self.length]
    }

    fn row(&self, name: &str) -> Vec<String> {
        [vec![name.to_owned()], self.counts().map(format::count).to_vec()].concat()
    }
}

#[derive(Debug, Serialize)]
struct StoredFile {
    name: String,
    bytes: u64,
    /// Tensors of the model that lie in it, at least in part.
    tensor_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    dtype: String,
    files: Vec<String>,
}

/// Prints what lies at a path; of a run, at its newest published step.
pub fn inspect(options: &InspectOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let mut summary = match Remote::of(&options.path)? {
        Some(remote) => {
            let published = remote.steps.iter().filter(|stored| stored.is_published());
            of_checkpoint(&remote.found()?, published.map(|stored| stored.step).collect())
        }
        None => match Place::of(&options.path)?.newest()? {
            Place::Step(step) => of_checkpoint(&open_step(&step)?, published_beside(&step)),
            Place::Model(folder) | Place::Run(folder, _) => of_model(&ModelFiles::open(&folder)?),
        },
    };
    if !options.tensors {
        summary.tensors = None;
    }
    match options.json {
        true => print_json(&summary, terminal),
        false => lines(&summary).iter().for_each(|line| terminal.result(line)),
    }
    Ok(0)
}

fn of_checkpoint(found: &Found, published_steps: Vec<u64>) -> Summary {
    let (manifest, places) = (&found.manifest, Places::of(&found.manifest));
    let dtypes: BTreeSet<String> =
        manifest.files.iter().flat_map(|file| &file.tensors).map(|tensor| tensor.dtype.name().to_owned()).collect();
    let dtype = dtypes.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let units = manifest.units.iter().map(|unit| Unit {
        name: unit.name.clone(),
        parameters: unit.elements(),
        tensor_count: unit.parameters.len() as u64,
        length: unit.length,
    });
    let units: Vec<Unit> = units.collect();
    let files = manifest.files.iter().map(|file| StoredFile {
        name: file.name.clone(),
        bytes: file.bytes,
        tensor_count: places.parameters_in_file(file).len() as u64,
        blake3: Some(file.blake3.clone()),
    });
    let all = manifest.units.iter().flat_map(|unit| unit.parameters.iter().map(move |parameter| (unit, parameter)));
    let tensors = all.map(|(unit, parameter)| Tensor {
        name: parameter.name.clone(),
        shape: parameter.shape.clone(),
        dtype: dtype.clone(),
        files: places.files_of(unit, parameter).into_iter().map(str::to_owned).collect(),
    });
    Summary {
        kind: "checkpoint",
        path: found.directory.clone(),
        parameters: manifest.elements(),
        tensor_count: units.iter().map(|unit| unit.tensor_count).sum(),
        bytes: manifest.bytes(),
        files: files.collect(),
        tensors: Some(tensors.collect()),
        saved: Some(Saved {
            format_version: manifest.format_version,
            step: manifest.step,
            generation: manifest.generation,
            ranks: manifest.world_size,
            stage: manifest.stage,
            published_steps,
            has_fisher: manifest.has_fisher(),
            state: manifest.state.clone(),
            units,
        }),
        dtypes,
    }
}

/// The published steps of the folder that a step's folder lies in.
fn published_beside(step: &Path) -> Vec<u64> {
    let Some(parent) = step.parent().filter(|_| step_of(step).is_some()) else { return Vec::new() };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let steps = zerofold_checkpoint::steps(parent).unwrap_or_default();
    steps.into_iter().filter(|(_, directory)| is_published(directory)).map(|(step, _)| step).collect()
}

fn of_model(model: &ModelFiles) -> Summary {
    let file_name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut counts = BTreeMap::<String, u64>::new();
    let tensors: Vec<Tensor> = model
        .tensors()
        .map(|(tensor, file)| {
            let file = file_name(file.path());
            *counts.entry(file.clone()).or_default() += 1;
            let shape = tensor.shape.iter().map(|&size| size as u64).collect();
            Tensor { name: tensor.name.to_owned(), shape, dtype: tensor.dtype.to_owned(), files: vec![file] }
        })
        .collect();
    let files = model.files().iter().map(|file| {
        let name = file_name(file.path());
        StoredFile { tensor_count: counts.get(&name).copied().unwrap_or(0), name, bytes: file.bytes(), blake3: None }
    });
    Summary {
        kind: "model",
        path: model.directory().to_owned(),
        saved: None,
        parameters: tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum(),
        tensor_count: tensors.len() as u64,
        dtypes: tensors.iter().map(|tensor| tensor.dtype.clone()).collect(),
        bytes: model.files().iter().map(|file| file.bytes()).sum(),
        files: files.collect(),
        tensors: Some(tensors),
    }
}

fn lines(summary: &Summary) -> Vec<String> {
    let mut lines = vec![format!("{:<11} {}", summary.kind, summary.path.display())];
    let mut line = |name: &str, words: String| lines.push(format!("{name:<11} {words}"));
    let dtypes = summary.dtypes.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(saved) = &summary.saved {
        let ranks = format::plural(u64::from(saved.ranks), "rank");
        let Saved { step, stage, generation, format_version, .. } = saved;
        line(
            "step",
            format!("{step}, saved by {ranks} at stage {stage}, generation {generation}, format {format_version}"),
        );
        if let Ok(cursor) = serde_json::from_value::<Cursor>(saved.state["data"].clone()) {
            line("data", data_words(&cursor));
        }
        if saved.published_steps.len() > 1 {
            line("steps", saved.published_steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", "));
        }
    }
    let count = format::plural(summary.tensor_count, "tensor");
    line("weights", format!("{} in {count}, {dtypes}", format::parameters(summary.parameters)));
    let states = match &summary.saved {
        Some(saved) if saved.has_fisher => format!(": {}, {FISHER} of each", STATES.join(", ")),
        Some(_) => format!(": {} of each", STATES.join(", ")),
        None => String::new(),
    };
    let files = format::plural(summary.files.len() as u64, "file");
    line("files", format!("{files}, {}{states}", format::bytes(summary.bytes)));
    let mut table = |head: &[&str], rows: Vec<Vec<String>>| {
        let head = head.iter().map(|cell| (*cell).to_owned()).collect();
        lines.push(String::new());
        lines.extend(columns::aligned(&[vec![head], rows].concat()));
    };
    if let Some(saved) = &summary.saved {
        let alike = |one: &Unit, other: &Unit| one.counts() == other.counts();
        let row = |group: &[Unit]| {
            let [first, .., last] = group else { return group.iter().flat_map(|unit| unit.row(&unit.name)).collect() };
            first.row(&format!("{} to {}, each", first.name, last.name))
        };
        table(&["unit", "tensors", "parameters", "with padding"], saved.units.chunk_by(alike).map(row).collect());
    }
    let row = |file: &StoredFile| vec![file.name.clone(), format::count(file.tensor_count), format::bytes(file.bytes)];
    table(&["file", "tensors", "size"], summary.files.iter().map(row).collect());
    if let Some(tensors) = &summary.tensors {
        let row = |tensor: &Tensor| {
            let shape = tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ");
            vec![tensor.name.clone(), shape, tensor.dtype.clone(), tensor.files.join(", ")]
        };
        let head = ["tensor", "shape", "type", "files"].map(str::to_owned).to_vec();
        lines.push(String::new());
        lines.extend(columns::left_aligned(&[vec![head], tensors.iter().map(row).collect()].concat()));
    }
    lines
}

fn data_words(cursor: &Cursor) -> String {
    let order = match cursor.sampling {
        Sampling::Random => format!("random order of seed {}", cursor.row_seed),
        Sampling::Sequential => "the order of the file".to_owned(),
        Sampling::GroupByLength => format!("random order of seed {}, grouped by length", cursor.row_seed),
    };
    let packed = cursor.packing.is_some();
    let of_epoch = cursor.mixture.as_ref().map_or(cursor.rows as u64, Mixture::length);
    let mixture = cursor.mixture.as_ref().map_or(String::new(), |mixture| {
        format!(", mixed {:?} of sources of {:?}", mixture.taken(), mixture.sources())
    });
    format!(
        "epoch {} and {} of {} into it, {} a step (the global batch), {order}{mixture}",
        cursor.epoch,
        format::count(cursor.row),
        format::items(of_epoch, packed),
        format::items(cursor.global_batch, packed),
    )
}
