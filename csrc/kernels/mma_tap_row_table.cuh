// One row of taps per step (mma_tap_rows.cuh): which rows a block has, and where they read. Both are written
// to shared memory once per block, so that a step only looks them up.
//
// A row is the taps of a view with one outer tap, which lie next to each other along its inner axis. A stride
// of 2 makes the taps that share voxels those of one parity:
//
//   forward             odd and even taps of a row are steps of their own, of K / 2 and K / 2 + 1 taps
//   gradient of input   a tile has result positions of one residue class on every axis, modulo twice the
//                       dilation. Where that is odd, either the odd or the even taps reach them, and a view
//                       takes part where its middle tap reaches the class of its thin axis. Where it is
//                       even, all taps do as in the forward pass, or those of no view do: zeros are stored.
//
// Soft ACS adds up what several views read of one voxel in the first one's weights (fold_soft.h). So the
// coronal view leaves out the middle inner taps, and the sagittal one those and the row of the middle outer
// one: 61 of 75 taps with 5x5 kernels.
//
// A voxel's place is the sum of two entries of a table, of its depth and height and of its width. An axis has
// one for every voxel of the tile and tap: stride * voxel + tap.
#pragma once

#include "mma_copy.cuh"

namespace acsconv {

// What decides which rows a block has: its view, or -1 for all, and in the gradient of the input of stride 2
// the axes, as bits, whose class the taps of one parity reach, and those whose class the middle tap does not.
struct TapRowBlock {
  int view, by_parity, beside;
};
__device__ __forceinline__ TapRowBlock tap_row_block(const MmaWork& work, const MmaPlace& place, int view) {
  TapRowBlock block{view, 0, 0};
  if (work.halves) {
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      block.by_parity |= (work.dilation[axis] & 1) << axis;
      block.beside |= ((place.residue[axis] + work.centre[axis]) & 1) << axis;
    }
  }
  return block;
}
__device__ __forceinline__ bool view_takes_part(const TapRowBlock& block, int view) {
  return (block.view < 0 || block.view == view) && (block.beside & (~block.by_parity | 1 << view)) == 0;
}
// Parity of the taps that reach the class of an axis; -1: all do.
__device__ __forceinline__ int parity_of_class(const MmaWork& work, const TapRowBlock& block, int axis) {
  return (block.by_parity >> axis & 1) == 0 ? -1 : (work.kernel / 2 ^ block.beside >> axis) & 1;
}
__device__ __forceinline__ int taps_of_parity(const MmaWork& work, int parity) {
  return parity < 0 ? work.kernel : work.kernel / 2 + 1 - parity;
}

// Axes of a view's walk.
ACSCONV_HD constexpr int inner_axis(int view) { return view == 1 ? 0 : 1; }
ACSCONV_HD constexpr int outer_axis(int view) { return view == 2 ? 0 : 2; }
// Soft ACS: whether the middle tap of an axis would be read, but lies in an earlier view's plane.
__device__ __forceinline__ bool leaves_middle_inner(const MmaWork& work, const TapRowBlock& block, int view) {
  return work.soft && view > 0 && (block.beside >> inner_axis(view) & 1) == 0;
}
__device__ __forceinline__ bool leaves_middle_outer(const MmaWork& work, const TapRowBlock& block, int view) {
  return work.soft && view == 2 && (block.beside >> outer_axis(view) & 1) == 0;
}

// The rows of a view: so many outer taps, times none to two parities of the inner ones.
struct ViewRows {
  int outer, parities;
};
__device__ __forceinline__ ViewRows rows_of_view(const MmaWork& work, const TapRowBlock& block, int view) {
  if (!view_takes_part(block, view)) return {0, 0};
  // In 3x3 kernels of stride 2 the middle tap has a row of its own.
  const bool row_less = leaves_middle_inner(work, block, view) && work.stride == 2 && work.kernel == 3;
  const bool both = work.stride == 2 && parity_of_class(work, block, inner_axis(view)) < 0;
  return {taps_of_parity(work, parity_of_class(work, block, outer_axis(view))) -
              leaves_middle_outer(work, block, view),
          1 + both - row_less};
}

// A row, as every chunk of channels has it. `line` and `width`: entries of the tables for the first voxel
// that it reads; `before`: taps that come before it in the packed weights of the view's chunk.
struct alignas(16) TapRow {
  int line, width, before;
  int16_t taps;
  bool without_middle;  // the middle tap, which is among them, counts for an earlier view
};
__device__ __forceinline__ TapRow row_of_view(const MmaWork& work, const TapRowBlock& block, int view,
                                              const ViewRows& rows, int row, int table_height) {
  const int middle = work.kernel / 2, outer_parity = parity_of_class(work, block, outer_axis(view));
  int outer = rows.parities == 2 ? row / 2 : row;
  if (outer_parity >= 0) outer = 2 * outer + outer_parity;
  if (leaves_middle_outer(work, block, view) && outer >= middle) outer += outer_parity < 0 ? 1 : 2;
  int parity = parity_of_class(work, block, inner_axis(view));  // of the inner taps, where they are not all
  if (parity < 0 && work.stride == 2) parity = rows.parities == 2 ? 1 - row % 2 : 0;
  const int inner = parity < 0 ? 0 : parity;
  const int depth = view == 0 ? middle : view == 1 ? inner : outer;
  const int height = view == 1 ? middle : inner;
  TapRow result;
  result.line = depth * table_height + height;
  result.width = view == 2 ? middle : outer;
  result.before = outer * work.kernel + (parity == 0 ? middle : 0);
  result.taps = static_cast<int16_t>(taps_of_parity(work, parity));
  result.without_middle = leaves_middle_inner(work, block, view) && (parity < 0 || parity == (middle & 1));
  return result;
}

