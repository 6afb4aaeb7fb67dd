// A small thread pool for kernels that take microseconds to milliseconds.
//
// A job is a list of phases; a phase is a number of independent tasks. Threads claim tasks one by one, and a phase is
// over when all its tasks are done, not when all threads have arrived: a worker that the kernel has not scheduled yet
// (another process has its core) delays nobody, the caller then does the work alone. Results never depend on which
// thread ran a task.
//
// Idle workers spin for `spin_us`, then sleep on a futex. libgomp is not used because its workers spin for milliseconds
// by default, which starves the other processes of a machine whose attention and expert servers alternate.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace janus {

struct Phase {
  long tasks;
  void (*run)(void* context, long task);
  void* context;
};

// Makes a phase of a callable `f(long task)`, which must outlive the job.
template <typename F>
Phase phase(long tasks, F& f) {
  void* context = const_cast<void*>(static_cast<const void*>(&f));
  return {tasks, [](void* each, long task) { (*static_cast<F*>(each))(task); }, context};
}

class Pool {
 public:
  static Pool& get();

  // Number of threads that work on a job, the caller included. Waits for the job in progress.
  void configure(int threads, int spin_us);
  int threads() const { return threads_; }

  // Runs the phases in order; `parallel` false keeps them on the calling thread (not worth waking anybody).
  // Callers hold `lock()`: jobs and the arena are for one caller at a time.
  void run(const Phase* phases, int count, bool parallel);

  // Wakes the workers a little ahead of a job: waking takes as long as a small kernel. Never waits.
  void prime();

  std::unique_lock<std::mutex> lock() { return std::unique_lock<std::mutex>(mutex_); }

  // Scratch memory number `slot`, at least `bytes` long, 64-byte aligned, valid while the lock is held.
  void* scratch(int slot, size_t bytes);

 private:
  static constexpr int kMaxPhases = 12;
  static constexpr int kScratchSlots = 8;
  struct alignas(64) Counter {
    std::atomic<long> value{0};
  };
  struct Scratch {
    void* memory = nullptr;
    size_t bytes = 0;
  };

  void worker(uint32_t seen);
  void spread();
  void work();
  void stop();

  std::mutex mutex_;
  std::vector<std::thread> workers_;
  int threads_ = 1;
  long spin_ns_ = 0;
  int home_ = -1;  // the core that the workers keep off
  std::atomic<bool> quit_{false};

  const Phase* phases_ = nullptr;
  int count_ = 0;
  Counter next_[kMaxPhases];
  Counter done_[kMaxPhases];
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<bool> open_{false};
  alignas(64) std::atomic<int> inside_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  Scratch scratch_[kScratchSlots];
};

}  // namespace janus
