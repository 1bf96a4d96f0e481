// Wrappers of what compute capability 9.0 adds to ptx.cuh: barriers in shared memory that count arrivals and
// bytes (mbarrier), and copies by the Tensor Memory Accelerator (TMA): of boxes of a tensor, where it fills
// what lies outside the tensor with zeros, and of contiguous bytes. Kernels that use them must not be
// launched on older GPUs.
//
// A barrier is 8 bytes, aligned to 8. Its phases are numbered 0, 1, 0, ...; a phase ends when all arrivals of
// the count and all expected bytes have come. A TensorMap describes tensor and box; make_tensor_map() fills
// it on the host, and a kernel takes it as a `const __grid_constant__ TensorMap` parameter.
#pragma once

#include "ptx.cuh"

#if defined(__CUDACC__)
#include <cuda.h>
#else
#include "../emulator/ptx_sm90.h"
#endif

namespace acsconv {

inline constexpr int kTensorMapRank = 5;

// A tensor of 5 dimensions, the contiguous one first, and the box that one copy takes of it.
struct TensorMapShape {
  const void* base;                      // aligned to 16
  int element_bytes;                     // 2 or 4
  int64_t size[kTensorMapRank];          // elements
  int64_t stride_bytes[kTensorMapRank];  // multiples of 16; that of the first dimension is not used
  int box[kTensorMapRank];               // elements, 1 to 256; the first times element_bytes a multiple of 16
};

// Why no tensor map can describe a shape, or nullptr.
inline const char* tensor_map_rejection(const TensorMapShape& s) {
  constexpr int64_t most_elements = int64_t{1} << 32, most_bytes = int64_t{1} << 40;
  if (s.element_bytes != 2 && s.element_bytes != 4) return "TMA: elements of 2 or 4 bytes";
  if (reinterpret_cast<uintptr_t>(s.base) % 16 != 0) return "TMA: the tensor must be aligned to 16 bytes";
  if (s.box[0] * s.element_bytes % 16 != 0) return "TMA: the box must be a multiple of 16 bytes wide";
  for (int i = 0; i < kTensorMapRank; ++i) {
    if (s.box[i] < 1 || s.box[i] > 256) return "TMA: a box of 1 to 256 elements";
    if (s.size[i] < 1 || s.size[i] > most_elements) return "TMA: a tensor of 1 to 2^32 elements";
    if (i > 0 && (s.stride_bytes[i] % 16 != 0 || s.stride_bytes[i] <= 0 || s.stride_bytes[i] >= most_bytes)) {
      return "TMA: strides must be multiples of 16 bytes, above 0 and below 2^40";
    }
    // The driver's manual has every stride contain the one before.
    if (i > 1 && s.stride_bytes[i] % s.stride_bytes[i - 1] != 0) {
      return "TMA: strides must be multiples of one another";
    }
  }
  return nullptr;
}

#if defined(__CUDACC__)

using TensorMap = CUtensorMap;

// The driver's function, from the driver that is there, so that nothing is linked to it; or nullptr.
using TensorMapEncoder = decltype(&cuTensorMapEncodeTiled);
inline TensorMapEncoder find_tensor_map_encoder() {
  void* symbol = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &symbol, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) {
    cudaGetLastError();  // or the next launch would be blamed
    return nullptr;
  }
  if (found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<TensorMapEncoder>(symbol);
}

// Returns nullptr, or why the map could not be made.
inline const char* make_tensor_map(const TensorMapShape& s, TensorMap& map) {
  if (const char* rejection = tensor_map_rejection(s)) return rejection;
  static const TensorMapEncoder encode = find_tensor_map_encoder();
  if (encode == nullptr) return "TMA: the driver has no tensor maps";
  cuuint64_t size[kTensorMapRank], stride[kTensorMapRank - 1];
  cuuint32_t box[kTensorMapRank], step[kTensorMapRank];
  for (int i = 0; i < kTensorMapRank; ++i) {
    size[i] = static_cast<cuuint64_t>(s.size[i]);
    if (i > 0) stride[i - 1] = static_cast<cuuint64_t>(s.stride_bytes[i]);
    box[i] = static_cast<cuuint32_t>(s.box[i]);
    step[i] = 1;
  }
  const CUresult result = encode(
      &map, s.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_UINT32,
      kTensorMapRank, const_cast<void*>(s.base), size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "TMA: the driver refused the tensor map";
}

namespace ptx {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define ACSCONV_SM90(...) __VA_ARGS__
#else
#define ACSCONV_SM90(...) __trap()
#endif

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
  ACSCONV_SM90(
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory"));
}
// After the initialisations, before the barrier that shows them to other threads.
__device__ __forceinline__ void mbarrier_fence_init() {
  ACSCONV_SM90(asm volatile("fence.mbarrier_init.release.cluster;" :: : "memory"));
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  ACSCONV_SM90(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"));
}
// An arrival, and `bytes` of copies more for the phase to wait for.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, int bytes) {
  ACSCONV_SM90(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                            "r"(bytes) : "memory"));
}
// Waits for the end of the current phase, if that has this parity; returns at once if the phase before had
// it.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, int parity) {
  uint32_t done = 0;
  while (done == 0) {
    ACSCONV_SM90(
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, "
                     "1, 0, p;\n}" : "=r"(done) : "r"(barrier),
                     "r"(parity) : "memory"));
  }
}
// Between the thread's plain accesses to shared memory and copies that come after it: the copies see what was
// written, and do not overtake it.
__device__ __forceinline__ void proxy_fence() {
  ACSCONV_SM90(asm volatile("fence.proxy.async.shared::cta;" :: : "memory"));
}
// Copies the box at these coordinates to the shared address, aligned to 128; its bytes count for the barrier.
__device__ __forceinline__ void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, int c0,
                                         int c1, int c2, int c3, int c4) {
  ACSCONV_SM90(
      asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                   " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared),
                   "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4) : "memory"));
}
// Copies contiguous bytes, a multiple of 16 as both addresses; they count for the barrier.
__device__ __forceinline__ void bulk_load(uint32_t shared, const void* global, int bytes, uint32_t barrier) {
  ACSCONV_SM90(asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier) : "memory"));
}
#undef ACSCONV_SM90

}  // namespace ptx

