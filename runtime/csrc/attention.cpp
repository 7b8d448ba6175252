// Attention on the CPU, block by block (Dao, "FlashAttention-2", 2023): the scores of one block of positions exist at
// a time, for one group of query heads that share keys and values. They are computed a second time in backward. A block
// multiplies with the keys that its positions see alone: where attention is causal those up to its last position, so that
// about half of what the mask hides is never computed; with a window not those before its first position's.
//
// A group's rows are its positions, each with all of its query heads: [T × sharing, D]. So a block is one product, as large
// as those of the linear layers, and runs at their speed.
//
// Attention stays in a document: a row of the batch, or one of several that lie end to end in the only row.

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels.h"
#include "shim.h"

namespace {

using at::Tensor;
using namespace zf;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Positions of a block: with few query heads to a key head more, so that products stay large, and at most so many that
// what is computed in vain stays small (`BlockSizes` in runtime/plan/src/planning/sizes.rs counts with them).
int64_t block_positions(int64_t sharing) { return std::clamp<int64_t>(512 / sharing / 32 * 32, 32, 128); }

// What a position sees, and what becomes of its scores.
struct Rule {
  float scale;
  // Scores are capped at ± softcap by tanh; 0 for not at all.
  float softcap;
  // A position sees so many, itself included; 0 for all.
  int64_t window;
  bool causal;

  // The keys that positions `first` to `first + positions` see, of `length`: from, and up to (excluded).
  int64_t from(int64_t first) const { return window > 0 ? std::max<int64_t>(0, first - window + 1) : 0; }
  int64_t to(int64_t first, int64_t positions, int64_t length) const { return causal ? first + positions : length; }
};

// The rows of a block of positions, `sharing` to each, and the keys from `low` on that it is multiplied with.
struct Rows {
  int64_t count, sharing, first, low, keys;
  Rule rule;

  // The keys that a row sees, counted from `low`.
  inline __attribute__((always_inline)) int64_t begin(int64_t row) const {
    return rule.window > 0 ? std::max<int64_t>(0, first + row / sharing - rule.window + 1 - low) : 0;
  }
  inline __attribute__((always_inline)) int64_t end(int64_t row) const {
    return rule.causal ? first + row / sharing + 1 - low : keys;
  }
};

// Scores are scaled and capped; the slopes of the caps are kept where there is room for them.
template <class T>
struct Cap {
  ZF_INLINE void run(T* scores, T* slopes, int64_t count, float scale, float softcap) {
    float factor = scale / softcap;
    if (slopes == nullptr) {
      #pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        float tanh = 2.0f * zf_sigmoid(2.0f * zf_widen(scores[i]) * factor) - 1.0f;
        scores[i] = zf_round<T>(softcap * tanh);
      }
      return;
    }
    #pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      float tanh = 2.0f * zf_sigmoid(2.0f * zf_widen(scores[i]) * factor) - 1.0f;
      scores[i] = zf_round<T>(softcap * tanh);
      slopes[i] = zf_round<T>(1.0f - tanh * tanh);
    }
  }
};

// Scores become exp(score − most) by row, 0 where the mask hides; their sum and `most` (scaled) are kept.
template <class T>
struct Exponentials {
  ZF_INLINE void run(T* scores, float* most_of, float* sum_of, Rows rows, float scale) {
    for (int64_t row = 0; row < rows.count; ++row, scores += rows.keys) {
      int64_t begin = rows.begin(row), end = rows.end(row);
      float most = -std::numeric_limits<float>::infinity();
      #pragma omp simd reduction(max : most)
      for (int64_t i = begin; i < end; ++i) most = std::max(most, zf_widen(scores[i]));
      float sum = 0;
      #pragma omp simd reduction(+ : sum)
      for (int64_t i = begin; i < end; ++i) {
        float exponential = zf_exp((zf_widen(scores[i]) - most) * scale);
        sum += exponential;
        scores[i] = zf_round<T>(exponential);
      }
      std::fill(scores, scores + begin, zf_round<T>(0.0f));
      std::fill(scores + end, scores + rows.keys, zf_round<T>(0.0f));
      most_of[row] = most * scale;
      sum_of[row] = sum;
    }
  }
};

