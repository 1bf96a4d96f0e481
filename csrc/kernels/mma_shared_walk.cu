// Launches the forward kernel of narrow layers (mma_shared_walk.h): packs the weights in the order of its
// units, writes down what its columns hold, and runs it.
#include "mma_shared_walk.h"

#include "channel_tiles.h"
#include "mma_pack.cuh"
#include "mma_shared_walk_launch.h"
#include "report.h"

namespace acsconv {
namespace {

constexpr int kPackThreads = 256;

struct PackSharedWalk {
  MmaWork work;
  int full, mixed;
  int64_t registers;  // of all fragments
};

// Shift (d, h, w) and tile of a step's unit.
struct SharedWalkUnit {
  int d, h, w, tile;
};
__device__ __forceinline__ SharedWalkUnit shared_walk_unit(int full, int mixed, int unit) {
  for (int shift = 0;; ++shift) {
    for (int tile = 0; tile < kViews * full + mixed; ++tile) {
      const SharedWalkUnit at{shift / 9, shift % 3, shift / 3 % 3, tile};
      if (shared_walk_multiplies(full, tile, at.d, at.h, at.w) && unit-- == 0) return at;
    }
  }
}

// packed: [step][unit][lane][2 registers]
template <class T, class Weight>
__global__ void __launch_bounds__(kPackThreads)
    pack_shared_walk_kernel(PackSharedWalk pack, const Weight* weight, const Weight* bias, uint32_t* packed,
                            ResultColumn* columns) {
  const MmaWork& work = pack.work;
  const int64_t first = blockIdx.x * int64_t{kPackThreads} + threadIdx.x;
  if (first < 8 * (kViews * pack.full + pack.mixed)) {
    const int channel = place_column(work.split, pack.full, static_cast<int>(first)).channel;
    columns[first] = {channel, bias != nullptr && channel >= 0 ? widen(bias[channel]) : 0.0f};
  }
  const int units = shared_walk_units(pack.full, pack.mixed);
  for (int64_t index = first; index < pack.registers; index += int64_t{gridDim.x} * kPackThreads) {
    const int lane = static_cast<int>(index % 64) / 2, step = static_cast<int>(index / 64 / units);
    const SharedWalkUnit unit = shared_walk_unit(pack.full, pack.mixed, static_cast<int>(index / 64 % units));
    const PlacedColumn column = place_column(work.split, pack.full, 8 * unit.tile + lane / 4);
    const bool reads = column.channel >= 0 && shift_in_view(column.view, unit.d, unit.h, unit.w);
    const int row = column.view == 0 ? unit.h : unit.d, along = column.view == 2 ? unit.h : unit.w;
    packed[index] = pack_register<T>(
        2 * step * kGranule<T>, {0, reads ? work.reduced : 0}, static_cast<int>(index % 2), lane,
        [&](int channel) {
          return widen(weight[(int64_t{column.channel} * work.reduced + channel) * 9 + row * 3 + along]);
        });
  }
}

template <class T, class Weight>
const char* launch_pack(const PackSharedWalk& pack, const void* weight, const void* bias, void* packed,
                        ResultColumn* columns, void* stream) {
  return launch(pack_shared_walk_kernel<T, Weight>, dim3(grid_size(ceil_div(pack.registers, kPackThreads))),
                dim3(kPackThreads), 0, stream, pack, static_cast<const Weight*>(weight),
                static_cast<const Weight*>(bias), static_cast<uint32_t*>(packed), columns);
}

}  // namespace

const char* mma_shared_walk(const Problem& problem, const SharedWalkPlan& plan, const void* source,
                            const void* weight, const void* bias, ScalarType weight_type, void* result,
                            void* workspace, void* stream) {
  if (plan.tiles.tiles == 0) return nullptr;
  const SharedWalkShape& shape = plan.chosen();
  SharedWalkLaunch call{resident_launch(problem, plan.tiles, plan.blocks, shared_walk_memory(shape), source,
                                        result, workspace, stream),
                        nullptr};
  ResultColumn* columns =
      reinterpret_cast<ResultColumn*>(static_cast<unsigned char*>(workspace) + plan.tiles.packed_bytes);
  call.columns = columns;

  const PackSharedWalk pack{call.work, shape.full, shape.mixed,
                            static_cast<int64_t>(plan.tiles.packed_bytes / 4)};
  const char* error = with_pack_types(problem.type, weight_type, [&](auto scalar, auto parameter) {
    return launch_pack<decltype(scalar), decltype(parameter)>(pack, weight, bias, workspace, columns, stream);
  });
  if (error != nullptr) return error;
  return with_mma_scalar(
      problem.type, [&](auto scalar) { return shared_walk_instance<decltype(scalar)>(plan.shape)(call); });
}

}  // namespace acsconv
