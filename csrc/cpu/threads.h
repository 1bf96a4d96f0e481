// How the CPU kernels get their threads: from whoever calls them, so that they need not know torch's thread
// pool.
#pragma once

#include <cstdint>

namespace acsconv {

struct Threads {
  int count;  // threads that `run` may use
  // Calls body(index, context) for every index in [0, count), in parallel, and returns when all are done.
  void (*run)(int count, void (*body)(int index, void* context), void* context);
};

}  // namespace acsconv
