// Over one row, in f32 and always in the same order: RMS norm, x / sqrt(mean(x^2) + eps) * weight, and dot product.
#pragma once

#include "vec.h"

namespace janus {

template <typename X>
inline float inverse_rms(const X* x, long n, float eps) {
  f32x16 sum = {};
  long i = 0;
  for (; i + 16 <= n; i += 16) {
    f32x16 v = load16(x + i);
    sum += v * v;
  }
  float total = sum16(sum);
  for (; i < n; ++i) total += to_float(x[i]) * to_float(x[i]);
  return 1.0f / std::sqrt(total / float(n) + eps);
}

template <typename X>
inline float dot(const X* x, const float* y, long n) {
  f32x16 sum = {};
  long i = 0;
  for (; i + 16 <= n; i += 16) sum += load16(x + i) * load16(y + i);
  float total = sum16(sum);
  for (; i < n; ++i) total += to_float(x[i]) * y[i];
  return total;
}

template <typename X, typename Y>
inline void rms_norm(const X* x, const float* weight, Y* y, long n, float eps) {
  const float scale = inverse_rms(x, n, eps);
  long i = 0;
  for (; i + 16 <= n; i += 16) store16(y + i, load16(x + i) * scale * load16(weight + i));
  for (; i < n; ++i) put(y + i, to_float(x[i]) * scale * weight[i]);
}

}  // namespace janus
