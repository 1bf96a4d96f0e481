// The CUDA language as the kernels see it, and one way to launch them.
//
// The same kernel sources are compiled by nvcc for a GPU and by g++ for csrc/emulator, which executes them on
// the CPU. Whatever the two compilers spell differently is hidden in csrc/common, so that csrc/kernels has no
// #ifdef. All shared memory is dynamic: DYNAMIC_SHARED(name) declares it and a constexpr layout in the kernel
// carves it; it begins at a multiple of 1024 bytes, in shared addresses as well.
//
// launch(kernel, grid, block, shared_bytes, stream, arguments...) returns nullptr, or the reason why the
// launch was refused. It never synchronises: a fault inside the kernel surfaces later, as in any CUDA
// program.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace acsconv {

// Kernels may use this much shared memory without asking the driver for more.
inline constexpr size_t kDefaultSharedBytes = 48 * 1024;

// Registers of a thread where a multiprocessor, of any GPU from 8.0 on, is to hold `blocks` blocks.
constexpr int register_budget(int threads, int blocks) {
  const int registers = 65536 / (threads * blocks);
  return registers < 255 ? registers : 255;
}

}  // namespace acsconv

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace acsconv {

// Of the current device; `missing` where there is none, since a launch is about to say so.
inline int device_attribute(cudaDeviceAttr attribute, int missing) {
  int device = 0, value = missing;
  if (cudaGetDevice(&device) != cudaSuccess) return missing;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : missing;
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount, 1); }
// 10 * major + minor.
inline int compute_capability() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor, 0) +
         device_attribute(cudaDevAttrComputeCapabilityMinor, 0);
}
// Most shared memory that a block may ask for.
inline size_t block_shared_bytes() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, kDefaultSharedBytes));
}

template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                   Arguments... arguments) {
  if (shared_bytes > kDefaultSharedBytes) {
    // Not this call's size: the attribute belongs to the kernel, and another thread may be about to launch it
    // with more.
    const size_t allowed = std::max(shared_bytes, block_shared_bytes());
    const cudaError_t refused =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(allowed));
    if (refused != cudaSuccess) {
      cudaGetLastError();  // or the next launch would be blamed
      return cudaGetErrorString(refused);
    }
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace acsconv

#else

#include "../emulator/cuda.h"

#define DYNAMIC_SHARED(name) unsigned char* const name = ::emulator::dynamic_shared()

namespace acsconv {

template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void*,
                   Arguments... arguments) {
  return ::emulator::launch(grid, block, shared_bytes, [=] { kernel(arguments...); });
}

inline int multiprocessors() { return ::emulator::options.multiprocessors; }
inline int compute_capability() { return ::emulator::options.compute_capability; }
inline size_t block_shared_bytes() { return ::emulator::options.block_shared_bytes; }

}  // namespace acsconv

#endif
