// Which replica serves each activated expert of one dispatch, so that the instance with the most of them has the
// fewest possible.
//
// ONE launch of ONE block of 32, 64, ... or 1024 threads; the results do not depend on how many. Integers only, no
// scratch memory, no host synchronisation, no library. E <= 512 experts, G <= 64 instances, count <= 65536 ids, each
// load0 in 0 .. 2^18. Device capability 8.0 or later (__reduce_*_sync).
//
// In:   ids     int32[count]    logical experts, T tokens x K choices; an id outside 0 .. E-1 is padding
//       order   int32[E]        every expert once, by (number of replicas, id) ascending
//       hosts   uint64[E]       bit g: instance g has a replica; never 0
//       phys_of int32[E, G]     physical id of the replica of an expert on an instance; read where hosts has the bit
//       load0   int32[G]        what is queued on each instance already; null means nothing
// Out:  phys    int32[count]    physical ids, -1 for padding; may be the memory of ids
//       load    int32[G]        distinct experts that this dispatch activates on each instance, without load0
//       active  uint8[E]        1 where an expert is activated
//       stats   int32[4]        activated experts; a_max = max(load0 + load); repairs; proven
// Buffers are aligned to their element and to nothing more. Outputs overlap no input but ids.
//
// The greedy pass is Algorithm 1 of arXiv 2512.13525 with two changes: experts with few replicas choose first, and the
// key is not the load so far but a potential that also counts the expected share of the experts that have not chosen.
// It is followed by repairs: while a path of experts that can each move one instance on leads from a fullest instance
// to one with at least two fewer, the shortest such path is moved. Where there is none, the assignment is optimal
// (Harvey, Ladner, Lovasz, Tamir: Semi-matchings for bipartite graphs and load balancing, J. Algorithms 59, 2006), and
// `proven` is 1. It is 0 only if kMaxRepairs were not enough, which has never been seen.

using Set = unsigned long long;  // of instances: bit g is instance g

constexpr int kWarp = 32;
constexpr int kMaxExperts = 512;
constexpr int kMaxInstances = 64;
constexpr int kChunks = kMaxExperts / kWarp;
constexpr int kBatch = 8;    // ids that a thread has in flight, to cover the latency of memory
constexpr int kOne = 4096;   // one expert, in the unit of the potential
constexpr int kMaxRepairs = 4096;
constexpr int kNever = 0x7fffffff;
constexpr unsigned kAll = 0xffffffffu;

struct Shared {
  int active[kMaxExperts];
  int order[kMaxExperts];
  Set hosts[kMaxExperts];
  int phys[kMaxExperts];           // what the ids are rewritten to
  unsigned chunk[kChunks];         // of `order`: which of 32 are activated and have a choice
  int total[kMaxInstances];        // load0 and the experts without a choice
  int share[kMaxInstances];        // expected of the experts with a choice, in the unit of the potential
  int activated;
  // The activated experts with a choice, in order: `count` of them.
  int expert[kMaxExperts];
  Set choice[kMaxExperts];         // its hosts
  int part[kMaxExperts];           // what each of them expects of it, in the unit of the potential
  int at[kMaxExperts];             // the instance that was chosen
};

// A value of each of the two instances that a lane stands for: `lane` and `lane + 32`.
struct Pair {
  int low, high;
};

__device__ __forceinline__ bool has(Set set, int instance) { return (set >> instance & 1) != 0; }

__device__ __forceinline__ Set ballot(bool low, bool high) {
  return __ballot_sync(kAll, low) | static_cast<Set>(__ballot_sync(kAll, high)) << kWarp;
}

__device__ __forceinline__ int first(Set set) { return __ffsll(static_cast<long long>(set)) - 1; }

// The ids of this thread in the batch that begins at `start`; -1 past the end.
__device__ __forceinline__ void read(const int* ids, int count, int start, int (&id)[kBatch]) {
#pragma unroll
  for (int j = 0; j < kBatch; ++j) {
    const int i = start + j * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
    id[j] = i < count ? ids[i] : -1;
  }
}

