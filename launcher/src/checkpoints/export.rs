//! The command `export`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zerofold_checkpoint::export::MAX_FILE_BYTES;
use zerofold_checkpoint::{
    CheckpointError, Dtype, ExportPlan, Found, ModelExport, ModelFiles, SideChanges, refuse_existing,
};
use zerofold_configs::{ElementType, Resolved};
use zerofold_data::Tokenizer;
use zerofold_plan::ModelConfig;

use super::card::Card;
use super::parameters::Parameters;
use super::place::Place;
use super::remote::Remote;
use crate::chat_template;
use crate::error::LaunchError;
use crate::format;
use crate::hub::{Extent, ModelName};
use crate::initial_model::{check_digest, configuration};
use crate::model_folder;
use crate::terminal::Terminal;

const GIVE_THE_MODEL: &str =
    "give --model NAME, the model that was trained: its config.json and tokenizer go into the export";

/// The type of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportDtype {
    /// That of the source model's own weights.
    Source,
    /// This one.
    Given(Dtype),
}

impl ExportDtype {
    /// The written forms.
    pub const NAMES: [&str; 4] = ["source", "float32", "bfloat16", "float16"];

    /// Reads the written form.
    pub fn from_name(name: &str) -> Option<Self> {
        let types = [Dtype::F32, Dtype::BF16, Dtype::F16].into_iter();
        match name {
            "source" => Some(ExportDtype::Source),
            _ => types
                .map(ExportDtype::Given)
                .find(|it| matches!(it, ExportDtype::Given(it) if it.config_name() == name)),
        }
    }
}

/// What the command line asks of `export`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// A step's folder, or a run for its newest published step.
    pub checkpoint: PathBuf,
    /// The folder to make.
    pub output: PathBuf,
    /// The type of the weights; without one, what the run itself would export.
    pub dtype: Option<ExportDtype>,
    /// The model that config.json and tokenizer come from, a folder or one of the hub; without one, the run's.
    pub model: Option<PathBuf>,
    /// Of a model of the hub: the branch, tag or commit.
    pub model_revision: Option<String>,
}

/// Writes a Hugging Face model folder out of a checkpoint, whole or not at all.
pub fn export(options: &ExportOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    refuse_existing(&options.output)?;
    let (found, _temporary) = match Remote::of(&options.checkpoint)? {
        Some(remote) => {
            let (found, temporary) = remote.fetch()?;
            (found, Some(temporary))
        }
        None => {
            let step = match Place::of(&options.checkpoint)?.newest()? {
                Place::Step(step) => step,
                Place::Model(folder) | Place::Run(folder, _) => {
                    let message = format!("{} is a model folder already", folder.display());
                    return Err(LaunchError::usage(message, "give a checkpoint: output_dir/checkpoints/step-…"));
                }
            };
            // A flipped bit would otherwise go into the model in silence.
            (zerofold_checkpoint::verify(&step)?, None)
        }
    };
    let (plan, dtype) = write_model(&found, options, terminal)?;
    terminal.result(&format!(
        "model: {} (step {}, {} in {}, {}), read back and found to be the checkpoint's",
        options.output.display(),
        found.manifest.step,
        format::parameters(plan.total_elements),
        dtype.config_name(),
        format::plural(plan.files.len() as u64, "file"),
    ));
    Ok(0)
}

/// Writes the model of a checkpoint, reads it back, and gives it its name; with what files, and in which type.
pub(crate) fn write_model(
    found: &Found,
    options: &ExportOptions,
    terminal: &Terminal,
) -> Result<(ExportPlan, Dtype), LaunchError> {
    let run = configuration(found);
    let source = Source::of(options, run.as_ref(), &found.directory, terminal)?;
    let run_template = run.as_ref().ok().and_then(|run| run.chat_template.as_deref());
    let template = chat_template::digest_of(run_template, &source.folder);
    if let Some(note) = check_digest(&found.manifest, template.clone(), &source.folder)? {
        terminal.complain(&format!("note: {note}"));
    }
    source.check(found)?;
    let dtype = source.dtype(options.dtype, run.as_ref().ok(), found)?;
    let card = Card {
        manifest: &found.manifest,
        model: &source.name,
        dtype,
        run: run.as_ref().ok(),
        exported: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs()),
    };
    let card = card.text();
    let changes = SideChanges {
        chat_template: run_template,
        trained_with: template.as_deref(),
        eos_token: match run.as_ref().ok().and_then(|run| run.training.eos_token.as_deref()) {
            Some(token) => Some((token, Tokenizer::load(&source.folder)?.id_of(token)?)),
            None => None,
        },
    };
    let order =
        ModelExport { found, side_files: &source.folder, changes, dtype, max_file_bytes: MAX_FILE_BYTES, card: &card };
    Ok((order.write(&options.output)?, dtype))
}