// Scores become probabilities.
template <class T>
struct Probabilities {
  ZF_INLINE void run(T* scores, const float* log_sums, Rows rows, float scale) {
    for (int64_t row = 0; row < rows.count; ++row, scores += rows.keys) {
      int64_t begin = rows.begin(row), end = rows.end(row);
      float log_sum = log_sums[row];
      #pragma omp simd
      for (int64_t i = begin; i < end; ++i) scores[i] = zf_round<T>(zf_exp(zf_widen(scores[i]) * scale - log_sum));
      std::fill(scores, scores + begin, zf_round<T>(0.0f));
      std::fill(scores + end, scores + rows.keys, zf_round<T>(0.0f));
    }
  }
};

// Gradients of probabilities become those of scores. The mask's are 0, as the probabilities there.
template <class T>
struct ScoreGradients {
  ZF_INLINE void run(T* gradients, const T* probabilities, const float* deltas, int64_t rows, int64_t keys, float scale) {
    for (int64_t row = 0; row < rows; ++row, gradients += keys, probabilities += keys) {
      float delta = deltas[row];
      #pragma omp simd
      for (int64_t i = 0; i < keys; ++i)
        gradients[i] = zf_round<T>(zf_widen(probabilities[i]) * (zf_widen(gradients[i]) - delta) * scale);
    }
  }
};

// Gradients of capped scores become those of the scores before.
template <class T>
struct Slopes {
  ZF_INLINE void run(T* gradients, const T* slopes, int64_t count) {
    #pragma omp simd
    for (int64_t i = 0; i < count; ++i) gradients[i] = zf_round<T>(zf_widen(gradients[i]) * zf_widen(slopes[i]));
  }
};

// Rows [positions × sharing, D] of a group, to or from their places among all heads: `stride` elements from position to
// position.
template <class T>
struct Attended {
  // Divides by the sums and keeps the log-sum-exps.
  ZF_INLINE void run(const T* rows, T* all, const float* most, const float* sums, float* log_sums, int64_t positions,
                     int64_t sharing, int64_t width, int64_t stride) {
    for (int64_t row = 0; row < positions * sharing; ++row, rows += width) {
      T* to = all + row / sharing * stride + row % sharing * width;
      float factor = 1.0f / sums[row];
      #pragma omp simd
      for (int64_t i = 0; i < width; ++i) to[i] = zf_round<T>(zf_widen(rows[i]) * factor);
      log_sums[row] = most[row] + std::log(sums[row]);
    }
  }
};

template <class T>
struct Seeds {
  // Copies the gradient of what was attended, and sums its products with that: what the softmax's gradient lacks.
  ZF_INLINE void run(T* rows, const T* gradients, const T* attended, float* deltas, int64_t positions, int64_t sharing,
                     int64_t width, int64_t stride) {
    for (int64_t row = 0; row < positions * sharing; ++row, rows += width) {
      int64_t place = row / sharing * stride + row % sharing * width;
      float delta = 0;
      #pragma omp simd reduction(+ : delta)
      for (int64_t i = 0; i < width; ++i) delta += zf_widen(gradients[place + i]) * zf_widen(attended[place + i]);
      std::copy_n(gradients + place, width, rows);
      deltas[row] = delta;
    }
  }
};

template <class T>
struct Rounded {
  ZF_INLINE void run(T* to, const float* sums, int64_t count) {
    #pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = zf_round<T>(sums[i]);
  }
};

struct Shape {
  int64_t rows, groups, length, sharing, width;

  explicit Shape(const Tensor& query)
      : rows(query.size(0)), groups(query.size(1)), length(query.size(2)), sharing(query.size(3)), width(query.size(4)) {}

  int64_t block() const { return std::min(block_positions(sharing), length); }
  int64_t heads() const { return groups * sharing; }

  // The most keys that a block is multiplied with.
  int64_t most_keys(const Rule& rule) const {
    return rule.causal && rule.window > 0 ? std::min(length, block() + rule.window - 1) : length;
  }

  // The same with as many positions as a document has.
  Shape of(int64_t positions) const {
    Shape shape = *this;
    shape.length = positions;
    return shape;
  }
};

