// The epilogue of the tensor-core kernels: adds the bias, rounds, and writes the result to any strides.
//
// A lane holds pairs of neighbouring channels of single voxels. In float32 eight of them fill a sector of 32
// bytes as they are, along the channels or along W. 16-bit results pass through shared memory, as rows of a
// voxel's channels or of a channel's voxels, whichever is contiguous in memory, and leave as pieces of 16
// bytes.
#pragma once

#include "mma_work.cuh"

namespace acsconv {

// The channels that a block computes, as up to three ranges, and their places in a staged row. A range that
// does not continue the one before begins a group of 8 of its own, at its channel rounded down to 8: groups
// of 8 places are groups of 8 channels that are aligned in memory if the result is.
struct StagedColumns {
  ChannelRange range[3];
  int shift[3];  // channel - place
  int places;

  ACSCONV_HD static StagedColumns of(ChannelRange a, ChannelRange b, ChannelRange c) {
    StagedColumns s{{a, b, c}, {0, 0, 0}, 0};
    int last = -1;
    for (int i = 0; i < 3; ++i) {
      const ChannelRange r = s.range[i];
      if (r.begin == r.end) continue;
      s.shift[i] = r.begin - r.begin % 8 - (s.places + 7) / 8 * 8;
      for (int j = 0; j < i; ++j) {
        if (r.begin == last && s.range[j].end == last) s.shift[i] = s.shift[j];
      }
      s.places = r.end - s.shift[i];
      last = r.end;
    }
    return s;
  }
};

// What is added to channels `channel` and `channel` + 1, as far as they are in the range.
__device__ __forceinline__ void load_bias(float (&to)[2], const float* bias, int channel,
                                          ChannelRange range) {
  to[0] = bias != nullptr && channel >= range.begin && channel < range.end ? bias[channel] : 0.0f;
  to[1] = bias != nullptr && channel + 1 < range.end ? bias[channel + 1] : 0.0f;
}

// Eight staged elements to memory `step` elements apart, those with begin <= index < end.
template <class T>
__device__ __forceinline__ void store_eight(T* to, const unsigned char* staged, int64_t step, int begin,
                                            int end) {
  if (begin == 0 && end == 8 && step == 1 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(staged);
    return;
  }
#pragma unroll 1
  for (int i = begin; i < end; ++i) to[i * step] = *reinterpret_cast<const T*>(staged + 2 * i);
}

// A block's tile of the result; `block`: its number of channels (block_y()).
template <class T>
struct ResultTile {
  const MmaWork& work;
  const int depth, height;  // of the tile
  const MmaPlace place;
  T* const result;  // of the sample and the group
  unsigned char* const staged;
  const bool by_channel;    // rows are a channel's voxels, not a voxel's channels
  const int channel_pitch;  // bytes from voxel to voxel, rows being channels
  const int voxel_pitch;    // bytes from channel to channel, rows being voxels

  __device__ __forceinline__ ResultTile(const MmaWork& work, MmaShape shape, const MmaPlace& place, int block,
                                        T* result, unsigned char* staged, const StagedColumns& columns)
      : work(work),
        depth(shape.depth),
        height(shape.height),
        place(place),
        result(result + place.batch * work.result.batch + group_offsets(work, block).result),
        staged(staged),
        by_channel(work.result.channel != 1),
        channel_pitch(mma_channel_pitch(columns.places)),
        voxel_pitch(mma_voxel_pitch(shape)) {}

  // Elements from `result` to a voxel of the tile, or -1 outside the volume.
  __device__ __forceinline__ int64_t offset(int d, int h, int w) const {
    const int at[3] = {result_position(work, place, 0, d), result_position(work, place, 1, h),
                       result_position(work, place, 2, w)};
    int64_t elements = 0;
    bool inside = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      inside = inside && at[axis] < work.result_size[axis];
      elements += at[axis] * work.result.axis[axis];
    }
    return inside ? elements : -1;
  }

  // A voxel's channels `channel` and `channel` + 1, where `first` and `second` say so; in 16 bits to
  // `position` and the next one of the staged row.
  __device__ __forceinline__ void put(int d, int h, int w, int channel, int position, bool first, bool second,
                                      float one, float two) const {
    if constexpr (sizeof(T) == 4) {
      const int64_t voxel = offset(d, h, w);
      if (voxel < 0) return;
      float* to = result + voxel + channel * work.result.channel;
      if (first && second && !by_channel && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
        *reinterpret_cast<float2*>(to) = make_float2(one, two);
      } else {
        if (first) to[0] = one;
        if (second) to[work.result.channel] = two;
      }
    } else {
      const int voxel = (d * height + h) * kMmaTileWidth + w;
      T low, high;
      narrow(one, low);
      narrow(two, high);
      const int pitch = by_channel ? voxel_pitch : 2;
      unsigned char* to =
          staged + (by_channel ? position * voxel_pitch + voxel * 2 : voxel * channel_pitch + position * 2);
      if (first && second && !by_channel && position % 2 == 0) {
        *reinterpret_cast<uint32_t*>(to) = low.bits | uint32_t{high.bits} << 16;
      } else {
        if (first) *reinterpret_cast<T*>(to) = low;
        if (second) *reinterpret_cast<T*>(to + pitch) = high;
      }
    }
  }

