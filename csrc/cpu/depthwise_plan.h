// From a Problem to what the depthwise kernels follow in one of its passes, where they compute it.
// `mirrored`: the gradient of the input, whose source is the gradient of the output.
#pragma once

#include <vector>

#include "../problem.h"
#include "depthwise_walk.h"

namespace acsconv {

// Whether the depthwise kernels compute this layer; the other kernels compute all.
bool is_depthwise(const Problem& problem, bool soft);

// Of any tensors.
class SlabPlan {
 public:
  SlabPlan(const Problem& problem, bool mirrored, int lanes, int number_size, int64_t cache_size);
  SlabPlan(const SlabPlan&) = delete;  // slabs() points into it

  const DepthwiseSlabs& slabs() const { return slabs_; }
  // Channel by channel; those of a channel are [first_task(channel), first_task(channel + 1)).
  const std::vector<SlabTask>& tasks() const { return tasks_; }
  int64_t first_task(int64_t channel) const { return first_task_[channel]; }

  // In numbers, what a task packs and stages.
  int64_t packed_size() const { return packed_size_; }
  int64_t staged_size() const { return staged_size_; }

 private:
  DepthwiseSlabs slabs_{};
  std::vector<int32_t> inside_[3];
  std::vector<SlabTask> tasks_;
  std::vector<int64_t> first_task_;
  int64_t packed_size_ = 0, staged_size_ = 0;
};

// Of tensors whose channels are adjacent in memory.
class SlicePlan {
 public:
  // Whether they are, and fill a vector.
  static bool fits(const Problem& problem, int lanes);

  // `tasks`: what the work is cut into, where there are as many slices.
  SlicePlan(const Problem& problem, bool mirrored, int lanes, int number_size, int64_t cache_size,
            int64_t tasks);
  SlicePlan(const SlicePlan&) = delete;  // slices() points into it

  const DepthwiseSlices& slices() const { return slices_; }
  const std::vector<SliceBlock>& blocks() const { return blocks_; }
  // Block by block; those of a block are [first_task(block), first_task(block + 1)).
  const std::vector<SliceTask>& tasks() const { return tasks_; }
  int64_t first_task(int64_t block) const { return first_task_[block]; }
  int64_t packed_size() const { return packed_size_; }  // in numbers

 private:
  DepthwiseSlices slices_{};
  std::vector<SliceBlock> blocks_;
  std::vector<SliceTask> tasks_;
  std::vector<int64_t> first_task_;
  int64_t packed_size_ = 0;
};

}  // namespace acsconv
