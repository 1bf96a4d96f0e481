// Gradient of the weight of bfloat16 tensors on vectors, where a processor multiplies pairs of numbers
// (pair.h) but has no tiles; tile_weight.h has the rest.
//
//   sum[output][16 inputs] += grad[output][2k] * source[2k][16 inputs] + grad[output][2k + 1] * source[2k +
//   1][16 inputs]
//
// one instruction. As many outputs are taken at a time as their sums fit into registers, so that a vector of
// the source is loaded once for all of them.
//
// Compiled once for such processors, see walk.cpp; weight_pass.cpp calls it.
#include "pair.h"
#include "tile_weight.h"

namespace acsconv {
namespace ACSCONV_ISA {

constexpr int kMostOutputs = 22;                            // whose sums fit into registers, if inputs are 16
constexpr int kTileVectors = kTileColumns / kLanes<float>;  // of a row

// A pair of numbers in all lanes.
[[gnu::always_inline]] inline Words broadcast_pair(const char* from) {
  Pair pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return broadcast(pair);
}

// sums[Outputs][16 * Columns] += products of `voxels` positions of each run, of the outputs that begin
// `first` numbers behind the run's.
template <int Outputs, int Columns>
void add_pair_products(const TileRun* run, const TileRun* end, int64_t first, int64_t voxels,
                       int64_t channel_stride, float* sums) {
  constexpr int vectors = Columns * kTileVectors, lanes = kLanes<float>;
  constexpr int64_t pair_numbers = 2 * Columns * kTileColumns;
  const int64_t row_bytes = 2 * channel_stride;
  Vec<float> sum[Outputs][vectors] = {};
  for (; run != end; ++run) {
    const uint16_t* x = run->source;
    // Of every third row, so that the address of a row is a register and a multiple of another one.
    const char* row[(Outputs + 2) / 3];
    unrolled<0, (Outputs + 2) / 3>([&](auto i) {
      row[i.value] = reinterpret_cast<const char*>(run->grad + first) + 3 * i.value * row_bytes;
      asm("" : "+r"(row[i.value]));
    });
    for (int64_t pair = 0; pair < voxels / 2; ++pair, x += pair_numbers) {
      Words factors[vectors];
      unrolled<0, vectors>([&](auto v) { factors[v.value] = load_words(x + 2 * v.value * lanes); });
      unrolled<0, Outputs>([&](auto o) {
        const Words numbers = broadcast_pair(row[o.value / 3] + o.value % 3 * row_bytes + 4 * pair);
        unrolled<0, vectors>([&](auto v) {
          sum[o.value][v.value] = add_pairs(sum[o.value][v.value], numbers, factors[v.value]);
        });
      });
    }
  }
  unrolled<0, Outputs>([&](auto o) {
    unrolled<0, vectors>([&](auto v) {
      float* to = sums + (o.value * vectors + v.value) * lanes;
      store<float>(to, load<float>(to) + sum[o.value][v.value]);
    });
  });
}

using AddPairProducts = void (*)(const TileRun*, const TileRun*, int64_t, int64_t, int64_t, float*);

struct AddPairProductsTable {
  AddPairProducts entry[2][kMostOutputs + 1] = {};

  constexpr AddPairProductsTable() {
    unrolled<1, kMostOutputs>([&](auto o) { entry[0][o.value] = add_pair_products<o.value, 1>; });
    unrolled<1, kMostOutputs / 2>([&](auto o) { entry[1][o.value] = add_pair_products<o.value, 2>; });
  }
};

struct PairProducts {
  static constexpr int64_t kDepth = 2;

  static void add(int64_t outputs, int64_t inputs, const TileRun* run, const TileRun* end, int64_t voxels,
                  int64_t channel_stride, float* sums) {
    static constexpr AddPairProductsTable table;
    const int64_t columns = inputs / kTileColumns, most = kMostOutputs / columns;
    const int64_t pieces = (outputs + most - 1) / most;
    for (int64_t i = 0; i < pieces; ++i) {  // of about the same size
      const int64_t first = i * outputs / pieces, count = (i + 1) * outputs / pieces - first;
      table.entry[columns - 1][count](run, end, first * channel_stride, voxels, channel_stride,
                                      sums + first * inputs);
    }
  }
};

extern const TileWeightKernel kPairWeight;
const TileWeightKernel kPairWeight = {
    {kTileColumns, kMostOutputs, sizeof(TileRun), run_tile_weight<PairProducts>}, 2, 2.8, 1, kMostOutputs};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