  // Writes what has been staged; in float32 everything is written.
  template <int kThreads>
  __device__ __forceinline__ void store(const StagedColumns& columns, int thread) const {
    if constexpr (sizeof(T) == 2) {
      const int rows = depth * height, groups = (columns.places + 7) / 8;
      const int items = by_channel ? columns.places * rows : rows * kMmaTileWidth * groups;
#pragma unroll 1
      for (int item = thread; item < items; item += kThreads) {
        const int position = by_channel ? item / rows : item % groups * 8;
        const int voxel = by_channel ? item % rows * kMmaTileWidth : item / groups;
        const int64_t voxel_offset =
            offset(voxel / (kMmaTileWidth * height), voxel / kMmaTileWidth % height, voxel % kMmaTileWidth);
        if (voxel_offset < 0) continue;
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          const ChannelRange range = columns.range[i];
          const int channel = position + columns.shift[i];
          T* to = result + voxel_offset + channel * work.result.channel;
          if (by_channel) {
            if (channel < range.begin || channel >= range.end) continue;
            const int left =
                (work.result_size[2] - 1 - result_position(work, place, 2, 0)) / work.spacing[2] + 1;
            store_eight(to, staged + position * voxel_pitch + voxel * 2,
                        work.result.axis[2] * work.spacing[2], 0, left < 8 ? left : 8);
          } else {
            const int begin = range.begin > channel ? range.begin - channel : 0;
            const int end = range.end - channel < 8 ? range.end - channel : 8;
            if (begin < end && range.begin < range.end) {
              store_eight(to, staged + voxel * channel_pitch + position * 2, 1, begin, end);
            }
          }
        }
      }
    }
  }
};

// The bias of a block's group, if there is any.
__device__ __forceinline__ const float* bias_of_group(const MmaWork& work, int block, const float* bias) {
  return bias == nullptr ? nullptr : bias + group_offsets(work, block).bias;
}

// A warp's sums, plus the group's bias, to the tile: Walk (mma_view.cuh) says where its voxels are,
// `columns.range[index]` which channels its columns are.
template <class Walk, class T, int kRows, int kColumns>
__device__ __forceinline__ void put_sums(const float (&sum)[kRows][kColumns][4], const ResultTile<T>& tile,
                                         const StagedColumns& columns, int index, const float* bias, int warp,
                                         int lane) {
  const ChannelRange range = columns.range[index];
  const int first = range.begin - column_slack(range, 8 * kColumns) + lane % 4 * 2;
  float bias_of[kColumns][2];
#pragma unroll
  for (int n = 0; n < kColumns; ++n) load_bias(bias_of[n], bias, first + 8 * n, range);
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int d = Walk::depth(warp) + Walk::tile_depth(m, row);
      const int h = Walk::height(warp) + Walk::tile_height(m, row);
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const int channel = first + 8 * n;
        tile.put(d, h, lane / 4, channel, channel - columns.shift[index],
                 channel >= range.begin && channel < range.end, channel + 1 < range.end,
                 sum[m][n][2 * row] + bias_of[n][0], sum[m][n][2 * row + 1] + bias_of[n][1]);
      }
    }
  }
}

// A reduction in parts: in phase 1 writes a part's sums and returns false, the block being done; in phase 2
// reads all of them, in order, so that the total is always the same. Slots of the workspace, one per block,
// are in the order of the fragments: a lane has 16 bytes, a warp 512 in a row.
template <int kThreads, int kRows, int kColumns>
__device__ __forceinline__ bool combine_parts(float (&sum)[kRows][kColumns][4], const MmaWork& work,
                                              float4* partials, int thread) {
  if (work.phase == 0) return true;
  const int64_t blocks = int64_t{gridDim.x} * gridDim.y;
  const int64_t block = blockIdx.y * int64_t{gridDim.x} + ptx::block_x();
  constexpr int kSlot = kRows * kColumns * kThreads;
  if (work.phase == 1) {
    float4* to = partials + (blockIdx.z * blocks + block) * kSlot + thread;
#pragma unroll
    for (int i = 0; i < kRows * kColumns; ++i) {
      const float* own = sum[i / kColumns][i % kColumns];
      to[i * kThreads] = make_float4(own[0], own[1], own[2], own[3]);
    }
    return false;
  }
#pragma unroll 1
  for (int part = 0; part < work.parts; ++part) {
    const float4* from = partials + (part * blocks + block) * kSlot + thread;
#pragma unroll
    for (int i = 0; i < kRows * kColumns; ++i) {
      const float4 more = from[i * kThreads];
      float* own = sum[i / kColumns][i % kColumns];
      own[0] += more.x, own[1] += more.y, own[2] += more.z, own[3] += more.w;
    }
  }
  return true;
}

// The end of a block whose warps all have the same channels: adds up the parts, or writes one, else writes
// the result.
template <class Config, class Walk>
__device__ __forceinline__ void store_result(float (&sum)[Config::kRows][Config::kColumns][4],
                                             const MmaWork& work, const float* bias,
                                             typename Config::Scalar* result, float4* partials,
                                             unsigned char* shared) {
  const int thread = ptx::thread_x();
  if (!combine_parts<Config::kThreads>(sum, work, partials, thread)) return;
  const int block = ptx::block_y();
  const ChannelRange range = block_columns(work, block, 8 * Config::kColumns).range;
  const StagedColumns columns = StagedColumns::of(range, {0, 0}, {0, 0});
  const ResultTile<typename Config::Scalar> tile(
      work, Config::kShape, mma_place(work, Config::kShape, ptx::block_x()), block, result, shared, columns);
  put_sums<Walk>(sum, tile, columns, 0, bias_of_group(work, block, bias), thread / 32, thread % 32);
  __syncthreads();
  tile.template store<Config::kThreads>(columns, thread);
}

}  // namespace acsconv
