//! A whole model in memory, for generation: every unit's leaves and the forward through all of them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};
use zerofold_checkpoint::{STATES, Weights};
use zerofold_configs::UnitPolicy;
use zerofold_plan::{LeafSpec, ModelUnits, SegmentKind};

use crate::model::{HeadWeights, LayerCache, ModelConfig, Transformer, model_weights};

/// Elements that are read and converted at a time.
const CHUNK: usize = 1 << 22;

/// A model with its weights.
pub struct WholeModel {
    /// The maths.
    pub model: Transformer,
    /// Leaves by unit, as [`ModelUnits`] lists them.
    units: Vec<Vec<Tensor>>,
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
        let read_unit = |leaves: &[LeafSpec]| leaves.iter().map(|leaf| read_leaf(&files, leaf, kind)).collect();
        let units = ModelUnits::new(&model.config, UnitPolicy::Blocks).units;
        let units = units.iter().map(|unit| read_unit(&unit.leaves)).collect::<Result<_>>()?;
        Ok(WholeModel { model, units })
    }

    /// Empty caches, one per decoder block.
    pub fn empty_caches(&self) -> Vec<LayerCache> {
        self.blocks().iter().map(|_| LayerCache::new()).collect()
    }

    /// The logits `[B, T, vocabulary]` of token ids `[B, T]`, in the compute type.
    ///
    /// # Errors
    /// Ids outside the vocabulary, and what libtorch says.
    pub fn logits(&self, input_ids: &Tensor) -> Result<Tensor> {
        let mut x = self.model.embed(self.embedding(), input_ids, None)?;
        for (layer, leaves) in self.blocks().iter().enumerate() {
            x = self.model.segment(SegmentKind::Block(layer), leaves, &x, None)?;
        }
        self.head(&x)
    }

    /// The logits after the last of `ids`, which follow what the caches hold; one float32 per token of the vocabulary.
    ///
    /// # Errors
    /// No ids, ids outside the vocabulary, and what libtorch says.
    pub fn next_logits(&self, ids: &[u32], caches: &mut [LayerCache]) -> Result<Vec<f32>> {
        ensure!(!ids.is_empty(), "there is no token to go on from\nhint: give a prompt that is not empty");
        let vocab_size = self.model.config.vocab_size;
        if let Some(outside) = ids.iter().find(|id| **id as usize >= vocab_size) {
            anyhow::bail!(
                "token id {outside} is outside the model's vocabulary of {vocab_size}\nhint: tokenizer and model do not belong together"
            );
        }
        let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let input_ids = Tensor::f_from_slice(&ids)?.f_unsqueeze(0)?;
        let begin = caches.first().map_or(0, LayerCache::length);
        let mut x = self.model.embed_from(self.embedding(), &input_ids, begin)?;
        for (layer, (leaves, cache)) in self.blocks().iter().zip(caches).enumerate() {
            x = self.model.block_cached(layer, leaves, &x, cache)?;
        }
        let last = x.f_narrow(1, ids.len() as i64 - 1, 1)?;
        let logits = self.head(&last)?.f_to_kind(Kind::Float)?.f_view(-1)?;
        Ok(Vec::<f32>::try_from(&logits)?)
    }

    fn blocks(&self) -> &[Vec<Tensor>] {
        &self.units[1..=self.model.config.num_hidden_layers]
    }

    /// The embeddings. Where the head is tied to that of tokens, the final norm's weights follow it.
    fn embedding(&self) -> &[Tensor] {
        &self.units[0][..1 + usize::from(self.model.config.learned_positions)]
    }

    fn head(&self, x: &Tensor) -> Result<Tensor> {
        let leaves = match self.model.config.ties_head() {
            true => &self.units[0][self.embedding().len() - 1..],
            false => self.units.last().map(Vec::as_slice).unwrap_or_default(),
        };
        Ok(self.model.logits(&HeadWeights::of(leaves)?, x)?)
    }
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
