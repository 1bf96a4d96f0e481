// Plan of the forward kernel for layers of 1 to 4 input channels (kernels/simt_few_channels.cuh): the tile of
// output voxels, the output channels of a block, and the box of x that a view reads for a tile, which plan
// and kernel compute with the same functions. Included by plan.h, which chooses among kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "problem.h"

namespace acsconv {

inline constexpr int64_t kFewChannels = 4, kFewTaps = 64;  // most input channels, most taps of a kernel
inline constexpr int kFewLogVoxels = 9;                    // a tile holds 2^9 output voxels
inline constexpr int kFewOctet = 8;                        // output channels that a thread computes together
inline constexpr int kFewGroups = 2;                       // halves of a block, which take octets in turn
inline constexpr int64_t kFewHeaderBytes = 5 << 10;        // of shared memory, for tables
// Every GPU from 8.0 on lets a block have this much shared memory (8.6, 8.9 and 12.0: 99 KiB).
inline constexpr int64_t kFewSharedBytes = 96 << 10;

// One axis of the box: positions of x at `step` from each other. Output i of the tile reads, with tap j,
// position i * voxel + j * tap of the box.
struct FewBoxAxis {
  int64_t extent, step, voxel, tap;
};

ACSCONV_HD inline FewBoxAxis few_box_axis(const Problem& p, int view, int axis, int64_t tile) {
  if (axis == thin_axis(view)) return {tile, p.stride[axis], 1, 0};
  const int64_t taps = kernel_extent(view, axis, p.kernel_h, p.kernel_w), dilation = p.dilation[view][axis];
  return {(tile - 1) * p.stride[axis] + (taps - 1) * dilation + 1, 1, p.stride[axis], dilation};
}

// Elements that a row of the box takes. It is stored by residues modulo `voxel`, so that neighbouring outputs
// read neighbouring elements, whatever the stride: position i is element i % voxel * length + i / voxel.
ACSCONV_HD inline int64_t few_row_length(const FewBoxAxis& w) { return (w.extent + w.voxel - 1) / w.voxel; }
ACSCONV_HD inline int64_t few_row_pitch(const FewBoxAxis& w) { return w.voxel * few_row_length(w); }

ACSCONV_HD inline int64_t few_reduction(const Problem& p) { return p.in_channels * p.kernel_h * p.kernel_w; }

struct FewChannelsPlan {
  std::string rejection;        // empty: the kernel takes the problem
  int log_tile[3] = {0, 0, 0};  // the tile has 2^log_tile voxels along each axis
  int64_t box = 0;              // elements of x in shared memory: the largest view's
  int64_t slab_octets = 0;      // octets of output channels of a block
  int64_t slabs = 0;
  int64_t tiles = 0;  // of all batches
  size_t shared_bytes = 0;

  std::string describe() const;
};

// Octets of output channels and one pass more for each border between views, which can lie in an octet.
ACSCONV_HD inline int64_t few_passes(int64_t octets) { return octets + kViews - 1; }

inline FewChannelsPlan plan_few_channels(const Problem& p, bool soft, int multiprocessors) {
  FewChannelsPlan plan;
  const auto reject = [&](const std::string& reason) {
    plan.rejection = reason;
    return plan;
  };
  if (soft) return reject("Soft ACS");
  if (p.groups != 1) return reject("groups");
  if (p.in_channels > kFewChannels) return reject("more than 4 input channels");
  if (p.kernel_h * p.kernel_w > kFewTaps) return reject("more than 64 taps");

  const int64_t sum_bytes = p.type == ScalarType::Float64 ? 8 : 4, reduction = few_reduction(p);
  const int64_t octets = (p.out_channels + kFewOctet - 1) / kFewOctet;
  // Weights of a block take up to 32 KiB: with fewer channels x would be read more often.
  const int64_t most_octets = std::max<int64_t>(2, (32 << 10) / (reduction * kFewOctet * sum_bytes));

  double best = 0;
  for (int log_d = 0; log_d <= kFewLogVoxels; ++log_d) {
    for (int log_w = 0; log_w <= std::min(5, kFewLogVoxels - log_d); ++log_w) {
      const int log_tile[3] = {log_d, kFewLogVoxels - log_d - log_w, log_w};
      int64_t tiles = p.batch, box = 0, row_loads = 0;
      for (int axis = 0; axis < 3; ++axis) {
        tiles *= ((p.out_size[axis] - 1) >> log_tile[axis]) + 1;
      }
      for (int view = 0; view < kViews; ++view) {
        if (p.split[view] == 0) continue;
        FewBoxAxis axes[3];
        for (int axis = 0; axis < 3; ++axis) {
          axes[axis] = few_box_axis(p, view, axis, int64_t{1} << log_tile[axis]);
        }
        const auto small = [](int64_t number) { return number < kFewSharedBytes; };
        const bool fits = small(axes[0].extent) && small(axes[1].extent) && small(axes[2].extent) &&
                          small(axes[0].extent * axes[1].extent);
        const int64_t rows = fits ? axes[0].extent * axes[1].extent : 0;
        box = fits ? std::max(box, p.in_channels * rows * few_row_pitch(axes[2])) : kFewSharedBytes;
        row_loads += p.in_channels * rows * ((axes[2].extent + 31) / 32);
      }
      // More slabs than the weights ask for where there are too few tiles to fill the machine.
      int64_t slabs =
          std::max((octets + most_octets - 1) / most_octets, multiprocessors / std::max<int64_t>(1, tiles));
      slabs = std::max<int64_t>(1, std::min(slabs, octets / kFewGroups));
      const int64_t slab_octets = (octets + slabs - 1) / slabs;
      const int64_t bytes = sum_bytes * (box + few_passes(slab_octets) * (reduction + 1) * kFewOctet) +
                            static_cast<int64_t>(sizeof(int)) * kViews * reduction + kFewHeaderBytes;
      if (bytes > kFewSharedBytes) continue;
      // Instructions of a warp for a tile: products with the reads of their factors, and about 15 for each
      // row of x and 32 lanes. Fewer than two blocks per multiprocessor of 100 KiB hide less latency.
      const double products = 40.0 * reduction * few_passes(octets) / kFewGroups;
      const double loads = 15.0 * slabs * row_loads / (kFewGroups << (kFewLogVoxels - 7));
      const double cost = tiles * (products + loads) * (bytes > kFewSharedBytes / 2 ? 1.25 : 1.0);
      if (best > 0 && cost >= best) continue;
      best = cost;
      std::copy(log_tile, log_tile + 3, plan.log_tile);
      plan.box = box;
      plan.slab_octets = slab_octets;
      plan.slabs = (octets + slab_octets - 1) / slab_octets;
      plan.tiles = tiles;
      plan.shared_bytes = static_cast<size_t>(bytes);
    }
  }
  if (plan.shared_bytes == 0) return reject("what a tile reads exceeds 96 KiB of shared memory");
  if (plan.tiles >= int64_t{1} << 31) return reject("more than 2^31 tiles");
  return plan;
}

inline std::string FewChannelsPlan::describe() const {
  std::string tile;
  for (int axis = 0; axis < 3; ++axis) tile += (axis ? " x " : "") + std::to_string(1 << log_tile[axis]);
  return "few channels: tiles of " + tile + " voxels, " + std::to_string(tiles) + " in all, " +
         std::to_string(slabs) + " slabs of " + std::to_string(kFewOctet * slab_octets) + " channels, " +
         std::to_string(shared_bytes) + " bytes of shared memory";
}

}  // namespace acsconv
