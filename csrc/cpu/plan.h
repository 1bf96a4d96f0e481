// From a Gather to the Walk that the CPU kernel follows: which blocks of target channels, which strips, and
// which piece of the target is whose task. Depends on the problem and the machine only, never on the data.
#pragma once

#include <vector>

#include "gather.h"
#include "lattice.h"
#include "walk.h"

namespace acsconv {

struct CpuMachine {
  int lanes, accumulators;  // of the kernel that will run, see WalkKernel
  int number_size;          // bytes of a number in the packed arrays
  int threads;
  int64_t cache_size;  // bytes of a core's own second-level cache
};

class CpuPlan {
 public:
  CpuPlan(const Gather& gather, const CpuMachine& machine);
  CpuPlan(const CpuPlan&) = delete;  // walk() points into its arrays

  const Walk& walk() const { return walk_; }
  const std::vector<Task>& tasks() const { return tasks_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  // Where the weights of a block's part begin: those of its first source and target channel.
  int64_t weight_of_part(int64_t part) const { return part_weights_[part]; }

  // Sizes of what a caller has to provide, in numbers; the last in segments.
  int64_t weights_size() const { return weights_size_; }
  int64_t ring_size() const { return ring_size_; }
  int64_t stage_size() const { return stage_size_; }
  int64_t segment_count() const { return segment_count_; }

 private:
  void cut_chunks(const Gather& gather, const CpuMachine& machine);
  void cut_blocks(const Gather& gather, const CpuMachine& machine, Chunk& chunk, const GatherRange* begin,
                  const GatherRange* end);
  void choose_strip(const Gather& gather, const CpuMachine& machine);
  void cut_tasks(const Gather& gather, const CpuMachine& machine);

  Lattice lattice_;
  Walk walk_{};
  std::vector<Part> parts_;
  std::vector<int64_t> part_weights_;
  std::vector<Block> blocks_;
  std::vector<Chunk> chunks_;
  std::vector<Task> tasks_;
  int64_t strip_rows_ = 0;
  int64_t weights_size_ = 0, ring_size_ = 0, stage_size_ = 0, segment_count_ = 0;
  int64_t widest_chunk_ = 0, most_targets_ = 0;  // source channels of a chunk, target channels of a chunk
};

// An odd number of cache lines, so that the same place of different channels falls into different sets of the
// cache.
int64_t spread(int64_t numbers, int number_size);

}  // namespace acsconv
