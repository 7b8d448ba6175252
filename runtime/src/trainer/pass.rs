//! One micro-batch through the segments: forward, loss, backward.

use super::TrainError;
use super::inspect::Inspection;
use super::loss::{Head, HeadGradients, HeadLoss, head_loss};
use super::micro_batch::MicroBatch;
use super::segments::Segments;
use crate::comm::{Activity, Phase};
use crate::metrics::{Begun, Label, Track};
use crate::model::Transformer;
use crate::shard::Shards;
use crate::torch::{add, add_rows, autograd_grad};
use tch::{Kind, Tensor};
use zerofold_checkpoint::fault;
use zerofold_configs::BackwardPrefetch;
use zerofold_data::Batch;
use zerofold_plan::{Head as ModelHead, SegmentKind};

/// What is called with a segment's kind and its leaves.
pub(super) type Visit<'a, E> = dyn FnMut(&Transformer, SegmentKind, &[Tensor]) -> Result<(), E> + 'a;

/// A segment's input and, unless it is recomputed, its output with the graph between them.
struct Saved {
    input: Tensor,
    output: Option<Tensor>,
}

/// Runs micro-batches of one model over its shards.
pub(super) struct Pass<'a> {
    pub(super) model: &'a Transformer,
    pub(super) segments: &'a Segments,
    pub(super) shards: &'a mut Shards,
    pub(super) activity: &'a Activity,
    /// Keep only the input of every so many segments and compute them again for backward; none keeps everything.
    pub(super) recompute_every: Option<usize>,
    pub(super) backward_prefetch: BackwardPrefetch,
    /// The share of a label's weight that all tokens have evenly.
    pub(super) label_smoothing: f64,
    /// What everything random in this micro-batch follows from; without it nothing is random, as in evaluation.
    pub(super) seed: Option<u64>,
    /// Looks for values that are not finite, instead of reducing gradients.
    pub(super) inspection: Option<&'a mut Inspection>,
}

