// The walk of the tensor-core kernels over a view's nine taps, and its geometry.
//
// An m16 tile of the matrix product is 8 voxels along W in two rows that are neighbours along the "pair"
// axis. A warp's tiles are neighbours along the view's "inner" axis, one of the two that taps move along; so
// the fragment that tap i reads for tile m is the one that tap i - 1 reads for tile m + 1, and a fragment
// serves up to three taps. The other axis of the view's taps is the "outer" one.
//
//   view           inner  outer  pair
//   0 axial          H      W      D
//   1 coronal        D      W      H
//   2 sagittal       H      D      D
#pragma once

#include "mma_copy.cuh"

namespace acsconv {

// Fragments of one tap's weights for kColumns tiles: two tiles per load of 16 bytes, 8 for an odd last one.
template <int kColumns>
__device__ __forceinline__ void load_weights(uint32_t (&b)[kColumns][2], const unsigned char* unit,
                                             int lane) {
#pragma unroll
  for (int tile = 0; tile + 1 < kColumns; tile += 2) {
    const uint4 two = *reinterpret_cast<const uint4*>(unit + tile * kMmaUnitBytes + lane * 16);
    b[tile][0] = two.x, b[tile][1] = two.y;
    b[tile + 1][0] = two.z, b[tile + 1][1] = two.w;
  }
  if constexpr (kColumns % 2 == 1) {
    const uint2 one = *reinterpret_cast<const uint2*>(unit + (kColumns - 1) * kMmaUnitBytes + lane * 8);
    b[kColumns - 1][0] = one.x, b[kColumns - 1][1] = one.y;
  }
}

template <class T>
__device__ __forceinline__ void load_fragment(uint32_t (&a)[4], uint32_t address) {
  ptx::ldmatrix_x4(a, address);
  if constexpr (kGranule<T> == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float value;
      memcpy(&value, &a[i], sizeof value);
      a[i] = ptx::to_tf32(value);
    }
  }
}

// Where the warps of a view have their tiles, and how far apart the halo's voxels lie, in bytes of a plane.
template <class HaloOf, int kView, int kRows, int kTileDepth, int kTileHeight>
struct ViewWalk {
  static constexpr int kStride = HaloOf::kStride;
  static constexpr int kInnerExtent = kView == 1 ? kTileDepth : kTileHeight;
  static constexpr int kPairExtent = kView == 1 ? kTileHeight : kTileDepth;
  static constexpr int kRun = kRows < kInnerExtent ? kRows : kInnerExtent;  // tiles along the inner axis
  static constexpr int kStacks = kRows / kRun;  // runs side by side along the pair axis
  static_assert(kRows % kRun == 0 && kInnerExtent % kRun == 0 && kPairExtent % (2 * kStacks) == 0);
  static constexpr int kPlaneStep = HaloOf::kHeight * HaloOf::kWidth * 16, kRowStep = HaloOf::kWidth * 16;
  static constexpr int kInnerStep = kView == 1 ? kPlaneStep : kRowStep;
  static constexpr int kPairStep = kStride * (kView == 1 ? kRowStep : kPlaneStep);

  // First voxel of the tile for warp `warp` of the view.
  static ACSCONV_HD constexpr int depth(int warp) {
    return kView == 1 ? warp % (kInnerExtent / kRun) * kRun : warp / (kInnerExtent / kRun) * 2 * kStacks;
  }
  static ACSCONV_HD constexpr int height(int warp) {
    return kView == 1 ? warp / (kInnerExtent / kRun) * 2 * kStacks : warp % (kInnerExtent / kRun) * kRun;
  }
  // Voxel of m16 tile m, row 0 or 1 of its pair, relative to that.
  static ACSCONV_HD constexpr int tile_depth(int m, int row) {
    return kView == 1 ? m % kRun : m / kRun * 2 + row;
  }
  static ACSCONV_HD constexpr int tile_height(int m, int row) {
    return kView == 1 ? m / kRun * 2 + row : m % kRun;
  }
  // Byte in a stage of the row that a lane gives to ldmatrix, for the warp's first tile and tap (0, 0) of
  // the halo's corner: matrices are (row of the pair, plane).
  static ACSCONV_HD constexpr int lane_byte(int warp, int lane) {
    return (lane >> 4) * HaloOf::kPlane + (lane >> 3 & 1) * kPairStep + (lane & 7) * 16 +
           kStride * (depth(warp) * kPlaneStep + height(warp) * kRowStep);
  }
  // Byte of an outer tap, from the corner of the halo; the inner tap 0 has none. On the thin axis the halo's
  // padding is passed over.
  static ACSCONV_HD constexpr int outer_byte(int outer) {
    const int d = kView == 2 ? outer : kView == 0 ? HaloOf::padding(0) : 0;
    const int h = kView == 1 ? HaloOf::padding(1) : 0;
    const int w = kView == 2 ? HaloOf::padding(2) : outer;
    return HaloOf::voxel(d, h, w) * 16;
  }
};

// sum[m][n] += the taps of outer index kOuter and above, for kRows x 16 voxels and kColumns x 8 channels.
// `a` is the stage's address plus lane_byte(), `b` the view's packed weights of the step.
template <class T, class Walk, int kRows, int kColumns, int kOuter = 0>
__device__ __forceinline__ void walk_view(float (&sum)[kRows][kColumns][4], uint32_t a,
                                          const unsigned char* b, int lane) {
  if constexpr (kOuter < 3) {
    uint32_t weights[3][kColumns][2];
#pragma unroll
    for (int inner = 0; inner < 3; ++inner) {
      load_weights<kColumns>(weights[inner], b + (kOuter * 3 + inner) * kColumns * kMmaUnitBytes, lane);
    }
#pragma unroll
    for (int stack = 0; stack < Walk::kStacks; ++stack) {
#pragma unroll
      for (int row = 0; row < Walk::kStride * (Walk::kRun - 1) + 3; ++row) {
        uint32_t fragment[1][4];
        load_fragment<T>(fragment[0],
                         a + Walk::outer_byte(kOuter) + row * Walk::kInnerStep + stack * 2 * Walk::kPairStep);
#pragma unroll
        for (int inner = 0; inner < 3; ++inner) {
          const int m = (row - inner) / Walk::kStride;
          if (row >= inner && (row - inner) % Walk::kStride == 0 && m < Walk::kRun) {
            ptx::mma_tiles<T, 1, kColumns>(
                reinterpret_cast<float (&)[1][kColumns][4]>(sum[stack * Walk::kRun + m]), fragment, 0,
                weights[inner]);
          }
        }
      }
    }
    walk_view<T, Walk, kRows, kColumns, kOuter + 1>(sum, a, b, lane);
  }
}

}  // namespace acsconv