// Every expert with a choice, in order, goes to the host with the least potential, the lowest among equals.
__device__ void choose(Shared& s, int count, int lane, Pair& total) {
  Pair potential = {kOne * total.low + s.share[lane], kOne * total.high + s.share[lane + kWarp]};
  Set next_hosts = s.choice[0];
  int next_part = s.part[0];
  for (int i = 0; i < count; ++i) {
    const Set hosts = next_hosts;
    const int part = next_part;
    const int next = i + 1 < count ? i + 1 : i;  // on its way while this one is decided
    next_hosts = s.choice[next];
    next_part = s.part[next];
    const bool low = has(hosts, lane), high = has(hosts, lane + kWarp);
    potential.low -= low ? part : 0;
    potential.high -= high ? part : 0;
    const int least = __reduce_min_sync(kAll, min(low ? potential.low : kNever, high ? potential.high : kNever));
    // Two ballots rather than the instance in the key's low bits: with load0 the potential needs all 31.
    const unsigned at_low = __ballot_sync(kAll, low && potential.low == least);
    const unsigned at_high = __ballot_sync(kAll, high && potential.high == least);
    const bool takes_low = (at_low & (0u - at_low)) == 1u << lane;
    const bool takes_high = at_low == 0 && (at_high & (0u - at_high)) == 1u << lane;
    potential.low += takes_low ? kOne : 0;
    potential.high += takes_high ? kOne : 0;
    total.low += takes_low ? 1 : 0;
    total.high += takes_high ? 1 : 0;
    if (takes_low || takes_high) s.at[i] = takes_low ? lane : lane + kWarp;
  }
  __syncwarp();  // `at` is read by other lanes from here on
}

// One level of the search: every instance that is not `visited` and that an expert of a `frontier` instance could move
// to gets as its parent the first such expert. Returns these instances.
__device__ Set expand(const Shared& s, int count, int lane, Set frontier, Set visited, Pair& parent) {
  bool low = has(visited, lane), high = has(visited, lane + kWarp);
  for (int base = 0; base < count; base += kWarp) {
    const bool movable = base + lane < count && has(frontier, s.at[base + lane]);
    for (unsigned left = __ballot_sync(kAll, movable); left != 0; left &= left - 1) {
      const int i = base + __ffs(static_cast<int>(left)) - 1;
      const Set hosts = s.choice[i];
      if (!low && has(hosts, lane)) {
        low = true;
        parent.low = i;
      }
      if (!high && has(hosts, lane + kWarp)) {
        high = true;
        parent.high = i;
      }
    }
  }
  return ballot(low, high) & ~visited;
}

// The instance of `wanted` with the smallest total, the lowest among equals; `wanted` is not empty.
__device__ int emptiest(Set wanted, int lane, Pair total) {
  const bool low = has(wanted, lane), high = has(wanted, lane + kWarp);
  const int least = __reduce_min_sync(kAll, min(low ? total.low : kNever, high ? total.high : kNever));
  return first(ballot(low && total.low == least, high && total.high == least));
}

// Moves experts until no path leads from a fullest instance to one with two fewer. Returns the number of paths moved.
__device__ int repair(Shared& s, int count, int lane, Set instances, Pair& total, bool& proven) {
  for (int repairs = 0; repairs < kMaxRepairs; ++repairs) {
    const int most = __reduce_max_sync(kAll, max(total.low, total.high));
    const int source = first(ballot(total.low == most, total.high == most));
    const Set emptier = ballot(total.low <= most - 2, total.high <= most - 2) & instances;
    Pair parent = {0, 0};
    int target = -1;
    Set visited = 1ull << source, frontier = visited;
    while (target < 0 && frontier != 0 && (emptier & ~visited) != 0) {
      frontier = expand(s, count, lane, frontier, visited, parent);
      visited |= frontier;
      if ((frontier & emptier) != 0) target = emptiest(frontier & emptier, lane, total);
    }
    if (target < 0) {
      proven = true;
      return repairs;
    }
    for (int g = target; g != source;) {
      const int i = __shfl_sync(kAll, g < kWarp ? parent.low : parent.high, g % kWarp);
      const int from = s.at[i];
      __syncwarp();  // every lane has read it
      if (lane == 0) s.at[i] = g;
      g = from;
    }
    __syncwarp();
    total.low += (lane == target) - (lane == source);
    total.high += (lane + kWarp == target) - (lane + kWarp == source);
  }
  proven = false;
  return kMaxRepairs;
}

