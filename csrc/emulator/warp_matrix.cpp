// ldmatrix and mma: collectives of all 32 lanes. Operands are gathered from the lanes' fragments into plain
// matrices and the results scattered back, so that the fragment layouts are written down here once. Products
// are exact in float32 and summed in order of k; hardware sums in an order of its own, so results agree
// exactly where every partial sum is exact, as on small integers.
#include <cmath>

#include "banks.h"
#include "ptx.h"
#include "runtime.h"

namespace emulator {
namespace {

struct MatrixLoad {
  uint32_t* registers;
  uint32_t count, address;
  bool transposed;
};

void load_lanes(void** arguments, uint32_t) {
  const auto& first = *static_cast<const MatrixLoad*>(arguments[0]);
  uint16_t matrix[8][8];
  if (options.count_banks) {
    uint32_t addresses[kWarpSize];
    for (uint32_t i = 0; i < 8 * first.count; ++i) {
      addresses[i] = static_cast<const MatrixLoad*>(arguments[i])->address;
    }
    const uint32_t lanes = first.count == 4 ? 0xffffffffu : 0xffffu;
    count_banks("ldmatrix", addresses, lanes, 16);
  }
  for (uint32_t j = 0; j < first.count; ++j) {
    for (uint32_t row = 0; row < 8; ++row) {
      const auto& lane = *static_cast<const MatrixLoad*>(arguments[8 * j + row]);
      std::memcpy(matrix[row], shared_pointer(lane.address), sizeof matrix[row]);
    }
    for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
      const uint32_t group = lane / 4, column = lane % 4 * 2;
      const uint32_t low = first.transposed ? matrix[column][group] : matrix[group][column];
      const uint32_t high = first.transposed ? matrix[column + 1][group] : matrix[group][column + 1];
      static_cast<MatrixLoad*>(arguments[lane])->registers[j] = low | high << 16;
    }
  }
}

float widen(Operand operand, uint32_t bits) {
  float value;
  if (operand == Operand::Float16) {
    _Float16 half;
    const uint16_t word = static_cast<uint16_t>(bits);
    std::memcpy(&half, &word, sizeof half);
    return static_cast<float>(half);
  }
  const uint32_t word = operand == Operand::BFloat16 ? bits << 16 : bits & 0xffffe000u;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

constexpr int kM = 16, kN = 8, kMostK = 16;

// Element `half` of register `r` of lane `lane` of a fragment of A stands at (row, k), of B at (k, column).
struct Place {
  int major, k;
};
Place place(Operand operand, int lane, int r, int half, bool of_a) {
  const int group = lane / 4, pair = lane % 4;
  const int major = of_a && r % 2 == 1 ? group + 8 : group, step = of_a ? r / 2 : r;
  return {major, operand == Operand::TF32 ? pair + 4 * step : 2 * pair + half + 8 * step};
}

using Lanes = void**;
const Product& product_of(Lanes lanes, int lane) { return *static_cast<const Product*>(lanes[lane]); }

// A fragment of all lanes as a matrix[k][major].
template <int kMajor>
void gather(Lanes lanes, int tile, bool of_a, float (&matrix)[kMostK][kMajor]) {
  const Operand operand = product_of(lanes, 0).operand;
  const int registers = of_a ? 4 : 2, halves = operand == Operand::TF32 ? 1 : 2;
  for (int lane = 0; lane < static_cast<int>(kWarpSize); ++lane) {
    const Product& product = product_of(lanes, lane);
    const uint32_t* fragment = (of_a ? product.a : product.b) + tile * registers;
    for (int r = 0; r < registers; ++r) {
      for (int half = 0; half < halves; ++half) {
        const uint32_t bits = halves == 1 ? fragment[r] : fragment[r] >> (16 * half) & 0xffff;
        const Place at = place(operand, lane, r, half, of_a);
        matrix[at.k][at.major] = widen(operand, bits);
      }
    }
  }
}

void multiply_lanes(void** arguments, uint32_t) {
  const Product first = product_of(arguments, 0);
  const int depth = first.operand == Operand::TF32 ? 8 : 16;
  static float b[kMostColumns][kMostK][kN];
  for (int n = 0; n < first.columns; ++n) gather(arguments, n, /*of_a=*/false, b[n]);
  for (int m = 0; m < first.rows; ++m) {
    float a[kMostK][kM];
    gather(arguments, m, /*of_a=*/true, a);
    for (int n = 0; n < first.columns; ++n) {
      float d[kM][kN];
      float* fragments[kWarpSize];
      for (int lane = 0; lane < static_cast<int>(kWarpSize); ++lane) {
        float* f = fragments[lane] = product_of(arguments, lane).d + (m * first.columns + n) * 4;
        std::memcpy(&d[lane / 4][lane % 4 * 2], f, 2 * sizeof(float));
        std::memcpy(&d[lane / 4 + 8][lane % 4 * 2], f + 2, 2 * sizeof(float));
      }
      for (int row = 0; row < kM; ++row) {
        for (int k = 0; k < depth; ++k) {
          for (int column = 0; column < kN; ++column) d[row][column] += a[k][row] * b[n][k][column];
        }
      }
      for (int lane = 0; lane < static_cast<int>(kWarpSize); ++lane) {
        std::memcpy(fragments[lane], &d[lane / 4][lane % 4 * 2], 2 * sizeof(float));
        std::memcpy(fragments[lane] + 2, &d[lane / 4 + 8][lane % 4 * 2], 2 * sizeof(float));
      }
    }
  }
}

}  // namespace

void load_matrices(uint32_t* registers, uint32_t count, bool transposed, uint32_t address,
                   Location location) {
  constexpr uint32_t kRowBytes = 16;
  const void* counter = __builtin_return_address(0);
  if (fiber->lane < 8 * count) {
    if (address % kRowBytes != 0) {
      fail("misaligned ldmatrix: shared byte %d, at %s", static_cast<int>(address - kSharedBase),
           source_line(counter).c_str());
    }
    check_shared(ptrdiff_t{address} - kSharedBase, kRowBytes, Access::Read, counter);
  }
  MatrixLoad load{registers, count, address, transposed};
  aligned_collective("ldmatrix", &load, load_lanes, location);
}

void multiply(const Product& product, Location location) {
  Product registers = product;
  aligned_collective("mma", &registers, multiply_lanes, location);
}

uint32_t round_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::isfinite(value) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

}  // namespace emulator
