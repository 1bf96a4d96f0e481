// From a Gather of bfloat16 tensors to the TileWalk that the tile kernel follows. Depends on the problem and
// the machine only, as plan.h.
#pragma once

#include <vector>

#include "plan.h"
#include "tile_walk.h"

namespace acsconv {

class TilePlan {
 public:
  TilePlan(const Gather& gather, int threads, int64_t cache_size);
  TilePlan(const TilePlan&) = delete;  // walk() points into its arrays

  const TileWalk& walk() const { return walk_; }
  const std::vector<Task>& tasks() const { return tasks_; }
  const std::vector<TileBlock>& blocks() const { return blocks_; }
  // Whether tiles are filled well enough to be faster than vectors of float.
  bool pays() const;

  // The taps and channels whose weights a step multiplies with. Taps are neighbours: with their channels they
  // are one run of adjacent numbers, [tap][channel of the panel].
  struct StepWeights {
    size_t run;           // see tap_of_run
    int64_t numbers;      // of the run
    int64_t in_count;     // channels of the panel
    int64_t part_weight;  // where the weights of the part's first channels begin
    int weight;           // which of a tap's weights
    int64_t run_begin;    // the first number of the run that the step reads
    int64_t begin;        // and the first that no step before it has read
  };
  const StepWeights& weights_of_step(int64_t step) const { return step_weights_[step]; }
  // In Gather::taps.
  int32_t tap_of_run(size_t run, int64_t tap) const { return run_taps_[run + tap]; }

  // Sizes of what a caller has to provide, in numbers; the last in segments.
  int64_t weights_size() const { return weights_size_; }
  int64_t ring_size() const { return ring_size_; }
  int64_t stage_size() const { return stage_size_; }
  int64_t segment_count() const { return segment_count_; }

 private:
  void cut_blocks(const Gather& gather, const RangeChunk& ranges, TileChunk& chunk);
  void add_steps(const Gather& gather, const GatherPart& part, int32_t panel,
                 const std::array<int64_t, 3>& residue, int64_t part_weight);
  int32_t panel_of(const GatherPart& part, TileChunk& chunk);
  int64_t choose_strip(const Gather& gather, int64_t cache_size);
  int64_t panel_size(const TilePanel& panel, int64_t rows) const;
  int64_t plane_size(int64_t rows) const;
  void place_panels(int64_t rows);

  Lattice lattice_;
  TileWalk walk_;
  std::vector<TileStep> steps_;
  struct StepPlace {
    int32_t panel, phase;
  };
  std::vector<StepPlace> step_places_;
  std::vector<StepWeights> step_weights_;
  std::vector<int32_t> run_taps_;
  std::vector<TilePanel> panels_;
  std::vector<TileBlock> blocks_;
  std::vector<TileChunk> chunks_;
  std::vector<Task> tasks_;
  int64_t most_targets_ = 0;  // target channels of a chunk
  int64_t products_ = 0;      // per target voxel, of all blocks
  int64_t weights_size_ = 0, ring_size_ = 0, stage_size_ = 0, segment_count_ = 0;
};

}  // namespace acsconv
