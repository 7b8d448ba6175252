// The loss with the gradient of the logits, and sums of gradients: passes over memory that autograd does not see.

#include <algorithm>
#include <limits>

#include "kernels.h"
#include "shim.h"

namespace {

using at::Tensor;
using namespace zf;

// --- Cross-entropy: losses, and the logits' gradient in the logits' place ---

// Of the label's weight, `smoothing` is shared out evenly among all classes. `hits` tells whether the target has the largest logit.
template <class T>
struct CrossEntropy {
  ZF_INLINE void run(T* logits, const int64_t* targets, double* losses, double* hits, int64_t rows, int64_t classes,
                     bool gradient, float scale, double smoothing) {
    for (int64_t row = 0; row < rows; ++row, logits += classes) {
      float most = -std::numeric_limits<float>::infinity();
      #pragma omp simd reduction(max : most)
      for (int64_t i = 0; i < classes; ++i) most = std::max(most, zf_widen(logits[i]));
      double sum = 0;
      // Short sums in float32, their sum in float64: a vocabulary is long.
      for (int64_t begin = 0; begin < classes; begin += 1024) {
        float part = 0;
        int64_t end = std::min(begin + 1024, classes);
        #pragma omp simd reduction(+ : part)
        for (int64_t i = begin; i < end; ++i) part += zf_exp(zf_widen(logits[i]) - most);
        sum += part;
      }
      float target = zf_widen(logits[targets[row]]);
      hits[row] = target >= most ? 1.0 : 0.0;
      double loss = std::log(sum) + (static_cast<double>(most) - static_cast<double>(target));
      losses[row] = loss;
      auto even = static_cast<float>(smoothing / static_cast<double>(classes)) * scale;
      if (smoothing > 0) {
        double total = 0;
        for (int64_t begin = 0; begin < classes; begin += 1024) {
          float part = 0;
          int64_t end = std::min(begin + 1024, classes);
          #pragma omp simd reduction(+ : part)
          for (int64_t i = begin; i < end; ++i) part += zf_widen(logits[i]) - most;
          total += part;
        }
        losses[row] = (1.0 - smoothing) * loss + smoothing * (std::log(sum) - total / static_cast<double>(classes));
      }
      if (!gradient) continue;
      auto share = static_cast<float>(static_cast<double>(scale) / sum);
      // The probability of the target less 1, before the others overwrite it.
      float of_target = static_cast<float>(std::expm1(-loss) + smoothing) * scale - even;
      #pragma omp simd
      for (int64_t i = 0; i < classes; ++i) logits[i] = zf_round<T>(zf_exp(zf_widen(logits[i]) - most) * share - even);
      logits[targets[row]] = zf_round<T>(of_target);
    }
  }
};

// --- Adding to gradients ---

// Columns begin .. end of rows that are added to the rows of a table.
template <class T>
struct AddRows {
  ZF_INLINE void run(float* table, const int64_t* ids, const T* rows, int64_t count, int64_t width, int64_t begin,
                     int64_t end) {
    for (int64_t row = 0; row < count; ++row) {
      float* to = table + ids[row] * width;
      const T* from = rows + row * width;
      #pragma omp simd
      for (int64_t i = begin; i < end; ++i) to[i] += zf_widen(from[i]);
    }
  }
};

bool has_loops(at::ScalarType kind) { return kind == at::kFloat || kind == at::kBFloat16 || kind == at::kHalf; }

bool adds_by_loops(const Tensor& to, const Tensor& from) {
  return to.is_cpu() && from.is_cpu() && to.is_contiguous() && from.is_contiguous() && has_loops(to.scalar_type()) &&
         has_loops(from.scalar_type());
}

void check_ids(const Tensor& ids, int64_t rows, int64_t limit) {
  check(ids.scalar_type() == at::kLong && ids.is_contiguous() && ids.numel() == rows, "one id a row was expected");
  const auto* values = ids.data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i)
    if (values[i] < 0 || values[i] >= limit)
      throw std::runtime_error("id " + std::to_string(values[i]) + " is not one of 0 to " + std::to_string(limit - 1));
}

}  // namespace

