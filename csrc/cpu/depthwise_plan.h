// From a Problem to the DepthwiseWalk of one of its passes, where the depthwise kernels compute it.
#pragma once

#include <vector>

#include "../problem.h"
#include "depthwise_walk.h"

namespace acsconv {

// Whether the depthwise kernels compute this layer; the other kernels compute all.
bool is_depthwise(const Problem& problem, bool soft);

class DepthwisePlan {
 public:
  // `mirrored`: the gradient of the input, whose source is the gradient of the output.
  DepthwisePlan(const Problem& problem, bool mirrored, int lanes, int number_size, int64_t cache_size);
  DepthwisePlan(const DepthwisePlan&) = delete;  // walk() points into it

  const DepthwiseWalk& walk() const { return depthwise_; }
  // Channels in chunks, each with all its slabs one after the other.
  const std::vector<Task>& tasks() const { return tasks_; }
  int64_t slabs() const { return slabs_; }
  int64_t chunk_channels() const { return chunk_channels_; }
  // In numbers.
  int64_t slab_size() const { return slab_size_; }
  int64_t stage_size() const { return stage_size_; }

 private:
  DepthwiseWalk depthwise_{};
  Phase phase_{0, 0};
  std::vector<Task> tasks_;
  int64_t slabs_ = 0, chunk_channels_ = 0, slab_size_ = 0, stage_size_ = 0;
};

// The same for outputs and gradients of the input where channels are adjacent in memory.
class SlicePlan {
 public:
  // Whether it serves these tensors: a vector of channels has to fit into them.
  static bool fits(const Problem& problem, int lanes);

  SlicePlan(const Problem& problem, bool mirrored, int lanes, int number_size, int64_t cache_size);
  SlicePlan(const SlicePlan&) = delete;  // walk() points into it

  const DepthwiseSlices& walk() const { return walk_; }
  const std::vector<SliceBlock>& blocks() const { return blocks_; }
  const std::vector<SliceTask>& tasks() const { return tasks_; }
  int64_t packed_size() const { return packed_size_; }  // in numbers

 private:
  DepthwiseSlices walk_{};
  std::vector<SliceBlock> blocks_;
  std::vector<SliceTask> tasks_;
  int64_t packed_size_ = 0;
};

}  // namespace acsconv
