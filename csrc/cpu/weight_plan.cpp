// Builds the WeightWalk. The numbers that decide on sizes are explained in csrc/cpu/DESIGN.md.
#include "weight_plan.h"

#include <algorithm>

#include "integers.h"
#include "plan.h"
#include "tile_walk.h"

namespace acsconv {
namespace {

constexpr int kWidestBlock = 14;  // output channels; weight_outer.cpp has no wider one
constexpr int64_t kOuterVectors = 2;
constexpr int64_t kChunkChannels = 64;
constexpr double kRingShare = 0.6;                 // of the second-level cache
constexpr int64_t kSumsBytes = int64_t{1} << 24;   // of all parts
constexpr int64_t kChain = 128, kLongChain = 512;  // voxels
constexpr int64_t kTileChain = 256;
constexpr int64_t kOutputsBesideDots = 6;  // as many cost as much as one
constexpr int64_t kTasks = 16;             // what the work is cut into, if it is worth it ...
constexpr double kTaskProducts = 1e6;      // ... which takes so many products per task
constexpr double kBusy = 0.85;             // of the threads' time, if all tasks take the same

// Whether tiles are filled well enough to be faster than vectors of float. Dot products of these pad nothing.
bool tiles_pay(const Gather& gather, const TileWeightKernel& kernel, bool beside_dots) {
  const int64_t per_group = gather.in_channels / gather.groups;
  const int64_t outputs = beside_dots ? std::max(kernel.outputs, kOutputsBesideDots) : kernel.outputs;
  int64_t products = 0, padded = 0;
  for (const GatherRange& range : gather.ranges) {
    const int64_t channels = range.out_end - range.out_begin;
    products += channels * per_group;
    padded += round_up(channels, outputs) * round_up(per_group, kTileColumns);
  }
  return static_cast<double>(padded) <= kernel.most_padding * static_cast<double>(products);
}

}  // namespace

WeightPlan::WeightPlan(const Gather& gather, const WeightMachine& machine) : lattice_(gather) {
  const int64_t per_group = gather.in_channels / gather.groups;
  form_ = 2 * per_group > machine.lanes ? WeightForm::kOuter : WeightForm::kDots;
  if (machine.tiles != nullptr && tiles_pay(gather, *machine.tiles, form_ == WeightForm::kDots)) {
    form_ = WeightForm::kTiles;
  }
  number_size_ = form_ == WeightForm::kTiles ? sizeof(uint16_t) : machine.number_size;
  walk_.source = lattice_.packing();
  walk_.grad = walk_.source;  // pitch
  walk_.grad.source = {gather.target.batch, gather.target.channel, gather.target.axis[0],
                       gather.target.axis[1], gather.target.axis[2]};
  walk_.grad.source_numbers =
      tensor_numbers(gather.target, gather.batch, gather.ranges.back().out_end, gather.out_size);
  walk_.grad.in_rows = gather.out_size[1], walk_.grad.in_columns = gather.out_size[2];
  walk_.grad.row_stride = walk_.grad.column_stride = 1;
  walk_.grad.phases = &grad_phase_, walk_.grad.phase_count = 1;
  walk_.grad.row_min = walk_.grad.column_min = walk_.grad.halo_rows = 0;
  walk_.taps = lattice_.taps().data();
  walk_.group_channels = per_group;
  walk_.panel_width = form_ == WeightForm::kTiles   ? kWeightPanelChannels
                      : form_ == WeightForm::kOuter ? kOuterVectors * machine.lanes
                                                    : per_group;
  walk_.in_planes = gather.in_size[0];
  walk_.plane_stride = gather.in_stride[0];
  walk_.plane_min = lattice_.plane_min(), walk_.plane_max = lattice_.plane_max();
  walk_.plane_read = lattice_.plane_read().data();
  walk_.out_planes = gather.out_size[0], walk_.out_rows = gather.out_size[1];
  walk_.out_columns = gather.out_size[2];
  cut_blocks(gather, machine);
  walk_.bias_lost = walk_.bias_sums + bias_size_;
  choose_strip(machine);
  cut_tasks(gather, machine);
  walk_.blocks = blocks_.data();
  walk_.chunks = chunks_.data();
}

// Output channels in blocks that fit into registers, and groups in chunks that are packed together: one group
// where its channels fill vectors.
void WeightPlan::cut_blocks(const Gather& gather, const WeightMachine& machine) {
  const int64_t per_group = walk_.group_channels;
  const bool dots = form_ == WeightForm::kDots, tiles = form_ == WeightForm::kTiles;
  const int64_t padded = padded_group_ =
      dots ? per_group : round_up(per_group, tiles ? int64_t{kTileRows} : machine.lanes);
  const int64_t groups = dots ? std::max<int64_t>(1, kChunkChannels / std::max<int64_t>(1, per_group)) : 1;
  const int64_t vectors = std::min(kOuterVectors, ceil_div(std::max<int64_t>(1, padded), machine.lanes));
  const int64_t step = tiles ? machine.tiles->outputs : 1;
  const int64_t widest =
      tiles ? machine.tiles->widest : std::min<int64_t>(kWidestBlock, machine.accumulators / vectors);
  int64_t chunk_group = -1;
  for (const GatherRange& range : gather.ranges) {
    if (chunks_.empty() || range.group >= chunk_group + groups) {
      const auto first = static_cast<int32_t>(blocks_.size());
      chunks_.push_back({range.group * per_group, 0, first, first});
      chunk_group = range.group;
    }
    WeightChunk& chunk = chunks_.back();
    chunk.in_count = (range.group + 1) * per_group - chunk.in_begin;
    const auto own = [&](const GatherTap& tap) { return tap.set == range.parts[0].set; };
    const auto tap = std::find_if(gather.taps.begin(), gather.taps.end(), own);
    const auto tap_end = std::find_if_not(tap, gather.taps.end(), own);
    const int64_t taps = tap_end - tap, channels = range.out_end - range.out_begin;
    const int64_t count = ceil_div(channels, widest);
    // Equal blocks, but whole tiles.
    const auto cut = [&](int64_t i) {
      return step > 1 ? std::min(i * widest, channels) : i * channels / count;
    };
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = range.out_begin + cut(i), end = range.out_begin + cut(i + 1);
      const int64_t width = round_up(end - begin, step);
      blocks_.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(end - begin),
                         static_cast<int32_t>(tap - gather.taps.begin()),
                         static_cast<int32_t>(tap_end - gather.taps.begin()),
                         range.group * per_group - chunk.in_begin, width, walk_.bias_sums});
      walk_.bias_sums += width * taps * padded;
    }
    chunk.block_end = static_cast<int32_t>(blocks_.size());
    bias_size_ = range.out_end;
    if (dots) item_count_ = std::max(item_count_, taps * per_group);
  }
  for (const WeightChunk& chunk : chunks_) {
    const WeightBlock &first = blocks_[chunk.block_begin], &last = blocks_[chunk.block_end - 1];
    padded_channels_ = std::max(padded_channels_, dots ? chunk.in_count : padded);
    const int64_t outputs = tiles ? (chunk.block_end - chunk.block_begin) * kWeightPanelChannels
                                  : last.out_begin + last.out_count - first.out_begin;
    most_outputs_ = std::max(most_outputs_, outputs);
    if (!dots) continue;
    const int64_t end = chunk.block_end < static_cast<int64_t>(blocks_.size()) ? blocks_[chunk.block_end].sums
                                                                               : walk_.bias_sums;
    vectors_size_ = std::max(vectors_size_, (end - first.sums) * machine.lanes);
  }
}

