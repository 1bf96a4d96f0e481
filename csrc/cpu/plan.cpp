// Builds the Walk of a gather. The numbers that decide on sizes are explained in csrc/cpu/DESIGN.md.
#include "plan.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace acsconv {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kChannelSlice = 32;
constexpr int64_t kChunkChannels = 64;
constexpr int kWidestBlock = 14;  // channels; walk.cpp has no wider one
constexpr int kMostVectors = 4;
constexpr int kMostPositions = 14;   // voxels; the same for vectors over channels
constexpr int64_t kShortestRun = 4;  // voxels of a row that are a run of their own
// Products of a target from which vectors begin with rows, and may run over channels.
constexpr int64_t kRowReduction = 64, kLongReduction = 256;
constexpr double kRingShare = 0.55;      // of the second-level cache
constexpr int64_t kStageBytes = 300000;  // staged outputs per step
// Where this many bytes of weights stream by in every step, strips are as high as this share allows, and
// three times as much is staged.
constexpr int64_t kHeavyWeights = 800000;
constexpr double kHeavyRingShare = 0.95;
// For the split among threads only: cycles per number that is packed, and per byte of weights.
constexpr double kPackCycles = 1.5, kWeightCycles = 0.28;

// Vectors over channels: one or two of them, and voxels of a run, or with `pairs` of two short runs. The last
// factor is what layers showed whose lanes are all used either way.
BlockShape channel_blocks(int64_t channels, int64_t run, bool pairs, const CpuMachine& machine) {
  const int64_t vectors = ceil_div(channels, machine.lanes);
  const int64_t most = std::min(kMostPositions, machine.accumulators / 2);
  const int32_t positions =
      static_cast<int32_t>(pairs && 2 * run <= most ? 2 * run : ceil_div(run, ceil_div(run, most)));
  return {2, ceil_div(vectors, ceil_div(vectors, 2)) * machine.lanes, positions, false,
          static_cast<double>(vectors * machine.lanes) * (0.89 + 1.0 / positions)};
}

}  // namespace

BlockShape voxel_blocks(int64_t channels, const CpuMachine& machine) {
  // An unaligned load is two where vectors are as wide as a cache line, and now and then where they are half
  // as wide.
  const double load = machine.lanes * machine.number_size >= kCacheLine ? 2.0 : 1.3;
  BlockShape best{1, 1, 0, false, 0};
  double best_score = -1;
  for (int vectors = kMostVectors; vectors >= 1; --vectors) {
    // Two vectors were best, or as good as any, from 8 channels on.
    if (channels >= 8 && vectors != 2) continue;
    const int64_t widest = std::min(kWidestBlock, machine.accumulators / vectors);
    const int64_t width = ceil_div(channels, ceil_div(channels, widest));
    const double work = vectors * width / 2.0;
    const double score = work / std::max({work, (load * vectors + width) / 2, 4.0});
    if (score > best_score + 1e-9) {
      best_score = score, best = {vectors, width, 0, false, static_cast<double>(channels)};
    }
  }
  return best;
}

int64_t spread(int64_t numbers, int number_size) {
  const int64_t per_line = kCacheLine / number_size;
  return (ceil_div(numbers, per_line) | 1) * per_line;
}

std::pair<int32_t, int32_t> taps_of(const Gather& gather, const std::array<int64_t, 3>& residue, int set) {
  GatherTap wanted{};
  wanted.residue = residue, wanted.set = set;
  const auto [begin, end] = std::equal_range(gather.taps.begin(), gather.taps.end(), wanted,
                                             [](const GatherTap& a, const GatherTap& b) {
                                               return std::tie(a.residue, a.set) < std::tie(b.residue, b.set);
                                             });
  return {static_cast<int32_t>(begin - gather.taps.begin()), static_cast<int32_t>(end - gather.taps.begin())};
}

Sweep sweep_of(const Gather& gather, const Lattice& lattice) {
  Sweep sweep{};
  sweep.packing = lattice.packing();
  sweep.in_planes = gather.in_size[0];
  sweep.plane_stride = gather.in_stride[0];
  sweep.plane_min = lattice.plane_min(), sweep.plane_max = lattice.plane_max();
  sweep.plane_read = lattice.plane_read().data();
  sweep.target = {gather.target.batch, gather.target.channel, gather.target.axis[0], gather.target.axis[1],
                  gather.target.axis[2]};
  for (int axis = 0; axis < 3; ++axis) {
    sweep.out_size[axis] = gather.out_size[axis], sweep.out_stride[axis] = gather.out_stride[axis];
    sweep.classes[axis] = gather.classes(axis);
  }
  sweep.class_columns = gather.class_size(2);
  return sweep;
}

