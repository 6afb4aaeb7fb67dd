// CUDA C on a CPU, for tests: the text of a kernel, compiled by g++ behind this header, runs with one fiber per thread.
//
// Enough of the language for kernels of integers and floats with static shared memory. Missing: dynamic shared memory,
// half types, textures, cooperative groups, inline PTX, fences. runtime.cpp has the rules that are checked.
#pragma once

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __constant__ static
#define __shared__ static __attribute__((section("shim_shared")))  // filled with a pattern before each block

struct uint3 {
  unsigned x, y, z;
};
using dim3 = uint3;
constexpr int warpSize = 32;

namespace shim {

extern uint3 thread_index, block_index, block_size, grid_size;  // of the thread that runs

// Waits for the lanes of `mask`. Returns what each lane brought, in an array of 32. Only `orders` orders memory.
const uint64_t* meet(const char* what, unsigned mask, uint64_t value, bool orders, int line);
void barrier(int line);
[[noreturn]] void fail(int line, const char* format, ...) __attribute__((format(printf, 2, 3)));

struct Parameter {
  size_t bytes;
  bool pointer;
};
struct Kernel {
  const char* name;
  void (*call)(void** arguments);
  const Parameter* parameters;
  size_t count;
};
template <auto F>
struct Export;
template <typename... P, void (*F)(P...)>
struct Export<F> {
  static constexpr Parameter parameters[] = {{sizeof(P), std::is_pointer_v<P>}..., {0, false}};
  template <size_t... I>
  static void spread(void** arguments, std::index_sequence<I...>) {
    F(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
  }
  static void call(void** arguments) { spread(arguments, std::index_sequence_for<P...>{}); }
  static constexpr Kernel as(const char* name) { return {name, call, parameters, sizeof...(P)}; }
};

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
T shuffle(const char* what, unsigned mask, T value, int lane, int line) {
  const uint64_t* seen = meet(what, mask, to_bits(value), false, line);
  if ((mask >> lane & 1) == 0) fail(line, "%s reads lane %d, which is not in mask 0x%08x", what, lane, mask);
  return from_bits<T>(seen[lane]);
}

template <typename T, typename F>
T reduce(const char* what, unsigned mask, T value, int line, F f) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>, "CUDA has these for int and unsigned");
  const uint64_t* seen = meet(what, mask, to_bits(value), false, line);
  T result = from_bits<T>(seen[__builtin_ctz(mask)]);
  for (unsigned left = mask & (mask - 1); left != 0; left &= left - 1) {
    result = f(result, from_bits<T>(seen[__builtin_ctz(left)]));
  }
  return result;
}

template <typename T, typename F>
T update(T* place, F f) {
  T old;
  __atomic_load(place, &old, __ATOMIC_RELAXED);
  for (T next = f(old); !__atomic_compare_exchange(place, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);) {
    next = f(old);
  }
  return old;
}

}  // namespace shim

#define threadIdx (static_cast<const uint3&>(shim::thread_index))
#define blockIdx (static_cast<const uint3&>(shim::block_index))
#define blockDim (static_cast<const uint3&>(shim::block_size))
#define gridDim (static_cast<const uint3&>(shim::grid_size))

#define SHIM_LINE int line = __builtin_LINE()

inline void __syncthreads(SHIM_LINE) { shim::barrier(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SHIM_LINE) { shim::meet("__syncwarp", mask, 0, true, line); }

inline unsigned __ballot_sync(unsigned mask, int predicate, SHIM_LINE) {
  const uint64_t* seen = shim::meet("__ballot_sync", mask, predicate != 0, false, line);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= (mask >> lane & 1 && seen[lane]) ? 1u << lane : 0;
  return result;
}
inline int __any_sync(unsigned mask, int predicate, SHIM_LINE) { return __ballot_sync(mask, predicate, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, SHIM_LINE) { return __ballot_sync(mask, predicate, line) == mask; }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, SHIM_LINE) {
  return shim::shuffle("__shfl_sync", mask, value, source & 31, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, SHIM_LINE) {
  return shim::shuffle("__shfl_xor_sync", mask, value, static_cast<int>(threadIdx.x % 32) ^ flip, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int distance, SHIM_LINE) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return shim::shuffle("__shfl_up_sync", mask, value, lane < distance ? lane : lane - distance, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int distance, SHIM_LINE) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return shim::shuffle("__shfl_down_sync", mask, value, lane + distance > 31 ? lane : lane + distance, line);
}

#define SHIM_REDUCE(name, expression)                                                                    \
  template <typename T>                                                                                  \
  T name(unsigned mask, T value, SHIM_LINE) {                                                            \
    return shim::reduce(#name, mask, value, line, [](T a, T b) { return static_cast<T>(expression); });  \
  }
SHIM_REDUCE(__reduce_add_sync, a + b)
SHIM_REDUCE(__reduce_min_sync, a < b ? a : b)
SHIM_REDUCE(__reduce_max_sync, a > b ? a : b)
SHIM_REDUCE(__reduce_and_sync, a & b)
SHIM_REDUCE(__reduce_or_sync, a | b)
SHIM_REDUCE(__reduce_xor_sync, a ^ b)

#define SHIM_ATOMIC(name, expression)                                                          \
  template <typename T>                                                                        \
  T name(T* place, std::common_type_t<T> operand) {                                            \
    return shim::update(place, [operand](T old) { return static_cast<T>(expression); });       \
  }
SHIM_ATOMIC(atomicAdd, old + operand)
SHIM_ATOMIC(atomicSub, old - operand)
SHIM_ATOMIC(atomicMin, old < operand ? old : operand)
SHIM_ATOMIC(atomicMax, old > operand ? old : operand)
SHIM_ATOMIC(atomicAnd, old & operand)
SHIM_ATOMIC(atomicOr, old | operand)
SHIM_ATOMIC(atomicXor, old ^ operand)
SHIM_ATOMIC(atomicExch, (static_cast<void>(old), operand))
template <typename T>
T atomicCAS(T* place, std::common_type_t<T> expected, std::common_type_t<T> desired) {
  return shim::update(place, [=](T old) { return old == expected ? desired : old; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
template <typename T>
T __ldg(const T* place) {
  return *place;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
