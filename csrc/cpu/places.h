// Planes whose rows lie behind one another in memory are packed as one long row, where rows alone would fill
// few vectors: each of their voxels has its place among the packed positions, in whatever phase. Called by
// weight_outer.cpp and tile_pack.h, which pack [position][channel]. Like vec.h for sources compiled once per
// instruction set.
#pragma once

#include "pack.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Where the voxels of a plane's rows, which lie behind one another in memory, are packed by pack_positions: a
// phase's positions follow those of the phase before it.
struct PlanePlaces {
  static constexpr int64_t kMost = 4096;
  int64_t first, count;  // voxels of the plane
  int32_t place[kMost];  // -1: not read
};

// False where rows do not lie so, or are too many or too few for vectors of `lanes` voxels.
inline bool find_places(const Packing& packing, int64_t row_begin, int64_t rows, int64_t positions,
                        int64_t lanes, PlanePlaces& places) {
  const Strides5& s = packing.source;
  const int64_t columns = packing.in_columns, first_row = row_begin * packing.row_stride;
  const int64_t begin = first_row > 0 ? first_row : 0, last = first_row + rows * packing.row_stride;
  const int64_t end = last < packing.in_rows ? last : packing.in_rows;
  places.first = begin * columns, places.count = (end - begin) * columns;
  if (s.column != 1 || s.row != columns || s.channel == 1 || end <= begin || places.count < lanes ||
      places.count > PlanePlaces::kMost) {
    return false;
  }
  for (int64_t i = 0; i < places.count; ++i) places.place[i] = -1;
  for (int32_t index = 0; index < packing.phase_count; ++index) {
    const Phase phase = packing.phases[index];
    const Columns inside = columns_of_phase(packing, phase);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first_row + r * packing.row_stride + phase.row;
      if (row < begin || row >= end) continue;
      int32_t* to = places.place + (row - begin) * columns + phase.column;
      const int64_t first = index * positions + r * packing.pitch + inside.zeros_left - inside.begin;
      for (int64_t c = inside.begin; c < inside.begin + inside.count; ++c) {
        to[c * packing.column_stride] = static_cast<int32_t>(first + c);
      }
    }
  }
  return true;
}

// The zeros of pack_positions, around voxels that have been packed to their places.
template <class S, class T>
void pack_zeros(const Packing& packing, const S* plane, int64_t row_begin, int64_t rows, int64_t width,
                int64_t positions, T* to) {
  pack_positions(packing, plane, row_begin, rows, width, positions, to,
                 [](T*, const S*, int64_t, int64_t, int64_t) {});
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
