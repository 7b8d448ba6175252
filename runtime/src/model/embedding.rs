//! The embeddings: of tokens, of their types and of positions, added up.

use tch::{Device, Kind, Tensor};
use zerofold_plan::SegmentKind;

use super::{Documents, ModelError, Transformer};

/// The leaves of [`SegmentKind::Embedding`] by name, or whatever there is one of for each of them.
pub struct EmbeddingLeaves<T> {
    /// Of positions, in models that have one.
    pub positions: Option<T>,
    /// Of types of tokens, in models that have one.
    pub types: Option<T>,
    /// Of tokens.
    pub tokens: T,
}

impl Transformer {
    /// The leaves of [`SegmentKind::Embedding`] by name.
    ///
    /// # Errors
    /// The wrong number of leaves.
    pub fn embedding_leaves<T>(&self, leaves: impl IntoIterator<Item = T>) -> Result<EmbeddingLeaves<T>, ModelError> {
        let kind = SegmentKind::Embedding;
        let mut leaves = leaves.into_iter();
        let mut take = |name| leaves.next().ok_or(ModelError::LeafMissing { kind, name });
        let positions = self.config.learned_positions.then(|| take("the embedding of positions")).transpose()?;
        let types = (self.config.token_types > 0).then(|| take("the embedding of types")).transpose()?;
        let tokens = take("the embedding")?;
        match leaves.count() {
            0 => Ok(EmbeddingLeaves { positions, types, tokens }),
            left => Err(ModelError::LeavesLeft { kind, left }),
        }
    }

    /// Embeds token ids `[B, T]` (int64) of these types (likewise, all 0 where there are none), at positions 0 to T - 1, or those of
    /// `documents`: `[B, T, H]`. `leaves` are those of [`SegmentKind::Embedding`]. No graph: [`crate::trainer`] adds its gradient row
    /// by row.
    ///
    /// # Errors
    /// An id or a type that the model does not have, as libtorch says it, types where the model knows none, and what
    /// [`Transformer::segment`] refuses.
    pub fn embed(
        &self,
        leaves: &[Tensor],
        input_ids: &Tensor,
        types: Option<&Tensor>,
        documents: Option<&Documents>,
    ) -> Result<Tensor, ModelError> {
        self.embed_at(leaves, (input_ids, types), |length| self.positions(0, length, documents))
    }

    pub(super) fn embed_at(
        &self,
        leaves: &[Tensor],
        (input_ids, token_types): (&Tensor, Option<&Tensor>),
        positions: impl FnOnce(i64) -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        let leaves = self.embedding_leaves(leaves)?;
        let rows = |table: &Tensor, ids: &Tensor| Tensor::f_embedding(table, ids, -1, false, false);
        let mut embedded = rows(leaves.tokens, input_ids)?;
        if let Some(scale) = self.embedding_scale()? {
            embedded = embedded.f_mul_scalar_(scale)?;
        }
        match (leaves.types, token_types) {
            (Some(table), Some(types)) => embedded = embedded.f_add_(&rows(table, types)?)?,
            (Some(table), None) => embedded = embedded.f_add_(&table.f_narrow(0, 0, 1)?)?,
            (None, Some(_)) => return Err(ModelError::NoTokenTypes(self.config.architecture.clone())),
            (None, None) => {}
        }
        if let Some(table) = leaves.positions {
            embedded = embedded.f_add_(&rows(table, &positions(input_ids.size2()?.1)?)?)?;
        }
        Ok(embedded)
    }

    /// What embeddings are multiplied by, rounded to the compute type as transformers does.
    fn embedding_scale(&self) -> Result<Option<f64>, ModelError> {
        let Some(scale) = self.config.embedding_scale else { return Ok(None) };
        let rounded = Tensor::f_full([0i64; 0], scale, (self.kind, Device::Cpu))?;
        Ok(Some(rounded.f_double_value(&[])?))
    }

    /// The place (int64) of each of `length` tokens of a row `[length]` in the embedding of positions: from `begin` on, or those
    /// of documents.
    ///
    /// # Errors
    /// A position that the model does not have, and what libtorch says.
    pub fn positions(&self, begin: i64, length: i64, documents: Option<&Documents>) -> Result<Tensor, ModelError> {
        let options = (Kind::Int64, self.device);
        let offset = self.config.position_offset as i64;
        if let Some(documents) = documents {
            let each = documents.lengths.iter().map(|&length| Tensor::f_arange_start(offset, offset + length, options));
            return Ok(Tensor::f_cat(&each.collect::<Result<Vec<_>, _>>()?, 0)?);
        }
        self.check_length(begin + length)?;
        Ok(Tensor::f_arange_start(offset + begin, offset + begin + length, options)?)
    }

    /// The gradient `[B, T, H]` of the sum of a token's embeddings as that of the token's own.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn token_gradient(&self, gradient: &Tensor) -> Result<Tensor, ModelError> {
        match self.embedding_scale()? {
            Some(scale) => Ok(gradient.f_mul_scalar(scale)?),
            None => Ok(gradient.shallow_clone()),
        }
    }
}
