// Between numbers as tensors store them and as the kernels compute with them (float for 16-bit numbers), for
// whole arrays of parameters. Plain data only, see walk.h.
#pragma once

#include <cstdint>

namespace acsconv {

struct Conversion {
  int32_t stored_size;  // bytes
  void (*widen)(const void* from, void* to, int64_t count);
  void (*narrow)(const void* from, void* to, int64_t count);  // rounds to nearest even
};

}  // namespace acsconv
