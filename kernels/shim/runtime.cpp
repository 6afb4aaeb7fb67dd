// Fibers in place of threads, on one thread of the operating system: a run is a function of source, input and seed.
//
// Ascending and descending order run a thread until it waits; random order also switches at basic blocks (gcc's
// -fsanitize-coverage=trace-pc). Warp functions wait for exactly the lanes that they name. Errors, with their line: a
// lane that is not in its own mask, a mask that names an exited or missing lane, lanes of one mask that meet in
// different functions or masks, a barrier that not every thread reaches at the same line, deadlock.
//
// In the ThreadSanitizer build each fiber is one of its fibers, and only __syncthreads and __syncwarp order memory: two
// accesses of which one is a store are a race unless a barrier lies between them or both are atomic or volatile. This
// file is compiled without it, so that the scheduler's own memory orders nothing.
#include "runtime.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(SHIM_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void* tag);
void __tsan_release(void* tag);
uint8_t __tsan_atomic8_load(const volatile uint8_t* place, int order);
uint8_t __tsan_atomic8_fetch_or(volatile uint8_t* place, uint8_t value, int order);
uint16_t __tsan_atomic16_fetch_or(volatile uint16_t* place, uint16_t value, int order);
uint32_t __tsan_atomic32_fetch_or(volatile uint32_t* place, uint32_t value, int order);
uint64_t __tsan_atomic64_fetch_or(volatile uint64_t* place, uint64_t value, int order);
uint16_t __tsan_atomic16_load(const volatile uint16_t* place, int order);
uint32_t __tsan_atomic32_load(const volatile uint32_t* place, int order);
uint64_t __tsan_atomic64_load(const volatile uint64_t* place, int order);
}
#elif defined(SHIM_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}
#endif

extern "C" unsigned char __start_shim_shared[] __attribute__((weak));
extern "C" unsigned char __stop_shim_shared[] __attribute__((weak));

