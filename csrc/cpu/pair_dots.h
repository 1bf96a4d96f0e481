// Products of tiles (tile.h) on vectors, where a processor multiplies pairs of bfloat16 numbers but has no
// tiles:
//
//   sum[channel] += left[2k] * right[2k][channel] + left[2k + 1] * right[2k + 1][channel]
//
// one instruction for 16 channels. Rows of a tile are taken as many at a time as their sums fit into
// registers, so that a vector of `right` is loaded once for all of them; it need not be 16 rows. With
// ACSCONV_PAIR_DOTS the kernels of tile_walk.cpp and tile_weight.cpp are made of these; where the compiler is
// not told of the instruction, plain products take its place, for the sanitizers. Like vec.h for sources
// compiled once per instruction set.
#pragma once

#if defined(__AVX512BF16__) && ACSCONV_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

#include "number.h"
#include "tile_walk.h"

namespace acsconv {
namespace ACSCONV_ISA {

constexpr int kTileVectors = kTileColumns / kLanes<float>;  // of a row

// A pair of numbers in all lanes.
[[gnu::always_inline]] inline Words broadcast_pair(const char* from) {
  uint32_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return pair - Words{};
}

[[gnu::always_inline]] inline void add_pairs(Vec<float>& sum, Words left, Words right) {
#if defined(__AVX512BF16__) && ACSCONV_VECTOR_BYTES == 64
  sum = bits_as<Vec<float>>(
      _mm512_dpbf16_ps(bits_as<__m512>(sum), bits_as<__m512bh>(left), bits_as<__m512bh>(right)));
#else
  sum += bits_as<Vec<float>>(left & 0xffff0000) * bits_as<Vec<float>>(right & 0xffff0000);
  sum += bits_as<Vec<float>>(left << 16) * bits_as<Vec<float>>(right << 16);
#endif
}

// Rows of sums that are made together.
template <int Columns16>
constexpr int kDotRows = Columns16 == 2 ? 11 : 22;

// sums[Rows][16 * Columns16] += left[Rows][32 numbers] * right[32 numbers][16 * Columns16], where rows of
// `left` are `left_stride` apart, pairs of rows of `right` `pair_stride`, and its tiles `tile_stride`.
template <int Rows, int Columns16>
[[gnu::always_inline]] inline void add_dots(const uint16_t* left, int64_t left_stride, const uint16_t* right,
                                            int64_t pair_stride, int64_t tile_stride,
                                            Vec<float> (&sums)[Rows * Columns16 * kTileVectors]) {
  constexpr int vectors = Columns16 * kTileVectors;
  const int64_t row_bytes = 2 * left_stride;
  // Of every third row, so that the address of a row is a register and a multiple of another one.
  const char* row[(Rows + 2) / 3];
  unrolled<0, (Rows + 2) / 3>([&](auto i) {
    row[i.value] = reinterpret_cast<const char*>(left) + 3 * i.value * row_bytes;
    asm("" : "+r"(row[i.value]));
  });
  for (int64_t pair = 0; pair < kTileDepth / 2; ++pair, right += pair_stride) {
    Words factors[vectors];
    unrolled<0, vectors>([&](auto v) {
      __builtin_memcpy(
          &factors[v.value],
          right + v.value / kTileVectors * tile_stride + v.value % kTileVectors * kLanes<uint16_t>,
          sizeof(Words));
    });
    unrolled<0, Rows>([&](auto r) {
      const Words numbers = broadcast_pair(row[r.value / 3] + r.value % 3 * row_bytes + 4 * pair);
      unrolled<0, vectors>(
          [&](auto v) { add_pairs(sums[r.value * vectors + v.value], numbers, factors[v.value]); });
    });
  }
}

// Calls body(first row, number of rows) with constants for `Rows` rows, as many at a time as fit, in pieces
// of about the same size.
template <int Rows, int Columns16, int First = 0, class Body>
[[gnu::always_inline]] inline void for_each_dot_rows(Body&& body) {
  constexpr int left = Rows - First, most = kDotRows<Columns16>;
  constexpr int pieces = (left + most - 1) / most, count = (left + pieces - 1) / pieces;
  body(Constant<First>{}, Constant<count>{});
  if constexpr (First + count < Rows) for_each_dot_rows<Rows, Columns16, First + count>(body);
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
