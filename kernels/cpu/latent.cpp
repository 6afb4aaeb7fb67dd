// One layer of multi-head latent attention of a step, from residual stream to residual stream, absorbed: every head's
// query is multiplied by its part of the key expansion, attends to the latents as they lie in the cache, and the
// weighted sum of latents by its part of the value expansion. No key or value of a head is ever made. One call.
#include "api.h"
#include "attention_step.h"
#include "gemm.h"
#include "norm.h"
#include "paged_attention.h"
#include "pool.h"

#include <algorithm>

namespace janus {

struct LatentShape {
  int64_t dtype, hidden, heads, block_size;
  int64_t q_rank;  // 0 = queries are projected at once
  int64_t rank, nope, rope, value;
  double eps, latent_eps, scale;
};

// Norms and biases are f32 (null = none). Packed: a [q_rank or heads * (nope + rope), then rank + rope; hidden],
// q_b [heads * (nope + rope), q_rank] (null = none), o [hidden, heads * value]; by head, one after the other: k_up
// [rank, nope] and v_up [value, rank]. latents is [blocks, block_size, rank + rope].
struct LatentLayer {
  const float *input_norm, *post_norm;
  const void* a;
  const float* a_bias;
  const float* q_norm;
  const void* q_b;
  const float* kv_norm;
  const void *k_up, *v_up, *o;
  const float* o_bias;
  void* latents;
};

namespace {

constexpr int32_t kQueryRows = 8;  // query rows that share one walk over the context
// Heads that share one pass over the values: with 4 it takes three quarters of the time that it takes with 2.
constexpr int kHeads = kJoint > 1 ? 4 : 1;
constexpr long kStates = 32;       // rows times heads of one task, whose sums stay in L2

template <typename T>
void run(const LatentShape& shape, const LatentLayer& layer, const AttentionStep& step, const T* h, T* h_out,
         T* x_out) {
  Pool& pool = Pool::get();
  auto held = pool.lock();
  const long hidden = shape.hidden, heads = shape.heads, tokens = step.tokens, rank = shape.rank, nope = shape.nope;
  const long rope = shape.rope, value = shape.value, latent = rank + rope, qk = nope + rope, q_width = heads * qk;
  const long first = shape.q_rank ? shape.q_rank : q_width, a_width = first + latent;
  const float eps = float(shape.eps), latent_eps = float(shape.latent_eps);
  auto scratch = [&](int slot, long width) { return pool.scratch(slot, (tokens * width + 64) * sizeof(float)); };
  T* normed = static_cast<T*>(scratch(0, std::max(hidden, shape.q_rank)));  // input, and then q_a's output
  float* a = static_cast<float*>(scratch(1, a_width));
  float* q = shape.q_rank ? static_cast<float*>(scratch(2, q_width)) : a;  // [tokens, q_stride]
  const long q_stride = shape.q_rank ? q_width : a_width;
  T* plain = static_cast<T*>(scratch(3, heads * nope));       // queries' unrotated parts
  T* queries = static_cast<T*>(scratch(4, heads * latent));   // absorbed parts, then rotated ones
  T* attended = static_cast<T*>(scratch(5, heads * rank));
  T* values = static_cast<T*>(scratch(6, heads * value));
  static std::vector<Item> items;  // guarded by the pool's lock
  list_items(step, kQueryRows, items);

  const Norm<T> norm_in{h, layer.input_norm, normed, hidden, tokens, eps};
  const Projection<T> project_a{static_cast<const T*>(layer.a), a_width, hidden, tokens, normed, a};

  // Unrotated parts to `plain`, rotated ones behind the absorbed ones that `absorb` computes.
  auto split_query = [&](long r) {
    for (long i = 0; i < heads; ++i) {
      const float* from = q + r * q_stride + i * qk;
      store_row(from, plain + (r * heads + i) * nope, nope);
      rotate(from + nope, nullptr, 1.0f, step.cos_sin + r * rope, queries + (r * heads + i) * latent + rank, rope, rope);
    }
  };
  auto write_latents = [&](long task) {
    each_row(task, tokens, [&](long r) {
      float* row = a + r * a_width;
      if (layer.a_bias)
        for (long c = 0; c < a_width; ++c) row[c] += layer.a_bias[c];
      const long block = step.slot_mapping[r] / shape.block_size, offset = step.slot_mapping[r] % shape.block_size;
      T* slot = static_cast<T*>(layer.latents) + (block * shape.block_size + offset) * latent;
      rms_norm(row + first, layer.kv_norm, slot, rank, latent_eps);
      rotate(row + first + rank, nullptr, 1.0f, step.cos_sin + r * rope, slot + rank, rope, rope);
      if (shape.q_rank) {
        rms_norm(row, layer.q_norm, normed + r * shape.q_rank, shape.q_rank, latent_eps);
      } else {
        split_query(r);
      }
    });
  };

  const Projection<T> project_q{static_cast<const T*>(layer.q_b), q_width, shape.q_rank, tokens, normed, q};
  auto split_queries = [&](long task) { each_row(task, tokens, split_query); };

  const long up_panels = ceil_div(rank, kPanel), up_size = up_panels * panel_size<T>(nope);
  auto absorb = [&](long head) {
    product(static_cast<const T*>(layer.k_up) + head * up_size, 0, up_panels, rank, nope, tokens, plain + head * nope,
            heads * nope, queries + head * latent, heads * latent);
  };

  // All heads see the same latents, as if they were the query heads of one key head; a task takes some of them.
  const int32_t most = items.empty() ? 1 : std::max_element(items.begin(), items.end(), [](auto& x, auto& y) {
                                             return x.rows < y.rows;
                                           })->rows;
  const long count = long(items.size()), fair = ceil_div(heads * count, 4L * pool.threads());
  const long group = std::max(1L, std::min({heads, kStates / most, std::max(fair, long(kHeads))}));
  const long split = ceil_div(heads, group);
  const T* latents = static_cast<const T*>(layer.latents);
  auto attention = [&](long task) {
    const Item& item = items[task / split];
    const long head = task % split * group;
    const PagedContext<T> context{latents,          latents, step.block_tables + item.sequence * step.max_blocks,
                                  shape.block_size, 1,       latent,
                                  rank};
    const Queries<T> rows{queries + (item.row * heads + head) * latent, attended + (item.row * heads + head) * rank,
                          heads * latent, heads * rank, item.rows, std::min(group, heads - head), nullptr};
    attend<T, 0, kHeads>(context, rows, item.visible, 0, 0, float(shape.scale));
  };

  const long down_panels = ceil_div(value, kPanel), down_size = down_panels * panel_size<T>(rank);
  auto expand = [&](long head) {
    product(static_cast<const T*>(layer.v_up) + head * down_size, 0, down_panels, value, rank, tokens,
            attended + head * rank, heads * rank, values + head * value, heads * value);
  };

  const long width = heads * value;
  const WayOut<T> output(pool, 7, static_cast<const T*>(layer.o), layer.o_bias, values, width, h, h_out, hidden, tokens);
  const Norm<T> norm_out{h_out, layer.post_norm, x_out, hidden, tokens, eps};

  const long groups = ceil_div(tokens, kRowsPerTask);
  Phase phases[] = {phase(groups, norm_in),
                    phase(project_a.tasks(), project_a),
                    phase(groups, write_latents),
                    phase(shape.q_rank ? project_q.tasks() : 0, project_q),
                    phase(shape.q_rank ? groups : 0, split_queries),
                    phase(heads, absorb),
                    phase(count * split, attention),
                    phase(heads, expand),
                    phase(output.tasks(), output),
                    phase(groups, norm_out)};
  const long weights = hidden * (a_width + width) + shape.q_rank * q_width + heads * rank * (nope + value);
  pool.run(phases, 10, weights * long(sizeof(T)) + tokens * weights / 8 > (256 << 10));
}

}  // namespace
}  // namespace janus

using namespace janus;

// h, h_out, x_out: [tokens, hidden] in dtype.
JANUS_API void janus_latent_attention(const LatentShape* shape, const LatentLayer* layer, const AttentionStep* step,
                                      const void* h, void* h_out, void* x_out) {
  in_dtype(shape->dtype, h, h_out, x_out, [&](auto... rows) { run(*shape, *layer, *step, rows...); });
}
