// Matrix products with a weight matrix that was packed at load: x [M, K] times W [N, K] transposed.
//
// Packed layout: panels of 32 output columns. Within a panel, bf16 goes [K / 2][32][2] (a pair of k per column, which
// is what vdpbf16ps, and an AMX tile, want), f32 goes [K][32]. One panel is one contiguous stream of memory, read once.
//
// Each output is accumulated over k in one accumulator in ascending order, whatever M is: a row's result does not
// depend on the rows beside it, bit for bit.
#pragma once

#include "vec.h"

namespace janus {

constexpr int kPanel = 32;

#if defined(__AVX512F__)
constexpr int kRows = 12;  // rows of x per micro-kernel: 24 of 32 vector registers accumulate
#else
constexpr int kRows = 2;
#endif

template <typename T>
constexpr int kGroup = 1;
template <>
constexpr int kGroup<bf16> = 2;

// Elements of one packed panel.
template <typename T>
inline long panel_size(long k) {
  return round_up(k, kGroup<T>) * kPanel;
}

// Writes row-major W [n, k] (leading dimension k) as panels; columns and k beyond the matrix are zero. `row_of(c)`
// tells which row of W is output column c, or -1 for none. A group of k is 32 bits in both types, so that packing is
// transposing words; element by element it takes eight times as long, and a start is little else but reading and this.
template <typename T, typename F>
void pack_panels(T* to, const T* from, long columns, long k, F row_of) {
  constexpr int group = kGroup<T>;
  static_assert(group * sizeof(T) == 4);
  const long panel = panel_size<T>(k), words = k / (16 * group) * 16;
  const T* rows[16];
  for (long p = 0; p < 2 * ceil_div(columns, kPanel); ++p) {  // halves of panels
    T* base = to + p / 2 * panel + p % 2 * 16 * group;
    for (int c = 0; c < 16; ++c) {
      const long row = row_of(p * 16 + c);
      rows[c] = row < 0 ? nullptr : from + row * k;
    }
    for (long i = 0; i < words; i += 16) {
      u32x16 tile[16] = {};
      for (int c = 0; c < 16; ++c)
        if (rows[c]) std::memcpy(&tile[c], rows[c] + i * group, 64);
      transpose16(tile);
      for (int j = 0; j < 16; ++j) std::memcpy(base + (i + j) * kPanel * group, &tile[j], 64);
    }
    for (int c = 0; c < 16; ++c)
      for (long i = words * group; i < round_up(k, group); ++i)
        base[(i / group * kPanel + c) * group + i % group] = rows[c] && i < k ? rows[c][i] : T{};
  }
}

// Rows of x times one panel, sums to out [R][32]. Not inlined: one copy per (T, R) keeps the library's build short.
// `ahead` is the panel that the thread will read next; it is fetched into L2 meanwhile: with eight rows per expert
// the loop itself is too slow to keep enough misses in flight.
template <int R>
__attribute__((noinline)) void micro(const float* const* x, const float* w, long k, const float* ahead, float* out) {
  f32x16 acc[R][2] = {};
  for (long i = 0; i < k; ++i, w += kPanel, ahead += kPanel) {
    f32x16 w0 = load16(w), w1 = load16(w + 16);
    __builtin_prefetch(ahead, 0, 2);
    __builtin_prefetch(ahead + 16, 0, 2);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      float b = x[r][i];
      acc[r][0] += b * w0;
      acc[r][1] += b * w1;
    }
  }
  std::memcpy(out, acc, sizeof acc);
}

template <int R>
__attribute__((noinline)) void micro(const bf16* const* x, const bf16* w, long k, const bf16* ahead, float* out) {
  f32x16 acc[R][2] = {};
  for (long i = 0; i < k; i += 2, w += 2 * kPanel, ahead += 2 * kPanel) {
    __builtin_prefetch(ahead, 0, 2);
    __builtin_prefetch(ahead + kPanel, 0, 2);
#if defined(__AVX512BF16__)
    __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w1 = (__m512bh)_mm512_loadu_si512(w + kPanel);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, x[r] + i, 4);
      __m512bh b = (__m512bh)_mm512_set1_epi32(pair);
      acc[r][0] = (f32x16)_mm512_dpbf16_ps((__m512)acc[r][0], w0, b);
      acc[r][1] = (f32x16)_mm512_dpbf16_ps((__m512)acc[r][1], w1, b);
    }