extern "C" {

// logits [rows, classes], targets [rows] (int64): float64 [2, rows], the rows' losses with so much smoothing of labels, and 1
// where the target has the largest logit. With `gradient` the logits become that of the losses' sum × scale.
int zf_cross_entropy(void* logits_handle, void* targets_handle, int gradient, double scale, double smoothing, int plain,
                     void** result) {
  return zf_guarded([&] {
    auto &logits = zf_tensor(logits_handle), &targets = zf_tensor(targets_handle);
    auto rows = logits.size(0), classes = logits.size(1);
    check(logits.is_contiguous(), "cross-entropy: contiguous logits were expected");
    check(targets.numel() == rows, "cross-entropy: one target a row was expected");
    if (!by_loops(logits, plain)) {
      auto wide = logits.to(wide_type(logits));
      auto normalizer = wide.logsumexp({-1}, /*keepdim=*/true);
      auto at_target = targets.unsqueeze(1);
      auto of_target = wide.gather(1, at_target);
      auto losses = (normalizer - of_target).squeeze(1).to(at::kDouble);
      auto hits = (of_target >= wide.amax({-1}, /*keepdim=*/true)).squeeze(1).to(at::kDouble);
      if (smoothing > 0)
        losses = losses * (1.0 - smoothing) + (normalizer.squeeze(1) - wide.mean({-1})).to(at::kDouble) * smoothing;
      if (gradient) {
        // Under float32 `wide` is the logits themselves.
        auto minus = at::full({rows, 1}, smoothing - 1.0, wide.options());
        auto gradients = wide.sub_(normalizer).exp_().scatter_add_(1, at_target, minus);
        if (smoothing > 0) gradients.sub_(smoothing / static_cast<double>(classes));
        logits.copy_(gradients.mul_(scale));
      }
      own(at::stack({losses, hits}), result);
      return;
    }
    check_ids(targets, rows, classes);
    auto results = at::empty({2, rows}, logits.options().dtype(at::kDouble));
    of_type(logits.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      T* values = logits.data_ptr<T>();
      const auto* ids = targets.data_ptr<int64_t>();
      double* losses = results.data_ptr<double>();
      double* hits = losses + rows;
      zf_parallel(rows, classes, [&](int64_t begin, int64_t end) {
        zf_run<CrossEntropy<T>>(values + begin * classes, ids + begin, losses + begin, hits + begin, end - begin, classes,
                                gradient != 0, static_cast<float>(scale), smoothing);
      });
    });
    own(results, result);
  });
}

// to += from, whatever the types, rounded once.
int zf_add(void* to_handle, void* from_handle) {
  return zf_guarded([&] {
    auto &to = zf_tensor(to_handle), &from = zf_tensor(from_handle);
    check(to.sizes() == from.sizes(), "tensors of one shape were expected");
    if (!adds_by_loops(to, from)) {
      to.add_(from);
      return;
    }
    of_type(to.scalar_type(), [&](auto to_zero) {
      of_type(from.scalar_type(), [&](auto from_zero) {
        using To = decltype(to_zero);
        using From = decltype(from_zero);
        To* sums = to.data_ptr<To>();
        const From* values = from.data_ptr<From>();
        zf_parallel(to.numel(), 1, [&](int64_t begin, int64_t end) {
          zf_run<Add<To, From>>(sums + begin, values + begin, end - begin);
        });
      });
    });
  });
}

// table[ids[i]] += rows[i], in the order of i.
int zf_add_rows(void* table_handle, void* ids_handle, void* rows_handle) {
  return zf_guarded([&] {
    auto &table = zf_tensor(table_handle), &ids = zf_tensor(ids_handle), &rows = zf_tensor(rows_handle);
    auto width = table.size(1), count = rows.size(0);
    check(rows.size(1) == width, "rows of the table's width were expected");
    if (!table.is_cpu()) {
      // On GPUs index_add_ adds in any order; this one sorts, so that a step gives the same bits every time.
      table.index_put_({ids}, rows.to(table.scalar_type()), /*accumulate=*/true);
      return;
    }
    check_ids(ids, count, table.size(0));
    if (!adds_by_loops(table, rows) || table.scalar_type() != at::kFloat) {
      table.index_add_(0, ids, rows.to(table.scalar_type()));
      return;
    }
    of_type(rows.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      float* sums = table.data_ptr<float>();
      const auto* places = ids.data_ptr<int64_t>();
      const T* values = rows.data_ptr<T>();
      // Each thread takes a range of columns, so that no two add to one element.
      zf_parallel(width, count, [&](int64_t begin, int64_t end) {
        zf_run<AddRows<T>>(sums, places, values, count, width, begin, end);
      });
    });
  });
}
}
