// How the CPU kernels get their threads: from whoever calls them, so that they need not know torch's thread
// pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace acsconv {

struct Threads {
  int count;  // threads that `run` may use
  // Calls body(index, context) for every index in [0, count), in parallel, and returns when all are done.
  void (*run)(int count, void (*body)(int index, void* context), void* context);
};

// Calls body(index) for all indices below `count`, which the threads take as they come.
template <class Body>
void parallel(const Threads& threads, int64_t count, const Body& body) {
  struct Shared {
    std::atomic<int64_t> next;
    int64_t count;
    const Body& body;
  } shared{{0}, count, body};
  auto work = [](int, void* context) {
    auto& shared = *static_cast<Shared*>(context);
    for (int64_t i; (i = shared.next.fetch_add(1)) < shared.count;) shared.body(i);
  };
  const auto workers = static_cast<int>(std::min<int64_t>(threads.count, count));
  if (workers <= 1) {
    work(0, &shared);
  } else {
    threads.run(workers, work, &shared);
  }
}

}  // namespace acsconv
