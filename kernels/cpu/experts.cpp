// The experts of one MoE layer: y[n] = sum over k of weight[n, k] * down(silu(gate(x[n])) * up(x[n])). The products may
// have biases, and gpt-oss's clamped activation may be between them.
//
// Rows are grouped by expert, so that an expert's weights are read from memory once per call. Phase 1 computes the
// hidden activations, a task per expert and slice of hidden units. Phase 2 gives each task a slice of output columns
// and walks all experts in ascending slot order: a row's sum has the same order of terms in whatever company it comes.
#include "api.h"
#include "gemm.h"
#include "pool.h"

#include <algorithm>
#include <type_traits>

namespace janus {

// What an expert computes. `clamped`: (clip(up, limit) + 1) * g * sigmoid(alpha * g), g = min(gate, limit).
struct ExpertShape {
  int64_t dtype, hidden, width, bias, clamped;
  double alpha, limit;
};

namespace {

constexpr long kTasksPerThread = 16;  // so that threads finish a phase within a sixteenth of each other

// Where things lie in a packed expert: gate and up, down, and with a bias, f32 in whole panels, those of both.
struct Shape {
  long hidden, width;
  bool bias;
  explicit Shape(const ExpertShape& shape) : hidden(shape.hidden), width(shape.width), bias(shape.bias != 0) {}
  long gate_up_panels() const { return ceil_div(width, 16); }  // 16 gate and their 16 up columns each
  long down_panels() const { return ceil_div(hidden, kPanel); }
  long padded_width() const { return round_up(width, 16); }
  template <typename T>
  long gate_up_size() const {
    return gate_up_panels() * panel_size<T>(hidden);
  }
  template <typename T>
  long down_size() const {
    return down_panels() * panel_size<T>(width);
  }
  template <typename T>
  long bytes() const {
    const long biases = bias ? (gate_up_panels() + down_panels()) * kPanel : 0;
    return (gate_up_size<T>() + down_size<T>()) * long(sizeof(T)) + biases * long(sizeof(float));
  }
  template <typename T, typename Byte>
  auto gate_up_bias(Byte* packed) const {  // the down bias follows
    return reinterpret_cast<std::conditional_t<std::is_const_v<Byte>, const float, float>*>(
        packed + (gate_up_size<T>() + down_size<T>()) * long(sizeof(T)));
  }
};

template <typename T>
void pack(Shape shape, const T* gate_up, const T* down, const T* gate_up_bias, const T* down_bias, T* packed) {
  const long width = shape.width;
  auto unit_row = [width](long c) {
    long unit = c / kPanel * 16 + c % 16;
    if (unit >= width) return -1L;
    return c % kPanel < 16 ? unit : width + unit;
  };
  auto down_row = [&](long c) { return c < shape.hidden ? c : -1L; };
  pack_panels(packed, gate_up, shape.gate_up_panels() * kPanel, shape.hidden, unit_row);
  pack_panels(packed + shape.gate_up_size<T>(), down, shape.hidden, width, down_row);
  if (!shape.bias) return;
  float* biases = shape.gate_up_bias<T>(reinterpret_cast<char*>(packed));
  auto spread = [&biases](const T* from, long columns, auto row_of) {
    for (long c = 0; c < columns; ++c) *biases++ = row_of(c) < 0 ? 0.0f : to_float(from[row_of(c)]);
  };
  spread(gate_up_bias, shape.gate_up_panels() * kPanel, unit_row);
  spread(down_bias, shape.down_panels() * kPanel, down_row);
}

struct Clamped {
  float alpha, limit;
  f32x16 operator()(f32x16 gate, f32x16 up) const {
    gate = min16(gate, splat(limit));
    up = max16(min16(up, splat(limit)), splat(-limit));
    return gate / (exp16(gate * -alpha) + 1.0f) * (up + 1.0f);
  }
};

// Rows in several pieces of memory, with what is wanted for each: several dispatches are computed as one.
template <typename T>
struct Input {
  long parts, k;
  const int64_t* counts;
  const T* const* x;
  const int32_t* const* slots;
  const float* const* weights;
  T* const* out;
};

// Where each row is, and goes to.
template <typename T>
struct RowTable {
  std::vector<const T*> x;
  std::vector<T*> out;

  void build(const Input<T>& in, long hidden) {
    x.clear();
    out.clear();
    for (long part = 0; part < in.parts; ++part)
      for (long row = 0; row < in.counts[part]; ++row) {
        x.push_back(in.x[part] + row * hidden);
        out.push_back(in.out[part] + row * hidden);
      }
  }
};

struct Entry {
  int32_t row;
  float weight;
};

// The (row, weight) pairs of every slot, ascending by slot, then by row.
struct Groups {
  std::vector<int32_t> active;  // slots with at least one row
  std::vector<long> start;      // per slot, first entry; one more at the end
  std::vector<Entry> entries;

