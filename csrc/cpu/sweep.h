// The sweep of a gather kernel through the planes of its task. Like vec.h for sources compiled once per
// instruction set.
#pragma once

#include "walk.h"

namespace acsconv {
namespace ACSCONV_ISA {

// For every step of target planes, calls
//   pack(plane)                                     for the source planes that it reads and that are not in
//   the
//                                                   ring yet,
// then, for every class of planes and rows,
//   compute(residue, column_class, first, planes)   for each class of columns: target planes [first, first +
//                                                   planes) of class `residue` of planes and rows,
//   write(plane, position, row, rows)               for each target plane of the step: its place in the
//   volume,
//                                                   that of the strip's first row, and its rows in the
//                                                   volume.
template <class Pack, class Compute, class Write>
[[gnu::always_inline]] inline void for_each_step(const Sweep& sweep, const Task& task, const Pack& pack,
                                                 const Compute& compute, const Write& write) {
  const int64_t rows = task.row_end - task.row_begin;
  int64_t packed_end = -1;  // planes below this one have been packed, as far as any tap reads them
  for (int64_t first = task.plane_begin; first < task.plane_end; first += sweep.step_planes) {
    const int64_t left = task.plane_end - first;
    const int64_t planes = left < sweep.step_planes ? left : sweep.step_planes;

    for (int64_t o = first; o < first + planes; ++o) {
      int64_t begin = o * sweep.plane_stride + sweep.plane_min;
      int64_t end = o * sweep.plane_stride + sweep.plane_max + 1;
      begin = begin < 0 ? 0 : begin;
      begin = begin < packed_end ? packed_end : begin;
      end = end > sweep.in_planes ? sweep.in_planes : end;
      for (int64_t plane = begin; plane < end; ++plane) {
        if (sweep.plane_read[(plane - sweep.plane_min) % sweep.plane_stride]) pack(plane);
      }
      packed_end = end > packed_end ? end : packed_end;
    }

    for (int64_t residue = 0; residue < sweep.classes[0] * sweep.classes[1]; ++residue) {
      for (int64_t k = 0; k < sweep.classes[2]; ++k) compute(residue, k, first, planes);
      const int64_t plane_class = residue / sweep.classes[1], row_class = residue % sweep.classes[1];
      const int64_t row = task.row_begin * sweep.out_stride[1] + row_class;
      const int64_t rows_left = (sweep.out_size[1] - row + sweep.out_stride[1] - 1) / sweep.out_stride[1];
      for (int64_t o = 0; o < planes; ++o) {
        const int64_t position = (first + o) * sweep.out_stride[0] + plane_class;
        if (position < sweep.out_size[0]) write(o, position, row, rows < rows_left ? rows : rows_left);
      }
    }
  }
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
