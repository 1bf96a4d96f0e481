// The walk of a weight kernel through the planes of its task, and what its two forms share. Like vec.h for
// sources compiled once per instruction set.
#pragma once

#include "number.h"
#include "weight_walk.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Some output planes of a strip.
struct Unit {
  int64_t sample, plane, planes, row_begin, rows;
};

// The gradient of the bias is one sum over all voxels: what rounding loses is kept beside it.
template <class T>
[[gnu::always_inline]] inline void add_exactly(T value, T& sum, T& lost) {
  const T total = sum + value, added = total - sum;
  lost += (sum - (total - added)) + (value - added);
  sum = total;
}

// The sum of `count` vectors, `stride` numbers apart, in short chains of additions.
template <class T>
[[gnu::always_inline]] inline Vec<T> sum_of_vectors(const T* from, int64_t stride, int64_t count) {
  constexpr int kChains = 4;
  Vec<T> sum[kChains];
  unrolled<0, kChains>([&](auto i) { sum[i.value] = broadcast(T(0)); });
  int64_t k = 0;
  for (; k + kChains <= count; k += kChains) {
    unrolled<0, kChains>([&](auto i) { sum[i.value] += load<T>(from + (k + i.value) * stride); });
  }
  for (; k < count; ++k) sum[0] += load<T>(from + k * stride);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Calls, for all output planes of the task, pack_source(unit, plane) for the source planes that a unit reads
// and that are not in the ring yet, then compute(unit).
template <class PackSource, class Compute>
[[gnu::always_inline]] inline void for_each_unit(const WeightWalk& walk, const WeightTask& task,
                                                 const PackSource& pack_source, const Compute& compute) {
  int64_t packed_end = 0, strip_before = -1;
  for (int64_t index = task.unit_begin; index < task.unit_end;) {
    const int64_t strip = index / walk.out_planes;
    Unit unit{strip / walk.strips, index % walk.out_planes, walk.step_planes,
              strip % walk.strips * walk.strip_rows, walk.strip_rows};
    const int64_t planes_left = walk.out_planes - unit.plane, rows_left = walk.out_rows - unit.row_begin;
    unit.planes = unit.planes < planes_left ? unit.planes : planes_left;
    unit.planes = unit.planes < task.unit_end - index ? unit.planes : task.unit_end - index;
    unit.rows = unit.rows < rows_left ? unit.rows : rows_left;
    if (strip != strip_before) packed_end = 0;
    strip_before = strip;

    int64_t begin = unit.plane * walk.plane_stride + walk.plane_min;
    int64_t end = (unit.plane + unit.planes - 1) * walk.plane_stride + walk.plane_max + 1;
    begin = begin < packed_end ? packed_end : begin;
    end = end > walk.in_planes ? walk.in_planes : end;
    for (int64_t plane = begin; plane < end; ++plane) {
      if (walk.plane_read[(plane - walk.plane_min) % walk.plane_stride]) pack_source(unit, plane);
    }
    packed_end = end > packed_end ? end : packed_end;
    compute(unit);
    index += unit.planes;
  }
}

// The source plane of a tap for an output plane, or -1 outside the volume.
[[gnu::always_inline]] inline int64_t plane_of_tap(const WeightWalk& walk, int64_t out_plane,
                                                   const Tap& tap) {
  const int64_t plane = out_plane * walk.plane_stride + walk.plane_min + tap.plane;
  return plane >= 0 && plane < walk.in_planes ? plane : -1;
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