  // Returns -1, or the first slot id that is out of range or empty.
  template <typename T>
  long build(const Input<T>& in, const void* const* held, long num_slots) {
    start.assign(num_slots + 1, 0);
    for (long part = 0; part < in.parts; ++part)
      for (long i = 0; i < in.counts[part] * in.k; ++i) {
        int32_t slot = in.slots[part][i];
        if (slot < 0) continue;
        if (slot >= num_slots || !held[slot]) return slot;
        ++start[slot + 1];
      }
    active.clear();
    for (long slot = 0; slot < num_slots; ++slot) {
      if (start[slot + 1]) active.push_back(int32_t(slot));
      start[slot + 1] += start[slot];
    }
    entries.resize(start[num_slots]);
    cursor_.assign(start.begin(), start.end() - 1);
    long first = 0;
    for (long part = 0; part < in.parts; first += in.counts[part++]) {
      const int32_t* slots = in.slots[part];
      for (long i = 0; i < in.counts[part] * in.k; ++i)
        if (slots[i] >= 0) entries[cursor_[slots[i]]++] = {int32_t(first + i / in.k), in.weights[part][i]};
    }
    return -1;
  }

 private:
  std::vector<long> cursor_;
};

template <typename T>
int64_t forward(const ExpertShape& what, const void* const* held, long num_slots, const Input<T>& in) {
  const Shape shape(what);
  const Clamped clamped{float(what.alpha), float(what.limit)};
  Pool& pool = Pool::get();
  auto held_lock = pool.lock();
  static Groups groups;  // guarded by the pool's lock; keeps its memory between calls
  static RowTable<T> table;
  long missing = groups.build(in, held, num_slots);
  if (missing >= 0) return 1 + missing;
  table.build(in, shape.hidden);
  const long n = long(table.x.size());
  const long hidden = shape.hidden, padded = shape.padded_width();
  const long total = long(groups.entries.size()), active = long(groups.active.size());
  T* inner = static_cast<T*>(pool.scratch(0, (total * padded + 64) * sizeof(T)));
  const long stride = shape.down_panels() * kPanel;  // of sums: whole panels
  float* sums = static_cast<float*>(pool.scratch(1, (n * stride + 64) * sizeof(float)));

  const long up_panel = panel_size<T>(hidden), down_panel = panel_size<T>(shape.width);
  // A task reads at least 64 KB in one stream, and up to a whole expert where there are enough to go round.
  const long fair = active * shape.gate_up_panels() / (kTasksPerThread * pool.threads());
  const long least = ceil_div(64 << 10, up_panel * long(sizeof(T)));
  const long per_task = std::min(shape.gate_up_panels(), std::max(least, fair));
  const long slices = ceil_div(shape.gate_up_panels(), per_task);

  auto gate_up = [&](long task) {
    const int32_t slot = groups.active[task / slices];
    const T* w = static_cast<const T*>(held[slot]);
    const long first = groups.start[slot], count = groups.start[slot + 1] - first;
    const Entry* rows = groups.entries.data() + first;
    const long begin = task % slices * per_task, end = std::min(shape.gate_up_panels(), begin + per_task);
    const float* bias = shape.bias ? shape.gate_up_bias<T>(static_cast<const char*>(held[slot])) : nullptr;
    times_panels(
        w, begin, end, hidden, count, [&](long i) { return table.x[size_t(rows[i].row)]; },
        [&](long i, long column, f32x16 gate, f32x16 up) {
          if (bias) {
            gate += load16(bias + column);
            up += load16(bias + column + 16);
          }
          // 32 columns are 16 units.
          store16(inner + (first + i) * padded + column / 2, what.clamped ? clamped(gate, up) : silu16(gate) * up);
        });
  };

  // Columns of y per task: few enough that all threads have some, whole panels, and a contiguous read per expert.
  const long columns = std::max(1L, std::min(4L, shape.down_panels() / (2L * pool.threads())));
  auto down_weights = [&](long a) { return static_cast<const T*>(held[groups.active[a]]) + shape.gate_up_size<T>(); };
  auto down = [&](long task) {
    const long begin = task * columns, end = std::min(shape.down_panels(), begin + columns);
    const long left = begin * kPanel, right = std::min(hidden, end * kPanel);
    for (long row = 0; row < n; ++row)
      std::memset(sums + row * stride + left, 0, (end - begin) * kPanel * sizeof(float));
    for (long i = 0; i < active; ++i) {
      const T* w = down_weights(i);
      const T* next_expert = i + 1 < active ? down_weights(i + 1) + begin * down_panel : nullptr;
      const long first = groups.start[groups.active[i]], count = groups.start[groups.active[i] + 1] - first;
      const Entry* rows = groups.entries.data() + first;
      const float* bias = nullptr;
      if (shape.bias)
        bias = shape.gate_up_bias<T>(static_cast<const char*>(held[groups.active[i]])) + shape.gate_up_panels() * kPanel;
      for (long p = begin; p < end; ++p)
        times_panel(
            w + p * down_panel, shape.width, count, p + 1 < end ? w + (p + 1) * down_panel : next_expert,
            [&](long r) { return inner + (first + r) * padded; },
            [&](long r, f32x16 a, f32x16 b) {
              if (bias) {
                a += load16(bias + p * kPanel);
                b += load16(bias + p * kPanel + 16);
              }
              float* y = sums + rows[r].row * stride + p * kPanel;
              store16(y, load16(y) + rows[r].weight * a);
              store16(y + 16, load16(y + 16) + rows[r].weight * b);
            });
    }
    for (long row = 0; row < n; ++row) {
      const float* from = sums + row * stride;
      T* to = table.out[size_t(row)];
      long c = left;
      for (; c + 16 <= right; c += 16) store16(to + c, load16(from + c));
      for (; c < right; ++c) put(to + c, from[c]);
    }
  };

  Phase phases[] = {phase(active * slices, gate_up), phase(ceil_div(shape.down_panels(), columns), down)};
  const long bytes = active * long((shape.gate_up_size<T>() + shape.down_size<T>()) * sizeof(T));
  const long work = bytes + total * hidden * shape.width / 8;
  pool.run(phases, 2, work > (256 << 10));
  return 0;
}

}  // namespace
}  // namespace janus

