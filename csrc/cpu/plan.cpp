// Builds the Walk of a gather. The numbers that decide on sizes are explained in csrc/DESIGN.md.
#include "plan.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "integers.h"

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

auto taps_of(const Gather& gather, const std::array<int64_t, 3>& residue, int set) {
  GatherTap wanted{};
  wanted.residue = residue, wanted.set = set;
  return std::equal_range(gather.taps.begin(), gather.taps.end(), wanted,
                          [](const GatherTap& a, const GatherTap& b) {
                            return std::tie(a.residue, a.set) < std::tie(b.residue, b.set);
                          });
}

}  // namespace

int64_t spread(int64_t numbers, int number_size) {
  const int64_t per_line = kCacheLine / number_size;
  return (ceil_div(numbers, per_line) | 1) * per_line;
}

CpuPlan::CpuPlan(const Gather& gather, const CpuMachine& machine) : lattice_(gather) {
  walk_.packing = lattice_.packing();
  walk_.taps = lattice_.taps().data();
  walk_.channel_slice = kChannelSlice;
  walk_.in_planes = gather.in_size[0];
  walk_.plane_stride = gather.in_stride[0];
  walk_.plane_min = lattice_.plane_min(), walk_.plane_max = lattice_.plane_max();
  walk_.plane_read = lattice_.plane_read().data();
  walk_.target = {gather.target.batch, gather.target.channel, gather.target.axis[0], gather.target.axis[1],
                  gather.target.axis[2]};
  for (int axis = 0; axis < 3; ++axis) {
    walk_.out_size[axis] = gather.out_size[axis], walk_.out_stride[axis] = gather.out_stride[axis];
    walk_.classes[axis] = gather.classes(axis);
  }
  walk_.class_columns = gather.class_size(2);
  cut_chunks(gather, machine);
  choose_strip(gather, machine);
  cut_tasks(gather, machine);
  walk_.parts = parts_.data();
  walk_.blocks = blocks_.data();
  walk_.chunks = chunks_.data();
}

// Groups whose source channels are packed together.
void CpuPlan::cut_chunks(const Gather& gather, const CpuMachine& machine) {
  const int64_t per_group = gather.in_channels / gather.groups;
  const int64_t groups = std::max<int64_t>(1, kChunkChannels / std::max<int64_t>(1, per_group));
  const GatherRange* const limit = gather.ranges.data() + gather.ranges.size();
  for (const GatherRange* begin = gather.ranges.data(); begin != limit;) {
    const GatherRange* end = begin;
    while (end != limit && end->group < begin->group + groups) ++end;
    chunks_.push_back({begin->group * per_group, (end[-1].group + 1 - begin->group) * per_group, 0, 0});
    cut_blocks(gather, machine, chunks_.back(), begin, end);
    widest_chunk_ = std::max(widest_chunk_, chunks_.back().in_count);
    most_targets_ = std::max(most_targets_, end[-1].out_end - begin->out_begin);
    begin = end;
  }
}

// Target channels in blocks that fit into registers, for one class after the other.
void CpuPlan::cut_blocks(const Gather& gather, const CpuMachine& machine, Chunk& chunk,
                         const GatherRange* begin, const GatherRange* end) {
  chunk.block_begin = static_cast<int32_t>(blocks_.size());
  std::array<int64_t, 3> residue{};
  for (residue[0] = 0; residue[0] < gather.classes(0); ++residue[0]) {
    for (residue[1] = 0; residue[1] < gather.classes(1); ++residue[1]) {
      for (residue[2] = 0; residue[2] < gather.classes(2); ++residue[2]) {
        for (const GatherRange* range = begin; range != end; ++range) {
          const int64_t channels = range->out_end - range->out_begin;
          const auto [vectors, width] = block_shape(channels, machine);
          const int64_t count = ceil_div(channels, width);
          for (int64_t i = 0; i < count; ++i) {
            const int64_t first = i * channels / count, last = (i + 1) * channels / count;
            Block block{};
            block.out_begin = static_cast<int32_t>(range->out_begin + first);
            block.out_count = static_cast<int32_t>(last - first);
            block.vectors = vectors;
            block.single = true;
            block.part_begin = static_cast<int32_t>(parts_.size());
            block.weights = weights_size_;
            int64_t segments = 0;
            for (const GatherPart& part : range->parts) {
              const auto [tap, tap_end] = taps_of(gather, residue, part.set);
              parts_.push_back({static_cast<int32_t>(tap - gather.taps.begin()),
                                static_cast<int32_t>(tap_end - gather.taps.begin()),
                                part.in_begin - chunk.in_begin, part.in_count});
              part_weights_.push_back(part.weight + first * gather.weight_out);
              block.single &= part.in_count == 1;
              weights_size_ += (tap_end - tap) * part.in_count * block.out_count;
              segments += (tap_end - tap) * ceil_div(part.in_count, kChannelSlice);
            }
            block.part_end = static_cast<int32_t>(parts_.size());
            segment_count_ = std::max(segment_count_, segments);
            blocks_.push_back(block);
          }
        }
        if (residue[0] + residue[1] + residue[2] == 0) {
          chunk.block_count = static_cast<int32_t>(blocks_.size()) - chunk.block_begin;
        }
      }
    }
  }
}

