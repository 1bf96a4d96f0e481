// Scalars of the kernels: float64 and float32 as they are, float16 and bfloat16 as 16-bit storage that is
// widened to float32 when loaded and rounded to nearest even when stored. `Accumulator<T>` is the type that T
// is summed in.
#pragma once

#include <cstdint>
#include <cstring>

#include "../problem.h"
#include "launch.cuh"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace acsconv {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(float value) { return value; }

#if defined(__CUDACC__)

__device__ __forceinline__ float widen(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }
__device__ __forceinline__ float widen(BFloat16 value) { return __uint_as_float(uint32_t{value.bits} << 16); }
__device__ __forceinline__ void narrow(float value, Float16& to) {
  to.bits = __half_as_ushort(__float2half_rn(value));
}
__device__ __forceinline__ void narrow(float value, BFloat16& to) {
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

#else

inline float widen(Float16 value) {
  _Float16 half;
  std::memcpy(&half, &value.bits, sizeof half);
  return static_cast<float>(half);
}
inline float widen(BFloat16 value) {
  const uint32_t word = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &word, sizeof result);
  return result;
}
inline void narrow(float value, Float16& to) {
  const _Float16 half = static_cast<_Float16>(value);
  std::memcpy(&to.bits, &half, sizeof half);
}
inline void narrow(float value, BFloat16& to) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  const bool nan = value != value;
  to.bits = nan ? 0x7fff : static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

#endif

__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(double value, double& to) { to = value; }

// One element, as the bits of 32 or the lower of 32.
__device__ __forceinline__ uint32_t element_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
__device__ __forceinline__ uint32_t element_bits(Float16 value) { return value.bits; }
__device__ __forceinline__ uint32_t element_bits(BFloat16 value) { return value.bits; }

// The ScalarType of a C++ type.
template <class T>
inline constexpr ScalarType kScalarType = ScalarType::Float32;
template <>
inline constexpr ScalarType kScalarType<double> = ScalarType::Float64;
template <>
inline constexpr ScalarType kScalarType<Float16> = ScalarType::Float16;
template <>
inline constexpr ScalarType kScalarType<BFloat16> = ScalarType::BFloat16;

// Calls function(T{}) with the C++ type of a ScalarType.
template <class Function>
auto with_scalar(ScalarType type, Function&& function) {
  switch (type) {
    case ScalarType::Float64:
      return function(double{});
    case ScalarType::Float32:
      return function(float{});
    case ScalarType::Float16:
      return function(Float16{});
    default:
      return function(BFloat16{});
  }
}
// The same for the types that tensor cores multiply; float is TF32.
template <class Function>
auto with_mma_scalar(ScalarType type, Function&& function) {
  return type == ScalarType::Float32   ? function(float{})
         : type == ScalarType::Float16 ? function(Float16{})
                                       : function(BFloat16{});
}

}  // namespace acsconv
