// Choosing tokens: the largest logit, or a draw after temperature, top-k, top-p and min-p. One task per row; a row's
// result depends on that row alone.
#include "api.h"
#include "pool.h"
#include "vec.h"

#include <algorithm>
#include <limits>

namespace janus {

// How one row is drawn: `uniform` in [0, 1); top_k 0, top_p 1 and min_p 0 are off.
struct Draw {
  double temperature, top_p, min_p, uniform;
  int64_t top_k;
};

namespace {

// First index of the largest value; NaN never wins.
long argmax(const float* x, long n) {
  f32x16 best = splat(-std::numeric_limits<float>::infinity());
  long i = 0;
  for (; i + 16 <= n; i += 16) best = max16(load16(x + i), best);
  float top = top16(best);
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  for (long id = 0; id < n; ++id)
    if (x[id] == top) return id;
  return 0;
}

// Writes exp((x - max) / temperature) and returns its sum; below e^-87 is 0.
double exponentials(const float* x, long n, float top, double temperature, float* e) {
  const float scale = float(1.0 / temperature);
  double total = 0.0;
  auto sixteen = [&](f32x16 logits, long i) {
    f32x16 value = (logits - top) * scale;
    value = value > -87.0f ? exp16(value) : f32x16{};
    store16(e + i, value);
    total += double(sum16(value));
  };
  long i = 0;
  for (; i + 16 <= n; i += 16) sixteen(load16(x + i), i);
  if (i < n) {
    float lanes[16];
    for (long j = 0; j < 16; ++j) lanes[j] = i + j < n ? x[i + j] : -std::numeric_limits<float>::infinity();
    sixteen(load16(lanes), i);
  }
  return total;
}

// Inverts the cumulative distribution in vocabulary order, sixteen at a time.
long invert(const float* e, long n, double target) {
  double sum = 0.0;
  long last = 0;
  for (long i = 0; i < n; i += 16) {
    const double block = double(sum16(load16(e + i)));
    if (sum + block <= target) {
      sum += block;
      if (block > 0.0) last = i;
      continue;
    }
    for (long j = i; j < std::min(n, i + 16); ++j) {
      sum += double(e[j]);
      if (sum > target) return j;
    }
  }
  // Rounding put the target past the end: the last token with any weight.
  long id = last;
  for (long j = last; j < std::min(n, last + 16); ++j)
    if (e[j] > 0.0f) id = j;
  return id;
}

struct Candidate {
  float weight;
  int32_t id;
  bool operator<(const Candidate& other) const {
    return weight != other.weight ? weight > other.weight : id < other.id;
  }
};

// How many powers of two below the largest weight (which is 1) a weight lies.
inline int octave(float weight) {
  uint32_t bits;
  std::memcpy(&bits, &weight, 4);
  return 127 - int(bits >> 23);
}

// Tokens that can survive: whole octaves, from the top, until the k largest are surely among them - all of them, since
// top_p is a share of their mass - or, without a top_k, the top_p mass of the vocabulary.
void collect(const float* e, long n, double total, const Draw& draw, std::vector<Candidate>& to) {
  long count[128] = {};
  double mass[128] = {};
  for (long i = 0; i < n; ++i) {
    if (!(e[i] > 0.0f)) continue;
    const int o = std::min(127, octave(e[i]));
    ++count[o];
    mass[o] += double(e[i]);
  }
  long seen = 0;
  double gathered = 0.0;
  float lowest = 0.0f;
  for (int o = 0; o < 127; ++o) {
    seen += count[o];
    gathered += mass[o];
    lowest = std::ldexp(1.0f, -o);
    if (draw.top_k > 0 && draw.top_k < n) {
      if (seen >= draw.top_k) break;
      continue;
    }
    if (lowest <= draw.min_p) break;
    if (draw.top_p < 1.0 && gathered > draw.top_p * total * (1.0 + 1e-9)) break;
  }
  to.clear();
  for (long i = 0; i < n; ++i)
    if (e[i] >= lowest && e[i] > 0.0f) to.push_back({e[i], int32_t(i)});
  std::sort(to.begin(), to.end());
}

long draw_ranked(const float* e, long n, double total, const Draw& draw) {
  static thread_local std::vector<Candidate> candidates;
  collect(e, n, total, draw, candidates);
  if (candidates.empty()) return 0;
  long kept = long(candidates.size());
  if (draw.top_k > 0 && draw.top_k < n) {
    kept = std::min(kept, long(draw.top_k));
    total = 0.0;
    for (long i = 0; i < kept; ++i) total += double(candidates[i].weight);
  }
  double before = 0.0;
  long last = 0;
  for (; last < kept; ++last) {
    const double weight = double(candidates[last].weight);
    if (before >= draw.top_p * total && last > 0) break;
    if (weight < draw.min_p * double(candidates[0].weight)) break;
    before += weight;
  }
  const double target = draw.uniform * before;
  double sum = 0.0;
  for (long i = 0; i < last; ++i) {
    sum += double(candidates[i].weight);
    if (sum > target) return candidates[i].id;
  }
  return candidates[std::max(0L, last - 1)].id;
}

long draw_one(const float* x, long n, const Draw& draw) {
  static thread_local std::vector<float> memory;
  memory.resize(round_up(n, 16));
  const double total = exponentials(x, n, x[argmax(x, n)], draw.temperature, memory.data());
  if (draw.top_k == 0 && draw.top_p >= 1.0 && draw.min_p <= 0.0) return invert(memory.data(), n, draw.uniform * total);
  return draw_ranked(memory.data(), n, total, draw);
}

}  // namespace
}  // namespace janus

using namespace janus;

// logits [rows, vocab] -> ids [rows].
JANUS_API void janus_argmax(int64_t rows, int64_t vocab, const float* logits, int64_t* ids) {
  Pool& pool = Pool::get();
  auto held = pool.lock();
  auto pick = [&](long row) { ids[row] = argmax(logits + row * vocab, vocab); };
  Phase phases[] = {phase(rows, pick)};
  pool.run(phases, 1, rows > 1 && rows * vocab > (256 << 10));
}

// `lines` [rows]: which row of logits each draw is for.
JANUS_API void janus_draw(int64_t rows, int64_t vocab, const float* logits, const int64_t* lines, const Draw* draws,
                          int64_t* ids) {
  Pool& pool = Pool::get();
  auto held = pool.lock();
  auto pick = [&](long row) { ids[row] = draw_one(logits + lines[row] * vocab, vocab, draws[row]); };
  Phase phases[] = {phase(rows, pick)};
  pool.run(phases, 1, rows > 1 && rows * vocab > (16 << 10));
}
