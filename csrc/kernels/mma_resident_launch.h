// What the launchers of the kernels with resident weights (mma_resident.cuh) give them.
#pragma once

#include "../mma_resident_plan.h"
#include "mma_launch.h"

namespace acsconv {

struct ResidentLaunch {
  MmaWork work;
  unsigned blocks;
  size_t shared_bytes;
  const void* source;
  const unsigned char* packed;
  void *result, *stream;
  bool whole_pieces;  // 8 channels of the result from a multiple of 8 on are 16 aligned bytes
};

// `tiles`: tiles of voxels, steps and packed bytes of the plan; the packed weights begin the workspace.
inline ResidentLaunch resident_launch(const Problem& problem, const MmaPlan& tiles, int blocks,
                                      const ResidentMemory& memory, const void* source, void* result,
                                      void* workspace, void* stream) {
  ResidentLaunch call{};
  call.work = describe_work(problem, tiles, Pass::Forward, /*soft=*/false, source);
  call.work.tiles = tiles.tiles;
  call.blocks = static_cast<unsigned>(blocks);
  call.shared_bytes = memory.weights + tiles.packed_bytes;
  call.source = source;
  call.packed = static_cast<const unsigned char*>(workspace);
  call.result = result;
  call.stream = stream;
  const VolumeStrides& to = call.work.result;
  call.whole_pieces = to.channel == 1 && problem.out_channels % 8 == 0 &&
                      reinterpret_cast<uintptr_t>(result) % 16 == 0 && to.batch % 8 == 0;
  for (const int64_t stride : to.axis) call.whole_pieces = call.whole_pieces && stride % 8 == 0;
  return call;
}

}  // namespace acsconv
