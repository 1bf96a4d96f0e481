// Fills a stage of the tensor-core kernels: 32 bytes of every voxel of a halo as two planes [voxel][16
// bytes], and the step's packed weights. Voxels outside the volume and channels beyond the last become zeros.
//
// Where a voxel's channels lie next to each other, aligned, asynchronous copies of 16 bytes take them from
// memory to shared memory while the previous step is multiplied. Everything else (contiguous volumes, odd
// numbers of channels, unaligned storage) is gathered element by element through registers, 8 voxels along W
// in neighbouring lanes, which transposes contiguous volumes on the way.
#pragma once

#include "mma_work.cuh"

namespace acsconv {

// A halo of kTile* voxels of the result at a stride, with a voxel more on both sides of the axes that taps
// reach (kD, kH, kW: 0 or 1). Voxels are numbered in rows along W; at stride 2 the even voxels of a row come
// before the odd ones, so that the 8 voxels that a tap reads are always neighbours.
template <int kTileDepth, int kTileHeight, int kStride_, int kD, int kH, int kW>
struct Halo {
  static constexpr int kStride = kStride_;
  static constexpr int kDepth = kStride * (kTileDepth - 1) + 1 + 2 * kD;
  static constexpr int kHeight = kStride * (kTileHeight - 1) + 1 + 2 * kH;
  static constexpr int kWidth = kStride * (kMmaTileWidth - 1) + 1 + 2 * kW;
  static constexpr int kVoxels = kDepth * kHeight * kWidth;
  static constexpr int kPlane = mma_plane_bytes(kVoxels);

  static ACSCONV_HD constexpr int padding(int axis) { return axis == 0 ? kD : axis == 1 ? kH : kW; }
  // Number of the voxel at halo coordinates.
  static ACSCONV_HD constexpr int column(int w) {
    return kStride == 1 ? w : w % 2 * ((kWidth + 1) / 2) + w / 2;
  }
  static ACSCONV_HD constexpr int voxel(int d, int h, int w) {
    return (d * kHeight + h) * kWidth + column(w);
  }
  // Halo coordinate along W of column number `c`.
  static ACSCONV_HD constexpr int width_of_column(int c) {
    constexpr int kEven = (kWidth + 1) / 2;
    return kStride == 1 ? c : c < kEven ? 2 * c : 2 * (c - kEven) + 1;
  }
};

// The position that a table's offsets count from: the halo's first voxel, moved into the volume.
__device__ __forceinline__ int moved_inside(const MmaWork& work, int axis, int position) {
  const int last = work.source_size[axis] - 1;
  return position < 0 ? 0 : position > last ? last : position;
}
__device__ __forceinline__ int halo_origin(const MmaWork& work, const MmaPlace& place, int stride, int axis) {
  return moved_inside(work, axis, source_position(work, place, stride, axis, 1, 0));
}
__device__ __forceinline__ int64_t halo_offset(const MmaWork& work, const MmaPlace& place, int stride) {
  int64_t offset = place.batch * work.source.batch;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    offset += halo_origin(work, place, stride, axis) * work.source.axis[axis];
  }
  return offset;
}

// table[voxel]: elements from the origin to the voxel, -1 outside the volume. Once per block, by all threads.
template <class HaloOf, int kThreads>
__device__ __forceinline__ void fill_table(const MmaWork& work, const MmaPlace& place, int* table,
                                           int thread) {
  int origin[3];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) origin[axis] = halo_origin(work, place, HaloOf::kStride, axis);
  for (int i = thread; i < HaloOf::kVoxels; i += kThreads) {
    const int at[3] = {i / (HaloOf::kWidth * HaloOf::kHeight), i / HaloOf::kWidth % HaloOf::kHeight,
                       HaloOf::width_of_column(i % HaloOf::kWidth)};
    bool inside = true;
    int64_t offset = 0;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int position =
          source_position(work, place, HaloOf::kStride, axis, HaloOf::padding(axis), at[axis]);
      inside = inside && position >= 0 && position < work.source_size[axis];
      offset += (position - origin[axis]) * work.source.axis[axis];
    }
    table[i] = inside ? static_cast<int>(offset) : -1;
  }
}

