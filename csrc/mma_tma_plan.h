// One view per warp and one view per step (mma_plan.h) with stages filled by the Tensor Memory Accelerator
// (TMA) of compute capability 9.0: which problems that takes, the boxes, and the shared memory. Read by
// dispatch.cu, which chooses, and by kernels/mma_tma_kernel.cuh.
//
// A box is 16 bytes of every voxel of the halo, with one view per step of that view's; it lands as one plane
// [voxel][16 bytes], what lies outside the volume or beyond the last channel as zeros. So a stage is two
// boxes and one run of packed weights, and nothing in the kernel knows of borders.
#pragma once

#include "common/ptx_sm90.cuh"
#include "mma_plan.h"

namespace acsconv {

inline constexpr size_t kTmaHeadBytes = 128;  // before the stages: barriers, and where the halo lies
inline constexpr size_t kHopperSharedBytes = 228 << 10;  // of a multiprocessor; every block takes 1 KiB more

// The multiprocessor deals warps out to four schedulers with 512 registers per lane each. Two blocks of 6
// warps leave every lane 168 registers, and so does one of 12; a warp more for the producer alone would leave
// it 128. That is enough for sums of 64; with more of them a thread of the first warp is the producer. One
// view per step always has that: its blocks of 4 warps fill the schedulers evenly, up to three of them.
constexpr bool tma_producer_warp(const MmaShape& shape) { return shape.rows * shape.columns * 4 <= 64; }
constexpr int tma_forward_threads(const MmaShape& shape) {
  return view_per_warp_threads(shape) + (tma_producer_warp(shape) ? 32 : 0);
}

struct TmaShared {
  int stages;
  size_t plane, weights, stage, total;
};
constexpr TmaShared tma_shared(const MmaShape& shape, size_t halo_voxels, size_t units, int staged_channels) {
  TmaShared s{};
  s.plane = mma_round(16 * halo_voxels);
  s.weights = units * kMmaUnitBytes;
  s.stage = 2 * s.plane + s.weights;
  const size_t room = kHopperSharedBytes / shape.blocks - 1024 - kTmaHeadBytes;
  s.stages = 4 * s.stage <= room ? 4 : 2;  // powers of 2: a step's stage and phase are bits of its number
  const size_t used = s.stages * s.stage;
  const size_t staged = mma_staged_bytes(shape, staged_channels);
  s.total = kTmaHeadBytes + (staged > used ? staged : used);
  return s;
}
constexpr TmaShared tma_view_per_warp_shared(const MmaShape& shape) {
  return tma_shared(shape, mma_halo_voxels(shape, true, true, true), kViews * 9 * shape.columns,
                    view_per_warp_staged_channels(shape));
}
constexpr TmaShared tma_view_per_step_shared(const MmaShape& shape) {
  return tma_shared(shape, mma_largest_halo_of_view(shape), 9 * shape.columns,
                    view_per_step_staged_channels(shape));
}

// A box is a tensor map's own. One map serves one view per warp; one view per step has one for each view,
// whose halo has no padding along the view's thin axis.
constexpr int tma_maps(bool view_per_warp) { return view_per_warp ? 1 : kViews; }
ACSCONV_HD constexpr int tma_thin_axis(int maps, int map) { return maps == 1 ? -1 : map; }

// The source [N, D, H, W, C] of a pass and the box of one of `maps` maps.
inline TensorMapShape tma_source(const Problem& p, Pass pass, const MmaShape& shape, int maps, int index,
                                 const void* source) {
  const bool forward = pass == Pass::Forward;
  const VolumeStrides& strides = forward ? p.input : p.output;
  const int64_t *size = forward ? p.in_size : p.out_size, channels = forward ? p.in_channels : p.out_channels;
  const int bytes = p.type == ScalarType::Float32 ? 4 : 2;
  TensorMapShape map{source, bytes, {channels}, {bytes}, {16 / bytes}};
  const int64_t extent[3] = {shape.depth, shape.height, kMmaTileWidth};
  for (int axis = 0; axis < 3; ++axis) {
    map.size[3 - axis] = size[axis];
    map.stride_bytes[3 - axis] = strides.axis[axis] * bytes;
    map.box[3 - axis] = static_cast<int>(extent[axis]) + (axis == tma_thin_axis(maps, index) ? 0 : 2);
  }
  map.size[4] = p.batch;
  map.stride_bytes[4] = strides.batch * bytes;
  map.box[4] = 1;
  // A dimension of one position may have any stride in torch, and is given one that a tensor map allows.
  for (int i = 1; i < kTensorMapRank; ++i) {
    if (map.size[i] != 1) continue;
    map.stride_bytes[i] =
        i == 1 ? (channels * bytes + 15) / 16 * 16 : map.size[i - 1] * map.stride_bytes[i - 1];
  }
  return map;
}

// Why the TMA does not load the source of a planned pass, which the driver is asked as well; empty: it can.
inline std::string tma_rejection(const Problem& p, const MmaPlan& plan, Pass pass, const void* source,
                                 const Machine& machine) {
  if (!plan.rejection.empty()) return plan.rejection;
  if (machine.capability != 90) return "the GPU is not of compute capability 9.0";
  if (p.groups > 1) return "groups";
  if (p.stride[0] != 1) return "a stride";
  if (plan.row_per_step) return "a kernel larger than 3 x 3";
  for (int axis = 0; axis < 3; ++axis) {
    if (p.dilation[(axis + 1) % 3][axis] != 1) return "a dilation";
  }
  if ((pass == Pass::Forward ? p.input : p.output).channel != 1) {
    return "the channels of a voxel are not neighbours in memory";
  }
  const int maps = tma_maps(plan.view_per_warp);
  for (int i = 0; i < maps; ++i) {
    TensorMap map;
    if (const char* reason = make_tensor_map(tma_source(p, pass, plan.chosen(), maps, i, source), map)) {
      return reason;
    }
  }
  return {};
}

}  // namespace acsconv
