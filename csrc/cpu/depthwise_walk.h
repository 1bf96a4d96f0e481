// What the depthwise kernels are given: layers of one input and one output channel per group, with stride and
// dilation 1 and square kernels of 3, 5 or 7. A view is seen along its lines, the axis of its kernel's rows:
// a vector of sources that is loaded once serves all row taps, for several outputs that follow one another
// along that axis. What a vector runs over depends on what is adjacent in memory:
//
//   slabs  (depthwise.cpp)       voxels of a channel, packed as [line][row * pitch + column], column along W;
//                                lanes that a column tap would take from the next row are masked
//   slices (depthwise_slices.h)  channels of a view,  packed as [line][column][channel], for one slice
//
// Plain data only, and no functions, as in walk.h.
#pragma once

#include <cstdint>

namespace acsconv {

constexpr int kMostOutputs = 14;  // of a tile
constexpr int kMostTaps = 49;

// One axis of the volume, as a view sees it.
struct DepthwiseAxis {
  int64_t in_size, out_size;
  int64_t first;           // a target reads from here on, relative to its own place
  int64_t source, target;  // strides
};

// Zeros stand for rows outside the volume; columns outside are masked, and lines outside are not read.
struct SlabView {
  DepthwiseAxis line, row, column;
  int64_t row_halo;       // packed rows = target rows + row_halo
  int64_t begin, count;   // the volume's columns in a packed row
  int64_t pitch;          // packed columns per row
  int64_t lead, tap;      // of a packed line's numbers, the first row, and the first target's first tap
  const int32_t* inside;  // [column tap][column, and a vector beyond]: -1 where the tap is inside, else 0
  int64_t inside_other;   // from those of one column tap to the next
  int64_t other;          // from one column tap to the next
  int64_t packed_line, target_line;  // numbers from line to line, of sources and of targets
};

struct DepthwiseSlabs {
  SlabView views[3];
  int64_t source_batch, source_channel, target_batch, target_channel;  // strides
  int64_t kernel;                                                      // 3, 5 or 7
  int32_t weight_places[kMostTaps];
};

// Targets of one channel.
struct SlabTask {
  int64_t sample;
  int32_t view, channel;
  int64_t line_begin, line_end, row_begin, row_end;
};

struct SliceView {
  DepthwiseAxis slice, line, column;
  int64_t together;                   // slices that are packed together
  int64_t piece;                      // their columns that are, and those around them
  int64_t packed_line, packed_slice;  // numbers from line to line, and from slice to slice
};

// A vector of channels, of which `count` from the `skip`-th on are the block's own.
struct SliceBlock {
  int32_t view;
  int32_t first, skip, count;
};

struct DepthwiseSlices {
  SliceView views[3];
  const SliceBlock* blocks;
  int64_t source_batch, target_batch;  // strides
  int64_t kernel;                      // 3, 5 or 7
  int32_t weight_places[kMostTaps];
};

struct SliceTask {
  int64_t sample, block, slice_begin, slice_end, column_begin, column_end;
};

// Tiles take a channel's weights as [column tap][row tap]; the i-th of these is at weight_places[i] of the
// channel's kernel. So lie the gradient's sums of vectors, [1 + column taps * row taps], behind the sum of
// grad.
struct DepthwiseKernel {
  // weights, bias: tensors; bias may be null. packed, staged: memory for what a task packs and for its
  // targets.
  void (*run_slab)(const DepthwiseSlabs& slabs, const SlabTask& task, const void* source, const void* weights,
                   const void* bias, void* target, void* packed, void* staged);
  // Adds to `sums` of the task's channel, whose lanes are not added to one another.
  void (*run_slab_weight)(const DepthwiseSlabs& slabs, const SlabTask& task, const void* source,
                          const void* grad, void* sums, void* packed, void* staged);
  void (*run_slice)(const DepthwiseSlices& slices, const SliceTask& task, const void* source,
                    const void* weights, const void* bias, void* target, void* packed);
  // Adds to `sums` of the task's block, a lane for each channel.
  void (*run_slice_weight)(const DepthwiseSlices& slices, const SliceTask& task, const void* source,
                           const void* grad, void* sums, void* packed);
};

}  // namespace acsconv
