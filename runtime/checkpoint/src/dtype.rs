//! The element types that are read and written, and their conversion from and to `f32`.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An element type, named as safetensors files name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// bfloat16.
    BF16,
    /// 16-bit (half) float.
    F16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
        }
    }

    /// The name in safetensors files: `F32`, `BF16`, `F16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::BF16 => "BF16",
            Dtype::F16 => "F16",
        }
    }

    /// The name in a `config.json`: `float32`, `bfloat16`, `float16`.
    pub fn config_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::BF16 => "bfloat16",
            Dtype::F16 => "float16",
        }
    }

    /// The type of that safetensors name; none for the types that are not read here.
    pub fn from_name(name: &str) -> Option<Dtype> {
        [Dtype::F32, Dtype::BF16, Dtype::F16].into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Bits of one element of any type that the format knows; none for an unknown name.
pub(crate) fn bits_of(name: &str) -> Option<u64> {
    Some(match name {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E5M2FNUZ" | "F8_E4M3FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// Elements converted at a time through a buffer on the stack.
const CHUNK: usize = 1024;

/// Replaces the content of `bytes` by the values in that type, rounded to nearest even. Values beyond the range of F16
/// become infinities.
pub fn encode_f32(values: &[f32], dtype: Dtype, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.reserve(values.len() * dtype.size());
    match dtype {
        Dtype::F32 => bytes.extend_from_slice(bytemuck::cast_slice(values)),
        Dtype::BF16 => encode_chunks([bf16::ZERO; CHUNK], values, bytes),
        Dtype::F16 => encode_chunks([f16::ZERO; CHUNK], values, bytes),
    }
}

/// Bytes handed over at a time by [`for_each_encoded_chunk`].
const CHUNK_BYTES: usize = 1 << 20;

/// Hands `visit` the bytes of the values in that type, rounded as by [`encode_f32`], piece by piece with the byte that each begins
/// at. `buffer` is what they are converted in; float32 needs none and comes in one piece.
pub(crate) fn for_each_encoded_chunk<E>(
    values: &[f32],
    dtype: Dtype,
    buffer: &mut Vec<u8>,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    if dtype == Dtype::F32 {
        return visit(0, bytemuck::cast_slice(values));
    }
    let mut begin = 0;
    for chunk in values.chunks(CHUNK_BYTES / dtype.size()) {
        encode_f32(chunk, dtype, buffer);
        visit(begin, buffer)?;
        begin += buffer.len() as u64;
    }
    Ok(())
}

/// The `f32` values of these bytes.
///
/// # Panics
/// If `bytes` are not exactly the bytes of `values.len()` elements.
pub fn decode_f32(bytes: &[u8], dtype: Dtype, values: &mut [f32]) {
    assert_eq!(bytes.len(), values.len() * dtype.size(), "bytes of {} {dtype} elements", values.len());
    match dtype {
        Dtype::F32 => bytemuck::cast_slice_mut(values).copy_from_slice(bytes),
        Dtype::BF16 => decode_chunks([bf16::ZERO; CHUNK], bytes, values),
        Dtype::F16 => decode_chunks([f16::ZERO; CHUNK], bytes, values),
    }
}

fn encode_chunks<T: bytemuck::Pod>(mut buffer: [T; CHUNK], values: &[f32], bytes: &mut Vec<u8>)
where
    [T]: HalfFloatSliceExt,
{
    for chunk in values.chunks(CHUNK) {
        let converted = &mut buffer[..chunk.len()];
        converted.convert_from_f32_slice(chunk);
        bytes.extend_from_slice(bytemuck::cast_slice(converted));
    }
}

fn decode_chunks<T: bytemuck::Pod>(mut buffer: [T; CHUNK], bytes: &[u8], values: &mut [f32])
where
    [T]: HalfFloatSliceExt,
{
    for (source, target) in bytes.chunks(CHUNK * size_of::<T>()).zip(values.chunks_mut(CHUNK)) {
        let stored = &mut buffer[..target.len()];
        bytemuck::cast_slice_mut(stored).copy_from_slice(source);
        stored.convert_to_f32_slice(target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(values: &[f32], dtype: Dtype) -> Vec<f32> {
        let mut bytes = vec![9; 3];
        encode_f32(values, dtype, &mut bytes);
        assert_eq!(bytes.len(), values.len() * dtype.size());
        let mut back = vec![0.0; values.len()];
        decode_f32(&bytes, dtype, &mut back);
        back
    }

    #[test]
    fn f32_is_kept_bit_for_bit() {
        let values = [0.0, -0.0, 1.5, f32::MIN_POSITIVE / 2.0, f32::INFINITY, f32::from_bits(0x7fc0_1234)];
        let back = there_and_back(&values, Dtype::F32);
        assert!(values.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn halves_round_to_nearest_even() {
        // 1 + 2^-8 lies half-way between two bfloat16 values: to the even one below; 1 + 3·2^-8 to the even one above.
        let back = there_and_back(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3.4e38], Dtype::BF16);
        assert_eq!(back, [1.0, 1.0 + 4.0 / 256.0, f32::INFINITY]);
        // The same one step of 2^-11 for half floats; 70000 is beyond their range.
        let back = there_and_back(&[1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 70000.0], Dtype::F16);
        assert_eq!(back, [1.0, 1.0 + 4.0 / 2048.0, f32::INFINITY]);
    }

    #[test]
    fn every_half_comes_back_over_chunk_borders() {
        for dtype in [Dtype::BF16, Dtype::F16] {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let mut values = vec![0.0; bytes.len() / 2];
            decode_f32(&bytes, dtype, &mut values);
            let mut back = Vec::new();
            encode_f32(&values, dtype, &mut back);
            for (index, value) in values.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
                assert_eq!(
                    back[2 * index..2 * index + 2],
                    bytes[2 * index..2 * index + 2],
                    "{dtype} {index:#x} {value}"
                );
            }
        }
    }

    #[test]
    fn names_agree_with_sizes() {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
            assert_eq!(bits_of(dtype.name()), Some(8 * dtype.size() as u64));
            assert_eq!(serde_json::to_value(dtype).unwrap(), dtype.name());
        }
        assert_eq!(Dtype::from_name("I64"), None);
    }
}
