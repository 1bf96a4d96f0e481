// The depthwise kernels: outputs and gradients of the input, and of the weight.
//
//   accumulator[output along the line][16 voxels] += weight[row tap] * source[16 voxels, line + row tap]
//
// Vectors run over voxels. Where a layer has one channel per group, a source serves a single product of the
// gather kernel, and loads decide; here it serves up to 7, and weights stay in registers.
//
// Compiled once per instruction set, see walk.cpp; depthwise_pass.cpp calls it.
#include "depthwise_walk.h"

#include "depthwise_slices.h"
#include "pack.h"

namespace acsconv {
namespace ACSCONV_ISA {

constexpr int64_t kTilesPerSum = 64;

// A view's tiles in a slab of `planes` x `rows`: body(plane, flat, outputs, valid), where the tile's first
// line begins at the flat index and has `valid` voxels (at most a vector) that belong to it alone. Vectors
// that reach into the next row are called before the one that begins it.
template <class T, class Body>
[[gnu::always_inline]] inline void for_each_tile(const DepthwiseWalk& walk, const DepthwiseView& view,
                                                 int64_t planes, int64_t rows, const Body& body) {
  constexpr int lanes = kLanes<T>;
  const int64_t pitch = walk.walk.packing.pitch, columns = walk.walk.out_size[2];
  if (view.along_planes) {
    const int64_t voxels = (rows - 1) * pitch + columns;
    for_each_piece(planes, [&](int64_t plane, int64_t outputs) {
      for (int64_t flat = 0; flat < voxels; flat += lanes) body(plane, flat, outputs, int64_t{lanes});
    });
    return;
  }
  for (int64_t plane = 0; plane < planes; ++plane) {
    for_each_piece(rows, [&](int64_t row, int64_t outputs) {
      for (int64_t c = (columns - 1) / lanes * lanes; c >= 0; c -= lanes) {
        body(plane, row * pitch + c, outputs, columns - c < lanes ? columns - c : lanes);
      }
    });
  }
}

template <class S, class T>
void pack_slab(const DepthwiseWalk& depthwise, const Task& task, const S* source, T* to) {
  const Walk& walk = depthwise.walk;
  const int64_t channels = task.block_end - task.block_begin;
  const int64_t first = task.plane_begin + depthwise.plane_min;
  const int64_t planes = task.plane_end - task.plane_begin + depthwise.halo_planes;
  const int64_t rows = task.row_end - task.row_begin + walk.packing.halo_rows;
  const S* p =
      source + task.sample * walk.packing.source.batch + task.block_begin * walk.packing.source.channel;
  for (int64_t i = 0; i < planes; ++i, to += depthwise.source_plane) {
    if (first + i >= 0 && first + i < walk.in_planes) {
      pack_plane(walk.packing, p + (first + i) * walk.packing.source.plane, channels,
                 walk.packing.row_min + task.row_begin, rows, to);
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        fill_zero(to + c * walk.packing.channel_stride, depthwise.source_plane);
      }
    }
  }
}

const DepthwiseView& view_of(const DepthwiseWalk& walk, int64_t channel) {
  const DepthwiseView* view = walk.views;
  while (channel >= view->channel_end) ++view;
  return *view;
}

template <class S>
void run_depthwise(const DepthwiseWalk& depthwise, const Task& task, const void* source_data,
                   const void* weight_data, const void* bias_data, void* target_data,
                   const Scratch& scratch) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  const Walk& walk = depthwise.walk;
  const auto kernel = static_cast<int>(depthwise.kernel);
  const Lines<T>& lines = lines_for<T>(depthwise.kernel);
  T* slab = static_cast<T*>(scratch.ring);
  T* stage = static_cast<T*>(scratch.stage);
  pack_slab(depthwise, task, static_cast<const S*>(source_data), slab);

  const int64_t planes = task.plane_end - task.plane_begin, rows = task.row_end - task.row_begin;
  for (int64_t channel = task.block_begin; channel < task.block_end; ++channel) {
    const DepthwiseView& view = view_of(depthwise, channel);
    const T* x = slab + (channel - task.block_begin) * walk.packing.channel_stride + view.first;
    T* out = stage + (channel - task.block_begin) * walk.stage_channel;
    const T* weights = static_cast<const T*>(weight_data) + channel * depthwise.kernel * depthwise.kernel;
    T wide[kMostTaps * lanes], bias[lanes];
    for (int64_t i = 0; i < depthwise.kernel * depthwise.kernel; ++i) {
      store<T>(wide + i * lanes, broadcast(weights[i]));
    }
    store<T>(bias, broadcast(static_cast<const T*>(bias_data)[channel]));
    const int64_t out_line = view.along_planes ? walk.stage_plane : walk.packing.pitch;
    for_each_tile<T>(
        depthwise, view, planes, rows, [&](int64_t plane, int64_t flat, int64_t outputs, int64_t) {
          lines.outputs[outputs](
              {x + plane * depthwise.source_plane + flat, view.line, view.other, kernel, 0, kLine + kernel},
              wide, bias, out + plane * walk.stage_plane + flat, out_line);
        });
  }
  S* target = static_cast<S*>(target_data) + task.sample * walk.target.batch +
              task.block_begin * walk.target.channel + task.row_begin * walk.target.row;
  for (int64_t o = 0; o < planes; ++o) {
    write_plane(walk, stage + o * walk.stage_plane, task.block_end - task.block_begin, rows, walk.target.row,
                target + (task.plane_begin + o) * walk.target.plane);
  }
}

