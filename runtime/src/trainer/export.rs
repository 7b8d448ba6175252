//! The trained model as an ordinary Hugging Face folder.

use super::run::Job;
use super::{TrainError, Trainer};
use crate::comm::Phase;
use crate::model::model_files;
use std::path::PathBuf;
use zerofold_checkpoint::{
    Dtype, ExportPlan, ExportWriter, SideChanges, StagingDirectory, TensorEntry, copy_side_files, ensure_room, fault,
};
use zerofold_configs::ElementType;
use zerofold_data::{TemplateSource, Tokenizer};

/// The largest file of an exported model, as Hugging Face's own tools write them.
const MAX_FILE_BYTES: u64 = 5_000_000_000;

impl Trainer {
    /// Writes the model to `output_dir/model`, whole or not at all, in the type of its source unless told otherwise. Rank 0
    /// writes while all ranks gather unit by unit, and reads back what it wrote; nobody holds more than one unit in full.
    pub(super) fn export(&mut self, job: &Job<'_>) -> Result<PathBuf, TrainError> {
        self.enter(Phase::Export);
        let target = job.config.training.output_dir.join("model");
        if job.control.identity().rank != 0 {
            self.shards.for_each_full_master(|_, _| Ok::<(), TrainError>(()))?;
            return Ok(target);
        }
        let source = &job.config.training.model_name_or_path;
        let units = &self.shards.layout().units;
        let dtype = match job.config.training.save_dtype {
            Some(ElementType::Float32) => Dtype::F32,
            Some(ElementType::Bfloat16) => Dtype::BF16,
            Some(ElementType::Float16) => Dtype::F16,
            None => match units.iter().flat_map(|unit| unit.parameters()).next() {
                Some(parameter) => model_files(source, &self.model.config)?.entry(&parameter.name)?.dtype,
                None => Dtype::F32,
            },
        };
        let entries: Vec<TensorEntry> = units
            .iter()
            .flat_map(|unit| unit.parameters())
            .map(|parameter| TensorEntry::new(parameter.name.clone(), dtype, parameter.shape.clone()))
            .collect();
        let plan = ExportPlan::new(&entries, MAX_FILE_BYTES)?;
        ensure_room(&job.config.training.output_dir, plan.total_bytes)?;
        let staging = StagingDirectory::create(&target)?;
        let mut writer = ExportWriter::create(staging.path(), &plan)?;
        self.shards.for_each_full_master(|index, values| {
            for parameter in units[index].parameters() {
                writer.write_f32(&parameter.name, 0, &values[parameter.begin..parameter.end])?;
            }
            Ok::<(), TrainError>(())
        })?;
        let written = writer.finish()?;
        let template = job.config.chat_template.as_deref();
        let trained_with = match template {
            Some(text) => Some(TemplateSource { text: text.to_owned(), place: source.clone() }.digest()),
            None => TemplateSource::of_model(source).ok().map(|source| source.digest()),
        };
        let eos_token = match job.config.training.eos_token.as_deref() {
            Some(token) => Some((token, Tokenizer::load(source)?.id_of(token)?)),
            None => None,
        };
        let changes = SideChanges { chat_template: template, trained_with: trained_with.as_deref(), eos_token };
        copy_side_files(source, staging.path(), dtype, &changes)?;
        fault::reach(fault::EXPORTED);
        written.check()?;
        Ok(staging.commit(true)?)
    }
}
