// What the kernel of 1x1 layers is given (pointwise.cpp): a matrix product over the voxels of a target, whose
// sources lie at a constant distance from one another along each axis. Plain data only, see walk.h.
//
// Voxels are numbered as they lie in the target, W fastest, and go through the kernel in panels: packed
// sources [channel][panel_stride], all channels of `panel` voxels. Sums of contiguous targets have vectors
// over voxels, and are written where they belong; those of channels-last targets have vectors over channels,
// as far as their channels are whole vectors, and are staged and transposed otherwise. 16-bit numbers are
// widened where they are packed and staged before they are rounded.
#pragma once

#include <cstdint>

#include "walk.h"

namespace acsconv {

// How a vector's worth of sums gets into the target.
enum class PointwiseTarget { Rows, Channels, StagedRows, Staged, Streamed };

struct PointwiseWalk {
  Strides5 source;  // from one target voxel's source to the next one's
  int64_t target_batch, target_channel;
  PointwiseTarget form;
  bool in_place;  // sources are multiplied where they are: form is Channels
  int64_t in_channels, out_channels;
  int64_t rows, columns;  // of the target; one row where sources lie at one distance throughout
  int64_t spacing;     // source columns from one target's source to the next, of `in_columns` adjacent ones
  int64_t in_columns;  // 0 where columns are not adjacent
  int64_t panel, panel_stride;
  // Blocks of target channels: as many `vectors` in registers, of up to `width` channels or `positions`
  // voxels.
  int32_t vectors, positions;
  int64_t width, block_count, block_stride;  // the last: numbers of packed weights, [source channel][width]
  int64_t weight_in, weight_out;  // from one source or target channel to the next among the weights
};

// Target voxels [begin, end) of a sample.
struct PointwiseTask {
  int64_t sample, begin, end;
};

// A thread's own memory: a panel, and sums that are not written where they belong at once.
struct PointwiseScratch {
  void *panel, *stage;
};

// The kernel of one instruction set and one type of number.
struct PointwiseKernel {
  int32_t lanes, accumulators;  // as in WalkKernel
  int32_t most_streamed;        // target channels for PointwiseTarget::Streamed
  // weights: packed. bias: a number for each target channel, never null.
  void (*run)(const PointwiseWalk& walk, const PointwiseTask& task, const void* source, const void* weights,
              const void* bias, void* target, const PointwiseScratch& scratch);
  void (*pack_weights)(const PointwiseWalk& walk, int64_t block, const void* weight, void* packed);
};

}  // namespace acsconv
