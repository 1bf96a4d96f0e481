// The fragments of the gradient of the weight on tensor cores (mma_backward_weight.cuh) and where they lie in
// shared memory, [plane of 8 channels][voxel][8 channels].
//
// Both operands have the voxels as their depth, so both are transposed. In 16 bits ldmatrix.trans does it: 8
// voxels along W are 128 contiguous bytes wherever a tap shifts them, so that it has no bank conflict. It
// cannot transpose float32, whose fragments are loaded word by word: the lanes take 8 channels of 4 voxels,
// 128 contiguous bytes as well. There they are rounded to TF32.
#pragma once

#include "mma_weight_tiles.cuh"

namespace acsconv {

// What a lane reads of a fragment, in bytes from its first plane and voxel: the row that it gives to
// ldmatrix, of the upper 8 channels with `upper` and the second row of voxels with `second`; in TF32 its
// first word.
template <class Config>
__device__ __forceinline__ int lane_byte(int lane, int upper, int second) {
  return Config::kTf32 ? lane % 4 * Config::kVoxelBytes + lane / 4 * 4 : upper + second + lane % 8 * 16;
}

template <bool kRounded>
__device__ __forceinline__ uint32_t load_word(const unsigned char* from) {
  const float value = *reinterpret_cast<const float*>(from);
  return kRounded ? ptx::to_tf32(value) : element_bits(value);
}

// The columns' fragments of one depth of grad_output, in TF32 rounded or as they are. `single`: what this
// lane reads of one column of tiles; `pairs`: its row of two at once. Both are shared addresses for ldmatrix,
// in TF32 bytes from `memory`.
template <class Config, bool kRounded>
__device__ __forceinline__ void load_columns(uint32_t (&fragment)[Config::kN][2], const unsigned char* memory,
                                             uint32_t pairs, uint32_t single) {
  if constexpr (Config::kTf32) {
#pragma unroll
    for (int i = 0; i < 2 * Config::kN; ++i) {
      fragment[i / 2][i % 2] =
          load_word<kRounded>(memory + single + i / 2 * Config::kGPlane + i % 2 * 4 * Config::kVoxelBytes);
    }
  } else {
#pragma unroll
    for (int n = 0; n + 1 < Config::kN; n += 2) {
      uint32_t r[4];
      ptx::ldmatrix_x4_trans(r, pairs + n * Config::kGPlane);
      fragment[n][0] = r[0], fragment[n][1] = r[1];
      fragment[n + 1][0] = r[2], fragment[n + 1][1] = r[3];
    }
    if constexpr (Config::kN % 2 == 1) {
      ptx::ldmatrix_x2_trans(fragment[Config::kN - 1], single + (Config::kN - 1) * Config::kGPlane);
    }
  }
}

// 16 input channels of one depth of x, likewise.
template <class Config>
__device__ __forceinline__ void load_channels(uint32_t (&fragment)[4], const unsigned char* memory,
                                              uint32_t at) {
  if constexpr (Config::kTf32) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      fragment[i] = load_word<true>(memory + at + i % 2 * Config::kXPlane + i / 2 * 4 * Config::kVoxelBytes);
    }
  } else {
    ptx::ldmatrix_x4_trans(fragment, at);
  }
}

// The sum of the elements in a register.
template <class Scalar>
__device__ __forceinline__ float sum_of(uint32_t word) {
  if constexpr (sizeof(Scalar) == 4) {
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
  } else {
    return widen(Scalar{static_cast<uint16_t>(word & 0xffff)}) +
           widen(Scalar{static_cast<uint16_t>(word >> 16)});
  }
}

}  // namespace acsconv
