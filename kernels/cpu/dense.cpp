// What is left of the attention half: the gate, the MLP of layers without experts, and the output head.
#include "api.h"
#include "gemm.h"
#include "norm.h"
#include "pool.h"

#include <algorithm>
#include <limits>

namespace janus {
namespace {

constexpr long kTaskBytes = 128 << 10;
constexpr long kRowsPerTask = 8;

// Writes the k largest of logits [padded] (ties: the lower id) with their softmax weights; `logits` is used up. Lanes
// past the experts hold -inf; padded is a multiple of 16. NaN logits give meaningless but valid ids.
void top_k(float* logits, long experts, long padded, long k, bool normalise, float* weights, int32_t* ids) {
  constexpr float nothing = -std::numeric_limits<float>::infinity();
  f32x16 best = load16(logits);
  for (long e = 16; e < padded; e += 16) best = max16(best, load16(logits + e));
  const float top = top16(best);
  float sum = 0.0f;
  if (!normalise)
    for (long e = 0; e < padded; ++e) sum += logits[e] == nothing ? 0.0f : std::exp(logits[e] - top);
  for (long i = 0; i < k; ++i) {
    f32x16 most = load16(logits);
    for (long e = 16; e < padded; e += 16) most = max16(most, load16(logits + e));
    const float value = top16(most);
    long id = 0;
    while (id + 1 < experts && !(logits[id] == value)) ++id;
    ids[i] = int32_t(id);
    weights[i] = std::exp(value - top);
    if (normalise) sum += weights[i];
    logits[id] = nothing;
  }
  const float scale = 1.0f / sum;
  for (long i = 0; i < k; ++i) weights[i] *= scale;
}

template <typename T>
void route(long n, long hidden, long experts, long k, bool normalise, const T* x, const T* packed, float* weights,
           int32_t* ids) {
  Pool& pool = Pool::get();
  auto held = pool.lock();
  const long width = round_up(experts, kPanel);
  float* logits = static_cast<float*>(pool.scratch(0, n * width * sizeof(float)));
  auto gate = [&](long task) {
    const long first = task * kRowsPerTask, rows = std::min(kRowsPerTask, n - first);
    times_panels(
        packed, 0, width / kPanel, hidden, rows, [&](long r) { return x + (first + r) * hidden; },
        [&](long r, long column, f32x16 a, f32x16 b) {
          store_panel(logits + (first + r) * width, column, width, a, b);
        });
    for (long r = first; r < first + rows; ++r) {
      float* row = logits + r * width;
      std::fill(row + experts, row + width, -std::numeric_limits<float>::infinity());
      top_k(row, experts, width, k, normalise, weights + r * k, ids + r * k);
    }
  };
  Phase phases[] = {phase(ceil_div(n, kRowsPerTask), gate)};
  pool.run(phases, 1, n * hidden * width > (4L << 20));
}

template <typename T>
void dense_mlp(long n, long hidden, long width, const T* x, const T* gate_up, const T* down, T* out) {
  Pool& pool = Pool::get();
  auto held = pool.lock();
  const long padded = round_up(width, 16), up_panel = panel_size<T>(hidden), down_panel = panel_size<T>(width);
  const long up_panels = padded / 16, down_panels = ceil_div(hidden, kPanel);
  T* inner = static_cast<T*>(pool.scratch(0, (n * padded + 64) * sizeof(T)));
  const long up_step = std::max(1L, kTaskBytes / long(up_panel * sizeof(T)));
  const long down_step = std::max(1L, kTaskBytes / long(down_panel * sizeof(T)));
  auto up = [&](long task) {
    times_panels(
        gate_up, task * up_step, std::min(up_panels, (task + 1) * up_step), hidden, n,
        [&](long r) { return x + r * hidden; },
        [&](long r, long column, f32x16 g, f32x16 u) { store16(inner + r * padded + column / 2, silu16(g) * u); });
  };
  auto project = [&](long task) {
    times_panels(
        down, task * down_step, std::min(down_panels, (task + 1) * down_step), width, n,
        [&](long r) { return inner + r * padded; },
        [&](long r, long column, f32x16 a, f32x16 b) { store_panel(out + r * hidden, column, hidden, a, b); });
  };
  Phase phases[] = {phase(ceil_div(up_panels, up_step), up), phase(ceil_div(down_panels, down_step), project)};
  pool.run(phases, 2, hidden * width * (3 * long(sizeof(T)) + n / 8) > (256 << 10));
}

template <typename T>
void head(long n, long hidden, long vocab, float eps, const T* h, const int64_t* rows, const float* norm,
          const T* packed, float* logits) {
  Pool& pool = Pool::get();
  auto held = pool.lock();
  T* normed = static_cast<T*>(pool.scratch(0, (n * hidden + 64) * sizeof(T)));
  const long panels = ceil_div(vocab, kPanel), panel = panel_size<T>(hidden);
  const long step = std::max(1L, kTaskBytes / long(panel * sizeof(T)));
  auto norm_rows = [&](long r) { rms_norm(h + rows[r] * hidden, norm, normed + r * hidden, hidden, eps); };
  auto project = [&](long task) {
    times_panels(
        packed, task * step, std::min(panels, (task + 1) * step), hidden, n,
        [&](long r) { return normed + r * hidden; },
        [&](long r, long column, f32x16 a, f32x16 b) { store_panel(logits + r * vocab, column, vocab, a, b); });
  };
  Phase phases[] = {phase(n, norm_rows), phase(ceil_div(panels, step), project)};
  pool.run(phases, 2, vocab * hidden * (long(sizeof(T)) + n / 8) > (256 << 10));
}

}  // namespace
}  // namespace janus

