// What a CPU kernel is given: one forward pass cut into taps, blocks of output channels, and tasks.
//
// The kernel walks a volume in strips of rows, plane by plane, and keeps the input planes that it needs next
// in a ring of packed planes. In a packed plane every channel is one flat row of numbers:
//
//   [phase][channel][row * pitch + column]       zeros stand for what lies outside the volume
//
// so that reading a neighbour is adding a constant, whatever the border. Where outputs lie `stride` inputs
// apart, a plane is packed as up to stride * stride phases, each of which holds every stride-th row and
// column; a tap reads one phase. Two rows share the zeros between them: the right border of one is the left
// border of the next.
//
// Plain data only, and no functions: the source that is compiled once per instruction set includes this file,
// and an inline function here could be linked in its AVX-512 form into all of them.
#pragma once

#include <cstdint>

namespace acsconv {

// One kernel position of a view, as a displacement of whole planes, and of rows and columns of one phase.
struct Tap {
  int64_t plane;   // input plane = output plane * stride + Walk::plane_min + plane; not negative
  int64_t offset;  // in a packed channel row: from an output voxel's flat index to the input that it reads
  int32_t phase;
  int32_t kernel_index;  // row * K_w + column
};

// Up to 14 consecutive output channels of one view and one group, which are computed together in registers.
struct Block {
  int32_t out_begin, out_count;
  int32_t vectors;   // vectors of voxels per channel in registers
  int32_t view;      // its taps are taps[tap_begin[view]] to taps[tap_begin[view + 1]]
  int64_t in_begin;  // first input channel of its group, counted from the chunk's
  int64_t weights;   // its packed weights start here: [channel slice][tap][channel][out_count]
};

// Consecutive groups that are computed together. With groups = 1, all there is.
struct Chunk {
  int64_t in_begin, in_count;
  int32_t block_begin, block_end;
};

struct Phase {
  int32_t row, column;
};

// Strides in elements.
struct Strides5 {
  int64_t batch, channel, plane, row, column;
};

struct Walk {
  const Tap* taps;
  int32_t tap_begin[4];
  const Block* blocks;
  const Chunk* chunks;
  const Phase* phases;
  int32_t phase_count;

  int64_t group_channels;  // input channels per group: what a block reduces over
  int64_t channel_slice;   // the reduction goes through this many channels, all taps, then the next ones
  int64_t in_planes, in_rows, in_columns;
  int64_t out_planes, out_rows, out_columns;
  int64_t plane_stride, row_stride, column_stride;
  int64_t plane_min, plane_max;  // of all taps

  int64_t row_min, column_min;  // first packed row and column, in units of a phase, for output row 0
  int64_t halo_rows;            // packed rows = output rows of the strip + halo_rows
  int64_t pitch;                // packed columns per row; also the pitch of outputs in their flat order
  int64_t channel_stride;       // numbers per packed channel row
  int64_t ring_planes;          // packed planes that are kept
  int64_t strip_rows;           // output rows per strip
  int64_t step_planes;          // output planes that are computed between two looks at the ring
  int64_t stage_plane;          // numbers per output plane of a strip, in the staging buffer
  int64_t stage_channel;        // and per output channel
  const uint8_t*
      plane_read;  // [plane_stride]: whether taps read planes with this (plane - plane_min) % plane_stride

  Strides5 input, output;
};

// A piece of the output that one thread computes: a strip, a range of planes, a range of blocks.
struct Task {
  int64_t sample;
  int32_t chunk;
  int32_t block_begin, block_end;
  int64_t row_begin, row_end;
  int64_t plane_begin, plane_end;
};

// A thread's own memory: packed planes, outputs before they are written, segments of the reduction.
struct Scratch {
  void* ring;
  void* stage;
  void* segments;
};

// The kernels of one instruction set, for one number type.
struct WalkKernels {
  int32_t lanes;         // numbers per vector
  int32_t accumulators;  // vectors that fit into registers beside what else is needed
  int32_t segment_size;  // bytes
  // input, weights (packed), bias [C_out, never null], output: arrays of the number type.
  void (*run)(const Walk& walk, const Task& task, const void* input, const void* weights, const void* bias,
              void* output, const Scratch& scratch);
};

}  // namespace acsconv