// Positions `begin` to `begin + length` of a row: they attend to each other, and to nothing else.
struct Document {
  int64_t row, begin, length;
};

// Each row, or documents of these lengths in the one row.
std::vector<Document> documents_of(const Shape& shape, at::IntArrayRef lengths) {
  std::vector<Document> documents;
  if (lengths.empty()) {
    for (int64_t row = 0; row < shape.rows; ++row) documents.push_back({row, 0, shape.length});
    return documents;
  }
  check(shape.rows == 1, "attention: documents lie in one row");
  int64_t begin = 0;
  for (auto length : lengths) {
    check(length > 0 && length <= shape.length - begin, "attention: the documents are longer than their row, or empty");
    documents.push_back({0, begin, length});
    begin += length;
  }
  check(begin == shape.length, "attention: the documents are shorter than their row");
  return documents;
}

// One group of heads in one document, and where its parts lie in the tensors of the whole batch.
struct Part {
  const Shape& all;
  Document document;
  int64_t group;

  Shape shape() const { return all.of(document.length); }

  // Of queries [rows, groups, T, sharing, D]: [T × sharing, D] of the document.
  Tensor query(const Tensor& queries) const { return shared(queries).view({-1, all.width}); }

  // Of keys or values [rows, groups, T, D]: [T, D] of the document.
  Tensor shared(const Tensor& keys) const {
    return keys[document.row][group].narrow(0, document.begin, document.length);
  }

  // The first element in [rows, T, heads × D].
  int64_t place() const {
    return ((document.row * all.length + document.begin) * all.heads() + group * all.sharing) * all.width;
  }

  // The first number in [rows, groups, T × sharing].
  int64_t number() const {
    return ((document.row * all.groups + group) * all.length + document.begin) * all.sharing;
  }
};

// The groups of all documents, on libtorch's threads where there are enough of them; else its products are. Documents may differ
// in length, so those of a group follow each other: all threads get some of each.
template <class Body>
void for_each_part(const Shape& shape, const std::vector<Document>& documents, Body&& body) {
  int64_t each = documents.size(), count = each * shape.groups;
  auto some = [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView without_graph;
    for (int64_t index = begin; index < end; ++index) body(Part{shape, documents[index % each], index / each});
  };
  if (count >= at::get_num_threads()) {
    at::parallel_for(0, count, 1, some);
  } else {
    some(0, count);
  }
}

template <class T>
void forward_group(const Shape& shape, const Rule& rule, const Tensor& query, const Tensor& key, const Tensor& value,
                   T* attended, float* log_sums) {
  auto block = shape.block(), count = block * shape.sharing;
  auto scores = at::empty({count * shape.most_keys(rule)}, query.options());
  auto part = at::empty({count * shape.width}, query.options());
  auto numbers = at::empty({2 * count}, query.options().dtype(at::kFloat));
  float *most = numbers.data_ptr<float>(), *sums = most + count;
  auto keys_first = key.t();
  for (int64_t first = 0; first < shape.length; first += block) {
    auto positions = std::min(block, shape.length - first);
    auto low = rule.from(first), keys = rule.to(first, positions, shape.length) - low;
    Rows rows{positions * shape.sharing, shape.sharing, first, low, keys, rule};
    auto seen = scores.narrow(0, 0, rows.count * keys).view({rows.count, keys});
    auto sum = part.narrow(0, 0, rows.count * shape.width).view({rows.count, shape.width});
    multiply(seen, query.narrow(0, first * shape.sharing, rows.count), keys_first.narrow(1, low, keys), false);
    if (rule.softcap > 0)
      zf_run<Cap<T>>(seen.template data_ptr<T>(), static_cast<T*>(nullptr), seen.numel(), rule.scale, rule.softcap);
    zf_run<Exponentials<T>>(seen.template data_ptr<T>(), most, sums, rows, rule.softcap > 0 ? 1.0f : rule.scale);
    multiply(sum, seen, value.narrow(0, low, keys), false);
    auto stride = shape.heads() * shape.width;
    zf_run<Attended<T>>(sum.template data_ptr<T>(), attended + first * stride, most, sums,
                        log_sums + first * shape.sharing, positions, shape.sharing, shape.width, stride);
  }
}

