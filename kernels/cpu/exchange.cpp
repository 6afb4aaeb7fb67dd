// What an exchange does with the bytes of dispatches and combines. Memory-bound and short: on the caller's thread.
#include "api.h"
#include "vec.h"

#include <cstring>
#include <vector>

namespace janus {
namespace {

template <typename T>
inline void add_row(float* sum, const T* from, int64_t hidden) {
  long c = 0;
  for (; c + 16 <= hidden; c += 16) store16(sum + c, load16(sum + c) + load16(from + c));
  for (; c < hidden; ++c) sum[c] += to_float(from[c]);
}

template <typename T>
inline void round_row(const float* from, T* to, int64_t hidden) {
  long c = 0;
  for (; c + 16 <= hidden; c += 16) store16(to + c, load16(from + c));
  for (; c < hidden; ++c) put(to + c, from[c]);
}

// The parts of one token's sum: a cursor into the rows of each part.
struct Cursors {
  const int64_t* const* rows;
  const int64_t* counts;
  std::vector<int64_t> at;

  // The row of part `p` that is for `token`, or -1.
  int64_t take(int64_t p, int64_t token) {
    int64_t& next = at[size_t(p)];
    if (next >= counts[p] || (rows[p] && rows[p][next] != token)) return -1;
    return next++;
  }
};

// out = residual + the sum of the parts' rows, in the order of the parts, in f32. Parts of one group (`group_ends`: one
// past each group's last part) are added up first and rounded to T, as the relay of a node does it; so a sum has the
// same bits whether a node answered as one or its instances did. The whole is rounded to T before the residual is
// added, as it is where the experts are in the same process.
template <typename T>
void combine(int64_t tokens, int64_t hidden, int64_t groups, const int64_t* group_ends, const void* const* y,
             const int64_t* const* rows, const int64_t* counts, const T* residual, T* out) {
  static thread_local std::vector<float> sum, node;
  static thread_local std::vector<T> rounded;
  static thread_local Cursors cursors;
  const size_t width = size_t(round_up(hidden, 16));
  sum.resize(width);
  node.resize(width);
  rounded.resize(width);
  cursors.rows = rows;
  cursors.counts = counts;
  cursors.at.assign(size_t(group_ends[groups - 1]), 0);
  const size_t bytes = size_t(hidden) * sizeof(float);
  for (int64_t token = 0; token < tokens; ++token) {
    std::memset(sum.data(), 0, bytes);
    int64_t p = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const bool alone = groups == 1 || group_ends[g] == p + 1;  // nothing to round in between
      float* to = alone ? sum.data() : node.data();
      if (!alone) std::memset(node.data(), 0, bytes);
      for (; p < group_ends[g]; ++p) {
        const int64_t row = cursors.take(p, token);
        if (row >= 0) add_row(to, static_cast<const T*>(y[p]) + row * hidden, hidden);
      }
      if (alone) continue;
      round_row(node.data(), rounded.data(), hidden);
      add_row(sum.data(), rounded.data(), hidden);
    }
    T* to = out + token * hidden;
    if (!residual) {
      round_row(sum.data(), to, hidden);
      continue;
    }
    round_row(sum.data(), rounded.data(), hidden);
    const T* base = residual + token * hidden;
    long c = 0;
    for (; c + 16 <= hidden; c += 16) store16(to + c, load16(base + c) + load16(rounded.data() + c));
    for (; c < hidden; ++c) put(to + c, to_float(base[c]) + to_float(rounded[size_t(c)]));
  }
}

}  // namespace
}  // namespace janus

using namespace janus;

// Whether any of the `k` replicas of a row is at the destination. `local` [physical ids]: the slot that a replica has
// in the destination's numbering, -1 where it is elsewhere.
static inline bool goes(const int32_t* phys, int64_t k, const int32_t* local) {
  for (int64_t i = 0; i < k; ++i)
    if (phys[i] >= 0 && local[phys[i]] >= 0) return true;
  return false;
}

// Returns how many of the rows of phys [tokens, k] go to the destination of `local`, or -1 when one names a replica
// outside 0..total - 1 (-1 names none).
JANUS_API int64_t janus_count_rows(int64_t tokens, int64_t k, int64_t total, const int32_t* local,
                                   const int32_t* phys) {
  for (int64_t i = 0; i < tokens * k; ++i)
    if (phys[i] < -1 || phys[i] >= total) return -1;
  int64_t n = 0;
  for (int64_t token = 0; token < tokens; ++token) n += goes(phys + token * k, k, local);
  return n;
}

