//! Sums over the parts of all ranks, in rank order and one pass over memory.
//!
//! The bits are those of libtorch's own additions, part by part: 16-bit parts that are summed in 16 bits are rounded after
//! each addition. Loops are plain and compiled for several sets of instructions, of which the best is taken.

use super::spread::{Address, spread};
use tch::Kind;

/// Elements that are summed at a time: few enough to stay in the processor's own memory.
const BLOCK: usize = 1024;

/// How one pair of types is summed.
trait Sum {
    type Part: Copy;
    type Total: Copy + Default;
    type Result: Copy + Default;
    fn first(part: Self::Part) -> Self::Total;
    fn add(total: Self::Total, part: Self::Part) -> Self::Total;
    fn result(total: Self::Total) -> Self::Result;
}

macro_rules! sum_of_floats {
    ($name:ident, $float:ty) => {
        struct $name;

        impl Sum for $name {
            type Part = $float;
            type Total = $float;
            type Result = $float;

            #[inline(always)]
            fn first(part: $float) -> $float {
                part
            }

            #[inline(always)]
            fn add(total: $float, part: $float) -> $float {
                total + part
            }

            #[inline(always)]
            fn result(total: $float) -> $float {
                total
            }
        }
    };
}

macro_rules! sums_of_halves {
    ($widening:ident, $rounding:ident, $widen:ident, $narrow:ident) => {
        /// Summed in float32.
        struct $widening;

        impl Sum for $widening {
            type Part = u16;
            type Total = f32;
            type Result = f32;

            #[inline(always)]
            fn first(part: u16) -> f32 {
                $widen(part)
            }

            #[inline(always)]
            fn add(total: f32, part: u16) -> f32 {
                total + $widen(part)
            }

            #[inline(always)]
            fn result(total: f32) -> f32 {
                total
            }
        }

        /// Rounded after each addition.
        struct $rounding;

        impl Sum for $rounding {
            type Part = u16;
            type Total = u16;
            type Result = u16;

            #[inline(always)]
            fn first(part: u16) -> u16 {
                part
            }

            #[inline(always)]
            fn add(total: u16, part: u16) -> u16 {
                $narrow($widen(total) + $widen(part))
            }

            #[inline(always)]
            fn result(total: u16) -> u16 {
                total
            }
        }
    };
}

sum_of_floats!(Float, f32);
sum_of_floats!(Double, f64);
sums_of_halves!(BfloatToFloat, Bfloat, bfloat_to_float, float_to_bfloat);
sums_of_halves!(HalfToFloat, Half, half_to_float, float_to_half);

