//! One micro-batch through the units: forward, loss, backward.

use super::TrainError;
use super::loss::head_loss;
use crate::comm::{Activity, Phase};
use crate::model::Llama;
use crate::shard::Shards;
use crate::torch::autograd_grad;
use tch::{Kind, Tensor};
use zerofold_data::Batch;

/// A micro-batch as tensors.
pub(super) struct MicroBatch {
    /// Token ids `[rows, length]`.
    input_ids: Tensor,
    /// Where, in `[rows × length]`, supervised targets are.
    positions: Tensor,
    /// The supervised targets.
    targets: Tensor,
}

impl MicroBatch {
    pub(super) fn new(batch: &Batch) -> Result<Self, TrainError> {
        let shape = [batch.rows as i64, batch.length as i64];
        let supervised = batch.labels.iter().enumerate().filter(|(_, label)| **label >= 0);
        let (positions, targets): (Vec<i64>, Vec<i64>) = supervised.map(|(at, &label)| (at as i64, label)).unzip();
        Ok(MicroBatch {
            input_ids: Tensor::from_slice(&batch.input_ids).f_view(shape)?,
            positions: Tensor::from_slice(&positions),
            targets: Tensor::from_slice(&targets),
        })
    }
}

/// A unit's input and, unless it is recomputed, its output with the graph between them.
struct Saved {
    input: Tensor,
    output: Option<Tensor>,
}

/// Where the model's parts lie among the units.
struct Parts {
    blocks: std::ops::RangeInclusive<usize>,
    /// The unit of the head and the final norm, which are its leaves 0 and 1: the embedding's when they are tied.
    head: usize,
    tied: bool,
}

impl Parts {
    fn of(shards: &Shards) -> Self {
        let tied = shards.units[0].layout.stays_gathered;
        let last = shards.units.len() - 1;
        if tied { Parts { blocks: 1..=last, head: 0, tied } } else { Parts { blocks: 1..=last - 1, head: last, tied } }
    }
}

/// Runs micro-batches of one model over its shards.
pub(super) struct Pass<'a> {
    pub(super) model: &'a Llama,
    pub(super) shards: &'a mut Shards,
    pub(super) activity: &'a Activity,
    /// Keep only the blocks' inputs and compute them again for backward.
    pub(super) checkpointing: bool,
}

