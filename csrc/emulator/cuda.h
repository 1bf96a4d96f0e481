// The part of the CUDA language that the kernels use, for g++: qualifiers, built-in variables, barriers,
// shuffles, votes, atomics and a launch. Included through csrc/common/launch.cuh; implemented by the other
// files of this folder. Inputs and outputs must come from allocate_device(), whose buffers have exact bounds.
//
// Plain loads and stores are seen too: kernels are compiled with -fsanitize=thread and linked to hooks.cpp in
// place of libtsan, so that bounds, uninitialised shared memory and races are checked access by access.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Vectors that one instruction loads or stores: like the GPU, the emulator insists on their alignment.
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

// Where in the kernel an operation stands. Two barriers on one line are taken for one.
struct Location {
  const char* file;
  int line;
};

enum class Schedule { WarpFirst, RoundRobin, Reverse, Random };
enum class AsyncCopies { Late, Early, Random };  // when their bytes move; see ptx.h

struct Options {
  Schedule schedule = Schedule::WarpFirst;
  uint64_t seed = 1;
  bool detect_races = true;  // false: bounds only, about twice as fast
  AsyncCopies async_copies = AsyncCopies::Late;
  bool count_banks = false;  // see banks.h
  // What launchers are told of the device; nothing else depends on it.
  int multiprocessors = 1;
  int compute_capability = 90;
  size_t block_shared_bytes = 227 << 10;
};
extern Options options;

// Runs the grid and returns nullptr, or what went wrong and where. The text lives until the next launch.
const char* launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

void* allocate_device(size_t bytes);  // filled with 0xFF: NaN in every floating-point type
void release_device(void* pointer);
// Gives back what is kept from launch to launch: the fibers' stacks and the range of device addresses. A
// process has 2^16 mappings and 2^47 bytes of addresses for all emulators that it loads, one for each planted
// bug.
void release_memory();

unsigned char* dynamic_shared();
uint3 thread_index();
uint3 block_index();
dim3 block_dimensions();
dim3 grid_dimensions();

void block_barrier(Location);
void warp_barrier(uint32_t mask, Location);
enum class Shuffle { Index, Xor, Down, Up };
uint32_t shuffle(uint32_t mask, uint32_t value, Shuffle kind, int operand, int width, Location);
uint32_t ballot(uint32_t mask, bool predicate, Location);
float atomic_add(float* address, float value);
int atomic_add(int* address, int value);
unsigned atomic_add(unsigned* address, unsigned value);

template <class T>
T shuffle_value(uint32_t mask, T value, Shuffle kind, int operand, int width, Location location) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof(T));
  for (uint32_t& word : words) word = shuffle(mask, word, kind, operand, width, location);
  std::memcpy(&value, words, sizeof(T));
  return value;
}

}  // namespace emulator

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_dimensions())
#define gridDim (::emulator::grid_dimensions())

#define EMULATOR_HERE ::emulator::Location here = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(EMULATOR_HERE) { ::emulator::block_barrier(here); }
inline void __syncwarp(uint32_t mask = 0xffffffffu, EMULATOR_HERE) { ::emulator::warp_barrier(mask, here); }

template <class T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, EMULATOR_HERE) {
  return ::emulator::shuffle_value(mask, value, ::emulator::Shuffle::Index, lane, width, here);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, EMULATOR_HERE) {
  return ::emulator::shuffle_value(mask, value, ::emulator::Shuffle::Xor, lanes, width, here);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int distance, int width = 32, EMULATOR_HERE) {
  return ::emulator::shuffle_value(mask, value, ::emulator::Shuffle::Down, distance, width, here);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int distance, int width = 32, EMULATOR_HERE) {
  return ::emulator::shuffle_value(mask, value, ::emulator::Shuffle::Up, distance, width, here);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMULATOR_HERE) {
  return ::emulator::ballot(mask, predicate != 0, here);
}
inline int __any_sync(uint32_t mask, int predicate, EMULATOR_HERE) {
  return ::emulator::ballot(mask, predicate != 0, here) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, EMULATOR_HERE) {
  return ::emulator::ballot(mask, predicate != 0, here) == mask;
}
template <class T>
__forceinline__ T atomicAdd(T* address, T value) {
  return ::emulator::atomic_add(address, value);
}
