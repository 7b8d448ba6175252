// What Rust needs of libtorch and tch does not offer. One function per capability, no policy.
//
// Every function that can fail returns 0 for success; after anything else zf_last_error() tells why (per thread).
// Tensors cross as at::Tensor*, which is what tch's as_ptr() gives.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {
const char* zf_last_error();
const char* zf_version();
int zf_processor(char* text, size_t length);

// autograd
int zf_autograd_grad(void* const* outputs, void* const* grad_outputs, size_t output_count, void* const* inputs,
                     size_t input_count, void** results);

// memory
void zf_count_memory();
void zf_memory(int64_t* live, int64_t* peak);
void zf_restart_peak();
void zf_count_bytes(int64_t change);

// GPUs
int zf_cuda_version(int64_t* version);
int zf_cuda_use(int index);
int zf_cuda_stream(int index, void** stream);
int zf_cuda_memory(int index, int64_t* live, int64_t* peak);
int zf_cuda_restart_peak(int index);
int zf_cuda_allow_tf32(int allow);

// storage
int zf_repoint_storage(void* tensor, void* data, size_t byte_count);
int zf_tensor_over(void* data, int64_t numel, void* like, void (*release)(void*), void* owner, void** out);

// optimizer
int zf_fused_adamw(void* const* parameters, void* const* gradients, void* const* first_moments,
                   void* const* second_moments, size_t count, void* step, double learning_rate, double beta1,
                   double beta2, double weight_decay, double epsilon);

// What a model is made of (kernels.cpp, attention.cpp, products.cpp, sums.cpp); `plain` takes libtorch's operations in place of the loops.
int zf_rms_norm(void* x, void* weight, double epsilon, double offset, int plain, void** result);
int zf_gated(void* gate_up, int gelu, int plain, void** result);
int zf_rotary(void* projected, void* cosines, void* sines, int64_t heads, int64_t key_heads, int layout, int plain,
              void** results);
int zf_attention(void* query, void* key, void* value, const int64_t* lengths, size_t length_count, double scale,
                 double softcap, int64_t window, int causal, void** result);
int zf_linear(void* x, void* weight, int transposed, void** result);
int zf_multiply(void* result, void* left, void* right);
int zf_cross_entropy(void* logits, void* targets, int gradient, double scale, double smoothing, int plain,
                     void** results);
int zf_add(void* to, void* from);
int zf_add_rows(void* table, void* ids, void* rows);

// The store that Gloo bootstraps through. Calls come from Gloo's own threads. Each returns 0 for success and otherwise
// fills the text (at most ZF_STORE_TEXT bytes, zero-terminated).
enum { ZF_STORE_TEXT = 512 };
struct zf_store {
  void* context;
  int (*set)(void* context, const char* key, const uint8_t* value, size_t value_length, char* text);
  // Calls sink(sink_context, data, length) once with the value.
  int (*get)(void* context, const char* key, uint64_t timeout_ms, void (*sink)(void*, const uint8_t*, size_t),
             void* sink_context, char* text);
  int (*wait)(void* context, const char* const* keys, size_t key_count, uint64_t timeout_ms, char* text);
  int (*add)(void* context, const char* key, int64_t amount, int64_t* sum, char* text);
  int (*check)(void* context, const char* const* keys, size_t key_count, int* present, char* text);
  int (*remove)(void* context, const char* key, int* removed, char* text);
};

// Gloo
int zf_gloo_new(const zf_store* store, int rank, int world_size, const char* host, uint64_t timeout_ms, void** out);
void zf_gloo_free(void* group);
int zf_gloo_send(void* group, void* tensor, int destination, int tag, void** work);
int zf_gloo_receive(void* group, void* tensor, int source, int tag, void** work);
int zf_work_wait(void* work);
void zf_work_free(void* work);
}
