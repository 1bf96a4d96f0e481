// Builds what the depthwise kernels follow. The numbers that decide on sizes are explained in
// csrc/cpu/DESIGN.md.
#include "depthwise_plan.h"

#include <algorithm>
#include <cstdlib>

#include "integers.h"
#include "plan.h"

namespace acsconv {
namespace {

constexpr int64_t kFarthest = 64;     // a displacement beyond which slabs would be mostly zeros
constexpr int64_t kSmallest = 8;      // rows of a slab, columns of a piece of a slice
constexpr int64_t kFewestLines = 28;  // of a slab that is cut along them: two tiles
constexpr double kSlabShare = 0.6;    // of the second-level cache, for what is packed of a slab
constexpr double kSliceShare = 0.25;  // and of a slice
constexpr int64_t kTogether = 4;      // slices that are packed together, where they are adjacent
constexpr int64_t kPageRows = 768;    // rows of voxels, whose pages are far fewer than the processor knows

// An axis of the volume as a pass sees it.
DepthwiseAxis axis_of(const Problem& p, bool mirrored, int view, int axis) {
  const int64_t origin = p.origin[view][axis];
  if (!mirrored) return {p.in_size[axis], p.out_size[axis], origin, p.input.axis[axis], p.output.axis[axis]};
  return {p.out_size[axis], p.in_size[axis], 1 - origin - kernel_extent(view, axis, p.kernel_h, p.kernel_w),
          p.output.axis[axis], p.input.axis[axis]};
}

void find_weight_places(const Problem& p, bool mirrored, int32_t* places) {
  const auto side = static_cast<int32_t>(p.kernel_h), last = side * side - 1;
  for (int32_t i = 0; i <= last; ++i) {
    const int32_t place = i % side * side + i / side;
    places[i] = mirrored ? last - place : place;
  }
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

SlabPlan::SlabPlan(const Problem& p, bool mirrored, int lanes, int number_size, int64_t cache_size) {
  const VolumeStrides &source = mirrored ? p.output : p.input, &target = mirrored ? p.input : p.output;
  slabs_.source_batch = source.batch, slabs_.source_channel = source.channel;
  slabs_.target_batch = target.batch, slabs_.target_channel = target.channel;
  slabs_.kernel = p.kernel_h;
  find_weight_places(p, mirrored, slabs_.weight_places);
  const double budget = kSlabShare * static_cast<double>(cache_size) / number_size;
  for (int view = 0; view < kViews; ++view) {
    // Rows are what is left: the thin axis of views with columns along W, else the columns.
    const bool thin_rows = column_axis(view) == 2;
    SlabView& v = slabs_.views[view];
    v.line = axis_of(p, mirrored, view, row_axis(view));
    v.row = axis_of(p, mirrored, view, thin_rows ? thin_axis(view) : column_axis(view));
    v.column = axis_of(p, mirrored, view, 2);
    v.row_halo = thin_rows ? 0 : p.kernel_w - 1;
    const int64_t reach = thin_rows ? p.kernel_w - 1 : 0;
    v.begin = std::max<int64_t>(v.column.first, 0);
    v.count = std::max<int64_t>(
        0, std::min(v.column.in_size, v.column.first + v.column.out_size + reach) - v.begin);
    v.pitch = std::max({v.count, v.column.out_size, int64_t{1}});
    const int64_t shift = std::min<int64_t>(v.column.first, 0);
    v.lead = round_up(-shift, lanes);
    v.tap = v.lead + shift;
    v.inside_other = thin_rows ? v.pitch + lanes : 0;
    inside_[view].reserve((reach + 1) * (v.pitch + lanes));
    for (int64_t tap = 0; tap <= reach; ++tap) {
      for (int64_t i = 0; i < v.pitch + lanes; ++i) {
        const int64_t column = i % v.pitch + shift + tap;
        inside_[view].push_back(column >= 0 && column < v.count ? -1 : 0);
      }
    }
    const bool masked = std::find(inside_[view].begin(), inside_[view].end(), 0) != inside_[view].end();
    v.inside = masked ? inside_[view].data() : nullptr;
    v.other = thin_rows ? 1 : v.pitch;

    auto packed_line = [&](int64_t rows) {
      return spread(v.lead + (rows + v.row_halo) * v.pitch + reach + 2 * lanes, number_size);
    };
    auto slab = [&](int64_t lines, int64_t rows) {
      return std::min(v.line.in_size, lines + p.kernel_h - 1) * packed_line(rows);
    };
    int64_t lines = v.line.out_size, rows = v.row.out_size;
    for (int64_t n = 2; rows > kSmallest && static_cast<double>(slab(lines, rows)) > budget; ++n) {
      rows = std::max(kSmallest, ceil_div(v.row.out_size, n));
    }
    for (int64_t n = 2; lines > kFewestLines && static_cast<double>(slab(lines, rows)) > budget; ++n) {
      lines = std::max(kFewestLines, ceil_div(v.line.out_size, n));
    }
    v.packed_line = packed_line(rows);
    v.target_line = spread(rows * v.pitch + 2 * lanes, number_size);
    packed_size_ = std::max(packed_size_, slab(lines, rows));
    staged_size_ = std::max(staged_size_, kMostOutputs * v.target_line);

    const int64_t begin = view_channels_begin(p.split, view);
    for (int64_t c = begin; c < begin + p.split[view]; ++c) {
      first_task_.push_back(static_cast<int64_t>(tasks_.size()));
      for (int64_t sample = 0; sample < p.batch; ++sample) {
        for (int64_t l = 0; l < v.line.out_size; l += lines) {
          for (int64_t r = 0; r < v.row.out_size; r += rows) {
            tasks_.push_back({sample, view, static_cast<int32_t>(c), l, std::min(v.line.out_size, l + lines),
                              r, std::min(v.row.out_size, r + rows)});
          }
        }
      }
    }
  }
  first_task_.push_back(static_cast<int64_t>(tasks_.size()));
}

bool SlicePlan::fits(const Problem& p, int lanes) {
  return p.input.channel == 1 && p.output.channel == 1 && p.groups >= lanes;
}

SlicePlan::SlicePlan(const Problem& p, bool mirrored, int lanes, int number_size, int64_t cache_size,
                     int64_t tasks) {
  slices_.source_batch = mirrored ? p.output.batch : p.input.batch;
  slices_.target_batch = mirrored ? p.input.batch : p.output.batch;
  slices_.kernel = p.kernel_h;
  find_weight_places(p, mirrored, slices_.weight_places);
  const double budget = kSliceShare * static_cast<double>(cache_size) / number_size;
  for (int view = 0; view < kViews; ++view) {
    SliceView& v = slices_.views[view];
    v.slice = axis_of(p, mirrored, view, thin_axis(view));
    v.line = axis_of(p, mirrored, view, row_axis(view));
    v.column = axis_of(p, mirrored, view, column_axis(view));
    // Slices of adjacent voxels share the pages that their rows lie in. So these are read by a few slices at
    // a time, and, where they are many, of one piece of the columns after the other.
    const bool adjacent = v.slice.source < std::min(v.line.source, v.column.source);
    v.together = adjacent ? kTogether : 1;
    const int64_t in_lines = std::max<int64_t>(1, v.line.in_size);
    int64_t columns = static_cast<int64_t>(budget) / (v.together * lanes * in_lines) - p.kernel_w + 1;
    if (adjacent) columns = std::min(columns, kPageRows / in_lines);
    columns = std::clamp(columns, kSmallest, std::max(kSmallest, v.column.out_size));
    v.piece = ceil_div(v.column.out_size, ceil_div(v.column.out_size, columns));
    v.packed_line = spread(std::min(v.piece + p.kernel_w - 1, v.column.in_size) * lanes, number_size);
    v.packed_slice = v.line.in_size * v.packed_line;
    packed_size_ = std::max(packed_size_, v.together * v.packed_slice);

    // The last vectors begin earlier rather than read beyond the channels.
    const int64_t begin = view_channels_begin(p.split, view), end = begin + p.split[view];
    for (int64_t c = begin; c < end; c += lanes) {
      const int64_t first = std::min<int64_t>(c, p.groups - lanes);
      blocks_.push_back({view, static_cast<int32_t>(first), static_cast<int32_t>(c - first),
                         static_cast<int32_t>(std::min<int64_t>(lanes, end - c))});
    }
  }
  slices_.blocks = blocks_.data();
  const auto blocks = static_cast<int64_t>(blocks_.size());
  const int64_t wanted = ceil_div(tasks, std::max<int64_t>(1, p.batch * blocks));
  auto cut = [](int64_t i, int64_t parts, int64_t unit, int64_t size) {
    return std::min(i * ceil_div(size, unit) / parts * unit, size);
  };
  for (int64_t block = 0; block < blocks; ++block) {
    const SliceView& v = slices_.views[blocks_[block].view];
    const int64_t size = v.slice.out_size, width = v.column.out_size;
    const int64_t across = std::min(wanted, ceil_div(width, v.piece)), along = ceil_div(wanted, across);
    first_task_.push_back(static_cast<int64_t>(tasks_.size()));
    for (int64_t sample = 0; sample < p.batch; ++sample) {
      for (int64_t i = 0; i < along; ++i) {
        for (int64_t k = 0; k < across; ++k) {
          tasks_.push_back({sample, block, cut(i, along, v.together, size),
                            cut(i + 1, along, v.together, size), cut(k, across, v.piece, width),
                            cut(k + 1, across, v.piece, width)});
        }
      }
    }
  }
  first_task_.push_back(static_cast<int64_t>(tasks_.size()));
}

}  // namespace acsconv
