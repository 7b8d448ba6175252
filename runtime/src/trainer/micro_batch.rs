//! A micro-batch as tensors on the device: what the segments compute with, and what the loss is taken on.

use super::TrainError;
use super::loss::{Targets, Told};
use crate::model::{Documents, Transformer};
use tch::Tensor;
use zerofold_configs::ProblemType;
use zerofold_data::Batch;
use zerofold_plan::Head as ModelHead;

/// A micro-batch as tensors.
pub(super) struct MicroBatch {
    /// Token ids `[rows, length]`.
    pub(super) input_ids: Tensor,
    /// Their types, likewise; none where all are of type 0.
    pub(super) token_types: Option<Tensor>,
    /// Where, in `[rows × length]`, supervised targets are.
    pub(super) positions: Tensor,
    /// The supervised targets.
    pub(super) targets: Targets,
    /// Where the one row holds documents end to end.
    pub(super) documents: Option<Documents>,
}

impl MicroBatch {
    pub(super) fn new(batch: &Batch, model: &Transformer) -> Result<Self, TrainError> {
        let device = model.device();
        let shape = [batch.rows as i64, batch.length as i64];
        let supervised = batch.labels.iter().enumerate().filter(|(_, label)| **label >= 0);
        let (positions, targets): (Vec<i64>, Vec<i64>) = supervised.map(|(at, &label)| (at as i64, label)).unzip();
        Ok(MicroBatch {
            input_ids: Tensor::from_slice(&batch.input_ids).f_view(shape)?.f_to_device(device)?,
            token_types: match batch.token_types.as_slice() {
                types if types.is_empty() || model.config.token_types < 2 => None,
                types => Some(Tensor::from_slice(types).f_view(shape)?.f_to_device(device)?),
            },
            positions: Tensor::from_slice(&positions).f_to_device(device)?,
            targets: Targets {
                ids: Tensor::from_slice(&targets).f_to_device(device)?,
                told: told(batch, targets.len(), model)?,
                sources: batch.sources as i64,
                of_source: match batch.sources {
                    0 | 1 => None,
                    _ => Some(Tensor::from_slice(&sources(batch, &positions)).f_to_device(device)?),
                },
            },
            documents: match batch.documents.as_slice() {
                [] => None,
                lengths => Some(model.documents(lengths)?),
            },
        })
    }

    /// The hidden states `[supervised, H]` at the supervised positions.
    pub(super) fn supervised(&self, hidden: &Tensor) -> Result<Tensor, TrainError> {
        let width = *hidden.size().last().unwrap_or(&1);
        Ok(hidden.f_view([-1, width])?.f_index_select(0, &self.positions)?)
    }
}

/// What is told of so many tokens of a batch.
fn told(batch: &Batch, count: usize, model: &Transformer) -> Result<Told, TrainError> {
    let values = || {
        let shape = [count as i64, model.config.head_rows() as i64];
        Ok::<Tensor, TrainError>(Tensor::from_slice(&batch.values).f_view(shape)?.f_to_device(model.device())?)
    };
    Ok(match model.config.head {
        ModelHead::Language | ModelHead::Classes { problem: ProblemType::SingleLabel, .. } => Told::Class,
        ModelHead::Classes { problem: ProblemType::MultiLabel, .. } => Told::Flags(values()?),
        ModelHead::Classes { problem: ProblemType::Regression, .. } => Told::Numbers(values()?),
    })
}

/// The source of each of these positions, which rise.
fn sources(batch: &Batch, positions: &[i64]) -> Vec<i64> {
    let mut spans = batch.spans().peekable();
    let source = |&position: &i64| {
        while spans.next_if(|(span, _)| span.end <= position as usize).is_some() {}
        spans.peek().map_or(0, |(_, source)| *source as i64)
    };
    positions.iter().map(source).collect()
}
