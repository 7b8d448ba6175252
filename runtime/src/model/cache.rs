//! What a decoder block remembers of the tokens it has seen, for generation.

use tch::Tensor;

use super::ModelError;

/// Positions that a cache has room for at first.
const FIRST_CAPACITY: i64 = 256;

/// One block's keys and values, each `[batch, key_value_heads, capacity, head_dim]` in the compute type. The room doubles
/// when it is full.
#[derive(Debug, Default)]
pub struct LayerCache {
    filled: Option<(Tensor, Tensor)>,
    length: i64,
}

impl LayerCache {
    /// An empty cache.
    pub fn new() -> Self {
        LayerCache::default()
    }

    /// How many positions it holds.
    pub fn length(&self) -> i64 {
        self.length
    }

    /// Forgets all positions from `length` on; longer than it is changes nothing.
    pub fn truncate(&mut self, length: i64) {
        self.length = self.length.min(length.max(0));
    }

    /// Appends keys and values `[batch, key_value_heads, new, head_dim]` and returns views of all that it now holds.
    pub(super) fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
        let new_length = self.length + keys.size4()?.2;
        let (all_keys, all_values) = match self.filled.take() {
            Some((old_keys, old_values)) => {
                (grown(old_keys, self.length, new_length)?, grown(old_values, self.length, new_length)?)
            }
            None => (room_like(keys, new_length)?, room_like(values, new_length)?),
        };
        let added = new_length - self.length;
        all_keys.f_narrow(2, self.length, added)?.f_copy_(keys)?;
        all_values.f_narrow(2, self.length, added)?.f_copy_(values)?;
        let views = (all_keys.f_narrow(2, 0, new_length)?, all_values.f_narrow(2, 0, new_length)?);
        self.filled = Some((all_keys, all_values));
        self.length = new_length;
        Ok(views)
    }
}

/// The same tensor where it has room for `needed` positions, else a larger one with the `used` positions copied.
fn grown(old: Tensor, used: i64, needed: i64) -> Result<Tensor, ModelError> {
    let capacity = old.size4()?.2;
    if capacity >= needed {
        return Ok(old);
    }
    let new = room_like(&old, needed.max(2 * capacity))?;
    new.f_narrow(2, 0, used)?.f_copy_(&old.f_narrow(2, 0, used)?)?;
    Ok(new)
}

/// Room for at least `needed` positions, otherwise shaped like `model`.
fn room_like(model: &Tensor, needed: i64) -> Result<Tensor, ModelError> {
    let (batch, heads, _, head_dim) = model.size4()?;
    let shape = [batch, heads, needed.max(FIRST_CAPACITY), head_dim];
    Ok(Tensor::f_empty(shape, (model.f_kind()?, model.device()))?)
}
