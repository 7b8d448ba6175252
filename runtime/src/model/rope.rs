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
    tables: RefCell<Option<Tables>>,
}

/// Cosines and sines of each position's angles, float32 `[positions, head_dim / 2]` whatever the compute type.
pub(super) struct Tables {
    pub(super) cosines: Tensor,
    pub(super) sines: Tensor,
}

impl Rope {
    pub(super) fn new(rope: &RopeConfig, head_dim: usize, device: Device) -> Result<Self, ModelError> {
        let frequencies = inverse_frequencies(rope, head_dim)?;
        let inverse_frequencies = Tensor::f_from_slice(&frequencies)?.f_to_device(device)?;
        Ok(Rope { inverse_frequencies, tables: RefCell::new(None) })
    }

    /// The tables of positions `begin .. begin + length`.
    pub(super) fn tables(&self, begin: i64, length: i64) -> Result<Tables, ModelError> {
        let needed = begin + length;
        let mut tables = self.tables.borrow_mut();
        let have = tables.as_ref().map_or(0, |tables| tables.cosines.size()[0]);
        if have < needed {
            *tables = None;
            *tables = Some(self.build(needed.max(2 * have).max(FIRST_LENGTH))?);
        }
        match tables.as_ref() {
            Some(all) => Ok(Tables {
                cosines: all.cosines.f_narrow(0, begin, length)?,
                sines: all.sines.f_narrow(0, begin, length)?,
            }),
            None => Err(tch::TchError::Shape("rotary tables are missing".to_owned()).into()),
        }
    }

    /// The tables of documents end to end, whose positions begin anew in each.
    pub(super) fn tables_of(&self, lengths: &[i64]) -> Result<Tables, ModelError> {
        // The longest first, so that the tables grow once.
        self.tables(0, lengths.iter().copied().max().unwrap_or(0))?;
        let each = lengths.iter().map(|&length| self.tables(0, length)).collect::<Result<Vec<_>, _>>()?;
        let (cosines, sines): (Vec<_>, Vec<_>) = each.into_iter().map(|tables| (tables.cosines, tables.sines)).unzip();
        Ok(Tables { cosines: Tensor::f_cat(&cosines, 0)?, sines: Tensor::f_cat(&sines, 0)? })
    }

    fn build(&self, positions: i64) -> Result<Tables, ModelError> {
        let device = self.inverse_frequencies.device();
        let positions = Tensor::f_arange(positions, (Kind::Float, device))?.f_unsqueeze(1)?;
        let angles = positions.f_mul(&self.inverse_frequencies)?;
        Ok(Tables { cosines: angles.f_cos()?, sines: angles.f_sin()? })
    }
}
