// The instructions of csrc/common/ptx_sm90.cuh as the emulator executes them. A barrier's state is kept
// beside the shared memory that it occupies, so that plain accesses to it are reported. The copies of the TMA
// take place when no thread can run otherwise (AsyncCopies::Late), at once, or at random; until the barrier's
// phase has ended nobody may touch their bytes.
#pragma once

#include <cstdint>

#include "cuda.h"

// Set through ctypes by tests of what happens when the driver refuses a tensor map.
extern "C" __attribute__((visibility("default"))) bool emulator_refuses_tensor_maps;

namespace emulator {

// A box of a tensor of 5 dimensions, the contiguous one first, at the coordinates `at`.
struct BoxCopy {
  const unsigned char* base;
  int element_bytes;
  int64_t size[5], stride_bytes[5];
  int box[5], at[5];
};

void barrier_init(uint32_t address, int arrivals);
void barrier_arrive(uint32_t address, int bytes, Location);
void barrier_wait(uint32_t address, int parity, Location);
void proxy_fence();
void copy_box(uint32_t shared, const BoxCopy& copy, uint32_t barrier);
void copy_bytes(uint32_t shared, const void* global, int bytes, uint32_t barrier);

}  // namespace emulator
