// Which replica serves an activated expert: the schedulers of src/janus/core/scheduling, with the same decisions. The
// text there says why; here is how, in the few microseconds that the token path has for it.
#include "api.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace janus {

// One layer of a placement (LayerTables, Placement).
struct ScheduleTables {
  int64_t experts, instances, slots, max_replicas;
  const int32_t* order;            // [experts]
  const uint64_t* hosts;           // [experts]; null when there are more than 64 instances
  const int32_t* phys_of;          // [experts, instances]
  const int32_t* replicas;         // [experts]
  const int32_t* logical_to_phys;  // [experts, max_replicas]
};

enum Policy : int64_t { kStatic = 0, kRandom = 1, kTokenBalanced = 2, kAebsGreedy = 3, kAebs = 4 };

namespace {

constexpr int32_t kPadding = -1;
constexpr int64_t kOne = 4096;
constexpr int64_t kMaxRepairs = 4096;

uint64_t mix(uint64_t x) {  // splitmix64's output function
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

template <typename F>
inline void each(uint64_t set, F f) {
  for (; set; set &= set - 1) f(__builtin_ctzll(set));
}

// One dispatch; keeps its memory from call to call.
struct Scheduling {
  std::vector<int32_t> tokens_of;    // [experts]: how often each is asked for
  std::vector<int32_t> phys, host;   // [experts]: what was chosen
  std::vector<int32_t> several;      // active experts with a choice, in table order
  std::vector<int64_t> total, potential;  // [instances]
  std::vector<int64_t> last;         // [instances]: the last token that was counted
  std::vector<uint8_t> seen;         // [instances * slots]
  int64_t repairs, proven;

  void fixed(const ScheduleTables& t, const int32_t* load0) {
    total.assign(size_t(t.instances), 0);
    if (load0) std::copy(load0, load0 + t.instances, total.begin());
    several.clear();
    for (int64_t i = 0; i < t.experts; ++i) {
      const int32_t e = t.order[i];
      if (!tokens_of[size_t(e)]) continue;
      if (t.replicas[e] > 1) {
        several.push_back(e);
      } else {
        host[size_t(e)] = __builtin_ctzll(t.hosts[e]);
        ++total[size_t(host[size_t(e)])];
      }
    }
  }

  void greedy(const ScheduleTables& t) {
    std::sort(several.begin(), several.end());  // Algorithm 1 goes by id
    for (const int32_t e : several) {
      int best = -1;
      each(t.hosts[e], [&](int g) {
        if (best < 0 || total[size_t(g)] < total[size_t(best)]) best = g;
      });
      host[size_t(e)] = best;
      ++total[size_t(best)];
    }
  }

  void balance(const ScheduleTables& t) {
    potential.resize(size_t(t.instances));
    for (int64_t g = 0; g < t.instances; ++g) potential[size_t(g)] = kOne * total[size_t(g)];
    for (const int32_t e : several) each(t.hosts[e], [&](int g) { potential[size_t(g)] += kOne / t.replicas[e]; });
    for (const int32_t e : several) {
      int best = -1;
      each(t.hosts[e], [&](int g) {
        potential[size_t(g)] -= kOne / t.replicas[e];
        if (best < 0 || potential[size_t(g)] < potential[size_t(best)]) best = g;
      });
      host[size_t(e)] = best;
      potential[size_t(best)] += kOne;
      ++total[size_t(best)];
    }
    while (repairs < kMaxRepairs && !proven) repair(t);
  }

  // One shift along a shortest augmenting path from the fullest instance; without one the maximum is the least.
  void repair(const ScheduleTables& t) {
    const int source = int(std::max_element(total.begin(), total.end()) - total.begin());
    const int64_t low = total[size_t(source)] - 2;
    int32_t parent[64];
    uint64_t visited = 1ull << source, frontier = visited;
    for (;;) {
      uint64_t reached = 0;
      for (const int32_t e : several) {
        if (!(frontier >> host[size_t(e)] & 1)) continue;
        const uint64_t fresh = t.hosts[e] & ~(visited | reached);
        each(fresh, [&](int g) { parent[g] = e; });
        reached |= fresh;
      }
      if (!reached) {
        proven = 1;
        return;
      }
      int target = -1;
      each(reached, [&](int g) {
        if (total[size_t(g)] <= low && (target < 0 || total[size_t(g)] < total[size_t(target)])) target = g;
      });
      if (target >= 0) {
        ++total[size_t(target)];
        --total[size_t(source)];
        ++repairs;
        for (int g = target; g != source;) {
          const size_t e = size_t(parent[g]);
          std::swap(g, host[e]);
        }
        return;
      }
      visited |= reached;
      frontier = reached;
    }
  }

  void pick_random(const ScheduleTables& t, int64_t layer) {
    uint64_t seed = uint64_t(layer);
    for (int64_t e = 0; e < t.experts; ++e)
      if (tokens_of[size_t(e)]) seed ^= mix(uint64_t(e) << 32 | uint32_t(tokens_of[size_t(e)]));
    for (int64_t e = 0; e < t.experts; ++e)
      if (tokens_of[size_t(e)]) {
        const uint64_t drawn = mix(seed ^ mix(uint64_t(e))) % uint64_t(t.replicas[e]);
        phys[size_t(e)] = t.logical_to_phys[e * t.max_replicas + int64_t(drawn)];
      }
  }
};

}  // namespace
}  // namespace janus

