// Sixteen floats at a time, on any instruction set: GCC/Clang vector extensions, and AVX512 intrinsics where they are
// better. bf16 is stored as its 16 bits; arithmetic is in f32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace janus {

using f32x16 = float __attribute__((vector_size(64)));
using f32x8 = float __attribute__((vector_size(32)));
using f32x4 = float __attribute__((vector_size(16)));
using i32x16 = int32_t __attribute__((vector_size(64)));
using u32x16 = uint32_t __attribute__((vector_size(64)));
using u16x16 = uint16_t __attribute__((vector_size(32)));

struct bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest even; NaN stays NaN.
inline bf16 round_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}
inline void put(float* to, float x) { *to = x; }
inline void put(bf16* to, float x) { *to = round_bf16(x); }

inline f32x16 splat(float x) { return x - f32x16{}; }

inline f32x16 load16(const float* from) {
  f32x16 v;
  std::memcpy(&v, from, 64);
  return v;
}
inline f32x16 load16(const bf16* from) {
  u16x16 half;
  std::memcpy(&half, from, 32);
  u32x16 bits = __builtin_convertvector(half, u32x16) << 16;
  return (f32x16)bits;
}
inline void store16(float* to, f32x16 v) { std::memcpy(to, &v, 64); }
inline void store16(bf16* to, f32x16 v) {
#if defined(__AVX512BF16__)
  __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(to, &half, 32);
#else
  u32x16 bits = (u32x16)v;
  u32x16 rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  i32x16 nan = v != v;
  rounded = (nan & ((bits >> 16) | 0x40)) | (~nan & rounded);
  u16x16 half = __builtin_convertvector(rounded, u16x16);
  std::memcpy(to, &half, 32);
#endif
}

inline f32x16 max16(f32x16 a, f32x16 b) { return a > b ? a : b; }
inline f32x16 min16(f32x16 a, f32x16 b) { return a < b ? a : b; }

// Sum and maximum of the lanes, always in the same order: halves are folded until one lane is left.
template <typename Op>
inline float fold16(f32x16 v, Op op) {
  f32x8 a, b;
  std::memcpy(&a, &v, 32);
  std::memcpy(&b, reinterpret_cast<const char*>(&v) + 32, 32);
  f32x8 c = op(a, b);
  f32x4 d, e;
  std::memcpy(&d, &c, 16);
  std::memcpy(&e, reinterpret_cast<const char*>(&c) + 16, 16);
  f32x4 f = op(d, e);
  float g = op(f[0], f[2]), h = op(f[1], f[3]);
  return op(g, h);
}
inline float sum16(f32x16 v) {
  return fold16(v, [](auto a, auto b) { return a + b; });
}
inline float top16(f32x16 v) {
  return fold16(v, [](auto a, auto b) { return a > b ? a : b; });
}

#if defined(__clang__)
#define JANUS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define JANUS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, i32x16{__VA_ARGS__})
#endif

// Lane i of the result is the sum of the lanes of v[i], always in the same order; v is used up. A tree of shuffles: a
// quarter of the work of sixteen separate sums.
inline f32x16 sum_each16(f32x16 (&v)[16]) {
  // Each round folds two vectors into one and halves what is left to add per sum.
  for (int i = 0; i < 8; ++i) {
    f32x16 a = v[i], b = v[i + 8];
    v[i] = JANUS_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           JANUS_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    f32x16 a = v[i], b = v[i + 4];
    v[i] = JANUS_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           JANUS_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    f32x16 a = v[i], b = v[i + 2];
    v[i] = JANUS_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           JANUS_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  f32x16 a = v[0], b = v[1];
  return JANUS_SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         JANUS_SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

// Lane c of v[i] becomes what lane i of v[c] was. Each round exchanges the halves of parts that are half as large.
inline void transpose16(u32x16 (&v)[16]) {
  for (int i = 0; i < 8; ++i) {
    u32x16 a = v[i], b = v[i + 8];
    v[i] = JANUS_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    v[i + 8] = JANUS_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int part = 0; part < 16; part += 8)
    for (int i = part; i < part + 4; ++i) {
      u32x16 a = v[i], b = v[i + 4];
      v[i] = JANUS_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
      v[i + 4] = JANUS_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
  for (int part = 0; part < 16; part += 4)
    for (int i = part; i < part + 2; ++i) {
      u32x16 a = v[i], b = v[i + 2];
      v[i] = JANUS_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      v[i + 2] = JANUS_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
  for (int i = 0; i < 16; i += 2) {
    u32x16 a = v[i], b = v[i + 1];
    v[i] = JANUS_SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    v[i + 1] = JANUS_SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
}
#undef JANUS_SHUFFLE

// e^x within 2 ulp for x in [-87, 88], clamped outside (so e^-inf is 1e-38, not 0: callers mask). Cephes' expf.
inline f32x16 exp16(f32x16 x) {
  x = min16(max16(x, splat(-87.0f)), splat(88.0f));
  const f32x16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  f32x16 n = (x * 1.44269504088896341f + magic) - magic;
  f32x16 r = x - n * 0.693359375f - n * -2.12194440e-4f;
  f32x16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  i32x16 exponent = (__builtin_convertvector(n, i32x16) + 127) << 23;
  return p * (f32x16)exponent;
}

inline f32x16 silu16(f32x16 x) { return x / (exp16(-x) + 1.0f); }

inline long ceil_div(long a, long b) { return (a + b - 1) / b; }
inline long round_up(long a, long b) { return ceil_div(a, b) * b; }

}  // namespace janus