impl Pass<'_> {
    /// The summed loss of a micro-batch; gradients of `loss × scale` go to the shards.
    pub(super) fn forward_backward(&mut self, batch: &Batch, scale: f64) -> Result<f64, TrainError> {
        let batch = MicroBatch::new(batch)?;
        let parts = Parts::of(self.shards);
        self.activity.enter(Phase::Forward);
        let mut hidden = self.embed(&batch, &parts)?;
        let mut saved = Vec::with_capacity(self.shards.units.len());
        for index in parts.blocks.clone() {
            self.shards.gather(index)?;
            let input = hidden.f_detach()?.f_set_requires_grad(true)?;
            let leaves = self.shards.units[index].leaves();
            let output = if self.checkpointing {
                hidden = self.model.block(leaves, &input)?;
                None
            } else {
                let output = tch::with_grad(|| self.model.block(leaves, &input))?;
                hidden = output.f_detach()?;
                Some(output)
            };
            self.shards.release(index)?;
            saved.push(Saved { input, output });
        }
        self.activity.enter(Phase::Backward);
        let (loss, mut gradient) = self.head(&batch, &hidden, &parts, Some(scale))?;
        drop(hidden);
        for index in parts.blocks.clone().rev() {
            let Some(Saved { input, output }) = saved.pop() else { break };
            gradient = self.block_backward(index, &input, output, &gradient)?;
        }
        self.embed_backward(&batch, &gradient, &parts)?;
        Ok(loss)
    }

    /// The summed loss of a micro-batch, without gradients.
    pub(super) fn forward(&mut self, batch: &Batch) -> Result<f64, TrainError> {
        let batch = MicroBatch::new(batch)?;
        let parts = Parts::of(self.shards);
        let mut hidden = self.embed(&batch, &parts)?;
        for index in parts.blocks.clone() {
            self.shards.gather(index)?;
            hidden = self.model.block(self.shards.units[index].leaves(), &hidden)?;
            self.shards.release(index)?;
        }
        Ok(self.head(&batch, &hidden, &parts, None)?.0)
    }

    fn embed(&mut self, batch: &MicroBatch, parts: &Parts) -> Result<Tensor, TrainError> {
        self.shards.gather(0)?;
        let hidden = self.model.embed(&self.shards.units[0].leaves()[0], &batch.input_ids)?;
        if !parts.tied {
            self.shards.release(0)?;
        }
        Ok(hidden)
    }

    /// The final norm, the head and the loss, over supervised positions only. Returns the summed loss and, with a scale,
    /// the gradient of `hidden`.
    fn head(
        &mut self,
        batch: &MicroBatch,
        hidden: &Tensor,
        parts: &Parts,
        scale: Option<f64>,
    ) -> Result<(f64, Tensor), TrainError> {
        let index = parts.head;
        self.shards.gather(index)?;
        let width = *hidden.size().last().unwrap_or(&1);
        let rows =
            hidden.f_view([-1, width])?.f_index_select(0, &batch.positions)?.f_set_requires_grad(scale.is_some())?;
        let leaves = self.shards.units[index].leaves();
        let Some(scale) = scale else {
            let normed = self.model.final_norm(&leaves[1], &rows)?;
            let loss = head_loss(&normed, &leaves[0], &batch.targets, None)?;
            self.shards.release(index)?;
            return Ok((loss.sum, Tensor::new()));
        };
        let normed = tch::with_grad(|| self.model.final_norm(&leaves[1], &rows))?;
        let (head, norm) = (leaves[0].f_detach()?, leaves[1].shallow_clone());
        self.shards.begin_gradient(index)?;
        let head_gradient = self.shards.leaf_gradient(index, 0)?;
        let loss = head_loss(&normed.f_detach()?, &head, &batch.targets, Some((&head_gradient, scale)))?;
        let gradient = Tensor::f_zeros_like(&hidden.f_view([-1, width])?)?;
        if let Some(seed) = &loss.hidden_gradient {
            let mut gradients = autograd_grad(&[&normed], &[seed], &[&rows, &norm])?.into_iter();
            if let Some(Some(rows_gradient)) = gradients.next() {
                let _placed = gradient.shallow_clone().f_index_copy_(0, &batch.positions, &rows_gradient)?;
            }
            if let Some(Some(norm_gradient)) = gradients.next() {
                let _sum = self.shards.leaf_gradient(index, 1)?.f_add_(&norm_gradient)?;
            }
        }
        if !parts.tied {
            self.shards.finish_gradient(index)?;
            self.shards.release(index)?;
        }
        Ok((loss.sum, gradient.f_view(hidden.size().as_slice())?))
    }

    /// Backward through one block: adds the leaves' gradients and returns the input's.
    fn block_backward(
        &mut self,
        index: usize,
        input: &Tensor,
        output: Option<Tensor>,
        seed: &Tensor,
    ) -> Result<Tensor, TrainError> {
        self.shards.gather(index)?;
        let leaves = self.shards.units[index].leaves();
        let output = match output {
            Some(output) => output,
            None => tch::with_grad(|| self.model.block(leaves, input))?,
        };
        let inputs: Vec<&Tensor> = std::iter::once(input).chain(leaves).collect();
        let mut gradients = autograd_grad(&[&output], &[seed], &inputs)?.into_iter();
        drop(output);
        let input_gradient = gradients.next().flatten();
        self.shards.begin_gradient(index)?;
        for (leaf, gradient) in gradients.enumerate() {
            if let Some(gradient) = gradient {
                let _sum = self.shards.leaf_gradient(index, leaf)?.f_add_(&gradient)?;
            }
        }
        self.shards.finish_gradient(index)?;
        self.shards.release(index)?;
        input_gradient.ok_or_else(|| TrainError::NoGradient(self.shards.units[index].layout.name.clone()))
    }

    /// The embedding's gradient: each position's gradient is added to its token's row, in float32.
    fn embed_backward(&mut self, batch: &MicroBatch, gradient: &Tensor, parts: &Parts) -> Result<(), TrainError> {
        if !parts.tied {
            self.shards.begin_gradient(0)?;
        }
        let width = *gradient.size().last().unwrap_or(&1);
        let rows = gradient.f_view([-1, width])?.f_to_kind(Kind::Float)?;
        let ids = batch.input_ids.f_view([-1])?;
        let _sum = self.shards.leaf_gradient(0, 0)?.f_index_add_(0, &ids, &rows)?;
        self.shards.finish_gradient(0)?;
        Ok(())
    }
}
