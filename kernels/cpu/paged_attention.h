// Causal softmax attention of a few query rows over a paged context, one key/value head at a time.
//
// The context is walked in tiles of 64 tokens that start at multiples of 64, with a running maximum and sum (online
// softmax, Milakov and Gimelshein 2018). A row's operations depend on its own context alone: the same row gives the same
// bits as a decode step, inside a prefill chunk, and beside any other sequences.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "vec.h"

namespace janus {

constexpr int kTile = 64;

// Keys and values of one layer, [blocks, kv_heads, block_size, D]; `table` lists the sequence's blocks.
template <typename T>
struct PagedContext {
  const T* keys;
  const T* values;
  const int32_t* table;
  long block_size, kv_heads, head_dim;

  // Element offsets of tokens [first, first + n) of key head `head`.
  void offsets(long first, long n, long head, long* to) const {
    for (long t = first, i = 0; i < n;) {
      const long block = table[t / block_size], offset = t % block_size;
      const long run = std::min(n - i, block_size - offset);
      const long base = (block * kv_heads + head) * block_size + offset;
      for (long j = 0; j < run; ++j, ++i, ++t) to[i] = (base + j) * head_dim;
    }
  }
};

inline float dot(const float* a, const float* b, long n) {
  f32x16 sum = {};
  long i = 0;
  for (; i + 16 <= n; i += 16) sum += load16(a + i) * load16(b + i);
  float total = sum16(sum);
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

inline float dot(const bf16* a, const bf16* b, long n) {
  f32x16 sum = {};
  long i = 0;
#if defined(__AVX512BF16__)
  for (; i + 32 <= n; i += 32)
    sum = (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(a + i),
                                   (__m512bh)_mm512_loadu_si512(b + i));
#endif
  for (; i + 16 <= n; i += 16) sum += load16(a + i) * load16(b + i);
  float total = sum16(sum);
  for (; i < n; ++i) total += to_float(a[i]) * to_float(b[i]);
  return total;
}

// Running softmax state of one (row, head): [0] maximum, [1] sum, [2..2 + D) weighted values.
inline void reset(float* state, long head_dim) {
  state[0] = -std::numeric_limits<float>::infinity();
  std::fill(state + 1, state + 2 + head_dim, 0.0f);
}

// Adds n tokens (1 <= n <= kTile) to the state of one query head. D is head_dim where it is known at compile time, or 0.
template <typename T, int D>
inline void attend_tile(const T* q, const T* keys, const T* values, const long* offset, long n, long head_dim,
                        float scale, float* state) {
  if (D) head_dim = D;
  alignas(64) float p[kTile];
  for (long t = 0; t < n; ++t) p[t] = dot(q, keys + offset[t], head_dim) * scale;
  for (long t = n; t < kTile; ++t) p[t] = -std::numeric_limits<float>::infinity();
  f32x16 best = max16(max16(load16(p), load16(p + 16)), max16(load16(p + 32), load16(p + 48)));
  const float top = std::max(state[0], top16(best));
  const float shrink = std::exp(state[0] - top);  // 0 for the first tile
  f32x16 sum = {};
  for (int i = 0; i < kTile; i += 16) store16(p + i, exp16(load16(p + i) - top));
  for (long t = n; t < kTile; ++t) p[t] = 0.0f;
  for (int i = 0; i < kTile; i += 16) sum += load16(p + i);
  state[0] = top;
  state[1] = state[1] * shrink + sum16(sum);

  float* acc = state + 2;
  long d = 0;
  for (; d + 64 <= head_dim; d += 64) {
    f32x16 a0 = load16(acc + d) * shrink, a1 = load16(acc + d + 16) * shrink;
    f32x16 a2 = load16(acc + d + 32) * shrink, a3 = load16(acc + d + 48) * shrink;
    for (long t = 0; t < n; ++t) {
      const T* v = values + offset[t] + d;
      const float w = p[t];
      a0 += w * load16(v);
      a1 += w * load16(v + 16);
      a2 += w * load16(v + 32);
      a3 += w * load16(v + 48);
    }
    store16(acc + d, a0);
    store16(acc + d + 16, a1);
    store16(acc + d + 32, a2);
    store16(acc + d + 48, a3);
  }
  for (; d + 16 <= head_dim; d += 16) {
    f32x16 a = load16(acc + d) * shrink;
    for (long t = 0; t < n; ++t) a += p[t] * load16(values + offset[t] + d);
    store16(acc + d, a);
  }
  for (; d < head_dim; ++d) {
    float a = acc[d] * shrink;
    for (long t = 0; t < n; ++t) a += p[t] * to_float(values[offset[t] + d]);
    acc[d] = a;
  }
}

// Attention of `rows` consecutive query rows and the query heads of key head `head`. q and out are [rows, heads, D] with
// `stride` elements from row to row; row r sees the first `visible + r` tokens.
template <typename T>
void attend(const PagedContext<T>& context, const T* q, T* out, long stride, long rows, long visible, long head,
            long group, float scale) {
  const long size = context.head_dim, width = size + 2;
  static thread_local std::vector<float> memory;
  memory.resize(rows * group * width);
  for (long i = 0; i < rows * group; ++i) reset(memory.data() + i * width, size);
  const T* first = q + head * group * size;
  long offset[kTile];
  for (long start = 0; start < visible + rows - 1; start += kTile) {
    context.offsets(start, std::min<long>(kTile, visible + rows - 1 - start), head, offset);
    for (long r = 0; r < rows; ++r) {
      const long n = std::min<long>(kTile, visible + r - start);
      if (n <= 0) continue;
      for (long j = 0; j < group; ++j) {
        const T* query = first + r * stride + j * size;
        float* state = memory.data() + (r * group + j) * width;
        if (size == 64) {
          attend_tile<T, 64>(query, context.keys, context.values, offset, n, size, scale, state);
        } else if (size == 128) {
          attend_tile<T, 128>(query, context.keys, context.values, offset, n, size, scale, state);
        } else {
          attend_tile<T, 0>(query, context.keys, context.values, offset, n, size, scale, state);
        }
      }
    }
  }
  for (long r = 0; r < rows; ++r) {
    for (long j = 0; j < group; ++j) {
      const float* state = memory.data() + (r * group + j) * width;
      T* to = out + r * stride + (head * group + j) * size;
      const float inverse = 1.0f / state[1];
      long d = 0;
      for (; d + 16 <= size; d += 16) store16(to + d, load16(state + 2 + d) * inverse);
      for (; d < size; ++d) put(to + d, state[2 + d] * inverse);
    }
  }
}

}  // namespace janus