std::vector<RangeChunk> range_chunks(const Gather& gather) {
  const int64_t per_group = gather.in_channels / gather.groups;
  const int64_t groups = std::max<int64_t>(1, kChunkChannels / std::max<int64_t>(1, per_group));
  std::vector<RangeChunk> chunks;
  const GatherRange* const limit = gather.ranges.data() + gather.ranges.size();
  for (const GatherRange* begin = gather.ranges.data(); begin != limit;) {
    const GatherRange* end = begin;
    int64_t in_begin = gather.in_channels, in_end = 0;
    while (end != limit && end->group < begin->group + groups) {
      for (const GatherPart& part : end->parts) {
        in_begin = std::min(in_begin, part.in_begin),
        in_end = std::max(in_end, part.in_begin + part.in_count);
      }
      ++end;
    }
    chunks.push_back({begin, end, in_begin, in_end - in_begin});
    begin = end;
  }
  return chunks;
}

CpuPlan::CpuPlan(const Gather& gather, const CpuMachine& machine)
    : lattice_(gather),
      walk_{sweep_of(gather, lattice_),
            lattice_.taps().data(),
            nullptr,
            nullptr,
            nullptr,
            kChannelSlice,
            nullptr,
            nullptr,
            gather.weight_in,
            gather.weight_out,
            false,
            gather.class_size(2) >= kShortestRun,
            0} {
  for (const GatherTap& tap : gather.taps) {
    tap_weights_.push_back({tap.weight_count, {tap.weights[0], tap.weights[1], tap.weights[2]}});
  }
  std::vector<int64_t> block_counts;
  for (const RangeChunk& ranges : range_chunks(gather)) {
    chunks_.push_back({ranges.in_begin, ranges.in_count, static_cast<int32_t>(blocks_.size()), 0});
    cut_blocks(gather, machine, chunks_.back(), ranges);
    block_counts.push_back(chunks_.back().block_count);
    widest_chunk_ = std::max(widest_chunk_, ranges.in_count);
    most_targets_ = std::max(most_targets_, ranges.targets());
  }
  choose_strip(gather, machine);
  tasks_ = cut_tasks(gather, walk_, block_counts, strip_rows_, costs(machine), machine.threads);
  place_weights(gather);
  walk_.parts = parts_.data();
  walk_.blocks = blocks_.data();
  walk_.chunks = chunks_.data();
  walk_.tap_weights = tap_weights_.data();
  walk_.part_weights = part_weights_.data();
}

// Vectors over voxels, or, where these leave more lanes to the borders of rows than views of channels leave,
// over channels.
BlockShape CpuPlan::block_shape(const Gather& gather, const GatherRange& range,
                                const CpuMachine& machine) const {
  const int64_t channels = range.out_end - range.out_begin;
  const int64_t rows = gather.class_size(1), columns = gather.class_size(2);
  const int64_t flat = (rows - 1) * walk_.packing.pitch + columns;
  int64_t products = 0;
  for (const GatherPart& part : range.parts) {
    for (const GatherTap& tap : gather.taps) products += tap.set == part.set ? part.in_count : 0;
  }
  products /= gather.classes(0) * gather.classes(1) * gather.classes(2);
  const auto targets = static_cast<double>(rows * columns);
  BlockShape voxels = voxel_blocks(channels, machine);
  voxels.whole_rows = columns % machine.lanes == 0 && products >= kRowReduction;
  if (!voxels.whole_rows) voxels.cost *= static_cast<double>(round_up(flat, machine.lanes)) / targets;
  if (products < kLongReduction) return voxels;
  BlockShape over = channel_blocks(channels, walk_.rows_are_runs ? columns : flat,
                                   walk_.rows_are_runs && rows > 1, machine);
  if (!walk_.rows_are_runs) over.cost *= static_cast<double>(flat) / targets;
  return over.cost < voxels.cost ? over : voxels;
}

