// Builds the Walk of a forward pass. The numbers that decide on sizes are explained in csrc/DESIGN.md.
#include "plan.h"

#include <algorithm>
#include <limits>

namespace acsconv {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kChannelSlice = 32;
constexpr int64_t kChunkChannels = 64;
constexpr int64_t kSmallestStrip = 4;
constexpr int kWidestBlock = 14;  // channels; walk.cpp has no wider one
constexpr int kMostVectors = 4;
constexpr double kRingShare = 0.55;      // of the second-level cache
constexpr int64_t kStageBytes = 300000;  // staged outputs per step ...
constexpr int64_t kHeavyWeights =
    800000;                          // ... and three times that where this many bytes of weights stream by
constexpr double kPackCycles = 1.5;  // per number, for the split among threads only

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// An odd number of cache lines, so that the same place of different channels falls into different sets of the
// cache.
int64_t spread(int64_t numbers, int number_size) {
  const int64_t per_line = kCacheLine / number_size;
  return (ceil_div(numbers, per_line) | 1) * per_line;
}

// Whether any output reads inside the volume through this displacement.
bool reads_inside(int64_t displacement, int64_t stride, int64_t in_size, int64_t out_size) {
  const int64_t first = std::max<int64_t>(0, ceil_div(std::max<int64_t>(0, -displacement), stride));
  return first < out_size && first * stride + displacement < in_size;
}

// Vectors of voxels and channels that a block of registers holds for a view's share of `channels`.
std::pair<int, int64_t> block_shape(int64_t channels, const CpuMachine& machine) {
  // An unaligned load is two where vectors are as wide as a cache line, and now and then where they are half
  // as wide.
  const double load = machine.lanes * machine.number_size >= kCacheLine ? 2.0 : 1.3;
  std::pair<int, int64_t> best{1, 1};
  double best_score = -1;
  for (int vectors = kMostVectors; vectors >= 1; --vectors) {
    // Two vectors were best, or as good as any, from 8 channels on.
    if (channels >= 8 && vectors != 2) continue;
    const int64_t widest = std::min(kWidestBlock, machine.accumulators / vectors);
    const int64_t width = ceil_div(channels, ceil_div(channels, widest));
    const double work = vectors * width / 2.0;
    const double score = work / std::max({work, (load * vectors + width) / 2, 4.0});
    if (score > best_score + 1e-9) best_score = score, best = {vectors, width};
  }
  return best;
}

}  // namespace

CpuPlan::CpuPlan(const Problem& p, const CpuMachine& machine) {
  walk_.group_channels = p.in_channels / p.groups;
  walk_.channel_slice = kChannelSlice;
  walk_.in_planes = p.in_size[0], walk_.in_rows = p.in_size[1], walk_.in_columns = p.in_size[2];
  walk_.out_planes = p.out_size[0], walk_.out_rows = p.out_size[1], walk_.out_columns = p.out_size[2];
  walk_.plane_stride = p.stride[0], walk_.row_stride = p.stride[1], walk_.column_stride = p.stride[2];
  walk_.input = {p.input.batch, p.input.channel, p.input.axis[0], p.input.axis[1], p.input.axis[2]};
  walk_.output = {p.output.batch, p.output.channel, p.output.axis[0], p.output.axis[1], p.output.axis[2]};
  find_taps(p);
  cut_blocks(p, machine);
  lay_out_rows(p);
  choose_strip(machine);
  cut_tasks(p, machine);
  walk_.taps = taps_.data();
  walk_.blocks = blocks_.data();
  walk_.chunks = chunks_.data();
  walk_.phases = phases_.data();
  walk_.phase_count = static_cast<int32_t>(phases_.size());
  walk_.plane_read = plane_read_.data();
}

// Kernel positions that read the volume at all, view by view, and the phases that they read.
void CpuPlan::find_taps(const Problem& p) {
  for (int view = 0; view < kViews; ++view) {
    if (p.split[view] == 0) continue;
    for (int64_t i = 0; i < p.kernel_h * p.kernel_w; ++i) {
      int64_t displacement[3], whole[3], rest[3];
      bool inside = true;
      for (int axis = 0; axis < 3; ++axis) {
        const int64_t tap = axis == row_axis(view)      ? i / p.kernel_w
                            : axis == column_axis(view) ? i % p.kernel_w
                                                        : 0;
        displacement[axis] = p.origin[view][axis] + tap * p.dilation[view][axis];
        whole[axis] = floor_div(displacement[axis], p.stride[axis]);
        rest[axis] = displacement[axis] - whole[axis] * p.stride[axis];
        inside &= reads_inside(displacement[axis], p.stride[axis], p.in_size[axis], p.out_size[axis]);
      }
      if (!inside) continue;
      const Phase phase{static_cast<int32_t>(rest[1]), static_cast<int32_t>(rest[2])};
      const auto found = std::find_if(phases_.begin(), phases_.end(), [&](const Phase& other) {
        return other.row == phase.row && other.column == phase.column;
      });
      positions_.push_back({view, displacement[0], whole[1], whole[2],
                            static_cast<int>(found - phases_.begin()), static_cast<int>(i)});
      if (found == phases_.end()) phases_.push_back(phase);
    }
  }
}

