// What the kernel of bfloat16 tiles is given, see tile_walk.cpp: the gather of walk.h, but with the source
// planes in the ring packed as
//
//   [panel][phase][position][channel of the panel]     position = row * pitch + column
//
// A panel is the source channels that some block sums over: all of a group in the forward pass, those of one
// view in the gradient of the input. 32 adjacent numbers of a position are a step of the reduction; as
// neighbouring columns are adjacent too, a step may take in the last channels of one tap and the first ones
// of the next.
//
// Plain data only, as in walk.h.
#pragma once

#include "walk.h"

namespace acsconv {

// sum[kTileRows][kTileColumns] += left[kTileRows][kTileDepth] * right[kTileDepth][kTileColumns], see tile.h.
constexpr int kTileRows = 16, kTileColumns = 16, kTileDepth = 32;

// Voxels of a target plane that are computed together: this many, or half as many.
constexpr int64_t kTileVoxels = 64;

struct TilePanel {
  int64_t in_begin, in_count;  // source channels, counted from the chunk's
  int64_t offset;              // in a packed plane
};

struct TileStep {
  int64_t plane;   // see Tap
  int64_t offset;  // from the packed plane to what target voxel 0 reads
  int64_t stride;  // from position to position: channels of the panel
};

// Up to 32 consecutive target channels of one class.
struct TileBlock {
  int32_t out_begin, out_count;
  int32_t tiles;  // of 16 channels each: 1 or 2
  int32_t step_begin, step_end;
  int64_t weights;  // its packed weights start here: [step][tile][pair of numbers][channel][2]
};

struct TileChunk {
  int64_t in_begin;
  int32_t panel_begin, panel_end;
  int32_t block_begin, block_count;  // see Chunk
  int64_t plane_size;                // of a packed plane
};

struct TileWalk : Sweep {
  const TileStep* steps;
  const TilePanel* panels;
  const TileBlock* blocks;
  const TileChunk* chunks;
  int64_t positions;  // of a phase in a panel; behind the last one are kTileDepth zeros
};

struct TileKernel {
  int32_t segment_size;  // bytes
  // to[number][kTileColumns] = from[channel][number] for `channels` rows of at least kTileDepth numbers,
  // `stride` apart; zeros for the channels that are missing.
  void (*transpose)(const uint16_t* from, int64_t stride, int64_t channels, int64_t numbers, uint16_t* to);
  // As WalkKernel::run, but for weights: bfloat16.
  void (*run)(const TileWalk& walk, const Task& task, const void* source, const void* weights,
              const void* bias, void* target, const Scratch& scratch);
};

}  // namespace acsconv