namespace shim {

uint3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStack = 128 << 10;
constexpr size_t kGuard = 4096;

enum class State { ready, in_warp, at_barrier, exited };

struct Fiber {
  ucontext_t context;
  unsigned char* stack = nullptr;
  size_t stack_bytes = 0;
  void* sanitizer = nullptr;  // ThreadSanitizer's fiber, or AddressSanitizer's fake stack
  uint3 index{};
  State state = State::ready;
  const char* what = "";
  unsigned mask = 0;
  int line = 0;
  void* tag = nullptr;
  uint64_t value = 0;
  uint64_t seen[32] = {};
};

Fiber fibers[kMaxThreads];
Fiber outside;  // the driver
Fiber* running = &outside;
uint64_t ready[kMaxThreads / 64];
unsigned threads, exited, waiting;
int barrier_line;
unsigned barriers;
Order order;
uint64_t dice;
const Kernel* kernel;
void** arguments;
// Memory is ordered through the address of a byte: two in turn for barriers, since with one the next arrival of a fast
// thread would hide its races with a slow one that has not left yet.
unsigned char begin_tag, end_tag, barrier_tags[2], warp_tags[4096];
unsigned warp_meetings;

unsigned number(const Fiber* fiber) { return static_cast<unsigned>(fiber - fibers); }

void set_ready(Fiber& fiber) {
  fiber.state = State::ready;
  ready[number(&fiber) / 64] |= 1ull << (number(&fiber) % 64);
}

void set_waiting(Fiber& fiber, State state, const char* what, int line) {
  fiber.state = state;
  fiber.what = what;
  fiber.line = line;
  ready[number(&fiber) / 64] &= ~(1ull << (number(&fiber) % 64));
}

uint64_t roll() {
  dice ^= dice << 13;
  dice ^= dice >> 7;
  dice ^= dice << 17;
  return dice;
}

Fiber* next_ready() {
  constexpr int kWords = kMaxThreads / 64;
  if (order == Order::descending) {
    for (int word = kWords - 1; word >= 0; --word) {
      if (ready[word] != 0) return &fibers[word * 64 + 63 - __builtin_clzll(ready[word])];
    }
    return nullptr;
  }
  const unsigned from = order == Order::random ? static_cast<unsigned>(roll() % threads) : 0;
  for (int i = 0; i <= kWords; ++i) {  // the first word is looked at twice: from `from` up, then whole
    const int word = (static_cast<int>(from / 64) + i) % kWords;
    const uint64_t left = i == 0 ? ready[word] >> (from % 64) << (from % 64) : ready[word];
    if (left != 0) return &fibers[word * 64 + __builtin_ctzll(left)];
  }
  return nullptr;
}

void order_after(void* tag) {
#if defined(SHIM_TSAN)
  __tsan_acquire(tag);
#else
  static_cast<void>(tag);
#endif
}

void order_before(void* tag) {
#if defined(SHIM_TSAN)
  __tsan_release(tag);
#else
  static_cast<void>(tag);
#endif
}

void arrived(Fiber* previous) {  // the first thing that a fiber does when it runs again
#if defined(SHIM_ASAN)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(running->sanitizer, &bottom, &size);
  if (previous == &outside) {
    outside.stack = static_cast<unsigned char*>(const_cast<void*>(bottom));
    outside.stack_bytes = size;
  }
#else
  static_cast<void>(previous);
#endif
}

Fiber* left;  // who ran before the one that runs

void run(Fiber* fiber) {
  if (fiber == running) return;
  left = running;
  running = fiber;
  thread_index = fiber->index;
#if defined(SHIM_TSAN)
  __tsan_switch_to_fiber(fiber->sanitizer, 1);  // 1: the switch orders nothing
#elif defined(SHIM_ASAN)
  __sanitizer_start_switch_fiber(&left->sanitizer, fiber->stack, fiber->stack_bytes);
#endif
  swapcontext(&left->context, &fiber->context);
  arrived(left);
}

[[noreturn]] void deadlock() {
  std::fprintf(stderr, "kernel: deadlock, no thread can go on\n");
  for (unsigned i = 0, shown = 0; i < threads && shown < 40; ++i) {
    const Fiber& f = fibers[i];
    if (f.state != State::in_warp && f.state != State::at_barrier) continue;
    std::fprintf(stderr, "kernel:%d: thread %u waits in %s", f.line, i, f.what);
    std::fprintf(stderr, f.state == State::in_warp ? " for mask 0x%08x\n" : "\n", f.mask);
    ++shown;
  }
  _exit(1);
}

void give_way() {
  Fiber* fiber = next_ready();
  if (fiber == nullptr && exited == threads) fiber = &outside;
  if (fiber == nullptr) deadlock();
  run(fiber);
}

void live() {
  arrived(left);
  for (;;) {
    order_after(&begin_tag);
    kernel->call(arguments);
    order_before(&end_tag);
    if (waiting != 0) fail(barrier_line, "thread %u exits while others wait at this barrier", number(running));
    set_waiting(*running, State::exited, "", 0);
    ++exited;
    give_way();
  }
}

void create(Fiber& fiber) {
  auto* memory = static_cast<unsigned char*>(
      mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) {
    std::perror("shim: no memory for the stacks of the threads");
    _exit(2);
  }
  fiber.stack = memory + kGuard;
  fiber.stack_bytes = kStack;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, live, 0);
#if defined(SHIM_TSAN)
  fiber.sanitizer = __tsan_create_fiber(0);
#endif
}

void run_block(uint3 block) {
  // A pattern in which no two words are alike: equal ones could cancel out.
  for (volatile unsigned char* byte = __start_shim_shared; byte < __stop_shim_shared; ++byte) {
    *byte = static_cast<unsigned char>((byte - __start_shim_shared + 1) * 0x9e3779b1u >> 24 | 1);
  }
  exited = waiting = 0;
  for (unsigned i = 0; i < threads; ++i) {
    if (fibers[i].stack == nullptr) create(fibers[i]);
    fibers[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    set_ready(fibers[i]);
  }
  order_before(&begin_tag);
  run(next_ready());
  order_after(&end_tag);
}

}  // namespace

void fail(int line, const char* format, ...) {
  std::fprintf(stderr, "kernel:%d: ", line);
  va_list list;
  va_start(list, format);
  std::vfprintf(stderr, format, list);
  va_end(list);
  std::fputc('\n', stderr);
  _exit(1);
}

