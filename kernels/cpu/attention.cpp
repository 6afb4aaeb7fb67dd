// One layer of grouped-query attention of a step, from residual stream to residual stream: norm, QKV, query and key
// norms, rotary embedding, KV write, paged attention, output projection, residual, and the norm before the MLP. One
// call, six phases.
#include "api.h"
#include "attention_step.h"
#include "gemm.h"
#include "norm.h"
#include "paged_attention.h"
#include "pool.h"

#include <algorithm>

namespace janus {

struct AttentionShape {
  int64_t dtype, hidden, heads, kv_heads, head_dim, block_size;
  int64_t rotary;      // elements of a head that turn with the position
  int64_t whole_norm;  // query and key norms are over all heads together
  double eps;
  double clip;  // queries, keys and values are clamped to [-clip, clip]; 0 = not
};

// Norms, biases and sinks are f32 (null = none); qkv and o are packed; caches are [blocks, kv_heads, block_size,
// head_dim].
struct AttentionLayer {
  const float *input_norm, *post_norm;
  const void* qkv;
  const float* qkv_bias;
  const float *q_norm, *k_norm;
  const void* o;
  const float* o_bias;
  const float* sinks;  // [heads]
  void *keys, *values;
  int64_t window;  // tokens that a row sees, its own included; 0 = all
};

namespace {

constexpr int32_t kQueryRows = 16;  // query rows that share one walk over the context

// Norms groups of `group` elements (norm null = not) and clamps all (most 0 = not), in place.
void norm_and_clip(float* x, long n, long group, const float* norm, float eps, float most) {
  for (long start = 0; norm && start < n; start += group) {
    const float scale = inverse_rms(x + start, group, eps);
    for (long d = 0; d < group; ++d) x[start + d] *= scale * norm[d];
  }
  for (long d = 0; most > 0 && d < n; ++d) x[d] = std::min(std::max(x[d], -most), most);
}

template <typename T>
void run(const AttentionShape& shape, const AttentionLayer& layer, const AttentionStep& step, const T* h, T* h_out,
         T* x_out) {
  Pool& pool = Pool::get();
  auto held = pool.lock();
  const long hidden = shape.hidden, size = shape.head_dim, tokens = step.tokens;
  const long q_width = shape.heads * size, kv_width = shape.kv_heads * size, qkv_width = q_width + 2 * kv_width;
  const float eps = float(shape.eps);
  T* normed = static_cast<T*>(pool.scratch(0, (tokens * hidden + 64) * sizeof(T)));
  float* qkv = static_cast<float*>(pool.scratch(1, (tokens * qkv_width + 64) * sizeof(float)));
  T* queries = static_cast<T*>(pool.scratch(2, (tokens * q_width + 64) * sizeof(T)));
  T* attended = static_cast<T*>(pool.scratch(3, (tokens * q_width + 64) * sizeof(T)));
  static std::vector<Item> items;  // guarded by the pool's lock
  list_items(step, kQueryRows, items);

  const Norm<T> norm_in{h, layer.input_norm, normed, hidden, tokens, eps};
  const Projection<T> project{static_cast<const T*>(layer.qkv), qkv_width, hidden, tokens, normed, qkv};

  const long rotary = shape.rotary;
  const float most = float(shape.clip);
  const bool apart = shape.whole_norm || most > 0;  // norms are not part of the rotation
  const float *q_norm = apart ? nullptr : layer.q_norm, *k_norm = apart ? nullptr : layer.k_norm;
  auto rotate_rows = [&](long task) {
    each_row(task, tokens, [&](long r) {
      float* row = qkv + r * qkv_width;
      if (layer.qkv_bias)
        for (long c = 0; c < qkv_width; ++c) row[c] += layer.qkv_bias[c];
      if (apart) {
        norm_and_clip(row, q_width, shape.whole_norm ? q_width : size, layer.q_norm, eps, most);
        norm_and_clip(row + q_width, kv_width, shape.whole_norm ? kv_width : size, layer.k_norm, eps, most);
        norm_and_clip(row + q_width + kv_width, kv_width, 0, nullptr, eps, most);
      }
      const float* cos_sin = step.cos_sin + r * rotary;
      const long block = step.slot_mapping[r] / shape.block_size, offset = step.slot_mapping[r] % shape.block_size;
      for (long i = 0; i < shape.heads; ++i) {
        const float* from = row + i * size;
        const float scale = q_norm ? inverse_rms(from, size, eps) : 1.0f;
        rotate(from, q_norm, scale, cos_sin, queries + r * q_width + i * size, size, rotary);
      }
      for (long i = 0; i < shape.kv_heads; ++i) {
        const long slot = ((block * shape.kv_heads + i) * shape.block_size + offset) * size;
        const float* from = row + q_width + i * size;
        const float scale = k_norm ? inverse_rms(from, size, eps) : 1.0f;
        rotate(from, k_norm, scale, cos_sin, static_cast<T*>(layer.keys) + slot, size, rotary);
        store_row(row + q_width + kv_width + i * size, static_cast<T*>(layer.values) + slot, size);
      }
    });
  };

  // Few sequences: a task per key head, so that all threads have work; many: a task per sequence.
  const long count = long(items.size()), split = count >= 4L * pool.threads() ? 1 : shape.kv_heads;
  const float scale = 1.0f / std::sqrt(float(size));
  auto attention = [&](long task) {
    const Item& item = items[task / split];
    const PagedContext<T> context{static_cast<const T*>(layer.keys), static_cast<const T*>(layer.values),
                                  step.block_tables + item.sequence * step.max_blocks, shape.block_size,
                                  shape.kv_heads, size, size};
    const long begin = split == 1 ? 0 : task % split, end = split == 1 ? shape.kv_heads : begin + 1;
    const long group = shape.heads / shape.kv_heads;
    for (long head = begin; head < end; ++head) {
      const long at = item.row * q_width + head * group * size;
      const float* sinks = layer.sinks ? layer.sinks + head * group : nullptr;
      const Queries<T> q{queries + at, attended + at, q_width, q_width, item.rows, group, sinks};
      if (size == 64) {
        attend<T, 64>(context, q, item.visible, layer.window, head, scale);
      } else if (size == 128) {
        attend<T, 128>(context, q, item.visible, layer.window, head, scale);
      } else {
        attend<T, 0>(context, q, item.visible, layer.window, head, scale);
      }
    }
  };

  const WayOut<T> output(pool, 4, static_cast<const T*>(layer.o), layer.o_bias, attended, q_width, h, h_out, hidden,
                         tokens);
  const Norm<T> norm_out{h_out, layer.post_norm, x_out, hidden, tokens, eps};

  const long groups = ceil_div(tokens, kRowsPerTask);
  Phase phases[] = {phase(groups, norm_in),
                    phase(project.tasks(), project),
                    phase(groups, rotate_rows),
                    phase(count * split, attention),
                    phase(output.tasks(), output),
                    phase(groups, norm_out)};
  const long bytes = hidden * (qkv_width + q_width) * long(sizeof(T));
  pool.run(phases, 6, bytes + tokens * hidden * (qkv_width + q_width) / 8 > (256 << 10));
}

}  // namespace
}  // namespace janus

using namespace janus;

// Elements of W [n, k] packed, and the packing of it.
JANUS_API int64_t janus_packed_bytes(int64_t dtype, int64_t n, int64_t k) {
  const long panels = ceil_div(n, kPanel);
  return dtype == kBfloat16 ? panels * panel_size<bf16>(k) * 2 : panels * panel_size<float>(k) * 4;
}

JANUS_API void janus_pack(int64_t dtype, int64_t n, int64_t k, const void* from, void* to) {
  auto row_of = [n](long c) { return c < n ? c : -1L; };
  if (dtype == kBfloat16) {
    pack_panels(static_cast<bf16*>(to), static_cast<const bf16*>(from), n, k, row_of);
  } else {
    pack_panels(static_cast<float*>(to), static_cast<const float*>(from), n, k, row_of);
  }
}

// h, h_out, x_out: [tokens, hidden] in dtype.
JANUS_API void janus_attention(const AttentionShape* shape, const AttentionLayer* layer, const AttentionStep* step,
                               const void* h, void* h_out, void* x_out) {
  in_dtype(shape->dtype, h, h_out, x_out, [&](auto... rows) { run(*shape, *layer, *step, rows...); });
}
