// One attention layer of a step, from residual stream to residual stream: norm, QKV, per-head norms, rotary embedding,
// KV write, paged attention, output projection, residual, and the norm before the MLP. One call, six phases.
#include "api.h"
#include "gemm.h"
#include "norm.h"
#include "paged_attention.h"
#include "pool.h"

#include <algorithm>

namespace janus {

struct AttentionShape {
  int64_t dtype, hidden, heads, kv_heads, head_dim, block_size;
  double eps;
};

// Norms and biases are f32 (null = none); qkv and o are packed; caches are [blocks, kv_heads, block_size, head_dim].
struct AttentionLayer {
  const float *input_norm, *post_norm;
  const void* qkv;
  const float* qkv_bias;
  const float *q_norm, *k_norm;
  const void* o;
  const float* o_bias;
  void *keys, *values;
};

struct AttentionStep {
  int64_t tokens, sequences, max_blocks;
  const float* cos_sin;         // [tokens, head_dim]: cos, then sin
  const int64_t* slot_mapping;  // [tokens]
  const int32_t* query_start;   // [sequences + 1]
  const int32_t* context_len;   // [sequences]
  const int32_t* block_tables;  // [sequences, max_blocks]
};

namespace {

constexpr long kRowsPerTask = 8;
constexpr long kQueryRows = 16;  // query rows that share one walk over the context
constexpr long kTaskBytes = 128 << 10;

// Rows of a sequence that one task attends for.
struct Item {
  int32_t sequence;
  int32_t row;  // first row of the step
  int32_t rows;
  int32_t visible;  // tokens that the first row sees
};

void list_items(const AttentionStep& step, std::vector<Item>& items) {
  items.clear();
  for (int32_t s = 0; s < step.sequences; ++s) {
    const int32_t begin = step.query_start[s], end = step.query_start[s + 1];
    for (int32_t row = begin; row < end; row += kQueryRows) {
      const int32_t rows = std::min<int32_t>(kQueryRows, end - row);
      items.push_back({s, row, rows, step.context_len[s] - (end - row) + 1});
    }
  }
}

// Norm (optional) and rotation of one head in f32: pairs are (d, d + D / 2).
template <typename T>
void rotate(const float* x, const float* norm, const float* cos_sin, T* y, long size, float eps) {
  const float scale = norm ? inverse_rms(x, size, eps) : 1.0f;
  const long half = size / 2;
  const float *cos = cos_sin, *sin = cos_sin + half;
  long d = 0;
  for (; d + 16 <= half; d += 16) {
    f32x16 a = load16(x + d) * scale, b = load16(x + d + half) * scale;
    if (norm) {
      a *= load16(norm + d);
      b *= load16(norm + d + half);
    }
    const f32x16 c = load16(cos + d), s = load16(sin + d);
    store16(y + d, a * c - b * s);
    store16(y + d + half, b * c + a * s);
  }
  for (; d < half; ++d) {
    const float a = x[d] * scale * (norm ? norm[d] : 1.0f), b = x[d + half] * scale * (norm ? norm[d + half] : 1.0f);
    put(y + d, a * cos[d] - b * sin[d]);
    put(y + d + half, b * cos[d] + a * sin[d]);
  }
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
  list_items(step, items);

  auto row_groups = [tokens](long task, auto f) {
    for (long r = task * kRowsPerTask; r < std::min(tokens, (task + 1) * kRowsPerTask); ++r) f(r);
  };
  auto norm_in = [&](long task) {
    row_groups(task, [&](long r) { rms_norm(h + r * hidden, layer.input_norm, normed + r * hidden, hidden, eps); });
  };

  const long qkv_panels = ceil_div(qkv_width, kPanel);
  const long qkv_step = std::max(1L, kTaskBytes / long(panel_size<T>(hidden) * sizeof(T)));
  auto project = [&](long task) {
    times_panels(
        static_cast<const T*>(layer.qkv), task * qkv_step, std::min(qkv_panels, (task + 1) * qkv_step), hidden, tokens,
        [&](long r) { return normed + r * hidden; },
        [&](long r, long column, f32x16 a, f32x16 b) { store_panel(qkv + r * qkv_width, column, qkv_width, a, b); });
  };

  auto rotate_rows = [&](long task) {
    row_groups(task, [&](long r) {
      float* row = qkv + r * qkv_width;
      if (layer.qkv_bias)
        for (long c = 0; c < qkv_width; ++c) row[c] += layer.qkv_bias[c];
      const float* cos_sin = step.cos_sin + r * size;
      const long block = step.slot_mapping[r] / shape.block_size, offset = step.slot_mapping[r] % shape.block_size;
      for (long i = 0; i < shape.heads; ++i)
        rotate(row + i * size, layer.q_norm, cos_sin, queries + r * q_width + i * size, size, eps);
      for (long i = 0; i < shape.kv_heads; ++i) {
        const long slot = ((block * shape.kv_heads + i) * shape.block_size + offset) * size;
        rotate(row + q_width + i * size, layer.k_norm, cos_sin, static_cast<T*>(layer.keys) + slot, size, eps);
        const float* from = row + q_width + kv_width + i * size;
        T* to = static_cast<T*>(layer.values) + slot;
        long d = 0;
        for (; d + 16 <= size; d += 16) store16(to + d, load16(from + d));
        for (; d < size; ++d) put(to + d, from[d]);
      }
    });
  };

  // Few sequences: a task per key head, so that all threads have work; many: a task per sequence.
  const long count = long(items.size()), split = count >= 4L * pool.threads() ? 1 : shape.kv_heads;
  const float scale = 1.0f / std::sqrt(float(size));
  auto attention = [&](long task) {
    const Item& item = items[task / split];
    const PagedContext<T> context{static_cast<const T*>(layer.keys), static_cast<const T*>(layer.values),
                                  step.block_tables + item.sequence * step.max_blocks,
                                  shape.block_size, shape.kv_heads, size};
    const long begin = split == 1 ? 0 : task % split, end = split == 1 ? shape.kv_heads : begin + 1;
    for (long head = begin; head < end; ++head)
      attend(context, queries + item.row * q_width, attended + item.row * q_width, q_width, item.rows, item.visible,
             head, shape.heads / shape.kv_heads, scale);
  };

  const long o_panels = ceil_div(hidden, kPanel);
  const long o_fair = o_panels / (2L * pool.threads());
  const long o_step = std::max(1L, std::min(kTaskBytes / long(panel_size<T>(q_width) * sizeof(T)), o_fair));
  // A copy of the bias that may be read past `hidden`.
  float* bias = static_cast<float*>(pool.scratch(4, (o_panels * kPanel) * sizeof(float)));
  if (layer.o_bias) std::copy(layer.o_bias, layer.o_bias + hidden, bias);
  auto output = [&](long task) {
    times_panels(
        static_cast<const T*>(layer.o), task * o_step, std::min(o_panels, (task + 1) * o_step), q_width, tokens,
        [&](long r) { return attended + r * q_width; },
        [&](long r, long column, f32x16 a, f32x16 b) {
          if (layer.o_bias) {
            a += load16(bias + column);
            b += load16(bias + column + 16);
          }
          const T* from = h + r * hidden;
          if (column + kPanel > hidden) {
            float tail[kPanel] = {};
            for (long c = column; c < hidden; ++c) tail[c - column] = to_float(from[c]);
            store_panel(h_out + r * hidden, column, hidden, a + load16(tail), b + load16(tail + 16));
            return;
          }
          store16(h_out + r * hidden + column, load16(from + column) + a);
          store16(h_out + r * hidden + column + 16, load16(from + column + 16) + b);
        });
  };
  auto norm_out = [&](long task) {
    row_groups(task, [&](long r) { rms_norm(h_out + r * hidden, layer.post_norm, x_out + r * hidden, hidden, eps); });
  };

  const long groups = ceil_div(tokens, kRowsPerTask);
  Phase phases[] = {phase(groups, norm_in),         phase(ceil_div(qkv_panels, qkv_step), project),
                    phase(groups, rotate_rows),     phase(count * split, attention),
                    phase(ceil_div(o_panels, o_step), output), phase(groups, norm_out)};
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
  if (shape->dtype == kBfloat16) {
    run(*shape, *layer, *step, static_cast<const bf16*>(h), static_cast<bf16*>(h_out), static_cast<bf16*>(x_out));
  } else {
    run(*shape, *layer, *step, static_cast<const float*>(h), static_cast<float*>(h_out), static_cast<float*>(x_out));
  }
}