// Strips as high as a ring of source planes and a plane of the gradient fit into the cache.
void WeightPlan::choose_strip(const WeightMachine& machine) {
  const bool dots = form_ == WeightForm::kDots, tiles = form_ == WeightForm::kTiles;
  const int64_t margin = tiles ? kTileDepth : 4 * machine.lanes;  // vectors reach beyond the last position
  auto positions = [&](int64_t rows) {
    const int64_t numbers = lattice_.row_numbers(rows, form_ == WeightForm::kOuter ? 0 : margin);
    return dots ? spread(numbers, number_size_) : tiles ? round_up(numbers, kTileDepth) : numbers;
  };
  auto grad_positions = [&](int64_t rows) {
    const int64_t numbers = rows * walk_.source.pitch;
    return dots    ? spread(numbers + walk_.source.pitch + margin, number_size_)
           : tiles ? round_up(numbers, kTileDepth)
                   : numbers;
  };
  // Of a source channel in all phases; tiles have each of them twice.
  auto channel_numbers = [&](int64_t rows) {
    return (tiles ? 2 : 1) * walk_.source.phase_count * positions(rows);
  };
  auto ring = [&](int64_t rows, int64_t planes) {
    return (lattice_.span() + (planes - 1) * walk_.plane_stride) * padded_channels_ * channel_numbers(rows);
  };
  const double budget = kRingShare * static_cast<double>(machine.cache_size) / number_size_;
  const int64_t rows = rows_of_strip(walk_.out_rows, [&](int64_t r) {
    return static_cast<double>(ring(r, 1) + most_outputs_ * grad_positions(r)) <= budget;
  });
  walk_.strip_rows = rows;
  walk_.strips = ceil_div(walk_.out_rows, rows);
  walk_.source_positions = positions(rows);
  walk_.grad_positions = grad_positions(rows);
  walk_.source.channel_stride = tiles ? channel_numbers(rows) : walk_.source_positions;
  walk_.grad.channel_stride = tiles ? spread(walk_.grad_positions, number_size_) : walk_.grad_positions;
  walk_.step_planes = 1;
  if (!dots) {
    // Where sums do not stay in the cache, they are visited less often.
    const bool heavy = 2 * sums_size() * machine.number_size > machine.cache_size;
    walk_.chain = tiles ? kTileChain : heavy ? kLongChain : kChain;
    const int64_t planes = walk_.chain / (rows * walk_.source.pitch);
    // Chains of a plane about equally long.
    const int64_t chains = ceil_div(walk_.grad_positions, walk_.chain);
    if (tiles) walk_.chain = round_up(ceil_div(walk_.grad_positions, chains), kTileDepth);
    if (walk_.strips == 1) walk_.step_planes = std::clamp<int64_t>(planes, 1, walk_.out_planes);
    item_count_ = walk_.step_planes;
  }
  if (tiles) {
    vectors_size_ = kWeightPanelChannels *
                    std::max(walk_.source.phase_count * walk_.source_positions, walk_.grad_positions);
  }
  walk_.ring_planes = lattice_.span() + (walk_.step_planes - 1) * walk_.plane_stride;
  ring_size_ = ring(rows, walk_.step_planes) + (dots ? walk_.source_positions : 0) + margin;
  grad_size_ = most_outputs_ * walk_.grad.channel_stride * walk_.step_planes + margin;
}

