// What the loops of kernels.cpp, attention.cpp and sums.cpp share: a kernel is a struct with a static `run`, compiled once for each set of
// instructions and called in the best form that this processor has.
//
// All arithmetic is in float32. Elements of 16 bits are widened when they are read and rounded once, to nearest even, when
// they are written. Loops whose sums may be taken in several lanes say so (`omp simd reduction`): a row's sum depends on the
// set of instructions alone, a sum over rows on the number of threads too.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/bit_cast.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

#define ZF_INLINE static inline __attribute__((always_inline))

// GCC has no vectors of __bf16, and c10's own conversion branches: these do not.
ZF_INLINE float zf_widen(float value) { return value; }
ZF_INLINE float zf_widen(c10::Half value) { return static_cast<float>(value); }
ZF_INLINE float zf_widen(c10::BFloat16 value) { return c10::bit_cast<float>(static_cast<uint32_t>(value.x) << 16); }

template <class T>
ZF_INLINE T zf_round(float value) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    auto bits = c10::bit_cast<uint32_t>(value);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding would carry a NaN's payload over into its sign.
    uint32_t chosen = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
    return c10::BFloat16(static_cast<uint16_t>(chosen), c10::BFloat16::from_bits());
  } else {
    return static_cast<T>(value);
  }
}

// e^x to about one unit in the last place (Cephes' reduction by ln 2 in two parts, and its polynomial); NaN stays NaN, and
// what would be below the smallest normal number is 0.
ZF_INLINE float zf_exp(float x) {
  constexpr float most = 88.72283f, least = -87.33654f;
  // NaN is taken for the least: there is no whole number for it.
  float within = x >= least ? (x > most ? most : x) : least;
  float whole = __builtin_rintf(within * 1.44269504f);
  float rest = within - whole * 0.693359375f;
  rest = rest - whole * -2.12194440e-4f;
  float polynomial = 1.9875691500e-4f;
  polynomial = polynomial * rest + 1.3981999507e-3f;
  polynomial = polynomial * rest + 8.3334519073e-3f;
  polynomial = polynomial * rest + 4.1665795894e-2f;
  polynomial = polynomial * rest + 1.6666665459e-1f;
  polynomial = polynomial * rest + 5.0000001201e-1f;
  float mantissa = polynomial * rest * rest + rest + 1.0f;
  // 2^whole in two factors: 2^128 alone is beyond float32.
  auto exponent = static_cast<int32_t>(whole);
  int32_t half = exponent >> 1;
  float low = c10::bit_cast<float>((half + 127) << 23), high = c10::bit_cast<float>((exponent - half + 127) << 23);
  float result = mantissa * low * high;
  return x >= least ? (x > most ? c10::bit_cast<float>(0x7f800000) : result) : (x == x ? 0.0f : x);
}

ZF_INLINE float zf_sigmoid(float x) { return 1.0f / (1.0f + zf_exp(-x)); }

#if defined(__x86_64__)
template <class Kernel, class... Arguments>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512"))) void zf_on_avx512(
    Arguments... arguments) {
  Kernel::run(arguments...);
}

template <class Kernel, class... Arguments>
__attribute__((target("avx2,fma"))) void zf_on_avx2(Arguments... arguments) {
  Kernel::run(arguments...);
}
#endif

template <class Kernel, class... Arguments>
void zf_run(Arguments... arguments) {
#if defined(__x86_64__)
  // libtorch's own choice, which ATEN_CPU_CAPABILITY lowers.
  static const std::string best = at::get_cpu_capability();
  if (best == "AVX512") return zf_on_avx512<Kernel>(arguments...);
  if (best == "AVX2") return zf_on_avx2<Kernel>(arguments...);
#endif
  Kernel::run(arguments...);
}

// Elements below which a second thread costs more than it brings.
constexpr int64_t zf_grain = 32768;

// Calls body(begin, end) for parts of 0 .. count on libtorch's threads; `width` elements belong to each.
template <class Body>
void zf_parallel(int64_t count, int64_t width, Body&& body) {
  at::parallel_for(0, count, std::max<int64_t>(1, zf_grain / std::max<int64_t>(1, width)), body);
}
