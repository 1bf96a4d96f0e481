// From the gather of a forward pass to the WeightWalk of the gradient of its weight. Unlike a gather's, its
// parts decide how sums are made, so these do not depend on the number of threads.
#pragma once

#include <vector>

#include "gather.h"
#include "lattice.h"
#include "weight_walk.h"

namespace acsconv {

enum class WeightForm { kOuter, kDots, kTiles };  // see weight_walk.h

struct WeightMachine {
  int lanes, accumulators;
  int number_size;                // bytes of a sum, and of a number in the packed arrays but for tiles
  const TileWeightKernel* tiles;  // of what the tensors hold; null: none
  int64_t cache_size;             // bytes of a core's own second-level cache
  int threads;
};

class WeightPlan {
 public:
  WeightPlan(const Gather& gather, const WeightMachine& machine);
  WeightPlan(const WeightPlan&) = delete;  // walk() points into its arrays

  WeightForm form() const { return form_; }
  const WeightWalk& walk() const { return walk_; }
  const std::vector<WeightBlock>& blocks() const { return blocks_; }
  const std::vector<WeightTask>& tasks() const { return tasks_; }

  // Parts of the volume, and the numbers of one part's sums. Parts are added in order.
  int64_t parts() const { return parts_; }
  int64_t sums_size() const { return walk_.bias_lost + bias_size_; }

  // Of the panel of input channels that begins with `channel`.
  int64_t width_of_panel(int64_t channel) const;

  // Bytes of a packed number.
  int number_size() const { return number_size_; }
  // Sizes of a thread's memory in such numbers; the last in items.
  int64_t ring_size() const { return ring_size_; }
  int64_t grad_size() const { return grad_size_; }
  int64_t vectors_size() const { return vectors_size_; }
  int64_t item_count() const { return item_count_; }

 private:
  void cut_blocks(const Gather& gather, const WeightMachine& machine);
  void choose_strip(const WeightMachine& machine);
  void cut_tasks(const Gather& gather, const WeightMachine& machine);

  Lattice lattice_;
  WeightWalk walk_{};
  Phase grad_phase_{0, 0};
  std::vector<WeightBlock> blocks_;
  std::vector<WeightChunk> chunks_;
  std::vector<WeightTask> tasks_;
  WeightForm form_;
  int number_size_;
  int64_t padded_group_ = 0, padded_channels_ = 0;  // channels of a group and of a chunk, as they are packed
  int64_t parts_ = 1, bias_size_ = 0;
  int64_t ring_size_ = 0, grad_size_ = 0, vectors_size_ = 0, item_count_ = 0;
  int64_t most_outputs_ = 0;  // of a chunk
};

}  // namespace acsconv
