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
  // Where the weight of a row and a column tap is among those of its channel.
  int64_t kernel_index(int64_t row, int64_t column) const;

  // In numbers.
  int64_t slab_size() const { return slab_size_; }
  int64_t stage_size() const { return stage_size_; }

 private:
  DepthwiseWalk depthwise_{};
  Phase phase_{0, 0};
  std::vector<Task> tasks_;
  bool mirrored_;
  int64_t slabs_ = 0, chunk_channels_ = 0, slab_size_ = 0, stage_size_ = 0;
};

}  // namespace acsconv