// One warp decides; lane g holds instances g and g + 32.
__device__ void decide(Shared& s, int count, int G, const int* load0, int* load, int* stats) {
  const int lane = static_cast<int>(threadIdx.x);
  const bool low = lane < G, high = lane + kWarp < G;
  const Pair before = {load0 != nullptr && low ? load0[lane] : 0, load0 != nullptr && high ? load0[lane + kWarp] : 0};
  Pair total = {low ? s.total[lane] : -1, high ? s.total[lane + kWarp] : -1};  // -1 is never the most
  choose(s, count, lane, total);
  const Set instances = G < kMaxInstances ? (1ull << G) - 1 : ~0ull;
  bool proven = false;
  const int repairs = repair(s, count, lane, instances, total, proven);
  const int most = __reduce_max_sync(kAll, max(total.low, total.high));
  if (low) load[lane] = total.low - before.low;
  if (high) load[lane + kWarp] = total.high - before.high;
  if (lane == 0) {
    stats[0] = s.activated;
    stats[1] = most;
    stats[2] = repairs;
    stats[3] = proven ? 1 : 0;
  }
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    aebs(const int* ids, int count, const int* order, const Set* hosts, const int* phys_of, const int* load0, int E,
         int G, int* phys, int* load, unsigned char* active, int* stats) {
  __shared__ Shared s;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lane = thread % kWarp, warp = thread / kWarp, warps = threads / kWarp;
  const int chunks = (E + kWarp - 1) / kWarp;
  const int step = kBatch * threads;

  int id[kBatch];
  read(ids, count, 0, id);  // before the first barrier: its latency is that of the tables
  for (int i = thread; i < E; i += threads) {
    s.active[i] = 0;
    s.order[i] = order[i];
    s.hosts[i] = hosts[i];
  }
  for (int g = thread; g < kMaxInstances; g += threads) {
    s.total[g] = load0 != nullptr && g < G ? load0[g] : 0;
    s.share[g] = 0;
  }
  if (thread == 0) s.activated = 0;
  __syncthreads();

  // Mark what is activated. Many threads may store to one flag, all of them 1: a volatile store is a strong one, so
  // that this is no data race, and costs less than an atomic, which would serialise the popular experts.
  int last = 0;  // start of the batch whose ids are in registers
  for (;;) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (id[j] >= 0 && id[j] < E) *const_cast<volatile int*>(&s.active[id[j]]) = 1;
    }
    if (last + step >= count) break;
    last += step;
    read(ids, count, last, id);
  }
  __syncthreads();

  // Experts with one replica are settled; of the others, find who is activated.
  for (int chunk = warp; chunk < chunks; chunk += warps) {
    const int i = chunk * kWarp + lane;
    const int e = i < E ? s.order[i] : 0;
    const bool on = i < E && s.active[e] != 0;
    const Set mine = on ? s.hosts[e] : 0;
    const bool settled = on && (mine & (mine - 1)) == 0;
    const unsigned choosing = __ballot_sync(kAll, on && !settled);
    const int activated = __popc(__ballot_sync(kAll, on));
    if (lane == 0) {
      s.chunk[chunk] = choosing;
      atomicAdd(&s.activated, activated);
    }
    if (i < E) active[e] = on ? 1 : 0;
    if (settled) {
      atomicAdd(&s.total[first(mine)], 1);
      s.phys[e] = phys_of[e * G + first(mine)];
    }
  }
  __syncthreads();

  // Line them up in order.
  int count_choosing = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const unsigned choosing = s.chunk[chunk];
    if (chunk % warps == warp && (choosing >> lane & 1) != 0) {
      const int place = count_choosing + __popc(choosing & ((1u << lane) - 1));
      const int e = s.order[chunk * kWarp + lane];
      s.expert[place] = e;
      s.choice[place] = s.hosts[e];
      s.part[place] = kOne / __popcll(s.hosts[e]);
    }
    count_choosing += __popc(choosing);
  }
  __syncthreads();

  // What each instance may expect of them.
  Pair share = {0, 0};
  for (int i = warp; i < count_choosing; i += warps) {
    const Set mine = s.choice[i];
    const int part = s.part[i];
    share.low += has(mine, lane) ? part : 0;
    share.high += has(mine, lane + kWarp) ? part : 0;
  }
  if (share.low != 0) atomicAdd(&s.share[lane], share.low);
  if (share.high != 0) atomicAdd(&s.share[lane + kWarp], share.high);
  __syncthreads();

  if (warp == 0) decide(s, count_choosing, G, load0, load, stats);
  __syncthreads();

  for (int i = thread; i < count_choosing; i += threads) s.phys[s.expert[i]] = phys_of[s.expert[i] * G + s.at[i]];
  __syncthreads();

  // From the last batch, which is in registers still, to the first. Each thread writes what it alone has read: phys may
  // be ids.
  for (;;) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = last + j * threads + thread;
      if (i < count) phys[i] = id[j] >= 0 && id[j] < E ? s.phys[id[j]] : -1;
    }
    if (last == 0) break;
    last -= step;
    read(ids, count, last, id);
  }
}
