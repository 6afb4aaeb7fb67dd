// What the kinds of attention share: a step's description, its cut into tasks, rotary embedding, and the way out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gemm.h"
#include "norm.h"

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

// Panels [first, last) of h_out = h + attended W + bias. `bias` (null = none) may be read up to a whole panel.
template <typename T>
void project_out(const T* w, const float* bias, long first, long last, const T* attended, long width, const T* h,
                 T* h_out, long hidden, long tokens) {
  times_panels(
      w, first, last, width, tokens, [&](long r) { return attended + r * width; },
      [&](long r, long column, f32x16 a, f32x16 b) {
        if (bias) {
          a += load16(bias + column);
          b += load16(bias + column + 16);
        }
        const T* from = h + r * hidden;
        if (column + kPanel > hidden) {
          float tail[kPanel] = {};
          for (long c = column; c < hidden; ++c) tail[c - column] = to_float(from[c]);
          store_panel(h_out + r * hidden, column, hidden, a + load16(tail), b + load16(tail + 16));
          return;
        }
        store16(h_out + r * hidden + column, load16(from + column) + a);
        store16(h_out + r * hidden + column + 16, load16(from + column + 16) + b);
      });
}

// Panels of the way out that make one task: a task's weights, but enough tasks for all threads.
template <typename T>
inline long out_step(long panels, long width, long threads) {
  return std::max(1L, std::min(kTaskBytes / long(panel_size<T>(width) * sizeof(T)), panels / (2L * threads)));
}

}  // namespace janus
