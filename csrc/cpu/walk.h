// What a CPU kernel is given: a gather (gather.h) cut into taps, blocks of target channels, and tasks.
//
// The kernel walks a volume in strips of rows, plane by plane, and keeps the source planes that it needs next
// in a ring of packed planes. In a packed plane every channel is one flat row of numbers:
//
//   [phase][channel][row * pitch + column]       zeros stand for what lies outside the volume
//
// so that reading a neighbour is adding a constant, whatever the border. Where neighbouring targets read
// `stride` sources apart, a plane is packed as up to stride * stride phases, each of which holds every
// stride-th row and column; a tap reads one phase. Two rows share the zeros between them: the right border of
// one is the left border of the next. Where sources reach targets `stride` apart, in the gradient of the
// input, targets are computed in classes, one for each residue of their position modulo the stride.
//
// Plain data only, and no functions: the source that is compiled once per instruction set includes this file,
// and an inline function here could be linked in its AVX-512 form into all of them.
#pragma once

#include <cstdint>

namespace acsconv {

// A displacement of whole planes, and of rows and columns of one phase.
struct Tap {
  int64_t plane;   // source plane = target plane * plane_stride + plane_min + plane; not negative
  int64_t offset;  // in a packed channel row: from a target voxel's flat index to the source that it reads
  int32_t phase;
};

struct Phase {
  int32_t row, column;
};

// Strides in elements.
struct Strides5 {
  int64_t batch, channel, plane, row, column;
};

// How the rows of a source plane are packed.
struct Packing {
  Strides5 source;
  int64_t source_numbers;  // from the tensor's first to behind its last
  int64_t pair_distance;   // see Gather
  int64_t in_rows, in_columns;
  int64_t row_stride, column_stride;
  const Phase* phases;
  int32_t phase_count;
  int64_t row_min, column_min;  // first packed row and column, in units of a phase, for target row 0
  int64_t halo_rows;            // packed rows = target rows of the strip + halo_rows
  int64_t pitch;                // packed columns per row; also the pitch of targets in their flat order
  int64_t channel_stride;       // numbers per packed channel row
};

// What a block sums through one set of taps.
struct Part {
  int32_t tap_begin, tap_end;
  int64_t in_begin, in_count;  // source channels, counted from the chunk's
};

// Consecutive target channels of one class, which are computed together in registers: up to 14 where vectors
// run over voxels, up to two vectors of them otherwise.
struct Block {
  int32_t out_begin, out_count;
  int32_t vectors;  // in registers: of voxels per channel, or of channels per voxel
  int32_t
      positions;    // most voxels in registers where vectors run over channels; 0 where they run over voxels
  int32_t width;    // packed weights per source channel: out_count, or whole vectors
  bool single;      // all its parts have one source channel
  bool whole_rows;  // where vectors run over voxels: they begin with the rows, whole vectors all
  int32_t part_begin, part_end;
  int64_t weights;  // its packed weights start here: [part][channel slice][tap][channel][width]
};

// Consecutive groups that are computed together. With groups = 1, all there is.
struct Chunk {
  int64_t in_begin, in_count;
  int32_t block_begin, block_count;  // blocks of the first class; those of the next class follow them
};

// How planes of the source come and planes of the target go, whatever multiplies them.
struct Sweep {
  Packing packing;
  int64_t in_planes;
  int64_t plane_stride;
  int64_t plane_min, plane_max;  // of all taps
  // [plane_stride]: whether taps read planes with this (plane - plane_min) % plane_stride
  const uint8_t* plane_read;
  int64_t ring_planes;  // packed planes that are kept
  int64_t step_planes;  // target planes that are computed between two looks at the ring

  Strides5 target;
  int64_t out_size[3];    // planes, rows, columns
  int64_t out_stride[3];  // class + index * out_stride is the position of a target
  int64_t classes[3];     // number of classes; columns fastest
  int64_t class_columns;  // targets per row of the largest class
  int64_t stage_plane;    // numbers per target plane of a strip, in the staging buffer
  int64_t stage_channel;  // and per target channel
};

// The places of the weights that are added for one tap, among the numbers of one pair of channels.
struct TapWeights {
  int32_t count;
  int64_t place[3];
};

struct Walk : Sweep {
  const Tap* taps;
  const Part* parts;
  const Block* blocks;
  const Chunk* chunks;
  int64_t channel_slice;  // a part goes through this many channels, all taps, then the next ones
  // How weights lie before they are packed: of each tap, of each part (those of its first source and target
  // channel), and from one source or target channel to the next.
  const TapWeights* tap_weights;
  const int64_t* part_weights;
  int64_t weight_in, weight_out;
  // Every block is one task's alone, which packs its weights when it needs them first.
  bool weights_in_tasks;
  // Where vectors run over channels, the voxels of a plane are cut into runs: rows, or one of them all. Sums
  // are kept as [voxel][width], behind the staged outputs, before they are transposed.
  bool rows_are_runs;
  int64_t sums;  // where they begin
};

// A piece of the output that one thread computes: a strip, a range of planes, a range of blocks of every
// class. Rows and planes are counted within a class.
struct Task {
  int64_t sample;
  int32_t chunk;
  int32_t block_begin, block_end;  // counted from the class's first
  int64_t row_begin, row_end;
  int64_t plane_begin, plane_end;
};

// A thread's own memory: packed planes, outputs before they are written, segments of the reduction.
struct Scratch {
  void* ring;
  void* stage;
  void* segments;
};

// The gather kernel of one instruction set, for one type of tensor.
struct WalkKernel {
  int32_t lanes;         // numbers per vector
  int32_t accumulators;  // vectors that fit into registers beside what else is needed
  int32_t segment_size;  // bytes
  // source, target: tensors. weight, packed (the task packs them where Walk says so), bias (one for each
  // target channel, never null): numbers of the type that sums are made in, which is float for 16-bit
  // tensors.
  void (*run)(const Walk& walk, const Task& task, const void* source, const void* weight, void* packed,
              const void* bias, void* target, const Scratch& scratch);
  // Packs a block's weights, both in that type.
  void (*pack_weights)(const Walk& walk, const Block& block, const void* weight, void* packed);
};

}  // namespace acsconv
