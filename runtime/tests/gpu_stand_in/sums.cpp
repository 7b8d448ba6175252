// Element types of collectives and their sums. See stand_in.hpp.

#include "communicator.hpp"

#include <bit>
#include <cstring>

namespace stand_in {

static float float_of_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

static uint16_t bfloat16_of_float(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);  // rounding could turn a NaN into infinity
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float float_of_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide_exponent = exponent == 0x1f ? 0xff : exponent + 112;
  return std::bit_cast<float>(sign | wide_exponent << 23 | mantissa << 13);
}

static uint16_t float16_of_float(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (value != value) return sign | 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // The sum has the spacing of the float16 numbers below 2^-14, so the addition itself rounds to them.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112 << 10)));
}

struct Bfloat16 {
  using Stored = uint16_t;
  using Sum = float;
  static Sum load(Stored value) { return float_of_bfloat16(value); }
  static Stored store(Sum sum) { return bfloat16_of_float(sum); }
};

struct Float16 {
  using Stored = uint16_t;
  using Sum = float;
  static Sum load(Stored value) { return float_of_float16(value); }
  static Stored store(Sum sum) { return float16_of_float(sum); }
};

// Integers go by their unsigned type, because sums wrap around.
template <class Value>
struct Plain {
  using Stored = Value;
  using Sum = Value;
  static Sum load(Stored value) { return value; }
  static Stored store(Sum sum) { return sum; }
};

// The sources are in the order of the ranks. Callers may pass pointers that are not aligned.
template <class Format>
static void sum(const std::vector<const std::byte*>& sources, std::byte* target, size_t bytes) {
  using Stored = typename Format::Stored;
  using Sum = typename Format::Sum;
  const auto value_at = [](const std::byte* source) {
    Stored value;
    std::memcpy(&value, source, sizeof value);
    return Format::load(value);
  };
  for (size_t offset = 0; offset < bytes; offset += sizeof(Stored)) {
    Sum total = value_at(sources[0] + offset);
    for (size_t rank = 1; rank < sources.size(); ++rank) {
      total = static_cast<Sum>(total + value_at(sources[rank] + offset));
    }
    const Stored result = Format::store(total);
    std::memcpy(target + offset, &result, sizeof result);
  }
}

static constexpr DataType data_types[] = {
    {ncclInt8, "int8", 1, sum<Plain<uint8_t>>},     {ncclUint8, "uint8", 1, sum<Plain<uint8_t>>},
    {ncclInt32, "int32", 4, sum<Plain<uint32_t>>},  {ncclInt64, "int64", 8, sum<Plain<uint64_t>>},
    {ncclFloat16, "float16", 2, sum<Float16>},      {ncclBfloat16, "bfloat16", 2, sum<Bfloat16>},
    {ncclFloat32, "float32", 4, sum<Plain<float>>}, {ncclFloat64, "float64", 8, sum<Plain<double>>},
};

const DataType* find_type(ncclDataType_t code) {
  for (const DataType& type : data_types) {
    if (type.code == code) return &type;
  }
  return nullptr;
}

}  // namespace stand_in