// Parts of the volume first, as each packs its own planes, but for those at its ends, once; then, where these
// are too few for the threads, ranges of blocks, each of which packs the source anew. Only parts decide how
// sums are made, so they do not depend on the threads.
void WeightPlan::cut_tasks(const Gather& gather, const WeightMachine& machine) {
  const int64_t units = gather.batch * walk_.strips * walk_.out_planes;
  const double products = static_cast<double>(walk_.bias_sums) * static_cast<double>(gather.batch) *
                          static_cast<double>(walk_.out_rows * walk_.source.pitch * walk_.out_planes);
  const auto chunks = static_cast<int64_t>(chunks_.size());
  const bool tiles = form_ == WeightForm::kTiles;
  const double task_products = kTaskProducts * (tiles ? machine.tiles->of_vectors : 1);
  const int64_t wanted =
      std::clamp<int64_t>(static_cast<int64_t>(products / task_products), 1, std::max(kTasks, chunks));
  const int64_t per_part =
      std::max<int64_t>({1, 2 * lattice_.span() / walk_.plane_stride, walk_.step_planes});
  const int64_t sums_bytes = std::max<int64_t>(1, sums_size() * machine.number_size);
  parts_ = std::min({ceil_div(wanted, chunks), units / per_part, kSumsBytes / sums_bytes});
  parts_ = std::max<int64_t>(1, parts_);
  // On tiles packing is dear: a number of parts that most numbers of threads share evenly.
  while (tiles && (parts_ & (parts_ - 1)) != 0) --parts_;
  // The fewest pieces with which no thread waits for long.
  const int64_t threads = std::min<int64_t>(machine.threads, wanted);
  int64_t most = 1;
  auto busy = [&](int64_t pieces) {
    const int64_t tasks = pieces * chunks * parts_;
    return static_cast<double>(tasks) / static_cast<double>(round_up(tasks, threads));
  };
  while (most < wanted && busy(most) < kBusy) ++most;
  for (int64_t part = 0; part < parts_; ++part) {
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t begin = chunks_[c].block_begin, count = chunks_[c].block_end - begin;
      const int64_t pieces = std::min(count, most);
      for (int64_t b = 0; b < pieces; ++b) {
        tasks_.push_back({part, static_cast<int32_t>(c), static_cast<int32_t>(begin + b * count / pieces),
                          static_cast<int32_t>(begin + (b + 1) * count / pieces), part * units / parts_,
                          (part + 1) * units / parts_});
      }
    }
  }
}

int64_t WeightPlan::width_of_panel(int64_t channel) const {
  return std::min(walk_.panel_width, padded_group_ - channel);
}

}  // namespace acsconv
