// Kernels that exercise one emulated operation each, for test_emulator.py: the wrappers' hand-made tables,
// and one kernel per kind of fault that the emulator must report. run_probe() is called through ctypes; lanes
// or threads read in[thread] and write out[thread].
#include "common/launch.cuh"

namespace {

using Word = int32_t;
using Kernel = void (*)(const Word*, Word*);

__global__ void shuffle_index(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_sync(0xffffffffu, in[threadIdx.x], threadIdx.x * 3 + 1);
}
__global__ void shuffle_index_segment(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_sync(0xffffffffu, in[threadIdx.x], 9, 8);
}
__global__ void shuffle_xor(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 5);
}
__global__ void shuffle_down(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_down_sync(0xffffffffu, in[threadIdx.x], 3, 16);
}
__global__ void shuffle_up(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_up_sync(0xffffffffu, in[threadIdx.x], 2, 8);
}
__global__ void shuffle_half_mask(const Word* in, Word* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, in[threadIdx.x], 1);
}
__global__ void shuffle_wide(const Word* in, Word* out) {
  const double value = in[threadIdx.x] + 0.5;
  out[threadIdx.x] = static_cast<Word>(2 * __shfl_xor_sync(0xffffffffu, value, 1));
}
__global__ void votes(const Word* in, Word* out) {
  const Word value = in[threadIdx.x];
  const Word ballot = static_cast<Word>(__ballot_sync(0xffffffffu, value % 3 == 0));
  const int any = __any_sync(0xffffffffu, value == 7), all = __all_sync(0xffffffffu, value >= 0);
  const int none = __any_sync(0xffffffffu, value == 99), not_all = __all_sync(0xffffffffu, value > 0);
  out[threadIdx.x] = threadIdx.x == 0 ? ballot : any + 2 * all + 4 * none + 8 * not_all;
}
__global__ void atomics(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* sum = reinterpret_cast<Word*>(memory);
  float* real_sum = reinterpret_cast<float*>(memory + 4);
  if (threadIdx.x == 0) sum[0] = 100, real_sum[0] = 0.5f;
  __syncthreads();
  atomicAdd(sum, in[threadIdx.x]);
  atomicAdd(real_sum, 0.25f);
  __syncthreads();
  out[threadIdx.x] = sum[0] + static_cast<Word>(2 * real_sum[0]);
}
__global__ void block_reverse(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
__global__ void warp_reverse(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  shared[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 31];
}
__global__ void read_by_all_then_write(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  if (threadIdx.x == 0) shared[0] = in[0];
  __syncthreads();
  const Word seen = shared[0];
  __syncthreads();
  if (threadIdx.x == 1) shared[0] = in[1];
  __syncthreads();
  out[threadIdx.x] = seen * 10 + shared[0];
}

// Faults.
__global__ void race_write_read(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  shared[threadIdx.x] = 0;
  __syncthreads();
  shared[threadIdx.x] = in[threadIdx.x];
  __syncwarp();  // not enough: the other half of the block is another warp
  out[threadIdx.x] = shared[threadIdx.x ^ 32];
}
__global__ void race_read_write(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  if (threadIdx.x == 0) shared[0] = in[0];
  __syncthreads();
  out[threadIdx.x] = shared[0];
  if (threadIdx.x == blockDim.x - 1) shared[0] = 1;  // after all others have read, in this schedule
}
__global__ void race_write_write(const Word*, Word*) {
  DYNAMIC_SHARED(memory);
  reinterpret_cast<Word*>(memory)[0] = static_cast<Word>(threadIdx.x);
}
__global__ void race_between_blocks(const Word*, Word* out) {
  out[threadIdx.x] = static_cast<Word>(blockIdx.x);
}
__global__ void race_with_atomic(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* sum = reinterpret_cast<Word*>(memory);
  if (threadIdx.x == 0) sum[0] = 0;
  __syncthreads();
  atomicAdd(sum, in[threadIdx.x]);
  if (threadIdx.x == blockDim.x - 1) out[0] = sum[0];
}
__global__ void uninitialised(const Word*, Word* out) {
  DYNAMIC_SHARED(memory);
  out[threadIdx.x] = reinterpret_cast<Word*>(memory)[threadIdx.x];
}
__global__ void shared_out_of_bounds(const Word* in, Word*) {
  DYNAMIC_SHARED(memory);
  reinterpret_cast<Word*>(memory)[threadIdx.x + 1] = in[threadIdx.x];
}
__global__ void device_read_past_end(const Word* in, Word* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }
__global__ void device_write_before_start(const Word* in, Word* out) {
  out[int(threadIdx.x) - 1] = in[threadIdx.x];
}
__global__ void wild_pointer(const Word* in, Word* out) { out[threadIdx.x] = in[int64_t{1} << 50]; }
__global__ void null_pointer(const Word*, Word*) { *static_cast<volatile Word*>(nullptr) = 1; }
__global__ void divergent_barrier(const Word* in, Word* out) {
  if (in[threadIdx.x] < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 0;
}
__global__ void missing_thread_at_barrier(const Word* in, Word* out) {
  if (in[threadIdx.x] == 5) return;
  __syncthreads();
  out[threadIdx.x] = 0;
}
__global__ void missing_lanes_at_shuffle(const Word* in, Word* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
}
__global__ void lane_outside_its_mask(const Word*, Word*) { __syncwarp(1u); }

struct Probe {
  const char* name;
  Kernel kernel;
};
#define PROBE(kernel) \
  Probe { #kernel, kernel }
constexpr Probe kProbes[] = {
    PROBE(shuffle_index),
    PROBE(shuffle_index_segment),
    PROBE(shuffle_xor),
    PROBE(shuffle_down),
    PROBE(shuffle_up),
    PROBE(shuffle_half_mask),
    PROBE(shuffle_wide),
    PROBE(votes),
    PROBE(atomics),
    PROBE(block_reverse),
    PROBE(warp_reverse),
    PROBE(read_by_all_then_write),
    PROBE(race_write_read),
    PROBE(race_read_write),
    PROBE(race_write_write),
    PROBE(race_between_blocks),
    PROBE(race_with_atomic),
    PROBE(uninitialised),
    PROBE(shared_out_of_bounds),
    PROBE(device_read_past_end),
    PROBE(device_write_before_start),
    PROBE(wild_pointer),
    PROBE(null_pointer),
    PROBE(divergent_barrier),
    PROBE(missing_thread_at_barrier),
    PROBE(missing_lanes_at_shuffle),
    PROBE(lane_outside_its_mask),
};

}  // namespace

// Runs `blocks` blocks of `threads` threads on in[threads], out[threads]; every thread has 4 bytes of shared
// memory. Returns null, or the emulator's report. `random_seed` 0 is the default schedule.
extern "C" __attribute__((visibility("default"))) const char* run_probe(const char* name, int blocks,
                                                                        int threads, uint64_t random_seed,
                                                                        const Word* in, Word* out) {
  for (const Probe& probe : kProbes) {
    if (std::strcmp(probe.name, name) != 0) continue;
    emulator::options = {};
    if (random_seed != 0) emulator::options = {emulator::Schedule::Random, random_seed, true};
    const size_t bytes = sizeof(Word) * threads;
    Word* device_in = static_cast<Word*>(emulator::allocate_device(bytes));
    Word* device_out = static_cast<Word*>(emulator::allocate_device(bytes));
    std::memcpy(device_in, in, bytes);
    const char* error = acsconv::launch(probe.kernel, dim3(blocks), dim3(threads), bytes, nullptr,
                                        static_cast<const Word*>(device_in), device_out);
    std::memcpy(out, device_out, bytes);
    emulator::release_device(device_in);
    emulator::release_device(device_out);
    return error;
  }
  return "no such probe";
}
