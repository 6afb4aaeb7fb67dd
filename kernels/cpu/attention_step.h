// What the kinds of attention share: a step's description, its cut into tasks, norms, projections, rotary embedding,
// and the way out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "api.h"
#include "gemm.h"
#include "norm.h"
#include "pool.h"

namespace janus {

struct AttentionStep {
  int64_t tokens, sequences, max_blocks;
  const float* cos_sin;         // [tokens, rotary]: cos, then sin
  const int64_t* slot_mapping;  // [tokens]
  const int32_t* query_start;   // [sequences + 1]
  const int32_t* context_len;   // [sequences]
  const int32_t* block_tables;  // [sequences, max_blocks]
};

constexpr long kRowsPerTask = 8;
constexpr long kTaskBytes = 128 << 10;

// Rows of a sequence that one task attends for.
struct Item {
  int32_t sequence;
  int32_t row;  // first row of the step
  int32_t rows;
  int32_t visible;  // tokens that the first row sees, with no window
};

// Cuts a step into items of at most `most` rows.
inline void list_items(const AttentionStep& step, int32_t most, std::vector<Item>& items) {
  items.clear();
  for (int32_t s = 0; s < step.sequences; ++s) {
    const int32_t begin = step.query_start[s], end = step.query_start[s + 1];
    for (int32_t row = begin; row < end; row += most) {
      const int32_t rows = std::min<int32_t>(most, end - row);
      items.push_back({s, row, rows, step.context_len[s] - (end - row) + 1});
    }
  }
}

// Scaling by `scale` and `norm` (null = none), and rotation, of one head in f32: of the first `rotary` elements, pairs
// (d, d + rotary / 2) turn; the others do not.
template <typename T>
void rotate(const float* x, const float* norm, float scale, const float* cos_sin, T* y, long size, long rotary) {
  const long half = rotary / 2;
  const float *cos = cos_sin, *sin = cos_sin + half;
  long d = 0;
  for (; d + 16 <= half; d += 16) {
    f32x16 a = load16(x + d) * scale, b = load16(x + d + half) * scale;
    if (norm) {
      a *= load16(norm + d);
      b *= load16(norm + d + half);
    }
    const f32x16 c = load16(cos + d), s = load16(sin + d);
    store16(y + d, a * c - b * s);
    store16(y + d + half, b * c + a * s);
  }
  for (; d < half; ++d) {
    const float a = x[d] * scale * (norm ? norm[d] : 1.0f), b = x[d + half] * scale * (norm ? norm[d + half] : 1.0f);
    put(y + d, a * cos[d] - b * sin[d]);
    put(y + d + half, b * cos[d] + a * sin[d]);
  }
  for (d = rotary; d < size; ++d) put(y + d, x[d] * scale * (norm ? norm[d] : 1.0f));
}

// Stores n floats as T.
template <typename T>
inline void store_row(const float* from, T* to, long n) {
  long d = 0;
  for (; d + 16 <= n; d += 16) store16(to + d, load16(from + d));
  for (; d < n; ++d) put(to + d, from[d]);
}

// Calls f(row) for the rows of one of the tasks that work row by row.
template <typename F>
inline void each_row(long task, long tokens, F f) {
  for (long r = task * kRowsPerTask; r < std::min(tokens, (task + 1) * kRowsPerTask); ++r) f(r);
}

// A phase's work: to = the norm of every row of `from`, both [tokens, width].
template <typename T>
struct Norm {
  const T* from;
  const float* weight;
  T* to;
  long width, tokens;
  float eps;

  void operator()(long task) const {
    each_row(task, tokens, [&](long r) { rms_norm(from + r * width, weight, to + r * width, width, eps); });
  }
};

// A phase's work: out [tokens, columns] in f32 = x [tokens, k] times a packed W.
template <typename T>
struct Projection {
  const T* w;
  long columns, k, tokens;
  const T* x;
  float* out;

  long panels() const { return ceil_div(columns, kPanel); }
  long step() const { return std::max(1L, kTaskBytes / long(panel_size<T>(k) * sizeof(T))); }
  long tasks() const { return ceil_div(panels(), step()); }
  void operator()(long task) const {
    const long first = task * step();
    product(w, first, std::min(panels(), first + step()), columns, k, tokens, x, k, out, columns);
  }
};

// A phase's work: h_out [tokens, hidden] = h + attended [tokens, width] times a packed W + bias.
template <typename T>
class WayOut {
 public:
  // `bias` (null = none) is copied to scratch memory `slot`: it is read up to a whole panel.
  WayOut(Pool& pool, int slot, const T* w, const float* bias, const T* attended, long width, const T* h, T* h_out,
         long hidden, long tokens)
      : w_(w), attended_(attended), h_(h), h_out_(h_out), width_(width), hidden_(hidden), tokens_(tokens) {
    panels_ = ceil_div(hidden, kPanel);
    // A task's weights, but enough tasks for all threads.
    const long bytes = long(panel_size<T>(width) * sizeof(T));
    step_ = std::max(1L, std::min(kTaskBytes / bytes, panels_ / (2L * pool.threads())));
    if (!bias) return;
    float* copy = static_cast<float*>(pool.scratch(slot, panels_ * kPanel * sizeof(float)));
    std::copy(bias, bias + hidden, copy);
    bias_ = copy;
  }

  long tasks() const { return ceil_div(panels_, step_); }

  void operator()(long task) const {
    times_panels(
        w_, task * step_, std::min(panels_, (task + 1) * step_), width_, tokens_,
        [&](long r) { return attended_ + r * width_; },
        [&](long r, long column, f32x16 a, f32x16 b) {
          if (bias_) {
            a += load16(bias_ + column);
            b += load16(bias_ + column + 16);
          }
          const T* from = h_ + r * hidden_;
          if (column + kPanel > hidden_) {
            float tail[kPanel] = {};
            for (long c = column; c < hidden_; ++c) tail[c - column] = to_float(from[c]);
            store_panel(h_out_ + r * hidden_, column, hidden_, a + load16(tail), b + load16(tail + 16));
            return;
          }
          store16(h_out_ + r * hidden_ + column, load16(from + column) + a);
          store16(h_out_ + r * hidden_ + column + 16, load16(from + column + 16) + b);
        });
  }

 private:
  const T* w_;
  const float* bias_ = nullptr;
  const T* attended_;
  const T* h_;
  T* h_out_;
  long width_, hidden_, tokens_, panels_, step_;
};

// Calls run(h, h_out, x_out) with pointers to what `dtype` says.
template <typename F>
inline void in_dtype(int64_t dtype, const void* h, void* h_out, void* x_out, F run) {
  if (dtype == kBfloat16) {
    run(static_cast<const bf16*>(h), static_cast<bf16*>(h_out), static_cast<bf16*>(x_out));
  } else {
    run(static_cast<const float*>(h), static_cast<float*>(h_out), static_cast<float*>(x_out));
  }
}

}  // namespace janus
