// What a kernel for the gradient of the weight is given: sums over all output voxels, cut into blocks of
// output channels and into parts of the volume.
//
//   sum(tap, c, o) = sum over voxels of source[c][voxel + displacement of the tap] * grad_output[o][voxel]
//
// Both volumes are packed plane by plane with the same pitch, the source as for the forward pass (walk.h),
// the gradient with zeros between its rows: so a product is made for every flat index, and those in between
// add nothing. Kernels differ in what runs along a vector:
//
//   outer products  (weight_outer.cpp)  input channels; both volumes are packed [position][channel]
//   dot products    (weight_dots.cpp)   voxels; packed [channel][position]; for few input channels per group
//   tiles           (tile_weight.cpp)   bfloat16 where the processor has tiles; see there
//
// Plain data only, and no functions, as in walk.h.
#pragma once

#include "walk.h"

namespace acsconv {

// Input channels of a panel and output channels of a block on tiles: two tiles of them.
constexpr int64_t kWeightPanelChannels = 32;

// Some consecutive output channels of one view and one group: up to 14, or 32 on tiles.
struct WeightBlock {
  int32_t out_begin, out_count;
  int32_t tap_begin, tap_end;
  int64_t in_begin;  // first input channel of its group, counted from the chunk's
  int64_t width;     // out_count, or whole tiles
  // Where its sums lie, [panel][tap][width][panel_width]: panels of input channels, the last one narrower.
  int64_t sums;
};

struct WeightChunk {
  int64_t in_begin, in_count;
  int32_t block_begin, block_end;
};

struct WeightWalk {
  Packing source, grad;
  const Tap* taps;
  const WeightBlock* blocks;
  const WeightChunk* chunks;

  int64_t group_channels;  // input channels per group
  int64_t panel_width;     // see WeightBlock
  int64_t in_planes;
  int64_t plane_stride;
  int64_t plane_min, plane_max;  // of all taps
  const uint8_t* plane_read;     // see Walk
  int64_t out_planes, out_rows, out_columns;
  int64_t strips, strip_rows;
  int64_t step_planes;       // output planes that are computed together
  int64_t chain;             // outer products and tiles: voxels whose products are added up in registers
  int64_t ring_planes;       // packed source planes that are kept
  int64_t source_positions;  // packed numbers of a channel in a phase, and in a plane of the gradient
  int64_t grad_positions;
  int64_t bias_sums;  // sums of the gradient's channels lie here, behind those of the blocks,
  int64_t bias_lost;  // and behind them what these have lost to rounding
};

// What one thread adds up: some blocks, in the output planes [unit_begin, unit_end), counted through all
// strips of all samples.
struct WeightTask {
  int64_t part;
  int32_t chunk;
  int32_t block_begin, block_end;
  int64_t unit_begin, unit_end;
};

// A thread's own memory.
struct WeightScratch {
  void* ring;     // packed source planes
  void* grad;     // packed planes of the gradient
  void* vectors;  // dot products: sums whose lanes have not been added; tiles: numbers to be transposed
  void* items;    // what a block multiplies with: runs of voxels or pointers
};

struct WeightKernel {
  int32_t lanes, accumulators;
  int32_t item_size;  // bytes
  // source, grad: tensors. sums: of the task's part; the task's own are zero. Numbers of the type that sums
  // are made in.
  void (*run)(const WeightWalk& walk, const WeightTask& task, const void* source, const void* grad,
              void* sums, const WeightScratch& scratch);
};

// In bfloat16, by products of tiles (tile_weight.h); csrc/cpu/DESIGN.md has the measurements.
struct TileWeightKernel {
  WeightKernel kernel;
  double of_vectors;  // products in the time of one on vectors of float, if no tile is padded
  // It is used where it makes at most this many products per product of the convolution, outputs being
  // multiples of `outputs` and inputs of a tile.
  double most_padding;
  int64_t outputs, widest;  // of a block, at most kWeightPanelChannels
};

}  // namespace acsconv
