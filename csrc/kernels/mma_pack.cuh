// How the packing kernels (mma_pack.cu, mma_shared_walk.cu) make a register of a fragment of weights.
#pragma once

#include "mma_work.cuh"

namespace acsconv {

// Register `half` of a lane's fragment: value(k) for the channels k of the reduction that it holds, of a step
// that begins at channel `first`, rounded to T (float: to TF32), and zero outside `valid`.
template <class T, class Value>
__device__ __forceinline__ uint32_t pack_register(int first, ChannelRange valid, int half, int lane,
                                                  const Value& value) {
  constexpr int kElements = 4 / static_cast<int>(sizeof(T));
  uint32_t word = 0;
#pragma unroll
  for (int element = 0; element < kElements; ++element) {
    const int channel = first + half * kGranule<T> + lane % 4 * kElements + element;
    if (channel < valid.begin || channel >= valid.end) continue;
    if constexpr (sizeof(T) == 4) {
      word = ptx::to_tf32(value(channel));
    } else {
      T rounded;
      narrow(value(channel), rounded);
      word |= uint32_t{rounded.bits} << (16 * element);
    }
  }
  return word;
}

// Calls function(T{}, Weight{}) with the type that is multiplied and that of weight and bias: the same, or
// float.
template <class Function>
const char* with_pack_types(ScalarType type, ScalarType weight_type, Function&& function) {
  return with_mma_scalar(type, [&](auto scalar) {
    return weight_type == ScalarType::Float32 ? function(scalar, float{}) : function(scalar, scalar);
  });
}

}  // namespace acsconv
