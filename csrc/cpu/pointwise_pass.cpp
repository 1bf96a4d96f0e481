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
constexpr int kMostPositions = 14;     // voxels; multiply.h has no wider block
constexpr int64_t kFewestInPlace = 8;  // voxels of a row, which are multiplied by rows
constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kMostBesideTiles = 16;  // channels: with more, products decide rather than memory

PointwiseWalk walk_of(const Problem& p, bool mirrored, const PointwiseKernel& kernel, int stored_size,
                      int number_size) {
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

  const bool staged = stored_size != number_size;
  const bool channels_last = walk.source.channel == 1 && walk.target_channel == 1;
  walk.form =
      channels_last && walk.in_channels % kernel.lanes == 0 && walk.out_channels <= kernel.most_streamed
          ? PointwiseTarget::Streamed
      : to.axis[2] == 1 && walk.out_channels > 1
          ? (staged ? PointwiseTarget::StagedRows : PointwiseTarget::Rows)
      : !staged && walk.out_channels % kernel.lanes == 0 ? PointwiseTarget::Channels
                                                         : PointwiseTarget::Staged;
  walk.in_place = walk.form == PointwiseTarget::Channels && channels_last && walk.columns >= kFewestInPlace;
  if (walk.form == PointwiseTarget::Streamed) {
    walk.vectors = 1, walk.width = walk.out_channels;
  } else if (walk.form == PointwiseTarget::Channels) {
    walk.vectors = 2, walk.width = 2 * kernel.lanes;
    walk.positions = std::min(kMostPositions, kernel.accumulators / 2);
  } else {
    const BlockShape shape =
        voxel_blocks(walk.out_channels, {kernel.lanes, kernel.accumulators, number_size, 0, 0});
    walk.vectors = shape.vectors, walk.width = shape.width;
  }
  walk.block_count = ceil_div(walk.out_channels, walk.width);
  walk.block_stride = round_up(walk.in_channels * walk.width, kernel.lanes) + kernel.lanes;
  const int64_t bytes = to.axis[2] == 1 ? kRowsPanelBytes : kPanelBytes;
  const int64_t fitting = bytes / (walk.in_channels * number_size);
  walk.panel = round_up(std::clamp(fitting, kShortestPanel, kLongestPanel), walk.vectors * kernel.lanes);
  walk.panel_stride = walk.panel + kernel.lanes;
  return walk;
}

// T is what sums are made in.
template <class T>
void run(const Problem& p, bool mirrored, const void* source, const void* weight, const void* bias,
         void* target, const Threads& threads) {
  const int type = static_cast<int>(p.type);
  const PointwiseKernel& kernel = *cpu_isa().pointwise[type];
  const Conversion& convert = *cpu_isa().conversion[type];
  const PointwiseWalk walk = walk_of(p, mirrored, kernel, convert.stored_size, sizeof(T));
  const int64_t voxels = volume(p.out_size), batch = p.batch;
  advise_huge_pages(target, batch * walk.out_channels * voxels * convert.stored_size);

  thread_local Buffer weight_buffer, wide_buffer;
  const int64_t weights_size = walk.block_count * walk.block_stride;
  auto* packed = static_cast<T*>(weight_buffer.get((weights_size + walk.out_channels) * sizeof(T)));
  T* all_bias = packed + weights_size;
  if (bias == nullptr) {
    std::fill_n(all_bias, walk.out_channels, T(0));
  } else {
    convert.widen(bias, all_bias, walk.out_channels);
  }
  if (convert.stored_size != sizeof(T)) {
    const int64_t numbers = walk.in_channels * walk.out_channels;
    void* wide = wide_buffer.get(numbers * sizeof(T));
    convert.widen(weight, wide, numbers);
    weight = wide;
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
  for (int axis = 0; axis < 3; ++axis) {
    for (int view = 0; view < kViews; ++view) {
      if (p.split[view] > 0 && p.origin[view][axis] != 0) return false;
    }
    if ((p.out_size[axis] - 1) * p.stride[axis] >= p.in_size[axis]) return false;
    if (mirrored && (p.stride[axis] != 1 || p.in_size[axis] != p.out_size[axis])) return false;
  }
  // Wide layers of bfloat16 are for the processor's tiles or products of pairs.
  if (p.type == ScalarType::BFloat16 && (cpu_isa().tiles != nullptr || cpu_isa().pairs != nullptr) &&
      std::min(p.in_channels, p.out_channels) > kMostBesideTiles) {
    return false;
  }
  return p.in_channels > 0 && p.out_channels > 0;
}

void pointwise_gather(const Problem& p, bool mirrored, const void* source, const void* weight,
                      const void* bias, void* target, const Threads& threads) {
  const auto run_type = p.type == ScalarType::Float64 ? run<double> : run<float>;
  run_type(p, mirrored, source, weight, bias, target, threads);
}

}  // namespace acsconv
