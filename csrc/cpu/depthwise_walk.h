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

struct DepthwiseKernel {
  // weights: [channel][column tap][row tap]; bias: one for each channel.
  void (*run)(const DepthwiseWalk& walk, const Task& task, const void* source, const void* weights,
              const void* bias, void* target, const Scratch& scratch);
  // Adds to vectors [channel of the task][1 + column taps * row taps], whose lanes are not added to one
  // another; the first is the sum of grad.
  void (*run_weight)(const DepthwiseWalk& walk, const Task& task, const void* source, const void* grad,
                     void* vectors, const Scratch& scratch);
  // Adds the lanes of `count` vectors to one another.
  void (*add_lanes)(const void* vectors, int64_t count, void* sums);
};

}  // namespace acsconv