// Output channels in blocks that fit into registers, and blocks in chunks that share their input channels.
void CpuPlan::cut_blocks(const Problem& p, const CpuMachine& machine) {
  int64_t taps_of[kViews] = {};
  for (const Position& position : positions_) ++taps_of[position.view];
  const int64_t per_group = p.out_channels / p.groups, in_per_group = walk_.group_channels;
  for (int64_t o = 0; o < p.out_channels;) {
    const int view = view_of_channel(p, o);
    const int64_t view_end = view == 0 ? p.split[0] : view == 1 ? p.split[0] + p.split[1] : p.out_channels;
    const int64_t group = o / per_group, end = std::min(view_end, (group + 1) * per_group);
    const int64_t in_begin = group * in_per_group;
    const bool fits = !chunks_.empty() && in_begin + in_per_group - chunks_.back().in_begin <=
                                              std::max(kChunkChannels, in_per_group);
    if (!fits) {
      const auto first = static_cast<int32_t>(blocks_.size());
      chunks_.push_back({in_begin, 0, first, first});
    }
    Chunk& chunk = chunks_.back();
    chunk.in_count = in_begin + in_per_group - chunk.in_begin;
    const auto [vectors, width] = block_shape(end - o, machine);
    const int64_t channels = end - o, count = ceil_div(channels, width);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = o + i * channels / count, limit = o + (i + 1) * channels / count;
      blocks_.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(limit - begin), vectors, view,
                         in_begin - chunk.in_begin, weights_size_});
      weights_size_ += (limit - begin) * taps_of[view] * in_per_group;
    }
    chunk.block_end = static_cast<int32_t>(blocks_.size());
    o = end;
  }
  for (const Chunk& chunk : chunks_) {
    widest_chunk_ = std::max(widest_chunk_, chunk.in_count);
    const Block& last = blocks_[chunk.block_end - 1];
    most_outputs_ = std::max<int64_t>(most_outputs_,
                                      last.out_begin + last.out_count - blocks_[chunk.block_begin].out_begin);
  }
  segment_count_ = ceil_div(in_per_group, kChannelSlice) * *std::max_element(taps_of, taps_of + kViews);
}

// How rows lie behind one another, and with that the taps' constant offsets.
void CpuPlan::lay_out_rows(const Problem& p) {
  if (positions_.empty()) phases_.push_back({0, 0});
  int64_t row_max = 0, column_max = 0;
  for (size_t i = 0; i < positions_.size(); ++i) {
    const Position& tap = positions_[i];
    const bool first = i == 0;
    walk_.plane_min = first ? tap.plane : std::min(walk_.plane_min, tap.plane);
    walk_.plane_max = first ? tap.plane : std::max(walk_.plane_max, tap.plane);
    walk_.row_min = first ? tap.row : std::min(walk_.row_min, tap.row);
    walk_.column_min = first ? tap.column : std::min(walk_.column_min, tap.column);
    row_max = first ? tap.row : std::max(row_max, tap.row);
    column_max = first ? tap.column : std::max(column_max, tap.column);
  }
  walk_.halo_rows = row_max - walk_.row_min;

  // Zeros to the left of every row's data, and to the right of it in every phase, are stored once for two
  // rows.
  const int64_t width = walk_.out_columns + column_max - walk_.column_min;
  int64_t shared = std::clamp<int64_t>(-walk_.column_min, 0, width);
  for (const Phase& phase : phases_) {
    const int64_t valid = ceil_div(p.in_size[2] - phase.column, p.stride[2]);
    shared = std::min(shared, std::clamp<int64_t>(walk_.out_columns + column_max - valid, 0, width));
  }
  walk_.pitch = std::max(width - shared, walk_.out_columns);

  plane_read_.assign(p.stride[0], false);
  for (const Position& tap : positions_) plane_read_[(tap.plane - walk_.plane_min) % p.stride[0]] = true;
  for (int view = 0; view < kViews; ++view) {
    walk_.tap_begin[view] = static_cast<int32_t>(taps_.size());
    for (const Position& tap : positions_) {
      if (tap.view != view) continue;
      taps_.push_back({tap.plane - walk_.plane_min,
                       (tap.row - walk_.row_min) * walk_.pitch + tap.column - walk_.column_min, tap.phase,
                       tap.kernel_index});
    }
  }
  walk_.tap_begin[kViews] = static_cast<int32_t>(taps_.size());
}

// Numbers of a packed channel row for a strip of `rows`: reads go up to a block of vectors beyond the last
// output.
int64_t CpuPlan::row_numbers(int64_t rows, const CpuMachine& machine) const {
  return spread((rows + walk_.halo_rows + 1) * walk_.pitch + kMostVectors * machine.lanes,
                machine.number_size);
}

