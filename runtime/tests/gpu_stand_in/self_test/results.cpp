// Collectives give what their definition says, in every element type.

#include "self_test.hpp"

#include <bit>
#include <cmath>

namespace {

struct TypeUnderTest {
  ncclDataType_t code;
  size_t bytes;
};
constexpr TypeUnderTest types[] = {{ncclInt8, 1},    {ncclUint8, 1},    {ncclInt32, 4},   {ncclInt64, 8},
                                   {ncclFloat16, 2}, {ncclBfloat16, 2}, {ncclFloat32, 4}, {ncclFloat64, 8}};

using Bytes = std::vector<unsigned char>;

// A number of any rank that every rank can compute, with fractions that make the order of a sum visible.
double value_of(int rank, size_t index) {
  const uint64_t mixed = (index * 2654435761u + static_cast<uint64_t>(rank) * 40503u + 12345u) % 100003;
  return (static_cast<double>(mixed) - 50000.0) / (rank % 2 ? 777.0 : 3.0);
}

// Rounds to nearest even by searching among the float16 numbers: independent of the conversion under test.
uint16_t nearest_half(float value, float (*decode)(uint16_t)) {
  uint16_t low = 0, high = 0x7c00;
  const float magnitude = std::fabs(value);
  while (high - low > 1) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    (decode(middle) <= magnitude ? low : high) = middle;
  }
  const double below = decode(low), above = high == 0x7c00 ? 65536.0 : decode(high);
  const double to_low = magnitude - below, to_high = above - magnitude;
  const bool takes_low = to_low < to_high || (to_low == to_high && low % 2 == 0);
  return static_cast<uint16_t>((takes_low ? low : high) | (std::signbit(value) ? 0x8000 : 0));
}

float decode_half(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
  const float magnitude = exponent ? std::ldexp(1.0f + mantissa / 1024.0f, exponent - 15) : std::ldexp(mantissa, -24);
  return bits & 0x8000 ? -magnitude : magnitude;
}

float decode_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t encode_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rest = bits & 0xffff;
  uint32_t kept = bits >> 16;
  if (rest > 0x8000 || (rest == 0x8000 && kept % 2 == 1)) ++kept;
  return static_cast<uint16_t>(kept);
}

template <class Value>
void put(Bytes& bytes, size_t index, Value value) {
  std::memcpy(bytes.data() + index * sizeof value, &value, sizeof value);
}

void put_number(Bytes& bytes, size_t index, ncclDataType_t type, double number) {
  const auto whole = static_cast<int64_t>(number);
  switch (type) {
    case ncclInt8:
    case ncclUint8: return put(bytes, index, static_cast<uint8_t>(whole));
    case ncclInt32: return put(bytes, index, static_cast<uint32_t>(whole * 40000));
    case ncclInt64: return put(bytes, index, static_cast<uint64_t>(whole) << 40);
    case ncclFloat16: return put(bytes, index, nearest_half(static_cast<float>(number), decode_half));
    case ncclBfloat16: return put(bytes, index, encode_bfloat16(static_cast<float>(number)));
    case ncclFloat32: return put(bytes, index, static_cast<float>(number));
    default: return put(bytes, index, number);
  }
}

Bytes input_of(int rank, size_t count, TypeUnderTest type) {
  Bytes bytes(count * type.bytes);
  for (size_t index = 0; index < count; ++index) put_number(bytes, index, type.code, value_of(rank, index));
  return bytes;
}

template <class Value, class Sum>
void add_up(Bytes& result, const std::vector<Bytes>& inputs, Sum (*decode)(Value), Value (*encode)(Sum)) {
  for (size_t index = 0; index < result.size() / sizeof(Value); ++index) {
    Sum total{};
    for (size_t rank = 0; rank < inputs.size(); ++rank) {
      Value value;
      std::memcpy(&value, inputs[rank].data() + index * sizeof value, sizeof value);
      total = rank == 0 ? decode(value) : static_cast<Sum>(total + decode(value));
    }
    put(result, index, encode(total));
  }
}

template <class Value>
Value same(Value value) {
  return value;
}

Bytes sum_of_all(int ranks, size_t count, TypeUnderTest type) {
  std::vector<Bytes> inputs;
  for (int rank = 0; rank < ranks; ++rank) inputs.push_back(input_of(rank, count, type));
  Bytes result(count * type.bytes);
  switch (type.code) {
    case ncclInt8:
    case ncclUint8: add_up<uint8_t, uint8_t>(result, inputs, same, same); break;
    case ncclInt32: add_up<uint32_t, uint32_t>(result, inputs, same, same); break;
    case ncclInt64: add_up<uint64_t, uint64_t>(result, inputs, same, same); break;
    case ncclFloat16:
      add_up<uint16_t, float>(result, inputs, decode_half, [](float sum) { return nearest_half(sum, decode_half); });
      break;
    case ncclBfloat16: add_up<uint16_t, float>(result, inputs, decode_bfloat16, encode_bfloat16); break;
    case ncclFloat32: add_up<float, float>(result, inputs, same, same); break;
    default: add_up<double, double>(result, inputs, same, same);
  }
  return result;
}