impl Pass<'_> {
    /// The summed loss and hits of a micro-batch by source, float64 `[2, sources]` on the device; gradients of all losses × `scale` go to
    /// the shards.
    pub(super) fn forward_backward(&mut self, batch: &Batch, scale: f64) -> Result<Tensor, TrainError> {
        let batch = MicroBatch::new(batch, self.model)?;
        let (lowest, last) = (self.segments.lowest, self.segments.all.len() - 1);
        self.enter(Phase::Forward);
        fault::reach(fault::FORWARD);
        let mut hidden = self.embed(&batch)?;
        let mut saved = Vec::with_capacity(last);
        for index in 1..last {
            self.gather_for_forward(index)?;
            let span = self.begin(index, "forward");
            if index < lowest {
                // Nothing from here down is trained: no graph, and nothing is kept.
                hidden = self.segment(index, &batch, &hidden)?;
                self.end(span);
                self.inspect_output(index, &hidden)?;
                self.release_after_forward(index)?;
                continue;
            }
            let input = hidden.f_detach()?.f_set_requires_grad(index > lowest)?;
            let recomputed = self.recompute_every.is_some_and(|every| self.segments.is_every(index, every));
            let output = if recomputed {
                hidden = self.segment(index, &batch, &input)?;
                None
            } else {
                let output = tch::with_grad(|| self.segment(index, &batch, &input))?;
                hidden = output.f_detach()?;
                Some(output)
            };
            self.end(span);
            self.inspect_output(index, &hidden)?;
            self.release_after_forward(index)?;
            saved.push(Saved { input, output });
        }
        self.enter(Phase::Backward);
        let (loss, mut gradient) = self.head(&batch, &hidden, scale)?;
        drop(hidden);
        for index in (lowest.max(1)..last).rev() {
            let (Some(saved), Some(seed)) = (saved.pop(), gradient.take()) else { break };
            gradient = self.segment_backward(index, &batch, saved, seed)?;
        }
        if let Some(gradient) = gradient {
            self.embed_backward(&batch, &gradient)?;
        }
        Ok(loss)
    }

    /// Calls `visit` with the kind and the gathered leaves of each segment, in the order of forward.
    pub(super) fn each_segment<E: From<TrainError>>(&mut self, visit: &mut Visit<'_, E>) -> Result<(), E> {
        for index in 0..self.segments.all.len() {
            self.gather_for_forward(index)?;
            visit(self.model, self.segments.all[index].kind, self.leaves(index))?;
            self.release_after_forward(index)?;
        }
        Ok(())
    }

    /// The summed loss and hits of a micro-batch by source, without gradients, and of a classifier its logits.
    pub(super) fn forward(&mut self, batch: &Batch) -> Result<HeadLoss, TrainError> {
        let batch = MicroBatch::new(batch, self.model)?;
        let last = self.segments.all.len() - 1;
        let mut hidden = self.embed(&batch)?;
        for index in 1..last {
            self.gather_for_forward(index)?;
            let span = self.begin(index, "forward");
            hidden = self.segment(index, &batch, &hidden)?;
            self.end(span);
            self.release_after_forward(index)?;
        }
        self.gather_for_forward(last)?;
        let span = self.begin(last, "forward");
        let rows = batch.supervised(&hidden)?;
        let input = self.model.head_input(self.leaves(last), &rows)?;
        let is_classifier = self.model.config.head != ModelHead::Language;
        let loss = head_loss(&input, &self.head_of(self.leaves(last))?, &batch.targets, None, is_classifier)?;
        self.end(span);
        self.release_after_forward(last)?;
        Ok(loss)
    }

    fn enter(&self, phase: Phase) {
        super::enter(self.activity, self.shards.timeline(), phase);
    }

    /// Begins a span of what is computed of a segment. Nothing is waited for until its end.
    fn begin(&self, index: usize, kind: &'static str) -> Begun {
        let name = || self.segments.all[index].kind.to_string();
        self.shards.timeline().begin(Track::Compute, || Label::of_kind(name(), kind))
    }

    fn end(&self, span: Begun) {
        self.shards.timeline().end(span);
    }

    fn leaves(&self, index: usize) -> &[Tensor] {
        let segment = &self.segments.all[index];
        &self.shards.units[segment.unit].leaves()[segment.leaves.clone()]
    }

    /// A segment's forward; computing it again gives the same.
    fn segment(&self, index: usize, batch: &MicroBatch, input: &Tensor) -> Result<Tensor, TrainError> {
        let (kind, documents) = (self.segments.all[index].kind, batch.documents.as_ref());
        Ok(match self.seed.map(|seed| seed.wrapping_add(index as u64)) {
            Some(seed) => self.model.segment_in_training(kind, self.leaves(index), input, documents, seed)?,
            None => self.model.segment(kind, self.leaves(index), input, documents)?,
        })
    }

    fn gather_for_forward(&mut self, index: usize) -> Result<(), TrainError> {
        let unit = self.segments.all[index].unit;
        self.shards.gather(unit)?;
        if let Some(next) = self.segments.next_unit(index) {
            self.shards.prefetch(next)?;
        }
        if let Some(inspection) = &mut self.inspection {
            inspection.parameters(self.shards, unit)?;
        }
        Ok(())
    }

    fn release_after_forward(&mut self, index: usize) -> Result<(), TrainError> {
        let unit = self.segments.all[index].unit;
        if self.segments.last[unit] == index {
            self.shards.release(unit)?;
        }
        Ok(())
    }

    fn inspect_output(&mut self, index: usize, output: &Tensor) -> Result<(), TrainError> {
        if let Some(inspection) = &mut self.inspection {
            inspection.output(self.segments.all[index].unit, output)?;
        }
        Ok(())
    }

    /// Opens the unit's gradient where its backward begins, if anything of it is trained.
    fn begin_gradient(&mut self, index: usize) -> Result<(), TrainError> {
        let unit = self.segments.all[index].unit;
        if self.segments.last[unit] == index && self.shards.units[unit].is_trained() {
            self.shards.begin_gradient(unit)?;
        }
        Ok(())
    }

    /// Closes the unit's gradient and releases the unit where its backward ends.
    fn finish_gradient(&mut self, index: usize) -> Result<(), TrainError> {
        let unit = self.segments.all[index].unit;
        if self.segments.first[unit] == index {
            match &mut self.inspection {
                _ if !self.shards.units[unit].is_trained() => {}
                Some(inspection) => inspection.gradient(self.shards, unit, &self.segments.backward_order(unit))?,
                None => self.shards.finish_gradient(unit)?,
            }
            self.shards.release(unit)?;
        }
        Ok(())
    }

    fn embed(&mut self, batch: &MicroBatch) -> Result<Tensor, TrainError> {
        self.gather_for_forward(0)?;
        let span = self.begin(0, "forward");
        let (ids, types) = (&batch.input_ids, batch.token_types.as_ref());
        let hidden = self.model.embed(self.leaves(0), ids, types, batch.documents.as_ref())?;
        self.end(span);
        self.inspect_output(0, &hidden)?;
        self.release_after_forward(0)?;
        Ok(hidden)
    }

    /// What stands before the head, the head and the loss, over supervised positions only, forward and backward. Returns the summed
    /// losses by source and the gradient of `hidden`, if something below is trained.
    fn head(
        &mut self,
        batch: &MicroBatch,
        hidden: &Tensor,
        scale: f64,
    ) -> Result<(Tensor, Option<Tensor>), TrainError> {
        let index = self.segments.all.len() - 1;
        self.gather_for_forward(index)?;
        self.prefetch_backward(index, BackwardPrefetch::Pre)?;
        let span = self.begin(index, "forward");
        let is_lowest = self.segments.lowest == index;
        let rows = batch.supervised(hidden)?.f_set_requires_grad(!is_lowest)?;
        let leaves: Vec<Tensor> = self.leaves(index).iter().map(Tensor::shallow_clone).collect();
        let seed = self.seed.map(|seed| seed.wrapping_add(index as u64));
        let input = tch::with_grad(|| match seed {
            Some(seed) => self.model.head_input_in_training(&leaves, &rows, seed),
            None => self.model.head_input(&leaves, &rows),
        })?;
        // The head's own leaves come first; what stands before it has the others.
        let own = self.model.head_leaves();
        let detached: Vec<Tensor> = leaves.iter().take(own).map(Tensor::f_detach).collect::<Result<_, _>>()?;
        self.end(span);
        self.begin_gradient(index)?;
        let gradient_of_own = |leaf: usize| {
            (leaf < own && self.is_trained(index, leaf)).then(|| self.leaf_gradient(index, leaf)).transpose()
        };
        let trained: Vec<usize> = (own..leaves.len()).filter(|&leaf| self.is_trained(index, leaf)).collect();
        // The head's own gradient is made beside the loss.
        let gradients = HeadGradients {
            weight: gradient_of_own(0)?,
            bias: gradient_of_own(1)?,
            hidden: !trained.is_empty() || !is_lowest,
            scale,
        };
        let span = self.begin(index, "loss");
        let loss = head_loss(&input.f_detach()?, &self.head_of(&detached)?, &batch.targets, Some(&gradients), false)?;
        self.end(span);
        let span = self.begin(index, "backward");
        let width = *hidden.size().last().unwrap_or(&1);
        let gradient = (!is_lowest).then(|| Tensor::f_zeros_like(&hidden.f_view([-1, width])?)).transpose()?;
        if let Some(seed) = &loss.hidden_gradient {
            let rows_first = (!is_lowest).then_some(&rows);
            let inputs: Vec<&Tensor> =
                rows_first.into_iter().chain(trained.iter().map(|&leaf| &leaves[leaf])).collect();
            let mut gradients = autograd_grad(&[&input], &[seed], &inputs)?.into_iter();
            if let Some(gradient) = &gradient
                && let Some(Some(of_rows)) = gradients.next()
            {
                let _placed = gradient.shallow_clone().f_index_copy_(0, &batch.positions, &of_rows)?;
            }
            for (leaf, gradient) in trained.into_iter().zip(gradients) {
                if let Some(gradient) = gradient {
                    add(&self.leaf_gradient(index, leaf)?, &gradient)?;
                }
            }
        }
        self.end(span);
        if let Some(inspection) = &mut self.inspection {
            inspection.loss(loss.sums.f_select(0, 0)?.f_sum(Kind::Double)?.f_double_value(&[])?);
        }
        self.prefetch_backward(index, BackwardPrefetch::Post)?;
        self.finish_gradient(index)?;
        let gradient = gradient.map(|gradient| gradient.f_view(hidden.size().as_slice())).transpose()?;
        Ok((loss.sums, gradient))
    }

    /// Whether a leaf of a segment is trained now.
    fn is_trained(&self, index: usize, leaf: usize) -> bool {
        let segment = &self.segments.all[index];
        self.shards.units[segment.unit].leaf_is_trained(segment.leaves.start + leaf)
    }

    fn leaf_gradient(&self, index: usize, leaf: usize) -> Result<Tensor, TrainError> {
        let segment = &self.segments.all[index];
        Ok(self.shards.leaf_gradient(segment.unit, segment.leaves.start + leaf)?)
    }

    /// Gathers ahead for backward, if now is when the policy does it.
    fn prefetch_backward(&mut self, index: usize, now: BackwardPrefetch) -> Result<(), TrainError> {
        if self.backward_prefetch == now
            && let Some(previous) = self.segments.previous_unit(index)
        {
            self.shards.prefetch(previous)?;
        }
        Ok(())
    }

    /// Backward through one segment: adds the leaves' gradients and returns the input's, if something below is trained.
    fn segment_backward(
        &mut self,
        index: usize,
        batch: &MicroBatch,
        Saved { input, output }: Saved,
        seed: Tensor,
    ) -> Result<Option<Tensor>, TrainError> {
        let unit = self.segments.all[index].unit;
        self.shards.gather(unit)?;
        self.prefetch_backward(index, BackwardPrefetch::Pre)?;
        let output = match output {
            Some(output) => output,
            None => {
                let span = self.begin(index, "recompute");
                let output = tch::with_grad(|| self.segment(index, batch, &input))?;
                self.end(span);
                output
            }
        };
        let trained: Vec<usize> = (0..self.leaves(index).len()).filter(|&leaf| self.is_trained(index, leaf)).collect();
        let leaves = trained.iter().map(|&leaf| &self.leaves(index)[leaf]);
        let is_lowest = self.segments.lowest == index;
        let inputs: Vec<&Tensor> = (!is_lowest).then_some(&input).into_iter().chain(leaves).collect();
        let span = self.begin(index, "backward");
        let mut gradients = autograd_grad(&[&output], &[&seed], &inputs)?.into_iter();
        self.end(span);
        drop((output, seed));
        let input_gradient = if is_lowest { None } else { gradients.next().flatten() };
        self.prefetch_backward(index, BackwardPrefetch::Post)?;
        self.begin_gradient(index)?;
        let span = self.begin(index, "accumulate");
        for (leaf, gradient) in trained.into_iter().zip(gradients) {
            if let Some(gradient) = gradient {
                add(&self.leaf_gradient(index, leaf)?, &gradient)?;
            }
        }
        self.end(span);
        self.finish_gradient(index)?;
        if input_gradient.is_none() && !is_lowest {
            return Err(TrainError::NoGradient(self.shards.units[unit].layout.name.clone()));
        }
        Ok(input_gradient)
    }

    /// The embedding's gradient: each position's gradient is added to its token's row, and to those of its position and of its
    /// token's type where these have an embedding of their own.
    fn embed_backward(&mut self, batch: &MicroBatch, gradient: &Tensor) -> Result<(), TrainError> {
        self.begin_gradient(0)?;
        let span = self.begin(0, "backward");
        let (rows, length, width) = gradient.size3()?;
        let leaves = self.model.embedding_leaves(0..self.leaves(0).len())?;
        let (ids, gradient) = (batch.input_ids.f_view([-1])?, gradient.f_view([-1, width])?);
        let add_to = |leaf: usize, ids: &Tensor, gradient: &Tensor| match self.is_trained(0, leaf) {
            false => Ok::<(), TrainError>(()),
            true => Ok(add_rows(&self.leaf_gradient(0, leaf)?, ids, gradient)?),
        };
        add_to(leaves.tokens, &ids, &self.model.token_gradient(&gradient)?)?;
        if let Some(leaf) = leaves.positions {
            let positions = self.model.positions(0, length, batch.documents.as_ref())?.f_repeat([rows])?;
            add_to(leaf, &positions, &gradient)?;
        }
        if let Some(leaf) = leaves.types {
            let types = batch.token_types.as_ref().map_or_else(|| ids.f_zeros_like(), |types| types.f_view([-1]))?;
            add_to(leaf, &types, &gradient)?;
        }
        self.end(span);
        self.finish_gradient(0)
    }

    /// The head, of its segment's leaves, with what the model does to its logits.
    fn head_of<'a>(&self, leaves: &'a [Tensor]) -> Result<Head<'a>, TrainError> {
        let own = self.model.head_leaves();
        Ok(Head {
            weight: self.model.head(leaves)?,
            bias: leaves.get(1).filter(|_| own > 1),
            softcap: self.model.config.logit_softcap,
            smoothing: self.label_smoothing,
        })
    }
}
