//! Rotary position embedding: the frequencies, and the tables of cosines and sines.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::{ModelError, RopeConfig, RopeScaling};

/// Positions that the first table covers.
const FIRST_LENGTH: i64 = 512;

/// The inverse frequencies, float32 of shape `[head_dim / 2]`, computed by the same float32 operations as transformers.
///
/// # Errors
/// What libtorch says.
pub fn inverse_frequencies(rope: &RopeConfig, head_dim: usize) -> Result<Vec<f32>, ModelError> {
    let exponents = Tensor::f_arange_start_step(0, head_dim as i64, 2, (Kind::Float, Device::Cpu))?;
    let powers = Tensor::f_pow_scalar(rope.theta, &exponents.f_div_scalar(head_dim as f64)?)?;
    let plain = Vec::<f32>::try_from(&powers.f_reciprocal()?)?;
    Ok(match rope.scaling {
        RopeScaling::Default => plain,
        RopeScaling::Linear { factor } => plain.into_iter().map(|frequency| frequency / factor as f32).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let context = original_max_position_embeddings;
            let (long, short) = ((context / low_freq_factor) as f32, (context / high_freq_factor) as f32);
            let stretch = |frequency: f32| {
                let wavelength = (1.0 / frequency) * std::f32::consts::TAU;
                if wavelength > long {
                    frequency / factor as f32
                } else if wavelength < short {
                    frequency
                } else {
                    let smooth = ((1.0 / wavelength) * context as f32 - low_freq_factor as f32)
                        / (high_freq_factor - low_freq_factor) as f32;
                    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                }
            };
            plain.into_iter().map(stretch).collect()
        }
    })
}

/// The tables of a model, grown on demand.
pub(super) struct Rope {
    inverse_frequencies: Tensor,
    head_dim: i64,
    kind: Kind,
    tables: RefCell<Option<Tables>>,
}

/// Cosines and sines, each `[positions, 1, head_dim]` in the compute type, to broadcast over heads.
///
/// A head is turned by `x * cos + rotate_half(x) * sin`, where `rotate_half` swaps the halves and negates what comes
/// first. Here the negation stands in the sines, so that what is left of `rotate_half` is a roll.
pub(super) struct Tables {
    cos: Tensor,
    signed_sin: Tensor,
}

impl Rope {
    pub(super) fn new(rope: &RopeConfig, head_dim: usize, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let frequencies = inverse_frequencies(rope, head_dim)?;
        let inverse_frequencies = Tensor::f_from_slice(&frequencies)?.f_to_device(device)?;
        Ok(Rope { inverse_frequencies, head_dim: head_dim as i64, kind, tables: RefCell::new(None) })
    }

    /// The tables of positions `begin .. begin + length`.
    pub(super) fn tables(&self, begin: i64, length: i64) -> Result<Tables, ModelError> {
        let needed = begin + length;
        let mut tables = self.tables.borrow_mut();
        let have = tables.as_ref().map_or(0, |tables| tables.cos.size()[0]);
        if have < needed {
            *tables = None;
            *tables = Some(self.build(needed.max(2 * have).max(FIRST_LENGTH))?);
        }
        match tables.as_ref() {
            Some(all) => Ok(Tables {
                cos: all.cos.f_narrow(0, begin, length)?,
                signed_sin: all.signed_sin.f_narrow(0, begin, length)?,
            }),
            None => Err(tch::TchError::Shape("rotary tables are missing".to_owned()).into()),
        }
    }

    fn build(&self, positions: i64) -> Result<Tables, ModelError> {
        let device = self.inverse_frequencies.device();
        let positions = Tensor::f_arange(positions, (Kind::Float, device))?.f_unsqueeze(1)?;
        let angles = positions.f_mul(&self.inverse_frequencies)?;
        let (cos, sin) = (angles.f_cos()?, angles.f_sin()?);
        let cos = Tensor::f_cat(&[&cos, &cos], 1)?;
        let signed_sin = Tensor::f_cat(&[&sin.f_neg()?, &sin], 1)?;
        Ok(Tables {
            cos: cos.f_to_kind(self.kind)?.f_unsqueeze(1)?,
            signed_sin: signed_sin.f_to_kind(self.kind)?.f_unsqueeze(1)?,
        })
    }

    /// Turns heads `[batch, positions, heads, head_dim]` by their positions.
    pub(super) fn turn(&self, heads: &Tensor, tables: &Tables) -> Result<Tensor, ModelError> {
        let swapped = heads.f_roll([self.head_dim / 2], [-1])?;
        let mut turned = heads.f_mul(&tables.cos)?;
        Ok(turned.f_add_(&swapped.f_mul(&tables.signed_sin)?)?)
    }
}
