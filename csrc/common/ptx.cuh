// Thin wrappers of the PTX instructions that the tensor-core kernels use, compute capability 8.0 and later:
// asynchronous copies from global to shared memory, ldmatrix, mma and the conversion to TF32. Inline assembly
// for nvcc, calls into csrc/emulator for g++; nothing else in csrc knows of either.
//
// Shared memory is addressed by 32-bit numbers (shared_address). The fragments of a warp's matrices are those
// of the PTX ISA, with lane = 4 * group + pair:
//   A, 16 x 16: a[0] row group, columns 2 pair and 2 pair + 1; a[1] row group + 8; a[2], a[3] the same, 8
//               columns on. TF32, 16 x 8: one element per register, columns pair and (a[2], a[3]) pair + 4.
//   B, 16 x 8:  b[0] rows 2 pair and 2 pair + 1 of column group; b[1] 8 rows on. TF32: rows pair, pair + 4.
//   D, 16 x 8:  d[0], d[1] row group, columns 2 pair and 2 pair + 1; d[2], d[3] row group + 8.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "scalar.cuh"

#if !defined(__CUDACC__)
#include "../emulator/ptx.h"
#endif

namespace acsconv::ptx {

// The types that mma multiplies. Of a float it reads the upper 19 bits (TF32); to_tf32() rounds to them.
template <class T>
inline constexpr bool kMmaType =
    std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16> || std::is_same_v<T, float>;

#if defined(__CUDACC__)

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// threadIdx.x, blockIdx.x and blockIdx.y, read again. The compiler cannot merge two of these reads, so what
// is derived from one need not stay in registers through a main loop.
__device__ __forceinline__ int thread_x() {
  int value;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(value));
  return value;
}
__device__ __forceinline__ int block_x() {
  int value;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(value));
  return value;
}
__device__ __forceinline__ int block_y() {
  int value;
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(value));
  return value;
}

// Starts copying kBytes (4, 8, 16; both addresses aligned to them) from global memory to the shared address;
// with source_bytes 0 nothing is read and zeros are written. source_bytes is 0 or kBytes.
template <int kBytes>
__device__ __forceinline__ void cp_async(uint32_t shared, const void* global, int source_bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(kBytes),
                 "r"(source_bytes)
                 : "memory");
  }
}
// Ends a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kGroups of this thread's groups are under way. Other threads see the copies after a
// barrier that follows.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Loads matrices of 8 rows of 8 16-bit elements; lane 8 j + r gives the address of row r of matrix j, a
// multiple of 16. r[j] holds row group, columns 2 pair and 2 pair + 1 of matrix j; _trans of its transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared)
               : "memory");
}

// d += a b, summed in float32: m16n8k16 for BFloat16 and Float16, m16n8k8 in TF32 for float.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kMmaType<T>);
#define ACSCONV_MMA(shape_and_types)                                              \
  asm volatile("mma.sync.aligned." shape_and_types                                \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, BFloat16>) {
    ACSCONV_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else if constexpr (std::is_same_v<T, Float16>) {
    ACSCONV_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    ACSCONV_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  }
#undef ACSCONV_MMA
}

// d[m][n] += a[first + m] b[n]: an unrolled loop here, one meeting of the warp in the emulator.
template <class T, int kRows, int kColumns, int kHeld>
__device__ __forceinline__ void mma_tiles(float (&d)[kRows][kColumns][4], const uint32_t (&a)[kHeld][4],
                                          int first, const uint32_t (&b)[kColumns][2]) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) mma<T>(d[m][n], a[first + m], b[n]);
  }
}

// Rounds to TF32 (10 bits of fraction), to nearest with ties away from zero; the bits of a float32.
__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

#else

__forceinline__ uint32_t shared_address(const void* pointer) { return emulator::shared_address(pointer); }
__forceinline__ int thread_x() { return static_cast<int>(threadIdx.x); }
__forceinline__ int block_x() { return static_cast<int>(blockIdx.x); }
__forceinline__ int block_y() { return static_cast<int>(blockIdx.y); }

template <int kBytes>
__forceinline__ void cp_async(uint32_t shared, const void* global, int source_bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::copy_async(shared, global, kBytes, source_bytes);
}
__forceinline__ void cp_async_commit() { emulator::commit_copies(); }
template <int kGroups>
__forceinline__ void cp_async_wait() {
  emulator::wait_copies(kGroups);
}

__forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared, EMULATOR_HERE) {
  emulator::load_matrices(r, 4, /*transposed=*/false, shared, here);
}
__forceinline__ void ldmatrix_x2(uint32_t (&r)[2], uint32_t shared, EMULATOR_HERE) {
  emulator::load_matrices(r, 2, /*transposed=*/false, shared, here);
}
__forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared, EMULATOR_HERE) {
  emulator::load_matrices(r, 4, /*transposed=*/true, shared, here);
}
__forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t shared, EMULATOR_HERE) {
  emulator::load_matrices(r, 2, /*transposed=*/true, shared, here);
}

template <class T, int kRows, int kColumns, int kHeld>
__forceinline__ void mma_tiles(float (&d)[kRows][kColumns][4], const uint32_t (&a)[kHeld][4], int first,
                               const uint32_t (&b)[kColumns][2], EMULATOR_HERE) {
  static_assert(kMmaType<T> && kColumns <= emulator::kMostColumns);
  constexpr emulator::Operand kOperand = std::is_same_v<T, BFloat16>  ? emulator::Operand::BFloat16
                                         : std::is_same_v<T, Float16> ? emulator::Operand::Float16
                                                                      : emulator::Operand::TF32;
  emulator::multiply({kOperand, kRows, kColumns, &d[0][0][0], a[first], b[0]}, here);
}
template <class T>
__forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_HERE) {
  mma_tiles<T, 1, 1, 1>(reinterpret_cast<float (&)[1][1][4]>(d),
                        reinterpret_cast<const uint32_t (&)[1][4]>(a), 0,
                        reinterpret_cast<const uint32_t (&)[1][2]>(b), here);
}

inline uint32_t to_tf32(float value) { return emulator::round_to_tf32(value); }

#endif

}  // namespace acsconv::ptx
