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

// Keys and values of one layer, [blocks, kv_heads, block_size, head_dim]; `table` lists the sequence's blocks. Values
// are the first `value_dim` elements; latent attention's are the start of its keys.
template <typename T>
struct PagedContext {
  const T* keys;
  const T* values;
  const int32_t* table;
  long block_size, kv_heads, head_dim, value_dim;

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

// Query rows that walk the context together. q is [rows, group, head_dim] and out [rows, group, value_dim], with strides
// from row to row.
template <typename T>
struct Queries {
  const T* q;
  T* out;
  long q_stride, out_stride, rows, group;
  const float* sinks;  // [group], logits of no value; null = none
};

// Running softmax state of one (row, head): [0] maximum, [1] sum, [2..2 + value_dim) weighted values.
inline void reset(float* state, long value_dim, const float* sink) {
  state[0] = sink ? *sink : -std::numeric_limits<float>::infinity();
  state[1] = sink ? 1.0f : 0.0f;
  std::fill(state + 2, state + 2 + value_dim, 0.0f);
}

// Turns the scores of tokens [from, n) into weights relative to the running maximum, and those of the others into
// zeros; returns by how much older sums shrink.
inline float soften(float* p, long from, long n, float* state) {
  for (long t = 0; t < from; ++t) p[t] = -std::numeric_limits<float>::infinity();
  for (long t = n; t < kTile; ++t) p[t] = -std::numeric_limits<float>::infinity();
  const f32x16 best = max16(max16(load16(p), load16(p + 16)), max16(load16(p + 32), load16(p + 48)));
  const float top = std::max(state[0], top16(best));
  const float shrink = std::exp(state[0] - top);  // 0 for the first tile
  f32x16 sum = {};
  for (int i = 0; i < kTile; i += 16) store16(p + i, exp16(load16(p + i) - top));
  for (long t = 0; t < from; ++t) p[t] = 0.0f;
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

// Adds tokens [from, n) of a tile (from < n <= kTile) to the states of J query heads. D is head_dim, and value_dim, where
// known at compile time, else 0.
template <typename T, int D, int J>
inline void attend_tile(const PagedContext<T>& context, const T* q, const long* offset, long from, long n, float scale,
                        float* state, long width) {
  const long head_dim = D ? D : context.head_dim, value_dim = D ? D : context.value_dim;
  const T* values = context.values;
  alignas(64) float p[J][kTile];
  float shrink[J];
  scores<T, D, J>(q, context.keys, offset, n, head_dim, scale, p);
  for (int j = 0; j < J; ++j) shrink[j] = soften(p[j], from, n, state + j * width);
  long d = 0;
  for (; d + 64 <= value_dim; d += 64) add_values<T, J, 4>(values + d, offset, n, p, shrink, state + 2 + d, width);
  for (; d + 16 <= value_dim; d += 16) add_values<T, J, 1>(values + d, offset, n, p, shrink, state + 2 + d, width);
  for (; d < value_dim; ++d) {
    for (int j = 0; j < J; ++j) {
      float* acc = state + j * width + 2 + d;
      float sum = *acc * shrink[j];
      for (long t = 0; t < n; ++t) sum += p[j][t] * to_float(values[offset[t] + d]);
      *acc = sum;
    }
  }
}

// All query heads of one key head, several at a time; how many go together does not change their numbers.
template <typename T, int D, int J>
void attend_group(const PagedContext<T>& context, const T* q, const long* offset, long from, long n, float scale,
                  long group, float* state, long width) {
  const long size = D ? D : context.head_dim;
  long j = 0;
  for (; j + J <= group; j += J)
    attend_tile<T, D, J>(context, q + j * size, offset, from, n, scale, state + j * width, width);
  for (; j < group; ++j) attend_tile<T, D, 1>(context, q + j * size, offset, from, n, scale, state + j * width, width);
}

// Attention of consecutive query rows and the query heads of key head `head`. Row r sees the first `visible + r` tokens,
// or the last `window` of them (0 = all). D as for attend_tile; J heads go together.
template <typename T, int D, int J = kJoint>
void attend(const PagedContext<T>& context, const Queries<T>& queries, long visible, long window, long head,
            float scale) {
  const long size = context.head_dim, value_dim = context.value_dim, width = value_dim + 2;
  const long rows = queries.rows, group = queries.group;
  static thread_local std::vector<float> memory;
  memory.resize(rows * group * width);
  for (long i = 0; i < rows * group; ++i)
    reset(memory.data() + i * width, value_dim, queries.sinks ? queries.sinks + i % group : nullptr);
  const auto unseen = [&](long r) { return window ? std::max(0L, visible + r - window) : 0L; };
  const long end = visible + rows - 1, begin = unseen(0) / kTile * kTile;
  long offsets[2][kTile];
  context.offsets(begin, std::min<long>(kTile, end - begin), head, offsets[0]);
  for (long start = begin, side = 0; start < end; start += kTile, side ^= 1) {
    const long* offset = offsets[side];
    const long next = std::min<long>(kTile, end - start - kTile);
    if (context.values != context.keys) prefetch_tokens(context.values, offset, std::min<long>(kTile, end - start), size);
    if (next > 0) {
      context.offsets(start + kTile, next, head, offsets[side ^ 1]);
      prefetch_tokens(context.keys, offsets[side ^ 1], next, size);
    } else if (head + 1 < context.kv_heads) {
      // The caller's next head most likely: its keys lie one head further in the same blocks.
      long ahead[kTile];
      const long count = std::min<long>(kTile, end - begin);
      context.offsets(begin, count, head + 1, ahead);
      prefetch_tokens(context.keys, ahead, count, size);
    }
    for (long r = 0; r < rows; ++r) {
      const long n = std::min<long>(kTile, visible + r - start), from = std::max(0L, unseen(r) - start);
      if (n <= from) continue;
      attend_group<T, D, J>(context, queries.q + r * queries.q_stride, offset, from, n, scale, group,
                         memory.data() + r * group * width, width);
    }
  }
  for (long r = 0; r < rows; ++r) {
    for (long j = 0; j < group; ++j) {
      const float* state = memory.data() + (r * group + j) * width;
      T* to = queries.out + r * queries.out_stride + j * value_dim;
      const float inverse = 1.0f / state[1];
      long d = 0;
      for (; d + 16 <= value_dim; d += 16) store16(to + d, load16(state + 2 + d) * inverse);
      for (; d < value_dim; ++d) put(to + d, state[2 + d] * inverse);
    }
  }
}

}  // namespace janus
