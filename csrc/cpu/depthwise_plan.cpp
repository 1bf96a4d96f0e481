// Builds the DepthwiseWalk. The numbers that decide on sizes are explained in csrc/cpu/DESIGN.md.
#include "depthwise_plan.h"

#include <algorithm>
#include <cstdlib>

#include "integers.h"
#include "plan.h"

namespace acsconv {
namespace {

constexpr int64_t kFarthest = 64;     // a displacement beyond which slabs would be mostly zeros
constexpr int64_t kSmallestSlab = 8;  // planes and rows
// Of the second-level cache: a slab is worked on channel by channel, so only one of its channels has to stay
// there.
constexpr double kSlabShare = 1.2;

constexpr double kSliceShare = 0.25;  // of the second-level cache, for what is packed of a slice
constexpr int64_t kSliceTasks = 64;   // what the work is cut into, where there are as many slices

Strides5 five(const VolumeStrides& s) { return {s.batch, s.channel, s.axis[0], s.axis[1], s.axis[2]}; }

// From a target's place to the source of its first tap.
int64_t first_source(const Problem& p, bool mirrored, int view, int axis) {
  const int64_t origin = p.origin[view][axis];
  return mirrored ? 1 - origin - kernel_extent(view, axis, p.kernel_h, p.kernel_w) : origin;
}

}  // namespace

bool is_depthwise(const Problem& p, bool soft) {
  if (soft || p.groups != p.in_channels || p.groups != p.out_channels || p.kernel_h != p.kernel_w)
    return false;
  if (p.kernel_h != 3 && p.kernel_h != 5 && p.kernel_h != 7) return false;
  for (int axis = 0; axis < 3; ++axis) {
    if (p.stride[axis] != 1) return false;
    for (int view = 0; view < kViews; ++view) {
      if (p.dilation[view][axis] != 1 || std::abs(p.origin[view][axis]) > kFarthest) return false;
    }
  }
  return true;
}

DepthwisePlan::DepthwisePlan(const Problem& p, bool mirrored, int lanes, int number_size,
                             int64_t cache_size) {
  const int64_t (&in_size)[3] = mirrored ? p.out_size : p.in_size;
  const int64_t (&out_size)[3] = mirrored ? p.in_size : p.out_size;
  int64_t first[kViews][3], least[3], most[3];
  for (int axis = 0; axis < 3; ++axis) {
    for (int view = 0; view < kViews; ++view) {
      const int64_t reach = kernel_extent(view, axis, p.kernel_h, p.kernel_w) - 1;
      first[view][axis] = first_source(p, mirrored, view, axis);
      least[axis] = view == 0 ? first[view][axis] : std::min(least[axis], first[view][axis]);
      most[axis] = view == 0 ? first[view][axis] + reach : std::max(most[axis], first[view][axis] + reach);
    }
  }

  Walk& walk = depthwise_.walk;
  Packing& packing = walk.packing;
  packing.source = five(mirrored ? p.output : p.input);
  packing.in_rows = in_size[1], packing.in_columns = in_size[2];
  packing.row_stride = packing.column_stride = 1;
  packing.phases = &phase_, packing.phase_count = 1;
  packing.row_min = least[1], packing.column_min = least[2];
  packing.halo_rows = most[1] - least[1];
  // Zeros between two rows serve both, see lattice.cpp.
  const int64_t width = out_size[2] + most[2] - least[2];
  const int64_t shared = std::min(std::clamp<int64_t>(-least[2], 0, width),
                                  std::clamp<int64_t>(out_size[2] + most[2] - in_size[2], 0, width));
  packing.pitch = std::max(width - shared, out_size[2]);
  walk.in_planes = in_size[0];
  walk.target = five(mirrored ? p.input : p.output);
  for (int axis = 0; axis < 3; ++axis) {
    walk.out_size[axis] = out_size[axis], walk.out_stride[axis] = walk.classes[axis] = 1;
  }
  depthwise_.kernel = p.kernel_h;
  depthwise_.plane_min = least[0];
  depthwise_.halo_planes = most[0] - least[0];

  // Squares are transposed where channels are adjacent in memory; else one channel at a time stays in the
  // cache.
  const bool channels_last = p.input.channel == 1 || p.output.channel == 1;
  chunk_channels_ = channels_last ? std::min<int64_t>(lanes, p.groups) : 1;
  const double budget = kSlabShare * static_cast<double>(cache_size) / number_size;
  auto source_plane = [&](int64_t rows) {
    return (rows + packing.halo_rows + 2) * packing.pitch + 2 * lanes;
  };
  auto slab = [&](int64_t planes, int64_t rows) {
    return static_cast<double>(chunk_channels_ * (planes + depthwise_.halo_planes) * source_plane(rows));
  };
  int64_t rows = out_size[1], planes = out_size[0];
  auto cut = [](int64_t size, int64_t pieces) { return std::max(kSmallestSlab, ceil_div(size, pieces)); };
  for (int64_t n = 2; planes > kSmallestSlab && slab(planes, rows) > budget; ++n)
    planes = cut(out_size[0], n);
  for (int64_t n = 2; rows > kSmallestSlab && slab(planes, rows) > budget; ++n) rows = cut(out_size[1], n);

  depthwise_.source_plane = source_plane(rows);
  packing.channel_stride =
      spread((planes + depthwise_.halo_planes) * depthwise_.source_plane + lanes, number_size);
  walk.stage_plane = (rows + 1) * packing.pitch + 2 * lanes;
  walk.stage_channel = spread(planes * walk.stage_plane, number_size);
  slab_size_ = chunk_channels_ * packing.channel_stride;
  stage_size_ = chunk_channels_ * walk.stage_channel;
  depthwise_.grad = packing;
  depthwise_.grad.source = five(p.output);
  depthwise_.grad.in_rows = out_size[1], depthwise_.grad.in_columns = out_size[2];
  depthwise_.grad.row_min = depthwise_.grad.column_min = 0;
  depthwise_.grad.channel_stride = walk.stage_channel;

  int64_t channel_end = 0;
  for (int view = 0; view < kViews; ++view) {
    const int64_t step[3] = {depthwise_.source_plane, packing.pitch, 1};
    channel_end += p.split[view];
    int64_t offset = 0;
    for (int axis = 0; axis < 3; ++axis) offset += (first[view][axis] - least[axis]) * step[axis];
    depthwise_.views[view] = {channel_end, offset, step[row_axis(view)], step[column_axis(view)],
                              row_axis(view) == 0};
  }

  const int64_t strips = ceil_div(out_size[1], rows), depths = ceil_div(out_size[0], planes);
  slabs_ = p.batch * strips * depths;
  for (int64_t c = 0; c < p.groups; c += chunk_channels_) {
    for (int64_t i = 0; i < slabs_; ++i) {
      const int64_t strip = i / depths % strips, depth = i % depths;
      tasks_.push_back({i / depths / strips, 0, static_cast<int32_t>(c),
                        static_cast<int32_t>(std::min(p.groups, c + chunk_channels_)), strip * rows,
                        std::min(out_size[1], (strip + 1) * rows), depth * planes,
                        std::min(out_size[0], (depth + 1) * planes)});
    }
  }
}

bool SlicePlan::fits(const Problem& p, int lanes) {
  return p.input.channel == 1 && p.output.channel == 1 && p.groups >= lanes;
}

SlicePlan::SlicePlan(const Problem& p, bool mirrored, int lanes, int number_size, int64_t cache_size) {
  const int64_t (&in_size)[3] = mirrored ? p.out_size : p.in_size;
  const int64_t (&out_size)[3] = mirrored ? p.in_size : p.out_size;
  const VolumeStrides &source = mirrored ? p.output : p.input, &target = mirrored ? p.input : p.output;
  walk_.source_batch = source.batch, walk_.target_batch = target.batch;
  walk_.kernel = p.kernel_h;
  for (int view = 0; view < kViews; ++view) {
    auto along = [&](int axis) -> SliceAxis {
      return {in_size[axis], out_size[axis], first_source(p, mirrored, view, axis), source.axis[axis],
              target.axis[axis]};
    };
    SliceView& v = walk_.views[view];
    v = {along(thin_axis(view)), along(row_axis(view)), along(column_axis(view)), 0, 0};
    const double budget = kSliceShare * static_cast<double>(cache_size) / number_size;
    const auto columns = static_cast<int64_t>(budget / static_cast<double>(lanes * v.line.in_size));
    v.piece = std::clamp(columns - p.kernel_w + 1, kSmallestSlab, std::max(kSmallestSlab, v.column.out_size));
    v.packed_line = spread(std::min(v.piece + p.kernel_w - 1, v.column.in_size) * lanes, number_size);
    packed_size_ = std::max(packed_size_, v.line.in_size * v.packed_line);

    // The last vectors begin earlier rather than read beyond the channels.
    const int64_t begin = view_channels_begin(p.split, view), end = begin + p.split[view];
    for (int64_t c = begin; c < end; c += lanes) {
      const int64_t first = std::min<int64_t>(c, p.groups - lanes);
      blocks_.push_back({view, static_cast<int32_t>(first), static_cast<int32_t>(c - first),
                         static_cast<int32_t>(std::min<int64_t>(lanes, end - c))});
    }
  }
  walk_.blocks = blocks_.data();
  const auto blocks = static_cast<int64_t>(blocks_.size());
  for (int64_t sample = 0; sample < p.batch; ++sample) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t slices = walk_.views[blocks_[block].view].slice.out_size;
      const int64_t pieces = std::clamp<int64_t>(ceil_div(kSliceTasks, p.batch * blocks), 1, slices);
      for (int64_t i = 0; i < pieces; ++i) {
        tasks_.push_back({sample, block, i * slices / pieces, (i + 1) * slices / pieces});
      }
    }
  }
}

}  // namespace acsconv