// A step: a row, and which chunk of the view's channels.
struct TapRowStep {
  int view, chunk, before;  // chunks of earlier views among the packed weights
  TapRow row;
};

// All rows of a block, in shared memory. Steps are numbered view by view, and in a view chunk by chunk, so
// that the rows of a chunk, which read much of the same memory, follow each other.
template <int kRows, int kHeight>
struct TapRowTable {
  struct alignas(16) View {
    int rows, before;
    uint32_t reciprocal;  // 2^31 / rows, rounded up, which divides numbers of steps exactly
  };
  alignas(16) int first[kViews + 1];  // step of every view, and the number of all
  View view[kViews];
  TapRow row[kViews][kRows];

  __device__ __forceinline__ void fill(const MmaWork& work, const TapRowBlock& block, int thread,
                                       int threads) {
    for (int i = thread; i < kViews * kRows; i += threads) {
      const int of = i / kRows;
      const ViewRows rows = rows_of_view(work, block, of);
      if (i % kRows < rows.outer * rows.parities) {
        row[of][i % kRows] = row_of_view(work, block, of, rows, i % kRows, kHeight);
      }
    }
    if (thread == 0) {
      int steps = 0, before = 0;
#pragma unroll
      for (int of = 0; of < kViews; ++of) {
        const ViewRows rows = rows_of_view(work, block, of);
        const int count = rows.outer * rows.parities;
        first[of] = steps;
        view[of].rows = count;
        view[of].before = before;
        view[of].reciprocal = count == 0 ? 0 : (uint32_t{1} << 31) / count + 1;
        steps += count * work.view_steps[of];
        before += work.view_per_block ? 0 : work.view_steps[of];
      }
      first[kViews] = steps;
    }
  }

  __device__ __forceinline__ int steps() const { return first[kViews]; }
  __device__ __forceinline__ TapRowStep step(int index) const {
    TapRowStep result;
    result.view = index < first[1] ? 0 : index < first[2] ? 1 : 2;
    const View& of = view[result.view];
    index -= first[result.view];
    result.chunk = static_cast<int>(uint64_t{of.reciprocal} * static_cast<uint32_t>(index) >> 31);
    result.before = of.before;
    result.row = row[result.view][index - result.chunk * of.rows];
    return result;
  }
};

// Position of the source for entry `i` of an axis. In the gradient of the input of stride 2 it is a half, of
// what is even where a tap of the class has the entry; other entries are not read.
__device__ __forceinline__ int tap_row_position(const MmaWork& work, const MmaPlace& place, int axis, int i) {
  const int middle = work.kernel / 2;
  if (work.halves) {
    return (place.residue[axis] + work.centre[axis] +
            work.dilation[axis] * (2 * place.first[axis] + i - middle)) >>
           1;
  }
  return source_position(work, place, work.stride, axis, middle, i);
}
__device__ __forceinline__ int tap_row_origin(const MmaWork& work, const MmaPlace& place, int axis) {
  return moved_inside(work, axis, tap_row_position(work, place, axis, 0));
}
// Elements from the origin, or -1 outside the volume.
__device__ __forceinline__ int64_t tap_row_offset(const MmaWork& work, const MmaPlace& place, int axis,
                                                  int i) {
  const int position = tap_row_position(work, place, axis, i);
  if (position < 0 || position >= work.source_size[axis]) return -1;
  return (position - tap_row_origin(work, place, axis)) * work.source.axis[axis];
}

// The tables of voxels: `lines` entries, of every depth and `height` heights, and then the widths.
__device__ __forceinline__ void fill_voxel_tables(const MmaWork& work, const MmaPlace& place, int* table,
                                                  int lines, int height, int entries, int thread,
                                                  int threads) {
  for (int i = thread; i < entries; i += threads) {
    int64_t offset;
    if (i < lines) {
      const int64_t along_depth = tap_row_offset(work, place, 0, i / height);
      const int64_t along_height = tap_row_offset(work, place, 1, i % height);
      offset = along_depth < 0 || along_height < 0 ? -1 : along_depth + along_height;
    } else {
      offset = tap_row_offset(work, place, 2, i - lines);
    }
    table[i] = static_cast<int>(offset);
  }
}

}  // namespace acsconv