/// The folder of the model that a run trained. What was downloaded for it may have been deleted since: the hub has it under the
/// same commit.
fn folder_of(run: &Resolved, extent: Extent, terminal: &Terminal) -> Result<PathBuf, LaunchError> {
    let folder = &run.training.model_name_or_path;
    let is_there = match extent {
        Extent::Whole => ModelFiles::open(folder).is_ok(),
        Extent::Shape | Extent::WithoutWeights => folder.join("tokenizer.json").is_file(),
    };
    match &run.hub_model {
        Some(model) if !is_there => {
            let name = ModelName { name: Path::new(&model.id), revision: Some(&model.commit) };
            Ok(name.find(extent, terminal)?.0)
        }
        _ => Ok(folder.clone()),
    }
}

/// The model that was trained, or another with its configuration.
struct Source {
    folder: PathBuf,
    /// Its name: on the hub, or that of its folder.
    name: String,
}

impl Source {
    fn of(
        options: &ExportOptions,
        run: Result<&Resolved, &LaunchError>,
        step: &Path,
        terminal: &Terminal,
    ) -> Result<Self, LaunchError> {
        let given = options.dtype.map(|dtype| dtype != ExportDtype::Source);
        let has_dtype = given.unwrap_or_else(|| run.is_ok_and(|run| run.training.save_dtype.is_some()));
        let extent = if has_dtype { Extent::WithoutWeights } else { Extent::Whole };
        let (folder, id) = match (&options.model, run) {
            (Some(name), _) => {
                let name = ModelName { name, revision: options.model_revision.as_deref() };
                let (folder, model) = name.find(extent, terminal)?;
                (folder, model.map(|model| model.id))
            }
            (None, Ok(run)) => {
                (folder_of(run, extent, terminal)?, run.hub_model.as_ref().map(|model| model.id.clone()))
            }
            (None, Err(error)) => {
                let reason = error.to_string();
                let reason = reason.lines().next().unwrap_or_default();
                let message = format!("the run of {} does not tell which model it trained: {reason}", step.display());
                return Err(LaunchError::usage(message, GIVE_THE_MODEL));
            }
        };
        let Some(missing) = ["config.json", "tokenizer.json"].iter().find(|name| !folder.join(name).is_file()) else {
            let own = || folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
            let name = id.unwrap_or_else(own);
            return Ok(Source { folder, name });
        };
        let which = if options.model.is_some() { "--model" } else { "the run's model_name_or_path" };
        let message = format!("{which} is {}, and there is no {missing} in it", folder.display());
        Err(LaunchError::usage(message, GIVE_THE_MODEL))
    }

    /// The configuration is that of a model with the checkpoint's parameters in their shapes, and no others.
    fn check(&self, found: &Found) -> Result<(), LaunchError> {
        let parameters = Parameters::of(&ModelConfig::read(&self.folder)?);
        let Some(difference) = parameters.difference(&found.manifest) else { return Ok(()) };
        let (folder, checkpoint) = (self.folder.display(), found.directory.display());
        let message = format!("{folder} is not the model of {checkpoint}: {difference}");
        Err(LaunchError::usage(message, "give --model NAME, the model that was trained"))
    }

    /// The type to write: what is asked for, else the run's save_dtype, else the source's.
    fn dtype(&self, asked: Option<ExportDtype>, run: Option<&Resolved>, found: &Found) -> Result<Dtype, LaunchError> {
        match (asked, run.and_then(|run| run.training.save_dtype)) {
            (Some(ExportDtype::Given(dtype)), _) => Ok(dtype),
            (None, Some(ElementType::Float32)) => Ok(Dtype::F32),
            (None, Some(ElementType::Bfloat16)) => Ok(Dtype::BF16),
            (None, Some(ElementType::Float16)) => Ok(Dtype::F16),
            (Some(ExportDtype::Source), _) | (None, None) => self.own_dtype(found),
        }
    }

    /// The type of the source's own weights, told by the first of them, as at the end of a training job.
    fn own_dtype(&self, found: &Found) -> Result<Dtype, LaunchError> {
        let weights = match model_folder::weights(&self.folder) {
            Err(CheckpointError::NoModel { .. }) => {
                let message = format!("the weights of {} are gone, and with them their type", self.folder.display());
                return Err(LaunchError::usage(message, "name the type: --dtype bfloat16, float16 or float32"));
            }
            other => other?,
        };
        match found.manifest.units.iter().flat_map(|unit| &unit.parameters).next() {
            Some(first) => Ok(weights.entry(&first.name)?.dtype),
            None => Ok(Dtype::F32),
        }
    }
}
