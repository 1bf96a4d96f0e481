// Gradient of the weight of bfloat16 tensors on tiles (tile.h); tile_weight.h has the rest. Four sums are
// kept at a time, of 32 channels times 32, or, where there are fewer channels, of every second or fourth run
// of 32 voxels.
//
// Compiled once for processors with such tiles, see walk.cpp; weight_pass.cpp calls it.
#include "tile_weight.h"

#include "tile.h"

namespace acsconv {
namespace ACSCONV_ISA {

constexpr int kSums = 4;  // tiles

// sums[16 * Rows][16 * Columns] += products of `voxels` positions of each run. Numbers of a channel of the
// gradient are `channel_stride` apart.
template <int Rows, int Columns>
void add_products(Tiles& tiles, const TileRun* run, const TileRun* end, int64_t voxels,
                  int64_t channel_stride, float* sums) {
  constexpr int splits = kSums / (Rows * Columns), lanes = kLanes<float>;
  constexpr int64_t numbers = Rows * Columns * kTileRows * kTileColumns;
  constexpr int64_t pair = 2 * Columns * kTileColumns;  // numbers
  const int64_t row_bytes = 2 * channel_stride;
  auto step = [&](const TileRun& from, int64_t voxel, auto split) {
    constexpr int first = split.value * Rows * Columns, other = Rows * Columns == 1 ? split.value % 2 : 0;
    const uint16_t* g = from.grad + voxel;
    const uint16_t* x = from.source + voxel / 2 * pair;
    tiles.load<4 + other>(g, row_bytes);
    tiles.load<6 + other>(x, 2 * pair);
    tiles.multiply<first, 4 + other, 6 + other>();
    if constexpr (Columns == 2) {
      tiles.load<7>(x + 2 * kTileColumns, 2 * pair);
      tiles.multiply<first + 1, 4, 7>();
    }
    if constexpr (Rows == 2) {
      tiles.load<5>(g + kTileRows * channel_stride, row_bytes);
      tiles.multiply<first + Columns, 5, 6>();
      if constexpr (Columns == 2) tiles.multiply<first + 3, 5, 7>();
    }
  };
  tiles.zero<0>(), tiles.zero<1>(), tiles.zero<2>(), tiles.zero<3>();
  for (; run != end; ++run) {
    int64_t voxel = 0;
    for (; voxel + splits * kTileDepth <= voxels; voxel += splits * kTileDepth) {
      unrolled<0, splits>([&](auto s) { step(*run, voxel + s.value * kTileDepth, s); });
    }
    for (; voxel < voxels; voxel += kTileDepth) step(*run, voxel, Constant<0>{});
  }
  alignas(64) float products[kSums * kTileRows * kTileColumns];
  auto store_tile = [&](auto tile) {
    constexpr int of_split = tile.value % (Rows * Columns);
    tiles.store<tile.value>(
        products + tile.value / (Rows * Columns) * numbers +
            (of_split / Columns * kTileRows * Columns + of_split % Columns) * kTileColumns,
        4 * Columns * kTileColumns);
  };
  unrolled<0, kSums>(store_tile);
  for (int64_t i = 0; i < numbers; i += lanes) {
    Vec<float> sum = load<float>(products + i);
    unrolled<1, splits - 1>([&](auto s) { sum += load<float>(products + s.value * numbers + i); });
    store<float>(sums + i, load<float>(sums + i) + sum);
  }
}

using AddProducts = void (*)(Tiles&, const TileRun*, const TileRun*, int64_t, int64_t, float*);
constexpr AddProducts kAddProducts[2][2] = {{add_products<1, 1>, add_products<1, 2>},
                                            {add_products<2, 1>, add_products<2, 2>}};

class TileProducts {
 public:
  static constexpr int64_t kDepth = kTileDepth;

  void add(int64_t outputs, int64_t inputs, const TileRun* run, const TileRun* end, int64_t voxels,
           int64_t channel_stride, float* sums) {
    const AddProducts add = kAddProducts[(outputs - 1) / kTileRows][inputs / kTileColumns - 1];
    add(tiles_, run, end, voxels, channel_stride, sums);
  }

 private:
  Tiles tiles_;
};

extern const TileWeightKernel kTileWeight;
const TileWeightKernel kTileWeight = {
    {kTileColumns, kSums, sizeof(TileRun), run_tile_weight<TileProducts>}, 8, 10, kTileRows, kPanel};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
