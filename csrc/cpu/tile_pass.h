// The gather passes of bfloat16 tensors on tiles (tile_walk.cpp), where the processor has them.
#pragma once

#include "gather.h"
#include "threads.h"

namespace acsconv {

// `bias`, of the target's channels, may be null. All of the gather's type.
struct GatherTensors {
  const void *source, *weight, *bias;
  void* target;
  int64_t weight_numbers, bias_numbers, target_numbers;
};

// Returns false, having done nothing, where there are no tiles or vectors of float are faster.
bool tile_gather(const Gather& gather, const GatherTensors& tensors, const Threads& threads);

}  // namespace acsconv
