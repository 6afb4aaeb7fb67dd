// What an exchange does with the bytes of dispatches and combines. Memory-bound and short: on the caller's thread.
#include "api.h"
#include "vec.h"

#include <cstring>
#include <vector>

namespace janus {
namespace {

constexpr int64_t kAlignment = 64;  // src/janus/exchange/layout.py

inline int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Whether a physical id is one of [first, first + slots): as unsigned, ids below `first` are huge.
inline bool within(int32_t phys, int64_t first, int64_t slots) { return uint32_t(phys - int32_t(first)) < uint32_t(slots); }

// out = residual + the sum of the parts' rows, in the order of the parts, in f32. The sum is rounded to T before the
// residual is added, as it is where the experts are in the same process.
template <typename T>
void combine(int64_t tokens, int64_t hidden, int64_t parts, const void* const* y, const int64_t* const* rows,
             const int64_t* counts, const T* residual, T* out) {
  static thread_local std::vector<float> sum;
  static thread_local std::vector<int64_t> cursor;
  sum.resize(size_t(round_up(hidden, 16)));
  cursor.assign(size_t(parts), 0);
  for (int64_t token = 0; token < tokens; ++token) {
    std::memset(sum.data(), 0, size_t(hidden) * sizeof(float));
    for (int64_t p = 0; p < parts; ++p) {
      int64_t& at = cursor[size_t(p)];
      if (at >= counts[p] || (rows[p] && rows[p][at] != token)) continue;
      const T* from = static_cast<const T*>(y[p]) + at++ * hidden;
      long c = 0;
      for (; c + 16 <= hidden; c += 16) store16(sum.data() + c, load16(sum.data() + c) + load16(from + c));
      for (; c < hidden; ++c) sum[size_t(c)] += to_float(from[c]);
    }
    T* to = out + token * hidden;
    const T* base = residual ? residual + token * hidden : nullptr;
    alignas(32) T rounded[16];
    long c = 0;
    for (; c + 16 <= hidden; c += 16) {
      store16(rounded, load16(sum.data() + c));
      store16(to + c, base ? load16(base + c) + load16(rounded) : load16(rounded));
    }
    for (; c < hidden; ++c) {
      put(rounded, sum[size_t(c)]);
      put(to + c, base ? to_float(base[c]) + to_float(rounded[0]) : to_float(rounded[0]));
    }
  }
}

}  // namespace
}  // namespace janus

using namespace janus;

// Writes a dispatch payload (src/janus/exchange/layout.py) for the instance with physical ids [first, first + slots):
// the `count` rows that have a replica there, their slots (-1: elsewhere) and weights. `rows` [count] gets the tokens'
// indices, unless null, which says that all tokens go.
JANUS_API void janus_pack_dispatch(int64_t tokens, int64_t k, int64_t row_bytes, int64_t first, int64_t slots,
                                   int64_t count, const uint8_t* x, const int32_t* phys, const float* weights,
                                   int64_t* rows, uint8_t* to) {
  int32_t* to_slots = reinterpret_cast<int32_t*>(to + aligned(count * row_bytes));
  float* to_weights = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(to_slots) + aligned(count * k * 4));
  int64_t n = 0;
  for (int64_t token = 0; token < tokens && n < count; ++token) {
    const int32_t* ids = phys + token * k;
    bool here = false;
    for (int64_t i = 0; i < k; ++i) here |= within(ids[i], first, slots);
    if (!here) continue;
    for (int64_t i = 0; i < k; ++i)
      to_slots[n * k + i] = within(ids[i], first, slots) ? ids[i] - int32_t(first) : -1;
    std::memcpy(to_weights + n * k, weights + token * k, size_t(k) * sizeof(float));
    if (rows) {
      rows[n] = token;
      std::memcpy(to + n * row_bytes, x + token * row_bytes, size_t(row_bytes));
    }
    ++n;
  }
  if (!rows) std::memcpy(to, x, size_t(tokens * row_bytes));
}

// Returns how many distinct slots `slots` [count] names (-1 names none), or -1 when one is out of range or may be used
// only from a later epoch than `epoch` on.
JANUS_API int64_t janus_scan_slots(int64_t count, int64_t num_slots, int64_t epoch, const int64_t* usable_from,
                                   const int32_t* slots) {
  static thread_local std::vector<uint8_t> seen;
  seen.assign(size_t(num_slots), 0);
  int64_t distinct = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t slot = slots[i];
    if (slot == -1) continue;
    if (slot < 0 || slot >= num_slots || usable_from[slot] > epoch) return -1;
    distinct += !seen[size_t(slot)];
    seen[size_t(slot)] = 1;
  }
  return distinct;
}

// y[p] [counts[p], hidden] are the answers, rows[p] [counts[p]] the ascending tokens that they are for (null: all).
// residual [tokens, hidden] (may be null) is added to the sum. out [tokens, hidden]; may be residual.
JANUS_API void janus_combine(int64_t dtype, int64_t tokens, int64_t hidden, int64_t parts, const void* const* y,
                             const int64_t* const* rows, const int64_t* counts, const void* residual, void* out) {
  if (dtype == kBfloat16)
    return combine(tokens, hidden, parts, y, rows, counts, static_cast<const bf16*>(residual), static_cast<bf16*>(out));
  combine(tokens, hidden, parts, y, rows, counts, static_cast<const float*>(residual), static_cast<float*>(out));
}