// Target channels in blocks that fit into registers, for one class after the other.
void CpuPlan::cut_blocks(const Gather& gather, const CpuMachine& machine, Chunk& chunk,
                         const RangeChunk& ranges) {
  for_each_class(gather, [&](const std::array<int64_t, 3>& residue) {
    for (const GatherRange* range = ranges.begin; range != ranges.end; ++range) {
      const int64_t channels = range->out_end - range->out_begin;
      const BlockShape shape = block_shape(gather, *range, machine);
      const int64_t step = shape.positions > 0 ? machine.lanes : 1;  // blocks begin at whole vectors
      const int64_t steps = ceil_div(channels, step), count = ceil_div(channels, shape.width);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t first = i * steps / count * step;
        const int64_t last = std::min(channels, (i + 1) * steps / count * step);
        Block block{};
        block.out_begin = static_cast<int32_t>(range->out_begin + first);
        block.out_count = static_cast<int32_t>(last - first);
        block.positions = shape.positions;
        block.whole_rows = shape.whole_rows;
        block.width = static_cast<int32_t>(round_up(last - first, step));
        block.vectors = shape.positions > 0 ? block.width / machine.lanes : shape.vectors;
        block.single = true;
        block.part_begin = static_cast<int32_t>(parts_.size());
        block.weights = weights_size_;
        int64_t segments = 0;
        for (const GatherPart& part : range->parts) {
          const auto [tap, tap_end] = taps_of(gather, residue, part.set);
          parts_.push_back({tap, tap_end, part.in_begin - chunk.in_begin, part.in_count});
          part_weights_.push_back(part.weight + first * gather.weight_out);
          block.single &= part.in_count == 1;
          weights_size_ += (tap_end - tap) * part.in_count * block.width;
          segments += (tap_end - tap) * ceil_div(part.in_count, kChannelSlice);
        }
        block.part_end = static_cast<int32_t>(parts_.size());
        if (shape.positions > 0) widest_sums_ = std::max<int64_t>(widest_sums_, block.width);
        segment_count_ = std::max(segment_count_, segments);
        blocks_.push_back(block);
      }
    }
    if (residue[0] + residue[1] + residue[2] == 0) {
      chunk.block_count = static_cast<int32_t>(blocks_.size()) - chunk.block_begin;
    }
  });
}

// Strips as high as a ring of planes fits into the cache, and as many planes per step as stay there with
// their outputs.
void CpuPlan::choose_strip(const Gather& gather, const CpuMachine& machine) {
  // The last vector begins before the last target ends, so it reads and writes less than its length beyond
  // it.
  auto channel_stride = [&](int64_t rows) {
    return spread(lattice_.row_numbers(rows, machine.lanes), machine.number_size);
  };
  const double cache = static_cast<double>(machine.cache_size) / machine.number_size;
  const bool heavy = weights_size_ * machine.number_size > kHeavyWeights;
  const int64_t channel_rows = widest_chunk_ * walk_.packing.phase_count;
  auto ring = [&](int64_t rows, int64_t planes) {
    return static_cast<double>(channel_rows) * static_cast<double>(channel_stride(rows)) *
           static_cast<double>(lattice_.span() + (planes - 1) * walk_.plane_stride);
  };
  const int64_t class_rows = gather.class_size(1), class_planes = gather.class_size(0);
  const int64_t rows = rows_of_strip(
      class_rows, [&](int64_t r) { return ring(r, 1) <= cache * (heavy ? kHeavyRingShare : kRingShare); });
  const int64_t staged_channels = most_targets_ * walk_.classes[2];
  const int64_t stage_bytes = kStageBytes * (heavy ? 3 : 1);
  const int64_t plane_bytes = rows * walk_.packing.pitch * staged_channels * machine.number_size;
  int64_t planes = 1;
  while (planes < class_planes && (planes + 1) * plane_bytes <= stage_bytes &&
         ring(rows, planes + 1) <= cache * kRingShare) {
    ++planes;
  }
  strip_rows_ = rows;
  walk_.step_planes = planes;
  walk_.packing.channel_stride = channel_stride(rows);
  walk_.ring_planes = lattice_.span() + (planes - 1) * walk_.plane_stride;
  walk_.stage_plane = round_up(rows * walk_.packing.pitch, machine.lanes) + machine.lanes;
  walk_.stage_channel = spread(walk_.stage_plane * planes, machine.number_size);
  ring_size_ = channel_rows * walk_.packing.channel_stride * walk_.ring_planes;
  walk_.sums = staged_channels * walk_.stage_channel;
  stage_size_ = walk_.sums + walk_.stage_plane * widest_sums_;
}