void barrier(int line) {
  if (exited != 0) fail(line, "__syncthreads after %u threads have exited", exited);
  if (waiting != 0 && barrier_line != line) {
    fail(line, "divergent barrier: %u threads wait at line %d", waiting, barrier_line);
  }
  barrier_line = line;
  unsigned char* tag = &barrier_tags[barriers & 1];
  order_before(tag);
  set_waiting(*running, State::at_barrier, "__syncthreads", line);
  if (++waiting == threads) {
    waiting = 0;
    ++barriers;
    for (unsigned i = 0; i < threads; ++i) set_ready(fibers[i]);
  }
  give_way();
  order_after(tag);
}

const uint64_t* meet(const char* what, unsigned mask, uint64_t value, bool orders, int line) {
  Fiber& self = *running;
  const unsigned lane = number(&self) % 32;
  Fiber* warp = &self - lane;
  if ((mask >> lane & 1) == 0) fail(line, "%s: lane %u is not in its own mask 0x%08x", what, lane, mask);
  bool complete = true;
  self.tag = nullptr;
  for (unsigned other = 0; other < 32; ++other) {
    if (other == lane || (mask >> other & 1) == 0) continue;
    const Fiber& f = warp[other];
    if (number(&f) >= threads) fail(line, "%s: mask 0x%08x names lane %u, which does not exist", what, mask, other);
    if (f.state == State::exited) fail(line, "%s: mask 0x%08x names lane %u, which has exited", what, mask, other);
    const bool here = f.state == State::in_warp;
    if (here && (f.mask != mask || std::strcmp(f.what, what) != 0) && (f.mask >> lane & 1) != 0) {
      fail(line, "%s with mask 0x%08x meets lane %u in %s with mask 0x%08x at line %d", what, mask, other, f.what,
           f.mask, f.line);
    }
    if (here && f.mask == mask) self.tag = f.tag;
    complete = complete && here && f.mask == mask;
  }
  if (self.tag == nullptr) self.tag = &warp_tags[warp_meetings++ % sizeof warp_tags];
  self.mask = mask;
  self.value = value;
  set_waiting(self, State::in_warp, what, line);
  if (orders) order_before(self.tag);
  if (complete) {
    uint64_t values[32] = {};
    for (unsigned other = 0; other < 32; ++other) values[other] = mask >> other & 1 ? warp[other].value : 0;
    for (unsigned other = 0; other < 32; ++other) {
      if ((mask >> other & 1) == 0) continue;
      std::memcpy(warp[other].seen, values, sizeof values);
      set_ready(warp[other]);
    }
  }
  void* tag = self.tag;
  give_way();
  if (orders) order_after(tag);
  return self.seen;
}

void launch(const Kernel& which, uint3 grid, uint3 block, void** values, Order schedule, uint64_t seed) {
  kernel = &which;
  arguments = values;
  order = schedule;
  dice = (seed + 1) * 0x9e3779b97f4a7c15ull | 1;
  threads = block.x * block.y * block.z;
  block_size = block;
  grid_size = grid;
#if defined(SHIM_TSAN)
  if (outside.sanitizer == nullptr) outside.sanitizer = __tsan_get_current_fiber();
#endif
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        run_block(block);
      }
    }
  }
}

}  // namespace shim

// Called at every basic block of the kernel.
extern "C" void __sanitizer_cov_trace_pc() {
  using namespace shim;
  if (order == Order::random && running != &outside && (roll() & 15) == 0) give_way();
}

#if defined(SHIM_TSAN)
// A volatile access is a strong one in CUDA: it races with plain accesses, not with its like.
#define SHIM_VOLATILE(bytes, bits)                                                                        \
  extern "C" void __tsan_volatile_read##bytes(void* place) {                                              \
    static_cast<void>(__tsan_atomic##bits##_load(static_cast<uint##bits##_t*>(place), __ATOMIC_RELAXED)); \
  }                                                                                                       \
  extern "C" void __tsan_volatile_write##bytes(void* place) {                                             \
    static_cast<void>(__tsan_atomic##bits##_fetch_or(static_cast<uint##bits##_t*>(place), 0, __ATOMIC_RELAXED)); \
  }
SHIM_VOLATILE(1, 8)
SHIM_VOLATILE(2, 16)
SHIM_VOLATILE(4, 32)
SHIM_VOLATILE(8, 64)
#endif
