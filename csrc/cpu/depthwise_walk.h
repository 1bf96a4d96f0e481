// What the depthwise kernels are given: layers of one input and one output channel per group, with stride and
// dilation 1 and square kernels of 3, 5 or 7. A channel's planes, as many as a slab has and those around it,
// are packed together, so that every tap is a constant away:
//
//   [channel][plane][row * pitch + column]       zeros stand for what lies outside the volume
//
// A vector of sources that is loaded once serves all taps along the view's row axis (K_h), for several
// outputs that follow one another along that axis: the view's lines.
//
// Plain data only, and no functions, as in walk.h.
#pragma once

#include "walk.h"

namespace acsconv {

struct DepthwiseView {
  int64_t channel_end;  // of the channels of this view
  int64_t first;        // from a target's place in the slab to the source of its first tap
  int64_t line, other;  // from one tap to the next along the row axis, and along the column axis
  bool along_planes;    // lines run from plane to plane; else from row to row
};

struct DepthwiseWalk {
  Walk walk;  // packing, target and sizes; a task's blocks are channels, and chunks are not used
  DepthwiseView views[3];
  int64_t kernel;        // 3, 5 or 7
  int64_t plane_min;     // first packed plane, for target plane 0
  int64_t halo_planes;   // packed planes = target planes + halo_planes
  int64_t source_plane;  // numbers per packed plane
  Packing grad;          // gradient of the weight: how the gradient of the output is packed
};

// Where channels are adjacent in memory, see depthwise_slices.h. One axis of a view: along its slices, or in
// their plane along its lines (K_h) or columns (K_w).
struct SliceAxis {
  int64_t in_size, out_size;
  int64_t first;           // a target reads from here on, relative to its own place
  int64_t source, target;  // strides
};

struct SliceView {
  SliceAxis slice, line, column;
  int64_t piece;        // columns of a slice that are packed together, and those around them
  int64_t packed_line;  // numbers from line to line
};

// A vector of channels, of which `count` from the `skip`-th on are the block's own.
struct SliceBlock {
  int32_t view;
  int32_t first, skip, count;
};

struct SliceTask {
  int64_t sample, block, slice_begin, slice_end;
};

struct DepthwiseSlices {
  SliceView views[3];
  const SliceBlock* blocks;
  int64_t source_batch, target_batch;  // strides
  int64_t kernel;                      // 3, 5 or 7
};

struct DepthwiseKernel {
  // weights: [channel][column tap][row tap]; bias: one for each channel.
  void (*run)(const DepthwiseWalk& walk, const Task& task, const void* source, const void* weights,
              const void* bias, void* target, const Scratch& scratch);
  // weights: [block][column tap][row tap][lane]; bias: [block][lane]; memory for what is packed of a slice.
  void (*run_slices)(const DepthwiseSlices& walk, const SliceTask& task, const void* source,
                     const void* weights, const void* bias, void* target, void* memory);
  // Adds to vectors [channel of the task][1 + column taps * row taps], whose lanes are not added to one
  // another; the first is the sum of grad.
  void (*run_weight)(const DepthwiseWalk& walk, const Task& task, const void* source, const void* grad,
                     void* vectors, const Scratch& scratch);
  // Adds the lanes of `count` vectors to one another.
  void (*add_lanes)(const void* vectors, int64_t count, void* sums);
};

}  // namespace acsconv