// Where every block is computed in one task and step, a thread has room for the weights of one block.
void CpuPlan::place_weights(const Gather& gather) {
  if (tasks_.empty()) return;
  const Task& task = tasks_[0];  // all have all rows and planes if one has
  walk_.weights_in_tasks =
      gather.batch == 1 && task.row_end == gather.class_size(1) && task.plane_end == gather.class_size(0);
  if (!weights_used_once()) return;
  int64_t most = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const int64_t end = i + 1 < blocks_.size() ? blocks_[i + 1].weights : weights_size_;
    most = std::max(most, end - blocks_[i].weights);
    blocks_[i].weights = 0;
  }
  weights_size_ = most;
}

TaskCosts CpuPlan::costs(const CpuMachine& machine) const {
  const auto plane_products = static_cast<double>(weights_size_) / static_cast<double>(chunks_.size()) *
                              static_cast<double>(strip_rows_ * walk_.packing.pitch);
  return {plane_products / (2.0 * machine.lanes),
          kPackCycles * static_cast<double>(walk_.packing.phase_count * widest_chunk_) *
              static_cast<double>((strip_rows_ + walk_.packing.halo_rows) * walk_.packing.pitch),
          kWeightCycles * static_cast<double>(weights_size_ * machine.number_size)};
}

// Ranges of planes or blocks cost packing planes again; the cheapest in a count of cycles is taken.
std::vector<Task> cut_tasks(const Gather& gather, const Sweep& sweep,
                            const std::vector<int64_t>& block_counts, int64_t strip_rows,
                            const TaskCosts& costs, int threads) {
  const int64_t class_rows = gather.class_size(1), class_planes = gather.class_size(0);
  const int64_t strips = ceil_div(class_rows, strip_rows), span = sweep.plane_max - sweep.plane_min + 1;
  const int64_t whole = gather.batch * static_cast<int64_t>(block_counts.size()) * strips;
  int64_t most_blocks = 1;
  for (int64_t count : block_counts) most_blocks = std::max(most_blocks, count);

  int64_t plane_parts = 1, block_parts = 1;
  double best = std::numeric_limits<double>::max();
  for (int64_t b = 1; b <= std::min<int64_t>(most_blocks, 2 * threads); ++b) {
    for (int64_t d = 1; d <= std::min<int64_t>(class_planes, 4 * threads); ++d) {
      const int64_t planes = ceil_div(class_planes, d);
      const double packed = static_cast<double>((planes - 1) * sweep.plane_stride + span) * costs.pack_plane;
      const double computed = static_cast<double>(planes) * costs.plane *
                              static_cast<double>(ceil_div(most_blocks, b)) /
                              static_cast<double>(most_blocks);
      // Weights that a task packs itself are in its cache in the first step.
      const int64_t loads = ceil_div(planes, sweep.step_planes) - (gather.batch * strips * d == 1 ? 1 : 0);
      const double loaded = static_cast<double>(loads) * costs.weights / static_cast<double>(b);
      const double cycles =
          static_cast<double>(ceil_div(whole * b * d, threads)) * (packed + computed + loaded);
      if (cycles < best * 0.99) best = cycles, plane_parts = d, block_parts = b;
    }
  }

  std::vector<Task> tasks;
  for (int64_t n = 0; n < gather.batch; ++n) {
    for (size_t c = 0; c < block_counts.size(); ++c) {
      const int64_t count = block_counts[c], parts = std::min(block_parts, count);
      for (int64_t s = 0; s < strips; ++s) {
        for (int64_t d = 0; d < plane_parts; ++d) {
          for (int64_t b = 0; b < parts; ++b) {
            tasks.push_back({n, static_cast<int32_t>(c), static_cast<int32_t>(b * count / parts),
                             static_cast<int32_t>((b + 1) * count / parts), s * strip_rows,
                             std::min(class_rows, (s + 1) * strip_rows), d * class_planes / plane_parts,
                             (d + 1) * class_planes / plane_parts});
          }
        }
      }
    }
  }
  return tasks;
}

}  // namespace acsconv
