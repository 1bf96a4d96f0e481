// From a Gather to the Walk that the CPU kernel follows: which blocks of target channels, which strips, and
// which piece of the target is whose task. Depends on the problem and the machine only, never on the data.
#pragma once

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "gather.h"
#include "integers.h"
#include "lattice.h"
#include "walk.h"

namespace acsconv {

struct CpuMachine {
  int lanes, accumulators;  // of the kernel that will run, see WalkKernel
  int number_size;          // bytes of a number in the packed arrays
  int threads;
  int64_t cache_size;  // bytes of a core's own second-level cache
};

// The part of a plan that does not depend on what multiplies: the planes of a gather and of its target. Strip
// and stage are the plan's to choose.
Sweep sweep_of(const Gather& gather, const Lattice& lattice);

// Consecutive ranges whose groups are packed together: few groups if they are wide.
struct RangeChunk {
  const GatherRange *begin, *end;
  int64_t in_begin, in_count;  // source channels
  int64_t targets() const { return end[-1].out_end - begin->out_begin; }
};
std::vector<RangeChunk> range_chunks(const Gather& gather);

// Calls body(residue) for every class of targets, W fastest.
template <class Body>
void for_each_class(const Gather& gather, const Body& body) {
  std::array<int64_t, 3> residue{};
  for (residue[0] = 0; residue[0] < gather.classes(0); ++residue[0]) {
    for (residue[1] = 0; residue[1] < gather.classes(1); ++residue[1]) {
      for (residue[2] = 0; residue[2] < gather.classes(2); ++residue[2]) body(residue);
    }
  }
}

// The taps of one class and set, as places in Gather::taps.
std::pair<int32_t, int32_t> taps_of(const Gather& gather, const std::array<int64_t, 3>& residue, int set);

// Tasks: strips of all samples and chunks, and where these are too few for the threads, ranges of planes or
// blocks of them.
// Cycles: for a target plane of a strip of all blocks, for packing a source plane, and for loading all
// weights, which every step does.
struct TaskCosts {
  double plane, pack_plane, weights;
};
std::vector<Task> cut_tasks(const Gather& gather, const Sweep& sweep,
                            const std::vector<int64_t>& block_counts, int64_t strip_rows,
                            const TaskCosts& costs, int threads);

// Rows of a strip such that `fits(rows)`, and at least a few.
template <class Fits>
int64_t rows_of_strip(int64_t class_rows, const Fits& fits) {
  constexpr int64_t kSmallestStrip = 4;
  int64_t rows = class_rows;
  for (int64_t strips = 2; rows > kSmallestStrip && !fits(rows); ++strips) {
    rows = std::max(kSmallestStrip, ceil_div(class_rows, strips));
  }
  return rows;
}

// How a view's share of target channels is cut into blocks, and what a product costs, in vectors.
struct BlockShape {
  int vectors;
  int64_t width;      // most channels
  int32_t positions;  // see Block
  bool whole_rows;
  double cost;
};

// With vectors over voxels; `cost` and `whole_rows` are left to the caller.
BlockShape voxel_blocks(int64_t channels, const CpuMachine& machine);

class CpuPlan {
 public:
  CpuPlan(const Gather& gather, const CpuMachine& machine);
  CpuPlan(const CpuPlan&) = delete;  // walk() points into its arrays

  const Walk& walk() const { return walk_; }
  const std::vector<Task>& tasks() const { return tasks_; }
  const std::vector<Block>& blocks() const { return blocks_; }

  // Whether every block's weights are packed and used once: a thread needs memory for one block's, then.
  bool weights_used_once() const {
    return walk_.weights_in_tasks && tasks_[0].plane_end - tasks_[0].plane_begin <= walk_.step_planes;
  }

  // Sizes of what a caller has to provide, in numbers; the last in segments.
  int64_t weights_size() const { return weights_size_; }
  int64_t ring_size() const { return ring_size_; }
  int64_t stage_size() const { return stage_size_; }
  int64_t segment_count() const { return segment_count_; }

 private:
  void cut_blocks(const Gather& gather, const CpuMachine& machine, Chunk& chunk, const RangeChunk& ranges);
  BlockShape block_shape(const Gather& gather, const GatherRange& range, const CpuMachine& machine) const;
  void place_weights(const Gather& gather);
  void choose_strip(const Gather& gather, const CpuMachine& machine);
  TaskCosts costs(const CpuMachine& machine) const;

  Lattice lattice_;
  Walk walk_{};
  std::vector<Part> parts_;
  std::vector<int64_t> part_weights_;
  std::vector<TapWeights> tap_weights_;
  std::vector<Block> blocks_;
  std::vector<Chunk> chunks_;
  std::vector<Task> tasks_;
  int64_t strip_rows_ = 0;
  int64_t weights_size_ = 0, ring_size_ = 0, stage_size_ = 0, segment_count_ = 0;
  int64_t widest_chunk_ = 0, most_targets_ = 0;  // source channels of a chunk, target channels of a chunk
  int64_t widest_sums_ = 0;                      // numbers per voxel where vectors run over channels
};

// An odd number of cache lines, so that the same place of different channels falls into different sets of the
// cache.
int64_t spread(int64_t numbers, int number_size);

}  // namespace acsconv
