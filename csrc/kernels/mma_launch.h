// Between mma_convolve.cu and the files that instantiate the tensor-core kernels, one per dtype and
// arrangement so that they compile side by side.
#pragma once

#include "mma_work.cuh"

namespace acsconv {

struct MmaLaunch {
  const Problem* problem;  // of one group
  Pass pass;
  MmaWork work;
  dim3 blocks;
  const void *source, *packed;
  const float* bias;
  void *result, *partials, *stream;
};
using MmaLauncher = const char* (*)(const MmaLaunch&);

// The kernel of a shape of kViewPerWarpShapes, kViewPerStepShapes or kTapRowShapes; float is TF32.
template <class T>
MmaLauncher view_per_warp_instance(int shape);
template <class T>
MmaLauncher view_per_step_instance(int shape, bool soft);
template <class T>
MmaLauncher tap_rows_instance(int shape);
// Loaded by the TMA: the same products as view_per_warp_instance() and view_per_step_instance(), to the bit.
template <class T>
MmaLauncher tma_forward_instance(int shape);
template <class T>
MmaLauncher tma_view_per_step_instance(int shape, bool soft);

// What the kernels of a pass are given for a problem without groups; `source` decides whether pieces of 16
// bytes can be copied.
MmaWork describe_work(const Problem& problem, const MmaPlan& plan, Pass pass, bool soft, const void* source);

// Queues a kernel with its configuration's threads and shared memory.
template <class Config, class Kernel>
const char* launch_mma(Kernel kernel, const MmaLaunch& call) {
  using Scalar = typename Config::Scalar;
  return launch(kernel, call.blocks, dim3(Config::kThreads), Config::kShared.total, call.stream, call.work,
                static_cast<const Scalar*>(call.source), static_cast<const unsigned char*>(call.packed),
                call.bias, static_cast<Scalar*>(call.result), static_cast<float4*>(call.partials));
}

}  // namespace acsconv
