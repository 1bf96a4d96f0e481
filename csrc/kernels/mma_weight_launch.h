// Between mma_backward_weight.cu and the files that instantiate the gradient of the weight on tensor cores,
// one per dtype so that they compile side by side.
#pragma once

#include "../common/ptx.cuh"
#include "../mma_weight_plan.h"

namespace acsconv {

struct MmaWeightWork {
  Problem problem;          // of one group
  int64_t groups;           // a row of the grid each
  bool soft, weight, bias;  // Soft ACS; which gradients are wanted
  MmaWeightShape shape;
  int64_t first_unit, units;  // those of this launch
  int64_t channel_blocks, parts;
  float *weight_sums, *bias_sums;
};

struct MmaWeightLaunch {
  MmaWeightWork work;
  const void *grad_output, *input;
  void* stream;
};

// Queues the kernel of a shape of kMmaWeightShapes; float is TF32. `copies`: by cp.async, else gathered.
template <class Scalar>
const char* launch_mma_backward_weight(int shape, bool copies, const MmaWeightLaunch& call);

}  // namespace acsconv
