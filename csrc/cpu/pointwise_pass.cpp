// 1x1 layers: cuts the voxels into panels, packs the weights, and hands tasks to the threads.
#include "pointwise_pass.h"

#include <algorithm>

#include "integers.h"
#include "isa.h"
#include "memory.h"
#include "plan.h"

namespace acsconv {
namespace {

// Packed sources of a panel: as many bytes, but a number of voxels between these. Longer pieces of contiguous
// rows are written faster.
constexpr int64_t kPanelBytes = 48000, kRowsPanelBytes = 128000;
constexpr int64_t kShortestPanel = 96, kLongestPanel = 384;
constexpr int kMostPositions = 14;  // voxels; multiply.h has no wider block
constexpr int64_t kTasksPerThread = 8;

PointwiseWalk walk_of(const Problem& p, bool mirrored, const PointwiseKernel& kernel, int number_size) {
  const VolumeStrides &from = mirrored ? p.output : p.input, &to = mirrored ? p.input : p.output;
  PointwiseWalk walk{};
  walk.source = {from.batch, from.channel, from.axis[0] * p.stride[0], from.axis[1] * p.stride[1],
                 from.axis[2] * p.stride[2]};
  walk.target_batch = to.batch, walk.target_channel = to.channel;
  walk.in_channels = mirrored ? p.out_channels : p.in_channels;
  walk.out_channels = mirrored ? p.in_channels : p.out_channels;
  walk.weight_in = mirrored ? p.in_channels : 1;
  walk.weight_out = mirrored ? 1 : p.in_channels;
  walk.rows = p.out_size[1], walk.columns = p.out_size[2];
  walk.spacing = p.stride[2];
  walk.in_columns = from.axis[2] == 1 ? p.in_size[2] : 0;
  const bool one_distance = walk.source.row == walk.columns * walk.source.column &&
                            walk.source.plane == walk.rows * walk.source.row;
  if (one_distance && (walk.in_columns == 0 || walk.spacing == 1)) {
    walk.columns *= walk.rows * p.out_size[0], walk.rows = 1;
  }

  walk.form = to.axis[2] == 1 && walk.out_channels > 1 ? PointwiseTarget::Rows
              : walk.out_channels % kernel.lanes == 0  ? PointwiseTarget::Channels
                                                       : PointwiseTarget::Staged;
  if (walk.form == PointwiseTarget::Channels) {
    walk.vectors = 2, walk.width = 2 * kernel.lanes;
    walk.positions = std::min(kMostPositions, kernel.accumulators / 2);
  } else {
    const BlockShape shape =
        voxel_blocks(walk.out_channels, {kernel.lanes, kernel.accumulators, number_size, 0, 0});
    walk.vectors = shape.vectors, walk.width = shape.width;
  }
  walk.block_count = ceil_div(walk.out_channels, walk.width);
  walk.block_stride = round_up(walk.in_channels * walk.width, kernel.lanes) + kernel.lanes;
  const int64_t bytes = walk.form == PointwiseTarget::Rows ? kRowsPanelBytes : kPanelBytes;
  const int64_t fitting = bytes / (walk.in_channels * number_size);
  walk.panel = round_up(std::clamp(fitting, kShortestPanel, kLongestPanel), walk.vectors * kernel.lanes);
  walk.panel_stride = walk.panel + kernel.lanes;
  return walk;
}

template <class T>
void run(const PointwiseWalk& walk, const PointwiseKernel& kernel, int64_t batch, int64_t voxels,
         const void* source, const void* weight, const void* bias, void* target, const Threads& threads) {
  thread_local Buffer weight_buffer;
  const int64_t weights_size = walk.block_count * walk.block_stride;
  auto* packed = static_cast<T*>(weight_buffer.get((weights_size + walk.out_channels) * sizeof(T)));
  T* all_bias = packed + weights_size;
  if (bias == nullptr) {
    std::fill_n(all_bias, walk.out_channels, T(0));
  } else {
    std::copy_n(static_cast<const T*>(bias), walk.out_channels, all_bias);
  }
  parallel(threads, walk.block_count, [&](int64_t i) { kernel.pack_weights(walk, i, weight, packed); });

  const int64_t panels = ceil_div(voxels, walk.panel);
  const int64_t parts = std::min(panels, ceil_div(kTasksPerThread * threads.count, batch));
  const int64_t stage_size = walk.panel_stride * (walk.out_channels + 1);
  parallel(threads, batch * parts, [&](int64_t i) {
    thread_local Buffer panel, stage;
    const int64_t part = i % parts;
    const PointwiseTask task{i / parts, part * panels / parts * walk.panel,
                             std::min(voxels, (part + 1) * panels / parts * walk.panel)};
    kernel.run(
        walk, task, source, packed, all_bias, target,
        {panel.get(walk.in_channels * walk.panel_stride * sizeof(T)), stage.get(stage_size * sizeof(T))});
  });
}

}  // namespace

bool is_pointwise(const Problem& p, bool soft, bool mirrored) {
  if (soft || p.groups != 1 || p.kernel_h != 1 || p.kernel_w != 1) return false;
  if (p.type != ScalarType::Float32 && p.type != ScalarType::Float64) return false;
  for (int axis = 0; axis < 3; ++axis) {
    for (int view = 0; view < kViews; ++view) {
      if (p.split[view] > 0 && p.origin[view][axis] != 0) return false;
    }
    if ((p.out_size[axis] - 1) * p.stride[axis] >= p.in_size[axis]) return false;
    if (mirrored && (p.stride[axis] != 1 || p.in_size[axis] != p.out_size[axis])) return false;
  }
  return p.in_channels > 0 && p.out_channels > 0;
}

void pointwise_gather(const Problem& p, bool mirrored, const void* source, const void* weight,
                      const void* bias, void* target, const Threads& threads) {
  const bool wide = p.type == ScalarType::Float64;
  const PointwiseKernel& kernel = *cpu_isa().pointwise[static_cast<int>(p.type)];
  const int number_size = wide ? sizeof(double) : sizeof(float);
  const PointwiseWalk walk = walk_of(p, mirrored, kernel, number_size);
  const int64_t voxels = volume(p.out_size);
  advise_huge_pages(target, p.batch * walk.out_channels * voxels * number_size);
  if (wide) {
    run<double>(walk, kernel, p.batch, voxels, source, weight, bias, target, threads);
  } else {
    run<float>(walk, kernel, p.batch, voxels, source, weight, bias, target, threads);
  }
}

}  // namespace acsconv