// Strips as high as a ring of planes fits into the cache, and as many planes per step as stay there with
// their outputs.
void CpuPlan::choose_strip(const Gather& gather, const CpuMachine& machine) {
  // Reads go up to a block of vectors beyond the last target.
  const int64_t block_numbers = kMostVectors * machine.lanes;
  auto channel_stride = [&](int64_t rows) {
    return spread(lattice_.row_numbers(rows, block_numbers), machine.number_size);
  };
  const double budget = kRingShare * static_cast<double>(machine.cache_size) / machine.number_size;
  const int64_t channel_rows = widest_chunk_ * walk_.packing.phase_count;
  auto ring = [&](int64_t rows, int64_t planes) {
    return static_cast<double>(channel_rows) * static_cast<double>(channel_stride(rows)) *
           static_cast<double>(lattice_.span() + (planes - 1) * walk_.plane_stride);
  };
  const int64_t class_rows = gather.class_size(1), class_planes = gather.class_size(0);
  int64_t rows = class_rows;
  for (int64_t strips = 2; rows > kSmallestStrip && ring(rows, 1) > budget; ++strips) {
    rows = std::max(kSmallestStrip, ceil_div(class_rows, strips));
  }
  const int64_t staged_channels = most_targets_ * walk_.classes[2];
  const int64_t weight_bytes = weights_size_ * machine.number_size;
  const int64_t stage_bytes = kStageBytes * (weight_bytes > kHeavyWeights ? 3 : 1);
  const int64_t plane_bytes = rows * walk_.packing.pitch * staged_channels * machine.number_size;
  int64_t planes = 1;
  while (planes < class_planes && (planes + 1) * plane_bytes <= stage_bytes &&
         ring(rows, planes + 1) <= budget) {
    ++planes;
  }
  strip_rows_ = rows;
  walk_.step_planes = planes;
  walk_.packing.channel_stride = channel_stride(rows);
  walk_.ring_planes = lattice_.span() + (planes - 1) * walk_.plane_stride;
  walk_.stage_plane = round_up(rows * walk_.packing.pitch, block_numbers) + block_numbers;
  walk_.stage_channel = spread(walk_.stage_plane * planes, machine.number_size);
  ring_size_ = channel_rows * walk_.packing.channel_stride * walk_.ring_planes;
  stage_size_ = staged_channels * walk_.stage_channel;
}

// Strips of all samples and chunks, and where these are too few for the threads, ranges of planes or blocks
// of them. Either costs packing planes again; the cheapest in a count of cycles is taken.
void CpuPlan::cut_tasks(const Gather& gather, const CpuMachine& machine) {
  const int64_t class_rows = gather.class_size(1), class_planes = gather.class_size(0);
  const int64_t strips = ceil_div(class_rows, strip_rows_);
  const int64_t whole = gather.batch * static_cast<int64_t>(chunks_.size()) * strips;
  int64_t most_blocks = 1;
  for (const Chunk& chunk : chunks_) most_blocks = std::max<int64_t>(most_blocks, chunk.block_count);
  const auto plane_products = static_cast<double>(weights_size_) / static_cast<double>(chunks_.size()) *
                              static_cast<double>(strip_rows_ * walk_.packing.pitch);
  const double plane_cycles = plane_products / (2.0 * machine.lanes);
  const double pack_cycles =
      kPackCycles * static_cast<double>(walk_.packing.phase_count * widest_chunk_) *
      static_cast<double>((strip_rows_ + walk_.packing.halo_rows) * walk_.packing.pitch);

  int64_t plane_parts = 1, block_parts = 1;
  double best = std::numeric_limits<double>::max();
  for (int64_t b = 1; b <= std::min<int64_t>(most_blocks, 2 * machine.threads); ++b) {
    for (int64_t d = 1; d <= std::min<int64_t>(class_planes, 4 * machine.threads); ++d) {
      const int64_t planes = ceil_div(class_planes, d);
      const double packed =
          static_cast<double>((planes - 1) * walk_.plane_stride + lattice_.span()) * pack_cycles;
      const double computed = static_cast<double>(planes) * plane_cycles *
                              static_cast<double>(ceil_div(most_blocks, b)) /
                              static_cast<double>(most_blocks);
      const double cycles =
          static_cast<double>(ceil_div(whole * b * d, machine.threads)) * (packed + computed);
      if (cycles < best * 0.99) best = cycles, plane_parts = d, block_parts = b;
    }
  }

  for (int64_t n = 0; n < gather.batch; ++n) {
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const int64_t count = chunks_[c].block_count, parts = std::min(block_parts, count);
      for (int64_t s = 0; s < strips; ++s) {
        for (int64_t d = 0; d < plane_parts; ++d) {
          for (int64_t b = 0; b < parts; ++b) {
            tasks_.push_back({n, static_cast<int32_t>(c), static_cast<int32_t>(b * count / parts),
                              static_cast<int32_t>((b + 1) * count / parts), s * strip_rows_,
                              std::min(class_rows, (s + 1) * strip_rows_), d * class_planes / plane_parts,
                              (d + 1) * class_planes / plane_parts});
          }
        }
      }
    }
  }
}

}  // namespace acsconv