// Writes the rows of a dispatch (src/janus/exchange/layout.py) that go to the destination of `local`: `count` of them,
// to `to_x`, with their slots there (-1: elsewhere) and weights. `rows` [count] gets the tokens' indices, unless null,
// which says that all tokens go.
JANUS_API void janus_pack_dispatch(int64_t tokens, int64_t k, int64_t row_bytes, int64_t count, const int32_t* local,
                                   const uint8_t* x, const int32_t* phys, const float* weights, int64_t* rows,
                                   uint8_t* to_x, int32_t* to_slots, float* to_weights) {
  int64_t n = 0;
  for (int64_t token = 0; token < tokens && n < count; ++token) {
    const int32_t* ids = phys + token * k;
    if (!goes(ids, k, local)) continue;
    for (int64_t i = 0; i < k; ++i) to_slots[n * k + i] = ids[i] < 0 ? -1 : local[ids[i]];
    std::memcpy(to_weights + n * k, weights + token * k, size_t(k) * sizeof(float));
    if (rows) {
      rows[n] = token;
      std::memcpy(to_x + n * row_bytes, x + token * row_bytes, size_t(row_bytes));
    }
    ++n;
  }
  if (!rows) std::memcpy(to_x, x, size_t(tokens * row_bytes));
}

// Returns how many distinct slots of one instance `slots` [count] names, or -1 when one is out of range or may be used
// only from a later epoch than `epoch` on. The instance has `num_slots`, from number `first` on of the `all` that its
// node has; -1 names none. `own` [count], unless null, gets the instance's own numbers, -1 for other instances' slots.
JANUS_API int64_t janus_scan_slots(int64_t count, int64_t first, int64_t num_slots, int64_t all, int64_t epoch,
                                   const int64_t* usable_from, const int32_t* slots, int32_t* own) {
  static thread_local std::vector<uint8_t> seen;
  seen.assign(size_t(num_slots), 0);
  int64_t distinct = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t slot = slots[i] - first;
    const bool here = slots[i] >= 0 && slot >= 0 && slot < num_slots;
    if (own) own[i] = here ? int32_t(slot) : -1;
    if (slots[i] < -1 || slots[i] >= all) return -1;
    if (!here) continue;
    if (usable_from[slot] > epoch) return -1;
    distinct += !seen[size_t(slot)];
    seen[size_t(slot)] = 1;
  }
  return distinct;
}

// Returns how many distinct slots the `parts` tables name: entries[p] of them at slots[p], all below `num_slots`.
JANUS_API int64_t janus_distinct_slots(int64_t num_slots, int64_t parts, const int32_t* const* slots,
                                       const int64_t* entries) {
  static thread_local std::vector<uint8_t> seen;
  seen.assign(size_t(num_slots), 0);
  int64_t distinct = 0;
  for (int64_t p = 0; p < parts; ++p)
    for (int64_t i = 0; i < entries[p]; ++i) {
      const int32_t slot = slots[p][i];
      if (slot < 0 || slot >= num_slots) continue;
      distinct += !seen[size_t(slot)];
      seen[size_t(slot)] = 1;
    }
  return distinct;
}

// As janus_scan_slots for the instance at `position` of `instances` with `num_slots` each; `entries` [instances] gets how
// many of `slots` are each one's.
JANUS_API int64_t janus_take_share(int64_t count, int64_t position, int64_t instances, int64_t num_slots, int64_t epoch,
                                   const int64_t* usable_from, const int32_t* slots, int32_t* own, int64_t* entries) {
  std::memset(entries, 0, size_t(instances) * sizeof(int64_t));
  const int64_t all = instances * num_slots;
  for (int64_t i = 0; i < count; ++i)
    if (slots[i] >= 0 && slots[i] < all) ++entries[slots[i] / num_slots];
  return janus_scan_slots(count, position * num_slots, num_slots, all, epoch, usable_from, slots, own);
}

// y[p] [counts[p], hidden] are the answers, rows[p] [counts[p]] the ascending tokens that they are for (null: all).
// residual [tokens, hidden] (may be null) is added to the sum. out [tokens, hidden]; may be residual.
JANUS_API void janus_combine(int64_t dtype, int64_t tokens, int64_t hidden, int64_t groups, const int64_t* group_ends,
                             const void* const* y, const int64_t* const* rows, const int64_t* counts,
                             const void* residual, void* out) {
  if (dtype == kBfloat16)
    return combine(tokens, hidden, groups, group_ends, y, rows, counts, static_cast<const bf16*>(residual),
                   static_cast<bf16*>(out));
  combine(tokens, hidden, groups, group_ends, y, rows, counts, static_cast<const float*>(residual),
          static_cast<float*>(out));
}