using namespace janus;

// x [n, hidden], router [experts, hidden] packed -> weights f32 [n, k] descending, ids int32 [n, k].
JANUS_API void janus_route(int64_t dtype, int64_t n, int64_t hidden, int64_t experts, int64_t k, int64_t normalise,
                           const void* x, const void* router, float* weights, int32_t* ids) {
  if (dtype == kBfloat16) {
    route(n, hidden, experts, k, normalise != 0, static_cast<const bf16*>(x), static_cast<const bf16*>(router), weights,
          ids);
  } else {
    route(n, hidden, experts, k, normalise != 0, static_cast<const float*>(x), static_cast<const float*>(router),
          weights, ids);
  }
}

// `packed` is one expert's worth of weights as janus_pack_expert writes them; x and out are [n, hidden].
JANUS_API void janus_dense_mlp(int64_t dtype, int64_t n, int64_t hidden, int64_t width, const void* x,
                               const void* packed, void* out) {
  if (dtype == kBfloat16) {
    const bf16* w = static_cast<const bf16*>(packed);
    dense_mlp(n, hidden, width, static_cast<const bf16*>(x), w, w + ceil_div(width, 16) * panel_size<bf16>(hidden),
              static_cast<bf16*>(out));
  } else {
    const float* w = static_cast<const float*>(packed);
    dense_mlp(n, hidden, width, static_cast<const float*>(x), w, w + ceil_div(width, 16) * panel_size<float>(hidden),
              static_cast<float*>(out));
  }
}

// Final norm and projection of rows `rows` [n] of h: logits f32 [n, vocab].
JANUS_API void janus_head(int64_t dtype, int64_t n, int64_t hidden, int64_t vocab, double eps, const void* h,
                          const int64_t* rows, const float* norm, const void* packed, float* logits) {
  if (dtype == kBfloat16) {
    head(n, hidden, vocab, float(eps), static_cast<const bf16*>(h), rows, norm, static_cast<const bf16*>(packed),
         logits);
  } else {
    head(n, hidden, vocab, float(eps), static_cast<const float*>(h), rows, norm, static_cast<const float*>(packed),
         logits);
  }
}