#[inline(always)]
fn bfloat_to_float(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// To the nearest, ties to even.
#[inline(always)]
fn float_to_bfloat(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // Rounding could carry a NaN into an infinity.
    let chosen = if bits & 0x7fff_ffff > 0x7f80_0000 { bits | 0x0040_0000 } else { rounded };
    (chosen >> 16) as u16
}

#[inline(always)]
fn half_to_float(bits: u16) -> f32 {
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    // The exponents' zeros are 112 apart; the product also makes normal numbers of subnormal ones.
    let finite = (f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = 0x7f80_0000 | (rest << 13);
    f32::from_bits(sign | if rest >= 0x7c00 { special } else { finite })
}

/// To the nearest, ties to even.
#[inline(always)]
fn float_to_half(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, rest) = ((bits >> 16) & 0x8000, bits & 0x7fff_ffff);
    // Subnormal results: an addition rounds where the last bit of a half is.
    const ROUNDER: u32 = (127 - 15 + 23 - 10 + 1) << 23;
    let subnormal = (f32::from_bits(rest) + f32::from_bits(ROUNDER)).to_bits().wrapping_sub(ROUNDER);
    let odd = (rest >> 13) & 1;
    let normal = rest.wrapping_add(0x0fff + odd).wrapping_sub(112 << 23) >> 13;
    let special = if rest > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let finite = if rest < 113 << 23 { subnormal } else { normal };
    (sign | if rest >= 143 << 23 { special } else { finite }) as u16
}

/// Writes the sum of `parts` to `out`.
///
/// # Safety
/// Each part has `count` elements, and so has `out`, which may be one of the parts; no other overlap.
#[inline(always)]
unsafe fn sum_blocks<S: Sum>(parts: &[*const S::Part], out: *mut S::Result, count: usize) {
    let Some((&first, rest)) = parts.split_first() else { return };
    let mut total = [S::Total::default(); BLOCK];
    let mut result = [S::Result::default(); BLOCK];
    let mut begin = 0;
    while begin < count {
        let length = BLOCK.min(count - begin);
        // SAFETY: the block lies inside each part, and nothing is written to it before the slice is gone.
        let block = |part: *const S::Part| unsafe { std::slice::from_raw_parts(part.add(begin), length) };
        let total = &mut total[..length];
        match rest.split_first() {
            Some((&second, more)) => {
                for ((total, &one), &two) in total.iter_mut().zip(block(first)).zip(block(second)) {
                    *total = S::add(S::first(one), two);
                }
                for &part in more {
                    for (total, &value) in total.iter_mut().zip(block(part)) {
                        *total = S::add(*total, value);
                    }
                }
            }
            None => {
                for (total, &one) in total.iter_mut().zip(block(first)) {
                    *total = S::first(one);
                }
            }
        }
        for (result, &total) in result[..length].iter_mut().zip(total.iter()) {
            *result = S::result(total);
        }
        // SAFETY: the block lies inside `out`, and `result` is apart from everything.
        unsafe { std::ptr::copy_nonoverlapping(result.as_ptr(), out.add(begin), length) };
        begin += length;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_avx2<S: Sum>(parts: &[*const S::Part], out: *mut S::Result, count: usize) {
    // SAFETY: passed on to the caller.
    unsafe { sum_blocks::<S>(parts, out, count) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn sum_avx512<S: Sum>(parts: &[*const S::Part], out: *mut S::Result, count: usize) {
    // SAFETY: passed on to the caller.
    unsafe { sum_blocks::<S>(parts, out, count) }
}

/// Sums with the best instructions that this processor has, up to `most`.
///
/// # Safety
/// As [`sum_blocks`].
unsafe fn sum_with<S: Sum>(most: Instructions, parts: &[*const S::Part], out: *mut S::Result, count: usize) {
    match most {
        // SAFETY: `Instructions::best` found these; the rest is passed on to the caller.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => unsafe { sum_avx512::<S>(parts, out, count) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => unsafe { sum_avx2::<S>(parts, out, count) },
        // SAFETY: passed on to the caller.
        Instructions::Portable => unsafe { sum_blocks::<S>(parts, out, count) },
    }
}

/// Sets of instructions that loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Instructions {
    /// What every processor of this architecture has.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Instructions {
    /// The best that this processor has.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            if has_avx512 {
                return Instructions::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Instructions::Avx2;
            }
        }
        Instructions::Portable
    }
}

/// Writes the sum of `parts`, in their order, to `out`; false for types that are not summed here.
///
/// # Safety
/// Each part has `count` elements of `part_kind`, and `out` has `count` of `result_kind`; both are aligned for their types.
/// `out` may be one of the parts; there is no other overlap. This processor has the `instructions`.
pub(super) unsafe fn sum(
    instructions: Instructions,
    (part_kind, result_kind): (Kind, Kind),
    parts: &[*const u8],
    out: *mut u8,
    count: usize,
) -> bool {
    macro_rules! with {
        ($sum:ty) => {{
            let address = |part: &*const u8| Address(part.cast_mut().cast::<<$sum as Sum>::Part>());
            let (parts, out) = (parts.iter().map(address).collect::<Vec<_>>(), Address(out.cast::<<$sum as Sum>::Result>()));
            let bytes = parts.len() * size_of::<<$sum as Sum>::Part>();
            spread(count, bytes, |range| {
                let begin = |part: &Address<<$sum as Sum>::Part>| part.get().wrapping_add(range.start).cast_const();
                let parts: Vec<_> = parts.iter().map(begin).collect();
                let out = out.get().wrapping_add(range.start);
                // SAFETY: the types are those of the kinds, and no other thread has this range; the rest is passed on to
                // the caller.
                unsafe { sum_with::<$sum>(instructions, &parts, out, range.len()) };
            });
            true
        }};
    }
    match (part_kind, result_kind) {
        (Kind::Float, Kind::Float) => with!(Float),
        (Kind::Double, Kind::Double) => with!(Double),
        (Kind::BFloat16, Kind::Float) => with!(BfloatToFloat),
        (Kind::BFloat16, Kind::BFloat16) => with!(Bfloat),
        (Kind::Half, Kind::Float) => with!(HalfToFloat),
        (Kind::Half, Kind::Half) => with!(Half),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
