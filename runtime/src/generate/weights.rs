//! A whole model in memory, for generation and comparisons: every unit's leaves and the forward through all of them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};
use zerofold_checkpoint::{STATES, Weights};
use zerofold_configs::UnitPolicy;
use zerofold_plan::{LeafSpec, ModelUnits, Segment, SegmentKind, UnitSpec};

use super::sequence::{Segmented, Visit};
use crate::model::{ModelConfig, Transformer, model_weights};

/// Elements that are read and converted at a time.
const CHUNK: usize = 1 << 22;

/// A model with its weights.
pub struct WholeModel {
    /// The maths.
    pub model: Transformer,
    /// Leaves by unit, as [`ModelUnits`] lists them.
    units: Vec<Vec<Tensor>>,
    segments: Vec<Segment>,
}

impl WholeModel {
    /// Reads a model folder, or its configuration and the masters of the checkpoint in a step's folder; weights are converted to
    /// `kind`, the type to compute in.
    ///
    /// # Errors
    /// An unsupported model, a tensor that is missing or of another shape, unreadable files.
    pub fn load(model_dir: &Path, checkpoint: Option<&Path>, kind: Kind) -> Result<Self> {
        let model = Transformer::new(ModelConfig::read(model_dir)?, kind, Device::Cpu)?;
        let files = match checkpoint {
            Some(step) => Weights::of_checkpoint(step)?,
            None => model_weights(model_dir, &model.config)?,
        };
        let ModelUnits { units, segments } = ModelUnits::new(&model.config, UnitPolicy::Blocks);
        Ok(WholeModel {
            units: units.iter().map(|unit| read_unit(&files, unit, kind)).collect::<Result<_>>()?,
            segments,
            model,
        })
    }

    /// Reads an encoder without its head, which a folder of the bare model does not have, in float32.
    ///
    /// # Errors
    /// As [`WholeModel::load`], and a model that is no encoder.
    pub fn load_encoder(model_dir: &Path) -> Result<Self> {
        let model = Transformer::new(ModelConfig::read(model_dir)?, Kind::Float, Device::Cpu)?;
        ensure!(
            !model.config.causal,
            "{} is no encoder but {}\nhint: `worker logits` compares it",
            model_dir.display(),
            model.config.architecture
        );
        let files = model_weights(model_dir, &model.config)?;
        let ModelUnits { units, mut segments } = ModelUnits::new(&model.config, UnitPolicy::Blocks);
        segments.retain(|segment| segment.kind != SegmentKind::Head);
        let used = segments.iter().map(|segment| segment.unit + 1).max().unwrap_or(0);
        let units = units.iter().take(used).map(|unit| read_unit(&files, unit, Kind::Float)).collect::<Result<_>>()?;
        Ok(WholeModel { model, units, segments })
    }

    /// The logits `[B, T, vocabulary]` of token ids `[B, T]`, in the compute type; of an encoder `[B, labels]`.
    ///
    /// # Errors
    /// Ids outside the vocabulary, and what libtorch says.
    pub fn logits(&self, input_ids: &Tensor) -> Result<Tensor> {
        let x = self.hidden(input_ids, None)?;
        match self.model.config.causal {
            true => self.head(&x),
            false => self.head(&x.f_select(1, 0)?),
        }
    }

    /// What the last block makes of token ids `[B, T]` of these types: `[B, T, H]`.
    ///
    /// # Errors
    /// As [`WholeModel::logits`].
    pub fn hidden(&self, input_ids: &Tensor, types: Option<&Tensor>) -> Result<Tensor> {
        let mut x = self.model.embed(self.embedding(), input_ids, types, None)?;
        for segment in &self.segments {
            if !matches!(segment.kind, SegmentKind::Embedding | SegmentKind::Head) {
                x = self.model.segment(segment.kind, self.leaves(segment), &x, None)?;
            }
        }
        Ok(x)
    }

    fn leaves(&self, segment: &Segment) -> &[Tensor] {
        self.units.get(segment.unit).and_then(|unit| unit.get(segment.leaves.clone())).unwrap_or_default()
    }

    fn embedding(&self) -> &[Tensor] {
        self.segments.first().map(|segment| self.leaves(segment)).unwrap_or_default()
    }

    fn head(&self, x: &Tensor) -> Result<Tensor> {
        let leaves = self.segments.last().map(|segment| self.leaves(segment)).unwrap_or_default();
        Ok(self.model.logits(leaves, x)?)
    }
}

impl Segmented for WholeModel {
    fn transformer(&self) -> &Transformer {
        &self.model
    }

    fn each_segment(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        self.segments.iter().try_for_each(|segment| visit(&self.model, segment.kind, self.leaves(segment)))
    }

    fn any_rank(&self, busy: bool) -> Result<bool> {
        Ok(busy)
    }
}

fn read_unit(files: &Weights, unit: &UnitSpec, kind: Kind) -> Result<Vec<Tensor>> {
    unit.leaves.iter().map(|leaf| read_leaf(files, leaf, kind)).collect()
}

/// One leaf: its parameters read one under the other.
fn read_leaf(files: &Weights, leaf: &LeafSpec, kind: Kind) -> Result<Tensor> {
    let shape: Vec<i64> = leaf.shape().iter().map(|size| *size as i64).collect();
    let flat = Tensor::f_empty([leaf.numel() as i64], (kind, Device::Cpu))?;
    let mut values = vec![0f32; leaf.numel().min(CHUNK)];
    let mut at = 0;
    for parameter in &leaf.parameters {
        let (stored, _) = files.describe(&parameter.name)?;
        ensure!(
            stored.iter().copied().eq(parameter.shape.iter().map(|&size| size as u64)),
            "{}: {} has shape {:?}, but config.json makes it {:?}\nhint: config.json and weights do not belong together",
            files.directory().display(),
            parameter.name,
            stored,
            parameter.shape
        );
        for begin in (0..parameter.numel()).step_by(CHUNK) {
            let end = parameter.numel().min(begin + CHUNK);
            let chunk = &mut values[..end - begin];
            files.read(&parameter.name, STATES[0], begin as u64..end as u64, chunk)?;
            flat.f_narrow(0, (at + begin) as i64, (end - begin) as i64)?
                .f_copy_(&Tensor::f_from_slice(chunk)?)
                .with_context(|| format!("loading {}", parameter.name))?;
        }
        at += parameter.numel();
    }
    Ok(flat.f_view(shape.as_slice())?)
}
