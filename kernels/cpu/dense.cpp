// What is left of the attention half: the gate, the MLP of layers without experts, and the output head.
#include "api.h"
#include "gemm.h"
#include "norm.h"
#include "pool.h"

#include <algorithm>
#include <limits>

namespace janus {

// How a row's experts are chosen; `janus.model.config.GateConfig` says what the fields mean.
struct GateShape {
  int64_t dtype, hidden, experts, k, sigmoid, normalise, groups, top_groups, group_best;
  double scaling;
};

namespace {

constexpr long kTaskBytes = 128 << 10;
constexpr long kRowsPerTask = 8;

constexpr float nothing = -std::numeric_limits<float>::infinity();

// The first index of the largest of values [padded]; lanes past n hold -inf, padded is a multiple of 16.
inline long argmax(const float* values, long n, long padded) {
  f32x16 most = load16(values);
  for (long i = 16; i < padded; i += 16) most = max16(most, load16(values + i));
  const float value = top16(most);
  long id = 0;
  while (id + 1 < n && !(values[id] == value)) ++id;
  return id;
}

// Writes the k largest of logits [padded] (ties: the lower id) with their softmax weights; `logits` is used up. Lanes
// past the experts hold -inf; padded is a multiple of 16. NaN logits give meaningless but valid ids.
void top_k(float* logits, long experts, long padded, long k, bool normalise, float scaling, float* weights,
           int32_t* ids) {
  f32x16 best = load16(logits);
  for (long e = 16; e < padded; e += 16) best = max16(best, load16(logits + e));
  const float top = top16(best);
  float sum = 0.0f;
  if (!normalise)
    for (long e = 0; e < padded; ++e) sum += logits[e] == nothing ? 0.0f : std::exp(logits[e] - top);
  for (long i = 0; i < k; ++i) {
    const long id = argmax(logits, experts, padded);
    ids[i] = int32_t(id);
    weights[i] = std::exp(logits[id] - top);
    if (normalise) sum += weights[i];
    logits[id] = nothing;
  }
  const float scale = scaling / sum;
  for (long i = 0; i < k; ++i) weights[i] *= scale;
}

// -inf for all but the experts of the best groups (ties: the lower group). A group ranks by its best score, or two.
void keep_best_groups(const GateShape& shape, float* choice, float* ranks) {
  const long groups = shape.groups, size = shape.experts / groups, padded = round_up(groups, 16);
  std::fill(ranks, ranks + padded, nothing);
  for (long g = 0; g < groups; ++g) {
    const float* own = choice + g * size;
    float first = nothing, second = nothing;
    for (long e = 0; e < size; ++e) {
      if (own[e] > first) {
        second = first;
        first = own[e];
      } else if (own[e] > second) {
        second = own[e];
      }
    }
    ranks[g] = shape.group_best == 2 ? first + second : first;
  }
  for (long i = 0; i < shape.top_groups; ++i) ranks[argmax(ranks, groups, padded)] = nothing;
  for (long g = 0; g < groups; ++g)
    if (ranks[g] != nothing) std::fill(choice + g * size, choice + (g + 1) * size, nothing);
}

// As top_k for any gate: scores, the choice by scores plus `correction` (null = none) within the best groups. `scores`
// holds logits, -inf past the experts; `choice` [padded] and `ranks` [groups, to a multiple of 16] are used up.
void choose(const GateShape& shape, float* scores, const float* correction, float* choice, float* ranks, float* weights,
            int32_t* ids) {
  const long experts = shape.experts, padded = round_up(experts, kPanel);
  if (shape.sigmoid) {
    for (long e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
  } else {
    const float top = scores[argmax(scores, experts, padded)];
    float sum = 0.0f;
    for (long e = 0; e < experts; ++e) sum += scores[e] = std::exp(scores[e] - top);
    for (long e = 0; e < experts; ++e) scores[e] /= sum;
  }
  std::copy(scores, scores + padded, choice);
  if (correction)
    for (long e = 0; e < experts; ++e) choice[e] += correction[e];
  if (shape.groups > 1) keep_best_groups(shape, choice, ranks);
  float sum = shape.normalise ? 1e-20f : 1.0f;
  for (long i = 0; i < shape.k; ++i) {
    const long id = argmax(choice, experts, padded);
    ids[i] = int32_t(id);
    weights[i] = scores[id];
    if (shape.normalise) sum += scores[id];
    choice[id] = nothing;
  }
  for (long i = 0; i < shape.k; ++i) weights[i] = weights[i] / sum * float(shape.scaling);
}

template <typename T>
void route(const GateShape& shape, long n, const T* x, const T* packed, const float* bias, const float* correction,
           float* weights, int32_t* ids) {
  Pool& pool = Pool::get();
  auto held = pool.lock();
  const long hidden = shape.hidden, experts = shape.experts, k = shape.k, width = round_up(experts, kPanel);
  const bool plain = !shape.sigmoid && shape.groups == 1 && !correction;
  const long ranks = round_up(shape.groups, 16), tasks = ceil_div(n, kRowsPerTask);
  float* logits = static_cast<float*>(pool.scratch(0, n * width * sizeof(float)));
  float* choices = plain ? nullptr : static_cast<float*>(pool.scratch(1, tasks * (width + ranks) * sizeof(float)));
  auto gate = [&](long task) {
    const long first = task * kRowsPerTask, rows = std::min(kRowsPerTask, n - first);
    times_panels(
        packed, 0, width / kPanel, hidden, rows, [&](long r) { return x + (first + r) * hidden; },
        [&](long r, long column, f32x16 a, f32x16 b) {
          store_panel(logits + (first + r) * width, column, width, a, b);
        });
    for (long r = first; r < first + rows; ++r) {
      float* row = logits + r * width;
      std::fill(row + experts, row + width, nothing);
      if (bias)
        for (long e = 0; e < experts; ++e) row[e] += bias[e];
      if (plain) {
        top_k(row, experts, width, k, shape.normalise != 0, float(shape.scaling), weights + r * k, ids + r * k);
      } else {
        float* choice = choices + task * (width + ranks);
        choose(shape, row, correction, choice, choice + width, weights + r * k, ids + r * k);
      }
    }
  };
  Phase phases[] = {phase(tasks, gate)};
  pool.run(phases, 1, n * hidden * width > (4L << 20));
}

// `gate` [hidden], null = none: a row is multiplied by sigmoid(gate . x).
template <typename T>
void dense_mlp(long n, long hidden, long width, const T* x, const T* gate_up, const T* down, const float* gate,
               T* out) {
  Pool& pool = Pool::get();
  auto held = pool.lock();
  const long padded = round_up(width, 16), up_panel = panel_size<T>(hidden), down_panel = panel_size<T>(width);
  const long up_panels = padded / 16, down_panels = ceil_div(hidden, kPanel);
  T* inner = static_cast<T*>(pool.scratch(0, (n * padded + 64) * sizeof(T)));
  float* factors = gate ? static_cast<float*>(pool.scratch(1, n * sizeof(float))) : nullptr;
  const long up_step = std::max(1L, kTaskBytes / long(up_panel * sizeof(T)));
  const long down_step = std::max(1L, kTaskBytes / long(down_panel * sizeof(T)));
  auto up = [&](long task) {
    if (gate && task == 0)
      for (long r = 0; r < n; ++r) factors[r] = 1.0f / (1.0f + std::exp(-dot(x + r * hidden, gate, hidden)));
    times_panels(
        gate_up, task * up_step, std::min(up_panels, (task + 1) * up_step), hidden, n,
        [&](long r) { return x + r * hidden; },
        [&](long r, long column, f32x16 g, f32x16 u) { store16(inner + r * padded + column / 2, silu16(g) * u); });
  };
  auto project = [&](long task) {
    times_panels(
        down, task * down_step, std::min(down_panels, (task + 1) * down_step), width, n,
        [&](long r) { return inner + r * padded; },
        [&](long r, long column, f32x16 a, f32x16 b) {
          if (gate) {
            a *= factors[r];
            b *= factors[r];
          }
          store_panel(out + r * hidden, column, hidden, a, b);
        });
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

// x [n, hidden], router [experts, hidden] packed, bias of logits and correction of scores f32 [experts] (null = none)
// -> weights f32 [n, k], ids int32 [n, k], the best choice first.
JANUS_API void janus_route(const GateShape* shape, int64_t n, const void* x, const void* router, const float* bias,
                           const float* correction, float* weights, int32_t* ids) {
  if (shape->dtype == kBfloat16) {
    route(*shape, n, static_cast<const bf16*>(x), static_cast<const bf16*>(router), bias, correction, weights, ids);
  } else {
    route(*shape, n, static_cast<const float*>(x), static_cast<const float*>(router), bias, correction, weights, ids);
  }
}

// `packed` is one expert's worth of weights as janus_pack_expert writes them; x and out are [n, hidden]. With `gate` f32
// [hidden] (null = none) a row is multiplied by sigmoid(gate . x).
JANUS_API void janus_dense_mlp(int64_t dtype, int64_t n, int64_t hidden, int64_t width, const void* x,
                               const void* packed, const float* gate, void* out) {
  if (dtype == kBfloat16) {
    const bf16* w = static_cast<const bf16*>(packed);
    dense_mlp(n, hidden, width, static_cast<const bf16*>(x), w, w + ceil_div(width, 16) * panel_size<bf16>(hidden),
              gate, static_cast<bf16*>(out));
  } else {
    const float* w = static_cast<const float*>(packed);
    dense_mlp(n, hidden, width, static_cast<const float*>(x), w, w + ceil_div(width, 16) * panel_size<float>(hidden),
              gate, static_cast<float*>(out));
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
