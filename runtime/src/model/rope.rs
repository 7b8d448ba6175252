//! Rotary position embedding: the frequencies, and the tables of cosines and sines.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::{ModelError, RopeConfig, RopeScaling};

/// Positions that the first table covers.
const FIRST_LENGTH: i64 = 512;

/// The inverse frequencies, float32 of shape `[R / 2]` for the R elements of a head that turn, computed by the same float32
/// operations as transformers.
///
/// # Errors
/// What libtorch says.
pub fn inverse_frequencies(rope: &RopeConfig, head_dim: usize) -> Result<Vec<f32>, ModelError> {
    let turned = rope.turned(head_dim);
    let exponents = Tensor::f_arange_start_step(0, turned as i64, 2, (Kind::Float, Device::Cpu))?;
    let powers = Tensor::f_pow_scalar(rope.theta, &exponents.f_div_scalar(turned as f64)?)?;
    let plain = Vec::<f32>::try_from(&powers.f_reciprocal()?)?;
    Ok(match &rope.scaling {
        RopeScaling::Default => plain,
        RopeScaling::Long { short_factor, .. } => {
            let powers = Vec::<f32>::try_from(&powers)?;
            short_factor.iter().zip(powers).map(|(&factor, power)| 1.0 / (factor as f32 * power)).collect()
        }
        &RopeScaling::Linear { factor } => plain.into_iter().map(|frequency| frequency / factor as f32).collect(),
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
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
        &RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_position_embeddings, .. } => {
            // The place, among the elements of a head, of the frequency with so many turns in the original context.
            let place = |turns: f64| {
                let turned = turned as f64;
                turned * (original_max_position_embeddings / (turns * std::f64::consts::TAU)).ln()
                    / (2.0 * rope.theta.ln())
            };
            let (low, high) = (place(beta_fast), place(beta_slow));
            let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(turned as f64 - 1.0));
            let high = if low == high { high + 0.001 } else { high };
            let stretch = |(place, power): (usize, f32)| {
                let divided = ((place as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let kept = 1.0 - divided;
                (1.0 / (factor as f32 * power)) * (1.0 - kept) + (1.0 / power) * kept
            };
            Vec::<f32>::try_from(&powers)?.into_iter().enumerate().map(stretch).collect()
        }
    })
}

/// The tables of one rotary embedding, grown on demand.
pub(super) struct Rope {
    inverse_frequencies: Tensor,
    /// What cosines and sines are multiplied by.
    factor: f64,
    tables: RefCell<Option<Tables>>,
}

/// Cosines and sines of each position's angles, float32 `[positions, R / 2]` whatever the compute type.
pub(super) struct Tables {
    pub(super) cosines: Tensor,
    pub(super) sines: Tensor,
}

impl Rope {
    pub(super) fn new(rope: &RopeConfig, head_dim: usize, device: Device) -> Result<Self, ModelError> {
        let frequencies = inverse_frequencies(rope, head_dim)?;
        let inverse_frequencies = Tensor::f_from_slice(&frequencies)?.f_to_device(device)?;
        Ok(Rope { inverse_frequencies, factor: rope.attention_factor(), tables: RefCell::new(None) })
    }

    /// That of a layer which knows no positions: nothing turns.
    pub(super) fn still(device: Device) -> Result<Self, ModelError> {
        let inverse_frequencies = Tensor::f_zeros([0], (Kind::Float, device))?;
        Ok(Rope { inverse_frequencies, factor: 1.0, tables: RefCell::new(None) })
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
        let (cosines, sines) = (angles.f_cos()?, angles.f_sin()?);
        match self.factor == 1.0 {
            true => Ok(Tables { cosines, sines }),
            false => {
                Ok(Tables { cosines: cosines.f_mul_scalar(self.factor)?, sines: sines.f_mul_scalar(self.factor)? })
            }
        }
    }
}
