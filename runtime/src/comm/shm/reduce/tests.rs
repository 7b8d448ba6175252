//! Sums and conversions against libtorch's, bit by bit.

use super::*;
use tch::{Device, Tensor};

fn all_instructions() -> Vec<Instructions> {
    let mut all = vec![Instructions::Portable];
    #[cfg(target_arch = "x86_64")]
    all.extend([Instructions::Avx2, Instructions::Avx512]);
    all.retain(|instructions| *instructions <= Instructions::best());
    all
}

/// The bits of a 16-bit or 32-bit tensor.
fn bits(tensor: &Tensor) -> Vec<u64> {
    let bytes = tensor.kind().elt_size_in_bytes();
    let mut raw = vec![0u8; tensor.numel() * bytes];
    tensor.copy_data_u8(&mut raw, tensor.numel());
    let bits = |chunk: &[u8]| chunk.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
    raw.chunks(bytes).map(bits).collect()
}

fn of_bits(bits: &[u16], kind: Kind) -> Tensor {
    let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    Tensor::from_data_size(&bytes, &[bits.len() as i64], kind)
}

fn is_nan(bits: u16, kind: Kind) -> bool {
    let infinity = if kind == Kind::Half { 0x7c00 } else { 0x7f80 };
    bits & 0x7fff > infinity
}

#[test]
fn every_16_bit_number_is_widened_as_libtorch_does() {
    for (kind, widen) in [(Kind::Half, half_to_float as fn(u16) -> f32), (Kind::BFloat16, bfloat_to_float)] {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let expected = Vec::<f32>::try_from(of_bits(&all, kind).to_kind(Kind::Float)).unwrap();
        for (&number, expected) in all.iter().zip(expected) {
            let ours = widen(number);
            assert!(ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan(), "{kind:?} {number:#x}");
        }
    }
}

#[test]
fn numbers_are_rounded_as_libtorch_does() {
    // Every upper half of a float32, with lower halves round about every tie.
    let lower = [0u32, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff];
    let floats: Vec<f32> =
        (0..=0xffffu32).flat_map(|upper| lower.map(|lower| f32::from_bits(upper << 16 | lower))).collect();
    for (kind, narrow) in [(Kind::Half, float_to_half as fn(f32) -> u16), (Kind::BFloat16, float_to_bfloat)] {
        let expected = bits(&Tensor::from_slice(&floats).to_kind(kind));
        for (&number, expected) in floats.iter().zip(expected) {
            let (ours, expected) = (narrow(number), expected as u16);
            assert!(ours == expected || is_nan(ours, kind) && is_nan(expected, kind), "{kind:?} {number:e}");
            assert_eq!(is_nan(ours, kind), number.is_nan());
        }
    }
}

#[test]
fn sums_have_libtorchs_bits_with_all_instructions() {
    let kinds = [
        (Kind::Float, Kind::Float),
        (Kind::Double, Kind::Double),
        (Kind::BFloat16, Kind::Float),
        (Kind::BFloat16, Kind::BFloat16),
        (Kind::Half, Kind::Float),
        (Kind::Half, Kind::Half),
    ];
    let _alone = crate::torch::generator_of_this_test(7);
    for ranks in [1, 2, 3, 4, 8] {
        for count in [1, 7, 64, 1023, 1025, 5000] {
            for (part_kind, result_kind) in kinds {
                let part = || (Tensor::randn([count], (Kind::Float, Device::Cpu)) * 100.0).to_kind(part_kind);
                let parts: Vec<Tensor> = (0..ranks).map(|_| part()).collect();
                let mut expected = parts[0].to_kind(result_kind).copy();
                for part in &parts[1..] {
                    expected += part;
                }
                for instructions in all_instructions() {
                    for in_place in (0..ranks).map(Some).chain([None]) {
                        let copies: Vec<Tensor> = parts.iter().map(Tensor::copy).collect();
                        let out = match in_place {
                            Some(_) if part_kind != result_kind => continue,
                            Some(rank) => copies[rank].shallow_clone(),
                            None => Tensor::zeros([count], (result_kind, Device::Cpu)),
                        };
                        let pointers: Vec<*const u8> =
                            copies.iter().map(|part| part.data_ptr().cast_const().cast()).collect();
                        // SAFETY: the tensors are alive, contiguous and as long as said.
                        let known = unsafe {
                            let out = out.data_ptr().cast();
                            sum(instructions, (part_kind, result_kind), &pointers, out, count as usize)
                        };
                        assert!(known);
                        let where_ =
                            format!("{ranks} parts of {count} {part_kind:?} to {result_kind:?}, {instructions:?}");
                        assert!(out.equal(&expected), "{where_}");
                    }
                }
            }
        }
    }
}

#[test]
fn other_types_are_left_to_libtorch() {
    // SAFETY: nothing is read or written for a type that is not known.
    assert!(!unsafe { sum(Instructions::best(), (Kind::Int, Kind::Int), &[], std::ptr::null_mut(), 0) });
}
