// Causal softmax attention of a few query rows over a paged context, one key/value head at a time.
//
// The context is walked in tiles of 64 tokens that start at multiples of 64, with a running maximum and sum (online
// softmax, Milakov and Gimelshein 2018). A row's operations depend on its own context alone: the same row gives the
// same bits as a decode step, inside a prefill chunk, and beside any other sequences.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "vec.h"

namespace janus {

constexpr int kTile = 64;

// Query heads that share one pass over the values: 8 of 32 vector registers accumulate.
#if defined(__AVX512F__)
constexpr int kJoint = 2;
#else
constexpr int kJoint = 1;
#endif

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

// Sixteen partial sums of a dot product over the first n elements, n a multiple of 16.
inline f32x16 partial_dot(const float* a, const float* b, long n) {
  f32x16 sum = {};
  for (long i = 0; i < n; i += 16) sum += load16(a + i) * load16(b + i);
  return sum;
}

inline f32x16 partial_dot(const bf16* a, const bf16* b, long n) {
  f32x16 sum = {};
  long i = 0;
#if defined(__AVX512BF16__)
  for (; i + 32 <= n; i += 32)
    sum = (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(a + i),
                                   (__m512bh)_mm512_loadu_si512(b + i));
#endif
  for (; i < n; i += 16) sum += load16(a + i) * load16(b + i);
  return sum;
}

// p[j][t] = q[j] . key[t] * scale for J query heads and n tokens; p is written in whole sixteens.
template <typename T, int D, int J>
inline void scores(const T* q, const T* keys, const long* offset, long n, long head_dim, float scale,
                   float (*p)[kTile]) {
  if (D) head_dim = D;
  const long whole = head_dim / 16 * 16;
  for (long t = 0; t < n; t += 16) {
    const long count = std::min(16L, n - t);
    for (int j = 0; j < J; ++j) {
      f32x16 sums[16] = {};
      for (long i = 0; i < count; ++i) sums[i] = partial_dot(q + j * head_dim, keys + offset[t + i], whole);
      store16(p[j] + t, sum_each16(sums) * scale);
    }
    for (long i = 0; i < count && whole < head_dim; ++i)
      for (int j = 0; j < J; ++j)
        for (long d = whole; d < head_dim; ++d)
          p[j][t + i] += to_float(q[j * head_dim + d]) * to_float(keys[offset[t + i] + d]) * scale;
  }
}

template <typename T>
inline void prefetch_tokens(const T* base, const long* offset, long n, long head_dim) {
  for (long t = 0; t < n; ++t)
    for (long d = 0; d < head_dim; d += 64 / long(sizeof(T))) __builtin_prefetch(base + offset[t] + d);
}

// Running softmax state of one (row, head): [0] maximum, [1] sum, [2..2 + D) weighted values.
inline void reset(float* state, long head_dim) {
  state[0] = -std::numeric_limits<float>::infinity();
  std::fill(state + 1, state + 2 + head_dim, 0.0f);
}

// Turns scores into weights relative to the running maximum, and returns by how much older sums shrink.
inline float soften(float* p, long n, float* state) {
  for (long t = n; t < kTile; ++t) p[t] = -std::numeric_limits<float>::infinity();
  const f32x16 best = max16(max16(load16(p), load16(p + 16)), max16(load16(p + 32), load16(p + 48)));
  const float top = std::max(state[0], top16(best));
  const float shrink = std::exp(state[0] - top);  // 0 for the first tile
  f32x16 sum = {};
  for (int i = 0; i < kTile; i += 16) store16(p + i, exp16(load16(p + i) - top));
  for (long t = n; t < kTile; ++t) p[t] = 0.0f;
  for (int i = 0; i < kTile; i += 16) sum += load16(p + i);
  state[0] = top;
  state[1] = state[1] * shrink + sum16(sum);
  return shrink;
}

// acc[j][d..d + 16 * W) = acc * shrink[j] + sum over t of p[j][t] * value[t]: a value is loaded once for J heads.
template <typename T, int J, int W>
inline void add_values(const T* values, const long* offset, long n, const float (*p)[kTile], const float* shrink,
                       float* acc, long width) {
  f32x16 sums[J][W];
  for (int j = 0; j < J; ++j)
    for (int w = 0; w < W; ++w) sums[j][w] = load16(acc + j * width + w * 16) * shrink[j];
  for (long t = 0; t < n; ++t) {
    const T* from = values + offset[t];
    f32x16 v[W];
    for (int w = 0; w < W; ++w) v[w] = load16(from + w * 16);
    for (int j = 0; j < J; ++j)
      for (int w = 0; w < W; ++w) sums[j][w] += p[j][t] * v[w];
  }
  for (int j = 0; j < J; ++j)
    for (int w = 0; w < W; ++w) store16(acc + j * width + w * 16, sums[j][w]);
}

// Adds n tokens (1 <= n <= kTile) to the states of J query heads. D is head_dim where known at compile time, else 0.
template <typename T, int D, int J>
inline void attend_tile(const T* q, const T* keys, const T* values, const long* offset, long n, long head_dim,
                        float scale, float* state, long width) {
  if (D) head_dim = D;
  alignas(64) float p[J][kTile];
  float shrink[J];
  scores<T, D, J>(q, keys, offset, n, head_dim, scale, p);
  for (int j = 0; j < J; ++j) shrink[j] = soften(p[j], n, state + j * width);
  long d = 0;
  for (; d + 64 <= head_dim; d += 64) add_values<T, J, 4>(values + d, offset, n, p, shrink, state + 2 + d, width);
  for (; d + 16 <= head_dim; d += 16) add_values<T, J, 1>(values + d, offset, n, p, shrink, state + 2 + d, width);
  for (; d < head_dim; ++d) {
    for (int j = 0; j < J; ++j) {
      float* acc = state + j * width + 2 + d;
      float sum = *acc * shrink[j];
      for (long t = 0; t < n; ++t) sum += p[j][t] * to_float(values[offset[t] + d]);
      *acc = sum;
    }
  }
}

// All query heads of one key head, several at a time; how many go together does not change their numbers.
template <typename T, int D>
void attend_group(const T* q, const T* keys, const T* values, const long* offset, long n, long head_dim, float scale,
                  long group, float* state, long width) {
  long j = 0;
  for (; j + kJoint <= group; j += kJoint)
    attend_tile<T, D, kJoint>(q + j * head_dim, keys, values, offset, n, head_dim, scale, state + j * width, width);
  for (; j < group; ++j)
    attend_tile<T, D, 1>(q + j * head_dim, keys, values, offset, n, head_dim, scale, state + j * width, width);
}

// Attention of `rows` consecutive query rows and the query heads of key head `head`. q and out are [rows, heads, D]
// with `stride` elements from row to row; row r sees the first `visible + r` tokens.
template <typename T>
void attend(const PagedContext<T>& context, const T* q, T* out, long stride, long rows, long visible, long head,
            long group, float scale) {
  const long size = context.head_dim, width = size + 2;
  static thread_local std::vector<float> memory;
  memory.resize(rows * group * width);
  for (long i = 0; i < rows * group; ++i) reset(memory.data() + i * width, size);
  const T* first = q + head * group * size;
  const long end = visible + rows - 1;
  long offsets[2][kTile];
  context.offsets(0, std::min<long>(kTile, end), head, offsets[0]);
  for (long start = 0, side = 0; start < end; start += kTile, side ^= 1) {
    const long* offset = offsets[side];
    const long next = std::min<long>(kTile, end - start - kTile);
    prefetch_tokens(context.values, offset, std::min<long>(kTile, end - start), size);
    if (next > 0) {
      context.offsets(start + kTile, next, head, offsets[side ^ 1]);
      prefetch_tokens(context.keys, offsets[side ^ 1], next, size);
    } else if (head + 1 < context.kv_heads) {
      // The caller's next head most likely: its keys lie one head further in the same blocks.
      long ahead[kTile];
      context.offsets(0, std::min<long>(kTile, end), head + 1, ahead);
      prefetch_tokens(context.keys, ahead, std::min<long>(kTile, end), size);
    }
    for (long r = 0; r < rows; ++r) {
      const long n = std::min<long>(kTile, visible + r - start);
      if (n <= 0) continue;
      const T* query = first + r * stride;
      float* state = memory.data() + r * group * width;
      if (size == 64) {
        attend_group<T, 64>(query, context.keys, context.values, offset, n, size, scale, group, state, width);
      } else if (size == 128) {
        attend_group<T, 128>(query, context.keys, context.values, offset, n, size, scale, group, state, width);
      } else {
        attend_group<T, 0>(query, context.keys, context.values, offset, n, size, scale, group, state, width);
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