using namespace janus;

// Bytes of one packed expert: gate_up [2 * width, hidden], down [hidden, width], and their biases where there are some.
JANUS_API int64_t janus_expert_bytes(const ExpertShape* shape) {
  return shape->dtype == kBfloat16 ? Shape(*shape).bytes<bf16>() : Shape(*shape).bytes<float>();
}

// The biases [2 * width] and [hidden] are in dtype too, and are not read where the shape has none.
JANUS_API void janus_pack_expert(const ExpertShape* shape, const void* gate_up, const void* down,
                                 const void* gate_up_bias, const void* down_bias, void* packed) {
  if (shape->dtype == kBfloat16) {
    pack(Shape(*shape), static_cast<const bf16*>(gate_up), static_cast<const bf16*>(down),
         static_cast<const bf16*>(gate_up_bias), static_cast<const bf16*>(down_bias), static_cast<bf16*>(packed));
  } else {
    pack(Shape(*shape), static_cast<const float*>(gate_up), static_cast<const float*>(down),
         static_cast<const float*>(gate_up_bias), static_cast<const float*>(down_bias), static_cast<float*>(packed));
  }
}

// As janus_experts for `parts` dispatches at once, each with its own memory: counts[p] rows x[p], slots[p], weights[p],
// and out[p]. A row's result is the same in whatever company it comes.
JANUS_API int64_t janus_experts_joint(const ExpertShape* shape, const void* const* held, int64_t num_slots,
                                      int64_t parts, int64_t k, const int64_t* counts, const void* const* x,
                                      const int32_t* const* slots, const float* const* weights, void* const* out) {
  if (shape->dtype == kBfloat16) {
    Input<bf16> in{parts, k, counts, reinterpret_cast<const bf16* const*>(x), slots, weights,
                   reinterpret_cast<bf16* const*>(out)};
    return forward(*shape, held, num_slots, in);
  }
  Input<float> in{parts, k, counts, reinterpret_cast<const float* const*>(x), slots, weights,
                  reinterpret_cast<float* const*>(out)};
  return forward(*shape, held, num_slots, in);
}

// held [num_slots]: packed experts, null where a slot is empty. slots [n, k]: -1 = not here. out [n, hidden] in dtype.
// Returns 0, or 1 + the first slot id that is out of range or empty (out is then not written).
JANUS_API int64_t janus_experts(const ExpertShape* shape, const void* const* held, int64_t num_slots, int64_t n,
                                int64_t k, const void* x, const int32_t* slots, const float* weights, void* out) {
  return janus_experts_joint(shape, held, num_slots, 1, k, &n, &x, &slots, &weights, &out);
}

JANUS_API void janus_configure(int64_t threads, int64_t spin_us) {
  Pool::get().configure(int(threads), int(spin_us));
}
JANUS_API void janus_prime() { Pool::get().prime(); }
JANUS_API int64_t janus_threads() { return Pool::get().threads(); }
