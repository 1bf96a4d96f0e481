// The forward pass of one view per warp (mma_plan.h) with its stages filled by the Tensor Memory Accelerator
// (TMA) of compute capability 9.0: which problems that takes, the boxes, and the shared memory. Read by
// dispatch.cu, which chooses, and by kernels/mma_tma_forward.cuh.
//
// A box is 16 bytes of every voxel of the halo; it lands as one plane [voxel][16 bytes], what lies outside
// the volume or beyond the last channel as zeros. So a stage is two boxes and one run of packed weights, and
// nothing in the kernel knows of borders.
#pragma once

#include "common/ptx_sm90.cuh"
#include "mma_plan.h"

namespace acsconv {

inline constexpr size_t kTmaHeadBytes = 128;  // before the stages: barriers, and where the halo lies
inline constexpr size_t kHopperSharedBytes = 228 << 10;  // of a multiprocessor; every block takes 1 KiB more

// The multiprocessor deals warps out to four schedulers with 512 registers per lane each. Two blocks of 6
// warps leave every lane 168 registers, and so does one of 12; a warp more for the producer alone would leave
// it 128. That is enough for sums of 64; with more of them a thread of the first warp is the producer.
constexpr bool tma_producer_warp(const MmaShape& shape) { return shape.rows * shape.columns * 4 <= 64; }
constexpr int tma_forward_threads(const MmaShape& shape) {
  return view_per_warp_threads(shape) + (tma_producer_warp(shape) ? 32 : 0);
}

struct TmaShared {
  int stages;
  size_t plane, weights, stage, total;
};
constexpr TmaShared tma_shared(const MmaShape& shape) {
  TmaShared s{};
  s.plane = mma_round(size_t{16} * mma_halo_voxels(shape, true, true, true));
  s.weights = size_t{kViews} * 9 * shape.columns * kMmaUnitBytes;
  s.stage = 2 * s.plane + s.weights;
  const size_t room = kHopperSharedBytes / shape.blocks - 1024 - kTmaHeadBytes;
  s.stages = 4 * s.stage <= room ? 4 : 2;  // powers of 2: a step's stage and phase are bits of its number
  const size_t used = s.stages * s.stage;
  const size_t staged = mma_staged_bytes(shape, view_per_warp_staged_channels(shape));
  s.total = kTmaHeadBytes + (staged > used ? staged : used);
  return s;
}

// The source [N, D, H, W, C] and its box.
inline TensorMapShape tma_source(const Problem& p, const MmaShape& shape, const void* source) {
  const int bytes = p.type == ScalarType::Float32 ? 4 : 2;
  TensorMapShape map{source, bytes, {p.in_channels}, {bytes}, {16 / bytes}};
  const int64_t extent[3] = {shape.depth, shape.height, kMmaTileWidth};
  for (int axis = 0; axis < 3; ++axis) {
    map.size[3 - axis] = p.in_size[axis];
    map.stride_bytes[3 - axis] = p.input.axis[axis] * bytes;
    map.box[3 - axis] = static_cast<int>(extent[axis]) + 2;
  }
  map.size[4] = p.batch;
  map.stride_bytes[4] = p.input.batch * bytes;
  map.box[4] = 1;
  // A dimension of one position may have any stride in torch, and is given one that a tensor map allows.
  for (int i = 1; i < kTensorMapRank; ++i) {
    if (map.size[i] != 1) continue;
    map.stride_bytes[i] =
        i == 1 ? (p.in_channels * bytes + 15) / 16 * 16 : map.size[i - 1] * map.stride_bytes[i - 1];
  }
  return map;
}

// Why the TMA does not load the source of a planned pass, which the driver is asked as well; empty: it can.
inline std::string tma_rejection(const Problem& p, const MmaPlan& plan, const void* source,
                                 const Machine& machine) {
  if (!plan.rejection.empty()) return plan.rejection;
  if (machine.capability != 90) return "the GPU is not of compute capability 9.0";
  if (p.groups > 1) return "groups";
  if (!plan.view_per_warp) return "not the forward pass of ACS with one view per warp";
  if (plan.chosen().stride != 1) return "a stride";
  for (int axis = 0; axis < 3; ++axis) {
    if (p.dilation[(axis + 1) % 3][axis] != 1) return "a dilation";
  }
  if (p.input.channel != 1) return "the channels of a voxel are not neighbours in memory";
  TensorMap map;
  const char* reason = make_tensor_map(tma_source(p, plan.chosen(), source), map);
  return reason == nullptr ? "" : reason;
}

}  // namespace acsconv