// Strips as high as a ring of planes fits into the cache, and as many planes per step as stay there with
// their outputs.
void CpuPlan::choose_strip(const CpuMachine& machine) {
  const double budget = kRingShare * static_cast<double>(machine.cache_size) / machine.number_size;
  const int64_t span = walk_.plane_max - walk_.plane_min + 1;
  const auto channel_rows = static_cast<double>(widest_chunk_ * static_cast<int64_t>(phases_.size()));
  auto ring = [&](int64_t rows, int64_t planes) {
    return channel_rows * static_cast<double>(row_numbers(rows, machine)) *
           static_cast<double>(span + (planes - 1) * walk_.plane_stride);
  };
  int64_t rows = walk_.out_rows;
  for (int64_t strips = 2; rows > kSmallestStrip && ring(rows, 1) > budget; ++strips) {
    rows = std::max(kSmallestStrip, ceil_div(walk_.out_rows, strips));
  }
  const int64_t weight_bytes = weights_size_ * machine.number_size;
  const int64_t stage_bytes = kStageBytes * (weight_bytes > kHeavyWeights ? 3 : 1);
  const int64_t plane_bytes = rows * walk_.pitch * most_outputs_ * machine.number_size;
  int64_t planes = 1;
  while (planes < walk_.out_planes && (planes + 1) * plane_bytes <= stage_bytes &&
         ring(rows, planes + 1) <= budget) {
    ++planes;
  }
  const int64_t block_numbers = kMostVectors * machine.lanes;
  walk_.strip_rows = rows;
  walk_.step_planes = planes;
  walk_.channel_stride = row_numbers(rows, machine);
  walk_.ring_planes = span + (planes - 1) * walk_.plane_stride;
  walk_.stage_plane = round_up(rows * walk_.pitch, block_numbers) + block_numbers;
  walk_.stage_channel = spread(walk_.stage_plane * planes, machine.number_size);
  ring_size_ =
      static_cast<int64_t>(phases_.size()) * widest_chunk_ * walk_.channel_stride * walk_.ring_planes;
  stage_size_ = most_outputs_ * walk_.stage_channel;
}

// Strips of all samples and chunks, and where these are too few for the threads, ranges of planes or blocks
// of them. Either costs packing planes again; the cheapest in a count of cycles is taken.
void CpuPlan::cut_tasks(const Problem& p, const CpuMachine& machine) {
  const int64_t strips = ceil_div(walk_.out_rows, walk_.strip_rows);
  const int64_t whole = p.batch * static_cast<int64_t>(chunks_.size()) * strips;
  int64_t most_blocks = 1;
  for (const Chunk& chunk : chunks_)
    most_blocks = std::max<int64_t>(most_blocks, chunk.block_end - chunk.block_begin);
  const auto plane_products = static_cast<double>(weights_size_) / static_cast<double>(chunks_.size()) *
                              static_cast<double>(walk_.strip_rows * walk_.pitch);
  const double plane_cycles = plane_products / (2.0 * machine.lanes);
  const double pack_cycles = kPackCycles * static_cast<double>(phases_.size() * widest_chunk_) *
                             static_cast<double>((walk_.strip_rows + walk_.halo_rows) * walk_.pitch);
  const int64_t span = walk_.plane_max - walk_.plane_min + 1;

  int64_t plane_parts = 1, block_parts = 1;
  double best = std::numeric_limits<double>::max();
  for (int64_t b = 1; b <= std::min<int64_t>(most_blocks, 2 * machine.threads); ++b) {
    for (int64_t d = 1; d <= std::min<int64_t>(walk_.out_planes, 4 * machine.threads); ++d) {
      const int64_t planes = ceil_div(walk_.out_planes, d);
      const double packed = static_cast<double>((planes - 1) * walk_.plane_stride + span) * pack_cycles;
      const double computed = static_cast<double>(planes) * plane_cycles *
                              static_cast<double>(ceil_div(most_blocks, b)) /
                              static_cast<double>(most_blocks);
      const double cycles =
          static_cast<double>(ceil_div(whole * b * d, machine.threads)) * (packed + computed);
      if (cycles < best * 0.99) best = cycles, plane_parts = d, block_parts = b;
    }
  }

  for (int64_t n = 0; n < p.batch; ++n) {
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const int64_t begin = chunks_[c].block_begin, count = chunks_[c].block_end - begin;
      const int64_t parts = std::min(block_parts, count);
      for (int64_t s = 0; s < strips; ++s) {
        for (int64_t d = 0; d < plane_parts; ++d) {
          for (int64_t b = 0; b < parts; ++b) {
            tasks_.push_back({n, static_cast<int32_t>(c), static_cast<int32_t>(begin + b * count / parts),
                              static_cast<int32_t>(begin + (b + 1) * count / parts), s * walk_.strip_rows,
                              std::min(walk_.out_rows, (s + 1) * walk_.strip_rows),
                              d * walk_.out_planes / plane_parts, (d + 1) * walk_.out_planes / plane_parts});
          }
        }
      }
    }
  }
}

}  // namespace acsconv