// Sums of products over blocks, in float32; of float32 straight in their place.
template <class T>
class Sum {
 public:
  // `covered` tells that the first product covers all of it.
  Sum(const Tensor& result, bool covered) : result_(result), begun_(!covered) {
    if constexpr (!std::is_same_v<T, float>) {
      part_ = at::empty_like(result);
      sums_ = at::zeros(result.sizes(), result.options().dtype(at::kFloat));
    } else if (!covered) {
      result_.zero_();
    }
  }

  // Adds the product to the rows from `low` on.
  void add(int64_t low, const Tensor& left, const Tensor& right) {
    auto count = left.size(0);
    if constexpr (std::is_same_v<T, float>) {
      multiply(result_.narrow(0, low, count), left, right, begun_);
    } else {
      auto part = part_.narrow(0, 0, count);
      multiply(part, left, right, false);
      zf_run<Add<float, T>>(sums_.template data_ptr<float>() + low * sums_.size(1),
                            static_cast<const T*>(part.template data_ptr<T>()), part.numel());
    }
    begun_ = true;
  }

  void finish() {
    if constexpr (!std::is_same_v<T, float>)
      zf_run<Rounded<T>>(result_.template data_ptr<T>(), sums_.template data_ptr<float>(), result_.numel());
  }

 private:
  Tensor result_, part_, sums_;
  bool begun_ = false;
};

// Where the gradients of a group go.
struct Gradients {
  Tensor query, key, value;
};

template <class T>
void backward_group(const Shape& shape, const Rule& rule, const Tensor& query, const Tensor& key, const Tensor& value,
                    const T* gradient, const T* attended, const float* log_sums, const Gradients& of) {
  auto block = shape.block(), count = block * shape.sharing, stride = shape.heads() * shape.width;
  bool capped = rule.softcap > 0;
  auto room = at::empty({capped ? 3 : 2, count * shape.most_keys(rule)}, query.options());
  auto seeds = at::empty({count * shape.width}, query.options());
  auto deltas = at::empty({count}, query.options().dtype(at::kFloat));
  // With a window no block sees all keys.
  bool covered = !rule.causal || rule.window == 0;
  Sum<T> keys_sum(of.key, covered), values_sum(of.value, covered);
  auto keys_first = key.t(), values_first = value.t();
  // The last block sees all keys, so it comes first.
  for (int64_t first = (shape.length - 1) / block * block; first >= 0; first -= block) {
    auto positions = std::min(block, shape.length - first);
    auto low = rule.from(first), keys = rule.to(first, positions, shape.length) - low;
    Rows rows{positions * shape.sharing, shape.sharing, first, low, keys, rule};
    auto of_block = [&](const Tensor& all) { return all.narrow(0, first * shape.sharing, rows.count); };
    auto in_room = [&](int64_t index) { return room[index].narrow(0, 0, rows.count * keys).view({rows.count, keys}); };
    auto probabilities = in_room(0), gradients = in_room(1);
    T* slopes = capped ? in_room(2).template data_ptr<T>() : nullptr;
    auto seed = seeds.narrow(0, 0, rows.count * shape.width).view({rows.count, shape.width});
    zf_run<Seeds<T>>(seed.template data_ptr<T>(), gradient + first * stride, attended + first * stride,
                     deltas.template data_ptr<float>(), positions, shape.sharing, shape.width, stride);
    multiply(probabilities, of_block(query), keys_first.narrow(1, low, keys), false);
    if (capped) zf_run<Cap<T>>(probabilities.template data_ptr<T>(), slopes, rows.count * keys, rule.scale, rule.softcap);
    zf_run<Probabilities<T>>(probabilities.template data_ptr<T>(), log_sums + first * shape.sharing, rows,
                             capped ? 1.0f : rule.scale);
    multiply(gradients, seed, values_first.narrow(1, low, keys), false);
    values_sum.add(low, probabilities.t(), seed);
    zf_run<ScoreGradients<T>>(gradients.template data_ptr<T>(), probabilities.template data_ptr<T>(),
                              deltas.template data_ptr<float>(), rows.count, keys, rule.scale);
    if (capped) zf_run<Slopes<T>>(gradients.template data_ptr<T>(), slopes, rows.count * keys);
    multiply(of_block(of.query), gradients, key.narrow(0, low, keys), false);
    keys_sum.add(low, gradients.t(), of_block(query));
  }
  keys_sum.finish();
  values_sum.finish();
}

