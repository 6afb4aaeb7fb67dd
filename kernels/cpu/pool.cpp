#include "pool.h"

#include <chrono>
#include <climits>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace janus {
namespace {

constexpr int kMaxSpread = 8;  // moving more threads than that costs more than it saves

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

long now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
#else
  if (word.load() == expected) std::this_thread::sleep_for(std::chrono::microseconds(50));
#endif
}

void futex_wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

// Spins until `ready()`, and gives the core away once that takes longer than a busy partner would need.
template <typename F>
void wait_until(F ready) {
  for (int i = 0; !ready(); ++i) {
    if (i < 4000) {
      pause_cpu();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace

Pool& Pool::get() {
  static Pool* pool = new Pool;  // never destroyed: workers may still be asleep at exit
  return *pool;
}

void Pool::configure(int threads, int spin_us) {
  auto held = lock();
  spin_ns_ = 1000L * spin_us;
  if (threads == threads_) return;
  stop();
  threads_ = threads;
  quit_.store(false);
  for (int i = 1; i < threads; ++i) {
    uint32_t seen = generation_.load();
    workers_.emplace_back([this, seen] { worker(seen); });
  }
}

void Pool::stop() {
  quit_.store(true);
  generation_.fetch_add(1);
  futex_wake_all(generation_);
  for (auto& thread : workers_) thread.join();
  workers_.clear();
  home_ = -1;
}

void Pool::run(const Phase* phases, int count, bool parallel) {
  if (!parallel || workers_.empty()) {
    for (int p = 0; p < count; ++p)
      for (long task = 0; task < phases[p].tasks; ++task) phases[p].run(phases[p].context, task);
    return;
  }
  spread();
  phases_ = phases;
  count_ = count;
  for (int p = 0; p < count; ++p) {
    next_[p].value.store(0, std::memory_order_relaxed);
    done_[p].value.store(0, std::memory_order_relaxed);
  }
  open_.store(true);
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) futex_wake_all(generation_);
  work();
  open_.store(false);
  // Workers that are still inside find no task left; a late one sees that the job is closed.
  wait_until([this] { return inside_.load() == 0; });
}

// Keeps the workers off the caller's core where there is a thread for every core. A worker that is woken is often put
// on the core that wakes it, and stays there: then caller and worker share one core while another is idle, or does the
// work of other processes that could as well run here.
void Pool::spread() {
#if defined(__linux__)
  const int here = sched_getcpu();
  if (here == home_ || here < 0) return;
  home_ = here;
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return;
  const int count = CPU_COUNT(&cores);
  if (count < 2 || threads_ < count || threads_ > kMaxSpread) return;
  CPU_CLR(here, &cores);
  for (auto& thread : workers_) pthread_setaffinity_np(thread.native_handle(), sizeof cores, &cores);
#endif
}

void Pool::prime() {
  if (workers_.empty()) return;
  spread();
  // To a worker this is a job that was over before it came: it looks, and spins for the next.
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) futex_wake_all(generation_);
}

void Pool::work() {
  const Phase* phases = phases_;
  for (int p = 0; p < count_; ++p) {
    const Phase& current = phases[p];
    long finished = 0;
    for (;;) {
      long task = next_[p].value.fetch_add(1, std::memory_order_relaxed);
      if (task >= current.tasks) break;
      current.run(current.context, task);
      ++finished;
    }
    if (finished) done_[p].value.fetch_add(finished, std::memory_order_acq_rel);
    wait_until([&] { return done_[p].value.load(std::memory_order_acquire) >= current.tasks; });
  }
}

void Pool::worker(uint32_t seen) {
  for (;;) {
    long deadline = now_ns() + spin_ns_;
    for (int i = 0; generation_.load(std::memory_order_acquire) == seen; ++i) {
      pause_cpu();
      if ((i & 63) == 63 && now_ns() > deadline) {
        sleepers_.fetch_add(1);
        while (generation_.load() == seen) futex_wait(generation_, seen);
        sleepers_.fetch_sub(1);
        break;
      }
    }
    seen = generation_.load();
    if (quit_.load()) return;
    inside_.fetch_add(1);
    if (open_.load()) work();
    inside_.fetch_sub(1);
  }
}

void* Pool::scratch(int slot, size_t bytes) {
  Scratch& entry = scratch_[slot];
  if (entry.bytes < bytes) {
    std::free(entry.memory);
    constexpr size_t huge = 2 << 20;  // huge pages: see src/janus/model/memory.py
    entry.bytes = (bytes + bytes / 4 + huge - 1) / huge * huge;
    entry.memory = std::aligned_alloc(huge, entry.bytes);
    if (!entry.memory) throw std::bad_alloc();
#if defined(__linux__)
    madvise(entry.memory, entry.bytes, MADV_HUGEPAGE);
#endif
  }
  return entry.memory;
}

}  // namespace janus
