// Time, and waiting for a point in it.

#pragma once

#include <errno.h>
#include <poll.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using Nanoseconds = int64_t;

constexpr Nanoseconds kForever = INT64_MAX;

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), strerror(errno));
  std::exit(1);
}

inline Nanoseconds now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

// Waits for input until a point in time. A virtual machine's timers are late by tens of microseconds, as much as the
// latencies that are asked for. So it has itself woken that much earlier, by what it learns from every wake-up, and
// polls for the rest.
class Alarm {
 public:
  // Returns what ppoll does. `until` may be kForever.
  int wait(std::vector<pollfd>& polls, Nanoseconds until) {
    if (until == kForever) return checked(ppoll(polls.data(), polls.size(), nullptr, nullptr));
    const Nanoseconds wake = until - lead_;
    const Nanoseconds wait = std::max<Nanoseconds>(wake - now(), 0);
    const timespec timeout{wait / 1'000'000'000, wait % 1'000'000'000};
    const int ready = checked(ppoll(polls.data(), polls.size(), &timeout, nullptr));
    if (ready == 0 && wait > 0) learn(now() - wake);
    return ready;
  }

 private:
  static constexpr Nanoseconds kMaxLead = 50'000;

  // Settles where a quarter of the wake-ups are late.
  void learn(Nanoseconds late) {
    lead_ = std::clamp<Nanoseconds>(lead_ + (late > lead_ ? 600 : -200), 0, kMaxLead);
  }
  static int checked(int ready) {
    if (ready < 0 && errno != EINTR) fail("ppoll");
    return ready;
  }

  Nanoseconds lead_ = 20'000;
};