Bytes part(const Bytes& whole, size_t index, size_t bytes) {
  const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(index * bytes);
  return Bytes(begin, begin + static_cast<std::ptrdiff_t>(bytes));
}

void check_all_reduce(Rank& rank, ncclComm_t comm, CUstream stream, size_t count, TypeUnderTest type,
                      const Bytes& sum) {
  const Bytes input = input_of(rank.rank, count, type);
  Bytes in_place = input, output(input.size());
  CHECK(ncclAllReduce(input.data(), output.data(), count, type.code, ncclSum, comm, stream) == ncclSuccess);
  CHECK(ncclAllReduce(in_place.data(), in_place.data(), count, type.code, ncclSum, comm, stream) == ncclSuccess);
  cuStreamSynchronize(stream);
  CHECK(output == sum);
  CHECK(in_place == sum);
  CHECK(input == input_of(rank.rank, count, type));
}

// A reduce-scatter and a gather must give the bits of an all-reduce.
void check_scatter_and_gather(Rank& rank, ncclComm_t comm, CUstream stream, size_t count, TypeUnderTest type) {
  const size_t whole = count * rank.ranks, bytes = count * type.bytes;
  const Bytes sum = sum_of_all(rank.ranks, whole, type);
  const Bytes input = input_of(rank.rank, whole, type);
  Bytes in_place = input, slice(bytes), gathered(whole * type.bytes);
  unsigned char* own = in_place.data() + rank.rank * bytes;
  CHECK(ncclReduceScatter(input.data(), slice.data(), count, type.code, ncclSum, comm, stream) == ncclSuccess);
  CHECK(ncclReduceScatter(in_place.data(), own, count, type.code, ncclSum, comm, stream) == ncclSuccess);
  cuStreamSynchronize(stream);
  CHECK(slice == part(sum, rank.rank, bytes));
  CHECK(part(in_place, rank.rank, bytes) == slice);
  CHECK(ncclAllGather(slice.data(), gathered.data(), count, type.code, comm, stream) == ncclSuccess);
  CHECK(ncclAllGather(own, in_place.data(), count, type.code, comm, stream) == ncclSuccess);
  cuStreamSynchronize(stream);
  CHECK(gathered == sum);
  CHECK(in_place == sum);
}

void check_broadcast(Rank& rank, ncclComm_t comm, CUstream stream, size_t count, TypeUnderTest type) {
  const int root = rank.ranks - 1;
  const Bytes expected = input_of(root, count, type);
  Bytes buffer = input_of(rank.rank, count, type), input = buffer, output(buffer.size());
  const void* send = rank.rank == root ? input.data() : nullptr;
  CHECK(ncclBroadcast(buffer.data(), buffer.data(), count, type.code, root, comm, stream) == ncclSuccess);
  CHECK(ncclBroadcast(send, output.data(), count, type.code, root, comm, stream) == ncclSuccess);
  cuStreamSynchronize(stream);
  CHECK(buffer == expected);
  CHECK(output == expected);
}

void results(Rank& rank) {
  const ncclComm_t comm = rank.communicator();
  const CUstream stream = new_stream();
  for (const TypeUnderTest type : types) {
    // Around the size of a stage, 256 KiB, and none at all.
    for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{1000}, 262144 / type.bytes + 5}) {
      check_all_reduce(rank, comm, stream, count, type, sum_of_all(rank.ranks, count, type));
      check_scatter_and_gather(rank, comm, stream, count, type);
      check_broadcast(rank, comm, stream, count, type);
    }
  }
  CHECK(async_error(comm) == ncclSuccess);
  CHECK(ncclCommFinalize(comm) == ncclSuccess);
  float value = 0;
  CHECK(ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, stream) == ncclInvalidUsage);
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
  CHECK(ncclCommDestroy(comm) == ncclInvalidArgument);
  CHECK(cuStreamDestroy_v2(stream) == CUDA_SUCCESS);
  CHECK(cuStreamDestroy_v2(stream) == CUDA_ERROR_INVALID_HANDLE);
}

// Sums of one rank pass every number of a 16-bit type through its conversions.
void special_numbers(Rank& rank) {
  const ncclComm_t comm = rank.communicator();
  for (const ncclDataType_t type : {ncclFloat16, ncclBfloat16}) {
    std::vector<uint16_t> input(65536), output(65536);
    for (size_t bits = 0; bits < input.size(); ++bits) input[bits] = static_cast<uint16_t>(bits);
    CHECK(ncclAllReduce(input.data(), output.data(), input.size(), type, ncclSum, comm, nullptr) == ncclSuccess);
    const int infinity = type == ncclFloat16 ? 0x7c00 : 0x7f80;
    size_t wrong = 0;
    for (size_t bits = 0; bits < input.size(); ++bits) {
      const bool is_nan = (bits & 0x7fff) > static_cast<size_t>(infinity);
      wrong += is_nan ? (output[bits] & 0x7fff) <= infinity : output[bits] != bits;
    }
    CHECK(wrong == 0);
  }
  CHECK(ncclCommDestroy(comm) == ncclSuccess);
}

}  // namespace

void test_results() {
  for (int ranks = 1; ranks <= 4; ++ranks) test("results of all types", ranks, results);
  test("special numbers", 1, special_numbers);
}
