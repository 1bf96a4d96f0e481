// Builds the TileWalk of a gather. The numbers that decide on sizes are explained in csrc/cpu/DESIGN.md.
#include "tile_plan.h"

#include <tuple>

namespace acsconv {
namespace {

constexpr double kRingShare = 0.55;  // of the second-level cache
constexpr int64_t kStageBytes = 300000;
constexpr double kTileCycles = 16, kPackCycles = 0.5;  // of a product, and per number packed
constexpr double kMostPadding = 6.5;  // products that tiles may make per product of the convolution

}  // namespace

TilePlan::TilePlan(const Gather& gather, int threads, int64_t cache_size)
    : lattice_(gather), walk_{sweep_of(gather, lattice_), nullptr, nullptr, nullptr, nullptr, 0} {
  std::vector<int64_t> block_counts;
  for (const RangeChunk& ranges : range_chunks(gather)) {
    TileChunk chunk{};
    chunk.in_begin = ranges.in_begin;
    cut_blocks(gather, ranges, chunk);
    chunks_.push_back(chunk);
    block_counts.push_back(chunk.block_count);
    most_targets_ = std::max(most_targets_, ranges.targets());
  }
  const int64_t rows = choose_strip(gather, cache_size);
  place_panels(rows);
  const double tiles = static_cast<double>(weights_size_) / static_cast<double>(kTileColumns * kTileDepth) /
                       static_cast<double>(chunks_.size());
  const TaskCosts costs{
      kTileCycles * tiles * static_cast<double>(ceil_div(rows * walk_.packing.pitch, kTileRows)),
      kPackCycles * static_cast<double>(plane_size(rows)), 0};
  tasks_ = cut_tasks(gather, walk_, block_counts, rows, costs, threads);
  walk_.steps = steps_.data(), walk_.panels = panels_.data();
  walk_.blocks = blocks_.data(), walk_.chunks = chunks_.data();
}

bool TilePlan::pays() const {
  return static_cast<double>(weights_size_) <= kMostPadding * static_cast<double>(products_);
}

// Target channels in blocks of two tiles, and a last one of one tile where that is enough, for one class
// after the other.
void TilePlan::cut_blocks(const Gather& gather, const RangeChunk& ranges, TileChunk& chunk) {
  chunk.panel_begin = chunk.panel_end = static_cast<int32_t>(panels_.size());
  chunk.block_begin = static_cast<int32_t>(blocks_.size());
  for_each_class(gather, [&](const std::array<int64_t, 3>& residue) {
    for (const GatherRange* range = ranges.begin; range != ranges.end; ++range) {
      for (int64_t first = range->out_begin; first < range->out_end;) {
        const int64_t left = range->out_end - first;
        TileBlock block{};
        block.tiles = left > kTileColumns ? 2 : 1;
        block.out_begin = static_cast<int32_t>(first);
        block.out_count = static_cast<int32_t>(std::min<int64_t>(left, block.tiles * kTileColumns));
        block.step_begin = static_cast<int32_t>(steps_.size());
        block.weights = weights_size_;
        for (const GatherPart& part : range->parts) {
          const int32_t panel = panel_of(part, chunk);
          add_steps(gather, part, panel, residue,
                    part.weight + (first - range->out_begin) * gather.weight_out);
          const auto [tap, tap_end] = taps_of(gather, residue, part.set);
          products_ += (tap_end - tap) * part.in_count * block.out_count;
        }
        block.step_end = static_cast<int32_t>(steps_.size());
        const int64_t steps = block.step_end - block.step_begin;
        weights_size_ += steps * block.tiles * kTileColumns * kTileDepth;
        segment_count_ = std::max(segment_count_, steps);
        blocks_.push_back(block);
        first += block.out_count;
      }
    }
    if (residue[0] + residue[1] + residue[2] == 0) {
      chunk.block_count = static_cast<int32_t>(blocks_.size()) - chunk.block_begin;
    }
  });
}

// The chunk's panel of a part's channels.
int32_t TilePlan::panel_of(const GatherPart& part, TileChunk& chunk) {
  const int64_t begin = part.in_begin - chunk.in_begin;
  for (int32_t i = chunk.panel_begin; i < chunk.panel_end; ++i) {
    if (panels_[i].in_begin == begin && panels_[i].in_count == part.in_count) return i;
  }
  panels_.push_back({begin, part.in_count, 0});
  return chunk.panel_end++;
}

int64_t TilePlan::panel_size(const TilePanel& panel, int64_t rows) const {
  const int64_t positions = lattice_.row_numbers(rows, kTileVoxels);
  return round_up(walk_.packing.phase_count * positions * panel.in_count + kTileDepth, kTileDepth);
}

// Of the largest chunk.
int64_t TilePlan::plane_size(int64_t rows) const {
  int64_t largest = 0;
  for (const TileChunk& chunk : chunks_) {
    int64_t size = 0;
    for (int32_t i = chunk.panel_begin; i < chunk.panel_end; ++i) size += panel_size(panels_[i], rows);
    largest = std::max(largest, size);
  }
  return largest;
}

// Strips as high as a ring of planes fits into the cache, and as many planes per step as stay there with
// their outputs. Returns the rows of a strip.
int64_t TilePlan::choose_strip(const Gather& gather, int64_t cache_size) {
  const double budget = kRingShare * static_cast<double>(cache_size) / sizeof(uint16_t);
  auto fits = [&](int64_t rows, int64_t planes) {
    return static_cast<double>(plane_size(rows) * (lattice_.span() + (planes - 1) * walk_.plane_stride)) <=
           budget;
  };
  const int64_t class_planes = gather.class_size(0);
  const int64_t rows = rows_of_strip(gather.class_size(1), [&](int64_t r) { return fits(r, 1); });
  const int64_t staged_channels = most_targets_ * walk_.classes[2];
  const int64_t plane_bytes = rows * walk_.packing.pitch * staged_channels * int64_t{sizeof(float)};
  int64_t planes = 1;
  while (planes < class_planes && (planes + 1) * plane_bytes <= kStageBytes && fits(rows, planes + 1)) {
    ++planes;
  }
  walk_.step_planes = planes;
  walk_.ring_planes = lattice_.span() + (planes - 1) * walk_.plane_stride;
  walk_.stage_plane = round_up(rows * walk_.packing.pitch, kTileVoxels) + kTileVoxels;
  walk_.stage_channel = spread(walk_.stage_plane * planes, sizeof(float));
  ring_size_ = plane_size(rows) * walk_.ring_planes;
  stage_size_ = staged_channels * walk_.stage_channel;
  return rows;
}

void TilePlan::place_panels(int64_t rows) {
  walk_.positions = lattice_.row_numbers(rows, kTileVoxels);
  for (TileChunk& chunk : chunks_) {
    chunk.plane_size = 0;
    for (int32_t i = chunk.panel_begin; i < chunk.panel_end; ++i) {
      panels_[i].offset = chunk.plane_size;
      chunk.plane_size += panel_size(panels_[i], rows);
    }
  }
  for (size_t i = 0; i < steps_.size(); ++i) {
    const TilePanel& panel = panels_[step_places_[i].panel];
    steps_[i].offset += panel.offset + step_places_[i].phase * walk_.positions * panel.in_count;
  }
}

// The steps of one part: runs of neighbouring taps in pieces of 32 numbers. The last piece of a run begins
// earlier rather than read beyond it, if the run is as long as a piece. Where taps have several weights, in
// Soft ACS, there is a step for each: their sum would have to be rounded to bfloat16.
void TilePlan::add_steps(const Gather& gather, const GatherPart& part, int32_t panel,
                         const std::array<int64_t, 3>& residue, int64_t part_weight) {
  const auto place = [&](int32_t tap) {
    const Tap& t = lattice_.taps()[tap];
    return std::make_tuple(t.plane, t.phase, t.offset);
  };
  const auto [tap_begin, tap_end] = taps_of(gather, residue, part.set);
  for (int weight = 0; weight < kViews; ++weight) {
    std::vector<int32_t> taps;
    for (int32_t t = tap_begin; t < tap_end; ++t) {
      if (gather.taps[t].weight_count > weight) taps.push_back(t);
    }
    std::sort(taps.begin(), taps.end(), [&](int32_t a, int32_t b) { return place(a) < place(b); });
    for (size_t first = 0, last; first < taps.size(); first = last) {
      auto [plane, phase, offset] = place(taps[first]);
      last = first + 1;
      while (last < taps.size() &&
             place(taps[last]) ==
                 std::make_tuple(plane, phase, offset + static_cast<int64_t>(last - first))) {
        ++last;
      }
      const size_t run = run_taps_.size();
      run_taps_.insert(run_taps_.end(), taps.begin() + first, taps.begin() + last);
      const int64_t numbers = static_cast<int64_t>(last - first) * part.in_count;
      for (int64_t begin = 0; begin < numbers; begin += kTileDepth) {
        const int64_t run_begin = std::max<int64_t>(0, std::min(begin, numbers - kTileDepth));
        // The offset within the panel; place_panels adds where the panel and the phase begin.
        steps_.push_back({plane, offset * part.in_count + run_begin, part.in_count});
        step_places_.push_back({panel, phase});
        step_weights_.push_back({run, numbers, part.in_count, part_weight, weight, run_begin, begin});
      }
    }
  }
}

}  // namespace acsconv