// Asynchronous copies. A thread keeps its plane, and its voxels lie a constant number apart, so that shared
// addresses differ by immediates. No load may pass a copy: the table is read a batch ahead.
template <class T, class HaloOf, int kThreads>
__device__ __forceinline__ void copy_voxels(const T* source, const int* table, uint32_t stage, int channel,
                                            int channels, int thread) {
  constexpr int kStep = kThreads / 2, kRounds = (HaloOf::kVoxels + kStep - 1) / kStep, kBatch = 4;
  const int first = thread / 2, plane = thread % 2;
  channel += plane * kGranule<T>;
  const bool counts = channel < channels;
  const T* from = source + (counts ? channel : 0);
  const uint32_t to = stage + plane * HaloOf::kPlane + first * 16;
#pragma unroll
  for (int round = 0; round < kRounds; round += kBatch) {
    int offset[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int voxel = (round + i) * kStep + first;
      offset[i] = -1;
      if (round + i < kRounds && ((round + i + 1) * kStep <= HaloOf::kVoxels || voxel < HaloOf::kVoxels)) {
        offset[i] = table[voxel];
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int voxel = (round + i) * kStep + first;
      if (round + i < kRounds && ((round + i + 1) * kStep <= HaloOf::kVoxels || voxel < HaloOf::kVoxels)) {
        const bool copied = counts && offset[i] >= 0;
        ptx::cp_async<16>(to + (round + i) * kStep * 16, from + (copied ? offset[i] : 0), copied ? 16 : 0);
      }
    }
  }
}

// 16 bytes of a voxel, element by element: the channels from `element` on, zeros from the `left`-th one.
template <class T>
__device__ __forceinline__ uint4 gather_piece(const T* element, int left, int64_t channel_stride) {
  constexpr int kPerWord = kGranule<T> / 4;
  // From element to element, since addresses known ahead of the loop would fill registers.
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < kGranule<T>; ++i, element += channel_stride) {
    const uint32_t bits = i < left ? element_bits(*element) : 0;
    if (i % kPerWord == 0) {
      words[i / kPerWord] = bits;
    } else {
      words[i / kPerWord] |= bits << 16;
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Neighbouring threads have neighbouring voxels.
template <class T, class HaloOf, int kThreads>
__device__ __forceinline__ void gather_voxels(const T* source, const int* table, unsigned char* stage,
                                              int channel, int channels, int64_t channel_stride, int thread) {
  constexpr int kStep = kThreads / 2;
  const int plane = thread / kStep;
  channel += plane * kGranule<T>;
  const int left = channels - channel;
  const T* from = source + channel * channel_stride;
  unsigned char* to = stage + plane * HaloOf::kPlane;
#pragma unroll 1
  for (int voxel = thread % kStep; voxel < HaloOf::kVoxels; voxel += kStep) {
    const int offset = table[voxel];
    *reinterpret_cast<uint4*>(to + voxel * 16) =
        gather_piece(from + offset, offset < 0 ? 0 : left, channel_stride);
  }
}

// `bytes`: how many of the kBytes are wanted.
template <int kBytes, int kThreads>
__device__ __forceinline__ void copy_weights(const unsigned char* packed, uint32_t stage, int thread,
                                             int bytes = kBytes) {
#pragma unroll
  for (int i = 0; i < kBytes; i += kThreads * 16) {
    if ((bytes == kBytes && i + kThreads * 16 <= kBytes) || i + thread * 16 < bytes) {
      ptx::cp_async<16>(stage + i + thread * 16, packed + i + thread * 16, 16);
    }
  }
}

// The pipeline of a block's steps: `load(step, stage)` starts the copies of a step into a stage of shared
// memory. begin_pipeline() starts the first steps; advance_pipeline(), at the head of every step, waits for
// the step's own copies and starts those of the step that takes the stage which was used last. Whatever the
// threads wrote to shared memory before that call is visible after it.
template <class Load>
__device__ __forceinline__ void begin_pipeline(const MmaSteps& steps, const Load& load) {
#pragma unroll
  for (int s = 0; s < kMmaStages - 1; ++s) {
    if (steps.begin + s < steps.end) load(steps.begin + s, s);
    ptx::cp_async_commit();
  }
}
template <class Load>
__device__ __forceinline__ void advance_pipeline(const MmaSteps& steps, int step, int stage,
                                                 const Load& load) {
  ptx::cp_async_wait<kMmaStages - 2>();
  __syncthreads();
  const int ahead = step + kMmaStages - 1, other = stage == 0 ? kMmaStages - 1 : stage - 1;
  if (ahead < steps.end) load(ahead, other);
  ptx::cp_async_commit();
}

}  // namespace acsconv
