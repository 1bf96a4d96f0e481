// The gather kernel for bfloat16 on tiles (tile.h), for outputs and gradients of the input.
//
//   sum[16 voxels][16 channels] += source[16 voxels][32 numbers] * weight[32 numbers][16 channels]
//
// A row of a source tile is 32 adjacent numbers of a packed position, so that a displacement is an address,
// as in walk.cpp. Four sums are kept at a time: 32 voxels of 32 channels or 64 voxels of 16, because a
// product takes four times as long until it can be added to as until the next one can start. Every target is
// the same sum in the same order, whatever strip or thread it falls into.
//
// Compiled once for processors with such tiles, see walk.cpp; tile_pass.cpp calls it.
#include "tile_walk.h"

#include "sweep.h"
#include "tile.h"
#include "tile_pack.h"

namespace acsconv {
namespace ACSCONV_ISA {

// One step for the target plane being computed.
struct TileSegment {
  const uint16_t* source;  // what the strip's first target voxel reads
  int64_t stride;          // see TileStep
  const uint16_t* weights;
};

constexpr int64_t kTileNumbers = kTileRows * kTileDepth;

// sums[kTileVoxels / Channels16][16 * Channels16], for the voxels from flat index `voxel` on.
template <int Channels16>
void multiply_tiles(Tiles& tiles, const TileSegment* segment, const TileSegment* end, int64_t voxel,
                    float* sums) {
  tiles.zero<0>(), tiles.zero<1>(), tiles.zero<2>(), tiles.zero<3>();
  for (; segment != end; ++segment) {
    const int64_t stride = segment->stride * 2, next = kTileRows * segment->stride;
    const uint16_t* x = segment->source + voxel * segment->stride;
    const uint16_t* w = segment->weights;
    if constexpr (Channels16 == 2) {
      tiles.load<4>(x, stride), tiles.load<6>(w, 64), tiles.load<7>(w + kTileNumbers, 64);
      tiles.multiply<0, 4, 6>(), tiles.multiply<1, 4, 7>();
      tiles.load<5>(x + next, stride);
      tiles.multiply<2, 5, 6>(), tiles.multiply<3, 5, 7>();
    } else {
      tiles.load<6>(w, 64);
      tiles.load<4>(x, stride), tiles.multiply<0, 4, 6>();
      tiles.load<5>(x + next, stride), tiles.multiply<1, 5, 6>();
      tiles.load<7>(x + 2 * next, stride), tiles.multiply<2, 7, 6>();
      tiles.load<4>(x + 3 * next, stride), tiles.multiply<3, 4, 6>();
    }
  }
  constexpr int64_t width = kTileColumns * Channels16, row = 4 * width;
  constexpr int64_t right = Channels16 == 2 ? kTileColumns : kTileRows * width;
  constexpr int64_t below = kTileRows * width * (Channels16 == 2 ? 1 : 2);
  tiles.store<0>(sums, row), tiles.store<1>(sums + right, row);
  tiles.store<2>(sums + below, row), tiles.store<3>(sums + below + right, row);
}

// The steps of a block whose source plane lies inside the volume.
inline const TileSegment* tile_segments(const TileWalk& walk, const TileChunk& chunk, const TileBlock& block,
                                        int64_t out_plane, const uint16_t* ring, const uint16_t* weights,
                                        TileSegment* segments) {
  const int64_t first_plane = out_plane * walk.plane_stride + walk.plane_min;
  const uint16_t* w = weights + block.weights;
  for (const TileStep* step = walk.steps + block.step_begin; step != walk.steps + block.step_end;
       ++step, w += block.tiles * kTileNumbers) {
    const int64_t plane = first_plane + step->plane;
    if (plane < 0 || plane >= walk.in_planes) continue;
    *segments++ = {ring + plane % walk.ring_planes * chunk.plane_size + step->offset, step->stride, w};
  }
  return segments;
}

inline void run_tiles(const TileWalk& walk, const Task& task, const void* source_data,
                      const void* weight_data, const void* bias_data, void* target_data,
                      const Scratch& scratch) {
  const TileChunk& chunk = walk.chunks[task.chunk];
  const auto* weights = static_cast<const uint16_t*>(weight_data);
  const auto* bias = static_cast<const float*>(bias_data);
  auto* ring = static_cast<uint16_t*>(scratch.ring);
  auto* stage = static_cast<float*>(scratch.stage);
  auto* segments = static_cast<TileSegment*>(scratch.segments);
  const Strides5& from = walk.packing.source;
  const uint16_t* source =
      static_cast<const uint16_t*>(source_data) + task.sample * from.batch + chunk.in_begin * from.channel;
  const TileBlock* blocks = walk.blocks + chunk.block_begin;  // of one class after the other
  const int64_t out_begin = blocks[task.block_begin].out_begin;
  const int64_t out_count =
      blocks[task.block_end - 1].out_begin + blocks[task.block_end - 1].out_count - out_begin;
  auto* target =
      static_cast<BFloat16*>(target_data) + task.sample * walk.target.batch + out_begin * walk.target.channel;
  const bool staged = !writes_tiles_directly(walk);

  const int64_t rows = task.row_end - task.row_begin;
  const int64_t voxels = (rows - 1) * walk.packing.pitch + walk.class_columns;
  alignas(64) float sums[kTileVoxels * kTileColumns];
  Tiles tiles;

  PlanePlaces places;
  auto pack = [&](int64_t plane) {
    uint16_t* to = ring + plane % walk.ring_planes * chunk.plane_size;
    const int64_t row_begin = walk.packing.row_min + task.row_begin;
    const bool found = find_places(walk.packing, row_begin, rows + walk.packing.halo_rows, walk.positions,
                                   kLanes<uint16_t>, places);
    for (const TilePanel* panel = walk.panels + chunk.panel_begin; panel != walk.panels + chunk.panel_end;
         ++panel) {
      pack_tile_panel(walk.packing, found ? &places : nullptr,
                      source + plane * from.plane + panel->in_begin * from.channel, panel->in_count,
                      row_begin, rows + walk.packing.halo_rows, walk.positions, to + panel->offset);
    }
  };
  auto compute = [&](int64_t residue, int64_t column_class, int64_t first, int64_t planes) {
    float* class_stage = stage + column_class * out_count * walk.stage_channel;
    const TileBlock* begin = blocks + (residue * walk.classes[2] + column_class) * chunk.block_count;
    for (const TileBlock* block = begin + task.block_begin; block != begin + task.block_end; ++block) {
      const int64_t channel = block->out_begin - out_begin, width = kTileColumns * block->tiles;
      const int64_t step = kTileVoxels / block->tiles;
      for (int64_t o = 0; o < planes; ++o) {
        const TileSegment* end = tile_segments(walk, chunk, *block, first + o, ring, weights, segments);
        TileTarget to(walk, task, residue, column_class, first + o, target + channel * walk.target.channel);
        for (int64_t voxel = 0; voxel < voxels; voxel += step) {
          if (!staged) to.prefetch(step);
          (block->tiles == 2 ? multiply_tiles<2> : multiply_tiles<1>)(tiles, segments, end, voxel, sums);
          if (staged) {
            stage_tiles(sums, width, block->out_count, step, bias + block->out_begin,
                        class_stage + channel * walk.stage_channel + o * walk.stage_plane + voxel,
                        walk.stage_channel);
          } else {
            to.write(sums, width, block->out_count, step, bias + block->out_begin);
          }
        }
      }
    }
  };
  auto write = [&](int64_t plane, int64_t position, int64_t row, int64_t rows_inside) {
    if (!staged) return;
    write_plane(walk, stage + plane * walk.stage_plane, out_count, rows_inside,
                walk.out_stride[1] * walk.target.row,
                target + position * walk.target.plane + row * walk.target.row);
  };
  for_each_step(walk, task, pack, compute, write);
}

extern const TileKernel kTiles;
const TileKernel kTiles = {sizeof(TileSegment), transpose_weights, run_tiles};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
