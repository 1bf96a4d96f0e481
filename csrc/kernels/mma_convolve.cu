// Launches what plan_mma() has chosen (mma_convolve.h): fills a MmaWork, packs the weights, and runs the
// kernel, twice where the reduction is cut into parts.
#include "mma_convolve.h"

#include "mma_launch.h"
#include "mma_pack.h"
#include "report.h"

namespace acsconv {

MmaWork describe_work(const Problem& p, const MmaPlan& plan, Pass pass, bool soft, const void* source) {
  const bool forward = pass == Pass::Forward;
  MmaWork work{};
  for (int axis = 0; axis < 3; ++axis) {
    work.source_size[axis] = static_cast<int>(forward ? p.in_size[axis] : p.out_size[axis]);
    work.result_size[axis] = static_cast<int>(forward ? p.out_size[axis] : p.in_size[axis]);
    // The thin axis has one tap, which reads the common centre.
    const int centre = static_cast<int>(p.origin[axis][axis]);
    work.centre[axis] = forward ? centre : -centre;
    work.dilation[axis] = static_cast<int>(p.dilation[(axis + 1) % 3][axis]);
    work.spacing[axis] = static_cast<int>(mma_spacing(p, forward, axis));
    work.axis_tiles[axis] = static_cast<int>(plan.axis_tiles[axis]);
    work.split[axis] = static_cast<int>(p.split[axis]);
    work.view_columns[axis] = plan.view_columns[axis];
    work.view_blocks[axis] = plan.view_blocks[axis];
    work.view_steps[axis] = plan.view_steps[axis];
  }
  work.source = forward ? p.input : p.output;
  work.result = forward ? p.output : p.input;
  work.reduced = static_cast<int>(forward ? p.in_channels : p.out_channels);
  work.columns = static_cast<int>(forward ? p.out_channels : p.in_channels);
  work.column_blocks = plan.column_blocks;
  work.steps = plan.steps;
  work.parts = plan.parts;
  work.kernel = static_cast<int>(p.kernel_h);
  work.stride = static_cast<int>(p.stride[0]);
  work.halves = !forward && p.stride[0] == 2;
  work.view_per_block = plan.view_per_block;
  work.soft = soft;

  // Pieces of 16 bytes can be copied where all of them are aligned and none holds a channel beyond the last.
  const int64_t granule = p.type == ScalarType::Float32 ? 4 : 8;
  work.copies = work.source.channel == 1 && work.reduced % granule == 0 &&
                reinterpret_cast<uintptr_t>(source) % 16 == 0 && work.source.batch % granule == 0;
  for (const int64_t stride : work.source.axis) work.copies = work.copies && stride % granule == 0;
  return work;
}

namespace {

template <class T>
MmaLauncher instance(const MmaPlan& plan, bool soft) {
  if (plan.tma) {
    return plan.view_per_warp ? tma_forward_instance<T>(plan.shape)
                              : tma_view_per_step_instance<T>(plan.shape, soft);
  }
  return plan.view_per_warp  ? view_per_warp_instance<T>(plan.shape)
         : plan.row_per_step ? tap_rows_instance<T>(plan.shape)
                             : view_per_step_instance<T>(plan.shape, soft);
}

}  // namespace

const char* mma_convolve(const Problem& problem, const MmaPlan& plan, Pass pass, bool soft,
                         const void* source, const void* weight, const void* bias, ScalarType weight_type,
                         void* result, void* workspace, void* stream) {
  if (plan.tiles == 0) return nullptr;
  const Problem group = one_group(problem);
  MmaLaunch call{};
  call.problem = &group;
  call.pass = pass;
  call.work = describe_work(group, plan, pass, soft, source);
  call.blocks = {static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.groups * plan.column_blocks)};
  unsigned char* memory = static_cast<unsigned char*>(workspace);
  float* packed_bias = reinterpret_cast<float*>(memory + plan.packed_bytes);
  if (const char* error = pack_weights(group, plan, call.work, pass, weight, bias, weight_type, memory,
                                       packed_bias, stream)) {
    return error;
  }
  call.source = source;
  call.packed = memory;
  call.bias = bias == nullptr ? nullptr : packed_bias;
  call.result = result;
  call.partials = memory + plan.packed_bytes + plan.bias_bytes;
  call.stream = stream;
  const MmaLauncher run =
      with_mma_scalar(problem.type, [&](auto scalar) { return instance<decltype(scalar)>(plan, soft); });
  if (plan.parts == 1) return run(call);
  call.work.phase = 1;
  call.blocks.z = static_cast<unsigned>(plan.parts);
  if (const char* error = run(call)) return error;
  call.work.phase = 2;
  call.blocks.z = 1;
  return run(call);
}

}  // namespace acsconv