#else

using TensorMap = TensorMapShape;

inline const char* make_tensor_map(const TensorMapShape& s, TensorMap& map) {
  map = s;
  if (const char* rejection = tensor_map_rejection(s)) return rejection;
  return emulator_refuses_tensor_maps ? "TMA: the driver refused the tensor map" : nullptr;
}

namespace ptx {

__forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
  emulator::barrier_init(barrier, arrivals);
}
inline void mbarrier_fence_init() {}
__forceinline__ void mbarrier_arrive(uint32_t barrier, EMULATOR_HERE) {
  emulator::barrier_arrive(barrier, 0, here);
}
__forceinline__ void mbarrier_arrive_expect(uint32_t barrier, int bytes, EMULATOR_HERE) {
  emulator::barrier_arrive(barrier, bytes, here);
}
__forceinline__ void mbarrier_wait(uint32_t barrier, int parity, EMULATOR_HERE) {
  emulator::barrier_wait(barrier, parity, here);
}
inline void proxy_fence() { emulator::proxy_fence(); }
__forceinline__ void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, int c0, int c1, int c2,
                              int c3, int c4) {
  emulator::BoxCopy copy{static_cast<const unsigned char*>(map.base), map.element_bytes};
  const int at[kTensorMapRank] = {c0, c1, c2, c3, c4};
  for (int i = 0; i < kTensorMapRank; ++i) {
    copy.size[i] = map.size[i];
    copy.stride_bytes[i] = i == 0 ? map.element_bytes : map.stride_bytes[i];
    copy.box[i] = map.box[i];
    copy.at[i] = at[i];
  }
  emulator::copy_box(shared, copy, barrier);
}
__forceinline__ void bulk_load(uint32_t shared, const void* global, int bytes, uint32_t barrier) {
  emulator::copy_bytes(shared, global, bytes, barrier);
}

}  // namespace ptx

#endif

}  // namespace acsconv
