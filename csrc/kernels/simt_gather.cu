// Launches the gather kernel (simt_gather.cuh) for the forward pass and the gradient of the input, as
// csrc/plan.h decides, and instantiates it for every dtype, tile and memory order.
#include "simt_gather.cuh"

#include "fold_soft.h"
#include "report.h"
#include "simt_backward_input.h"
#include "simt_depthwise.h"
#include "simt_few_channels.h"
#include "simt_forward.h"

namespace acsconv {
namespace {

template <class Config>
const char* launch_gather(const GatherWork& shape, const void* source, const void* weight, const void* bias,
                          void* destination, void* stream) {
  using Scalar = typename Config::Scalar;
  GatherWork work = shape;
  const Problem& p = work.problem;
  work.voxel_tiles = gather_voxel_tiles(p, work.pass, Config::kVoxels);
  work.item_tiles = gather_item_tiles(p, work.pass, Config::kItems);
  int64_t tiles = work.voxel_tiles * work.item_tiles * p.batch;
  for (int axis = 0; axis < 3; ++axis) tiles *= residues(p, work.pass, axis);
  if (tiles == 0) return nullptr;
  return launch(simt_gather_kernel<Config>, dim3(grid_size(tiles)), dim3(Config::kThreads),
                Config::kSharedBytes, stream, work, tiles, static_cast<const Scalar*>(source),
                static_cast<const Scalar*>(weight), static_cast<const Scalar*>(bias),
                static_cast<Scalar*>(destination));
}

template <class Scalar, int Shape>
const char* launch_shape(const GatherPlan& plan, const GatherWork& work, const void* source,
                         const void* weight, const void* bias, void* destination, void* stream) {
  constexpr ScalarType kType = kScalarType<Scalar>;
  if constexpr (gather_shape_exists(kType, Shape)) {
    if (plan.shape == Shape) {
      constexpr int kWarps = kGatherShapes[Shape].warps, kRows = gather_rows(kType, Shape);
      return (plan.channels_inner
                  ? launch_gather<SimtGather<Scalar, kWarps, kRows, true>>
                  : launch_gather<SimtGather<Scalar, kWarps, kRows, false>>)(work, source, weight, bias,
                                                                             destination, stream);
    }
  }
  if constexpr (Shape + 1 < kGatherShapeCount) {
    return launch_shape<Scalar, Shape + 1>(plan, work, source, weight, bias, destination, stream);
  }
  return "the plan names a tile that does not exist";
}

const char* gather(const Problem& problem, Pass pass, bool soft, const void* source, const void* weight,
                   const void* bias, void* destination, void* workspace, void* stream) {
  const GatherPlan plan = plan_gather(problem, pass, soft, Machine{multiprocessors()});
  if (const char* reason = report_plan(plan)) return reason;
  if (plan.not_depthwise.empty()) {
    return simt_depthwise(problem, pass, plan.channels_inner, source, weight, bias, destination, stream);
  }
  if (plan.few.rejection.empty()) {
    return simt_few_channels(problem, plan.few, source, weight, bias, destination, stream);
  }
  GatherWork work{problem, pass, soft, plan.workspace_bytes > 0, 0, 0};
  if (soft) {
    work.problem.split[0] = problem.out_channels;
    work.problem.split[1] = work.problem.split[2] = 0;
  }
  if (work.folded) {
    if (const char* error = fold_soft_kernels(problem, weight, workspace, stream)) return error;
    weight = workspace;
  }
  return with_scalar(problem.type, [&](auto scalar) {
    return launch_shape<decltype(scalar), 0>(plan, work, source, weight, bias, destination, stream);
  });
}

}  // namespace

const char* simt_forward(const Problem& problem, const void* input, const void* weight, const void* bias,
                         void* output, void* stream) {
  return gather(problem, Pass::Forward, /*soft=*/false, input, weight, bias, output, nullptr, stream);
}

size_t simt_soft_workspace(const Problem& problem, Pass pass) {
  return plan_gather(problem, pass, /*soft=*/true, Machine{multiprocessors()}).workspace_bytes;
}

const char* simt_soft_forward(const Problem& problem, const void* input, const void* kernels,
                              const void* bias, void* output, void* workspace, void* stream) {
  return gather(problem, Pass::Forward, /*soft=*/true, input, kernels, bias, output, workspace, stream);
}

const char* simt_backward_input(const Problem& problem, const void* grad_output, const void* weight,
                                void* grad_input, void* stream) {
  return gather(problem, Pass::BackwardInput, /*soft=*/false, grad_output, weight, nullptr, grad_input,
                nullptr, stream);
}

const char* simt_soft_backward_input(const Problem& problem, const void* grad_output, const void* kernels,
                                     void* grad_input, void* workspace, void* stream) {
  return gather(problem, Pass::BackwardInput, /*soft=*/true, grad_output, kernels, nullptr, grad_input,
                workspace, stream);
}

}  // namespace acsconv