#else
    u32x16 w0, w1;
    std::memcpy(&w0, w, 64);
    std::memcpy(&w1, w + kPanel, 64);
    f32x16 even0 = (f32x16)(w0 << 16), odd0 = (f32x16)(w0 & 0xFFFF0000u);
    f32x16 even1 = (f32x16)(w1 << 16), odd1 = (f32x16)(w1 & 0xFFFF0000u);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      float b0 = to_float(x[r][i]), b1 = to_float(x[r][i + 1]);
      acc[r][0] += b0 * even0 + b1 * odd0;
      acc[r][1] += b0 * even1 + b1 * odd1;
    }
#endif
  }
  std::memcpy(out, acc, sizeof acc);
}

template <typename T>
inline void micro_rows(long rows, const T* const* x, const T* w, long k, const T* ahead, float* out) {
  switch (rows) {
#if defined(__AVX512F__)
    case 12: return micro<12>(x, w, k, ahead, out);
    case 11: return micro<11>(x, w, k, ahead, out);
    case 10: return micro<10>(x, w, k, ahead, out);
    case 9: return micro<9>(x, w, k, ahead, out);
    case 8: return micro<8>(x, w, k, ahead, out);
    case 7: return micro<7>(x, w, k, ahead, out);
    case 6: return micro<6>(x, w, k, ahead, out);
    case 5: return micro<5>(x, w, k, ahead, out);
    case 4: return micro<4>(x, w, k, ahead, out);
    case 3: return micro<3>(x, w, k, ahead, out);
#endif
    case 2: return micro<2>(x, w, k, ahead, out);
    default: return micro<1>(x, w, k, ahead, out);
  }
}

// All m rows against one panel: `row(i)` is the address of row i of x (k readable elements, k even for bf16),
// `store(i, left, right)` takes the panel's first and last 16 columns. `next` is the panel that follows, null for none.
template <typename T, typename X, typename F>
inline void times_panel(const T* w, long k, long m, const T* next, X row, F store) {
  alignas(64) float out[kRows][kPanel];
  const T* x[kRows];
  for (long i = 0; i < m; i += kRows) {
    const long rows = m - i < kRows ? m - i : kRows;
    for (long r = 0; r < rows; ++r) x[r] = row(i + r);
    // Later rows find this panel in the cache, and the next one is on its way: nothing to fetch.
    micro_rows(rows, x, w, k, i == 0 && next ? next : w, out[0]);
    for (long r = 0; r < rows; ++r) store(i + r, load16(out[r]), load16(out[r] + 16));
  }
}

// Panels [first, last) in one go; `store(i, column, left, right)` gets the panel's first column.
template <typename T, typename X, typename F>
inline void times_panels(const T* w, long first, long last, long k, long m, X row, F store) {
  const long size = panel_size<T>(k);
  for (long p = first; p < last; ++p)
    times_panel(w + p * size, k, m, p + 1 < last ? w + (p + 1) * size : nullptr, row,
                [&](long i, f32x16 left, f32x16 right) { store(i, p * kPanel, left, right); });
}

// Stores a panel's columns [column, column + 32), cut at `columns`.
template <typename T>
inline void store_panel(T* row, long column, long columns, f32x16 left, f32x16 right) {
  if (column + kPanel <= columns) {
    store16(row + column, left);
    store16(row + column + 16, right);
    return;
  }
  float lanes[kPanel];
  store16(lanes, left);
  store16(lanes + 16, right);
  for (long c = column; c < columns; ++c) put(row + c, lanes[c - column]);
}

// Panels [first, last) of out = x W for m rows: those of x are `x_stride` apart, those of out, of `columns`,
// `out_stride`.
template <typename T, typename Out>
inline void product(const T* w, long first, long last, long columns, long k, long m, const T* x, long x_stride,
                    Out* out, long out_stride) {
  times_panels(
      w, first, last, k, m, [&](long r) { return x + r * x_stride; },
      [&](long r, long column, f32x16 a, f32x16 b) { store_panel(out + r * out_stride, column, columns, a, b); });
}

}  // namespace janus