struct Attention : Function<Attention> {
  static Tensor forward(AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value,
                        at::IntArrayRef lengths, Rule rule) {
    check(query.is_cpu() && query.dim() == 5 && query.is_contiguous() && query.numel() > 0,
          "attention: queries [rows, groups, T, sharing, D] on the CPU were expected");
    Shape shape(query);
    for (const auto* shared : {&key, &value})
      check(shared->sizes() == at::IntArrayRef({shape.rows, shape.groups, shape.length, shape.width}) &&
                shared->is_contiguous() && shared->scalar_type() == query.scalar_type(),
            "attention: keys and values do not fit the queries");
    auto documents = documents_of(shape, lengths);
    auto attended = at::empty({shape.rows, shape.length, shape.heads() * shape.width}, query.options());
    auto log_sums = at::empty({shape.rows, shape.groups, shape.length * shape.sharing}, query.options().dtype(at::kFloat));
    of_type(query.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      T* all = attended.data_ptr<T>();
      float* numbers = log_sums.data_ptr<float>();
      for_each_part(shape, documents, [&](const Part& part) {
        forward_group<T>(part.shape(), rule, part.query(query), part.shared(key), part.shared(value), all + part.place(),
                         numbers + part.number());
      });
    });
    context->save_for_backward({query, key, value, attended, log_sums});
    context->saved_data["lengths"] = lengths.vec();
    context->saved_data["numbers"] = std::vector<double>{rule.scale, rule.softcap};
    context->saved_data["sees"] = std::vector<int64_t>{rule.window, rule.causal};
    return attended;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    const Tensor &query = saved[0], &key = saved[1], &value = saved[2], &attended = saved[3], &log_sums = saved[4];
    auto gradient = gradients[0].contiguous();
    Shape shape(query);
    auto documents = documents_of(shape, context->saved_data["lengths"].toIntVector());
    auto of_scores = context->saved_data["numbers"].toDoubleVector();
    auto sees = context->saved_data["sees"].toIntVector();
    Rule rule{static_cast<float>(of_scores[0]), static_cast<float>(of_scores[1]), sees[0], sees[1] != 0};
    auto of_query = at::empty_like(query), of_key = at::empty_like(key), of_value = at::empty_like(value);
    of_type(query.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const T *seeds = gradient.data_ptr<T>(), *results = attended.data_ptr<T>();
      const float* numbers = log_sums.data_ptr<float>();
      for_each_part(shape, documents, [&](const Part& part) {
        Gradients of{part.query(of_query), part.shared(of_key), part.shared(of_value)};
        backward_group<T>(part.shape(), rule, part.query(query), part.shared(key), part.shared(value),
                          seeds + part.place(), results + part.place(), numbers + part.number(), of);
      });
    });
    return {of_query, of_key, of_value, Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// query [rows, groups, T, sharing, D], key and value [rows, groups, T, D]: [rows, T, groups × sharing × D]. With lengths, which
// are T together, the one row holds documents of these lengths. Scores are multiplied by `scale`, and capped where `softcap` is not
// 0; a position sees `window` positions where that is not 0, and none after it where attention is causal.
int zf_attention(void* query, void* key, void* value, const int64_t* lengths, size_t length_count, double scale,
                 double softcap, int64_t window, int causal, void** result) {
  return zf_guarded([&] {
    check(window == 0 || causal != 0, "attention: a window is of causal attention");
    Rule rule{static_cast<float>(scale), static_cast<float>(softcap), window, causal != 0};
    at::IntArrayRef documents(lengths, length_count);
    own(Attention::apply(zf_tensor(query), zf_tensor(key), zf_tensor(value), documents, rule), result);
  });
}
}