template <class S>
void run_depthwise_weight(const DepthwiseWalk& depthwise, const Task& task, const void* source_data,
                          const void* grad_data, void* vectors, const Scratch& scratch) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  const Walk& walk = depthwise.walk;
  const auto kernel = static_cast<int>(depthwise.kernel);
  const Lines<T>& lines = lines_for<T>(depthwise.kernel);
  T* slab = static_cast<T*>(scratch.ring);
  T* packed_grad = static_cast<T*>(scratch.stage);
  const int64_t channels = task.block_end - task.block_begin;
  const int64_t planes = task.plane_end - task.plane_begin, rows = task.row_end - task.row_begin;
  pack_slab(depthwise, task, static_cast<const S*>(source_data), slab);
  const Strides5& from = depthwise.grad.source;
  const S* grad =
      static_cast<const S*>(grad_data) + task.sample * from.batch + task.block_begin * from.channel;
  for (int64_t o = 0; o < planes; ++o) {
    pack_plane(depthwise.grad, grad + (task.plane_begin + o) * from.plane, channels, task.row_begin, rows,
               packed_grad + o * walk.stage_plane);
  }

  T* sums = static_cast<T*>(vectors);
  for (int64_t c = 0; c < channels; ++c) {
    const DepthwiseView& view = view_of(depthwise, task.block_begin + c);
    const T* x = slab + c * walk.packing.channel_stride + view.first;
    const T* g = packed_grad + c * walk.stage_channel;
    const int64_t grad_line = view.along_planes ? walk.stage_plane : walk.packing.pitch;
    const int64_t voxels = (rows - 1) * walk.packing.pitch + walk.out_size[2];
    for (int64_t o = 0; o < planes; ++o) {
      Vec<T> total = broadcast(T(0));
      for (int64_t v = 0; v < voxels; v += lanes) total += load<T>(g + o * walk.stage_plane + v);
      store<T>(sums, load<T>(sums) + total);
    }
    sums += lanes;
    // Short chains of additions: first of some tiles.
    const int64_t taps = depthwise.kernel * depthwise.kernel;
    T tile_sums[kMostTaps * lanes];
    int64_t tiles = 0;
    auto add_tiles = [&] {
      for (int64_t i = 0; i < taps * lanes && tiles > 0; i += lanes) {
        store<T>(sums + i, load<T>(sums + i) + load<T>(tile_sums + i));
      }
      fill_zero(tile_sums, taps * lanes);
      tiles = 0;
    };
    add_tiles();
    for_each_tile<T>(
        depthwise, view, planes, rows, [&](int64_t plane, int64_t flat, int64_t outputs, int64_t valid) {
          const T* first = g + plane * walk.stage_plane + flat;
          T own[kLine * lanes];
          if (valid < lanes) {  // the rest is the next row's
            for (int64_t o = 0; o < outputs; ++o) {
              for (int64_t i = 0; i < lanes; ++i) {
                own[o * lanes + i] = i < valid ? first[o * grad_line + i] : T(0);
              }
            }
          }
          lines.products[outputs](
              {x + plane * depthwise.source_plane + flat, view.line, view.other, kernel, 0, kLine + kernel},
              valid < lanes ? own : first, valid < lanes ? lanes : grad_line, tile_sums);
          if (++tiles == kTilesPerSum) add_tiles();
        });
    add_tiles();
    sums += taps * lanes;
  }
}

template <class T>
void add_lanes(const void* vectors, int64_t count, void* sums) {
  constexpr int lanes = kLanes<T>;
  const T* from = static_cast<const T*>(vectors);
  for (int64_t i = 0; i < count; ++i, from += lanes) {
    T sum = 0;
    for (int lane = 0; lane < lanes; ++lane) sum += from[lane];
    static_cast<T*>(sums)[i] = sum;
  }
}

template <class S>
constexpr DepthwiseKernel depthwise_kernel() {
  return {run_depthwise<S>, run_slices<S>, run_depthwise_weight<S>, add_lanes<Computed<S>>};
}

extern const DepthwiseKernel kDepthwiseFloat64, kDepthwiseFloat32, kDepthwiseFloat16, kDepthwiseBFloat16;
const DepthwiseKernel kDepthwiseFloat64 = depthwise_kernel<double>();
const DepthwiseKernel kDepthwiseFloat32 = depthwise_kernel<float>();
const DepthwiseKernel kDepthwiseFloat16 = depthwise_kernel<Half>();
const DepthwiseKernel kDepthwiseBFloat16 = depthwise_kernel<BFloat16>();

}  // namespace ACSCONV_ISA
}  // namespace acsconv