using namespace janus;

// ids [tokens, k]: logical experts, anything else is padding. load0 [instances] may be null. Writes phys [tokens, k],
// load and rows [instances], stats [4]: activated, a_max (load0 included), repairs, proven (-1: not looked at).
// The balancing policies need `tables->hosts`.
JANUS_API void janus_schedule(int64_t policy, int64_t layer, int64_t tokens, int64_t k, const ScheduleTables* tables,
                              const int32_t* ids, const int32_t* load0, int32_t* phys, int32_t* load, int32_t* rows,
                              int32_t* stats) {
  static thread_local Scheduling s;
  const ScheduleTables& t = *tables;
  const int64_t count = tokens * k;
  auto is_expert = [&](int32_t id) { return uint32_t(id) < uint32_t(t.experts); };
  s.tokens_of.assign(size_t(t.experts), 0);
  for (int64_t i = 0; i < count; ++i)
    if (is_expert(ids[i])) ++s.tokens_of[size_t(ids[i])];
  s.phys.resize(size_t(t.experts));
  s.host.resize(size_t(t.experts));
  s.repairs = 0;
  s.proven = 0;

  if (policy == kAebs || policy == kAebsGreedy) {
    s.fixed(t, load0);
    if (policy == kAebs)
      s.balance(t);
    else
      s.greedy(t);
    for (int64_t e = 0; e < t.experts; ++e)
      if (s.tokens_of[size_t(e)]) s.phys[size_t(e)] = t.phys_of[e * t.instances + s.host[size_t(e)]];
  } else if (policy == kRandom) {
    s.pick_random(t, layer);
  } else {
    for (int64_t e = 0; e < t.experts; ++e) s.phys[size_t(e)] = t.logical_to_phys[e * t.max_replicas];
  }
  if (policy == kTokenBalanced) {
    std::vector<int32_t>& turn = s.several;
    turn.assign(size_t(t.experts), 0);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t e = ids[i];
      phys[i] = is_expert(e) ? t.logical_to_phys[e * t.max_replicas + turn[size_t(e)]++ % t.replicas[e]] : kPadding;
    }
  } else {
    for (int64_t i = 0; i < count; ++i) phys[i] = is_expert(ids[i]) ? s.phys[size_t(ids[i])] : kPadding;
  }

  std::memset(load, 0, size_t(t.instances) * sizeof(int32_t));
  std::memset(rows, 0, size_t(t.instances) * sizeof(int32_t));
  s.seen.assign(size_t(t.instances * t.slots), 0);
  s.last.assign(size_t(t.instances), -1);
  // The same quotient as a division, which would be half of the time at thousands of tokens, while id * slots < 2^40.
  const uint64_t inverse = (1ull << 40) / uint64_t(t.slots) + 1;
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t i = token * k; i < (token + 1) * k; ++i) {
      if (phys[i] < 0) continue;
      const size_t g = size_t(uint64_t(phys[i]) * inverse >> 40);
      load[g] += !s.seen[size_t(phys[i])];
      s.seen[size_t(phys[i])] = 1;
      rows[g] += s.last[g] != token;
      s.last[g] = token;
    }
  stats[0] = int32_t(std::count_if(s.tokens_of.begin(), s.tokens_of.end(), [](int32_t n) { return n > 0; }));
  stats[1] = 0;
  for (int64_t g = 0; g < t.instances; ++g) stats[1] = std::max(stats[1], load[g] + (load0 ? load0[g] : 0));
  stats[2] = int32_t(s.repairs);
  stats[3] = policy == kAebs ? int32_t(s.proven) : -1;
}
