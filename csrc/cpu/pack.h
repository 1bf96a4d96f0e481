// Between tensors and the kernel's own arrays: planes of the input are packed, planes of the output are
// written. Both for tensors with contiguous rows and for channels-last ones, which are transposed in
// registers on the way, and, one number at a time, for all others. Included only by walk.cpp.
#pragma once

#include "vec.h"
#include "walk.h"

namespace acsconv {
namespace ACSCONV_ISA {

// The columns of a phase that lie inside the volume: packed column c is column c * column_stride +
// phase.column.
struct Columns {
  int64_t zeros_left, begin, count;
};

inline Columns columns_of_phase(const Walk& walk, const Phase& phase) {
  const int64_t valid = (walk.in_columns - phase.column + walk.column_stride - 1) / walk.column_stride;
  const int64_t begin = walk.column_min > 0 ? walk.column_min : 0;
  const int64_t last = walk.column_min + walk.pitch < valid ? walk.column_min + walk.pitch : valid;
  return {begin - walk.column_min < walk.pitch ? begin - walk.column_min : walk.pitch, begin,
          last > begin ? last - begin : 0};
}

template <class T>
[[gnu::always_inline]] inline void fill_zero(T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0;
}

// One row of every channel, channels adjacent in memory: squares of lanes x lanes numbers are transposed.
// Writes up to a vector beyond `count`, which later rows overwrite.
template <class T>
void pack_row_channels_last(T* to, int64_t channel_stride, const T* from, int64_t voxel_stride,
                            int64_t channels, int64_t count) {
  constexpr int lanes = kLanes<T>;
  for (int64_t first = 0; first < channels; first += lanes) {
    // The last square overlaps the one before it rather than read past the channels.
    const int64_t c = first + lanes <= channels ? first : channels - lanes;
    for (int64_t w = 0; w < count; w += lanes) {
      const int64_t voxels = count - w < lanes ? count - w : lanes;
      Vec<T> square[lanes];
      const T* p = from + w * voxel_stride + c;
      if (voxels == lanes) {
        unrolled<0, lanes>([&](auto i) { square[i.value] = load<T>(p + i.value * voxel_stride); });
      } else {
        unrolled<0, lanes>([&](auto i) {
          square[i.value] = i.value < voxels ? load<T>(p + i.value * voxel_stride) : Vec<T>{};
        });
      }
      transpose<T>(square);
      T* q = to + c * channel_stride + w;
      unrolled<0, lanes>([&](auto i) { store<T>(q + i.value * channel_stride, square[i.value]); });
    }
  }
}

// Packs the rows of one input plane that a strip needs. `plane` points to the first channel of the chunk in
// that plane; `row_begin` is the first packed row, in rows of a phase, and may lie outside the volume like
// any other.
template <class T>
void pack_plane(const Walk& walk, const T* plane, int64_t channels, int64_t row_begin, int64_t rows, T* to) {
  const Strides5& s = walk.input;
  const bool transposed = s.channel == 1 && s.column != 1 && channels >= kLanes<T>;
  for (int32_t index = 0; index < walk.phase_count; ++index, to += channels * walk.channel_stride) {
    const Phase phase = walk.phases[index];
    const Columns columns = columns_of_phase(walk, phase);
    const int64_t zeros_right = walk.pitch - columns.zeros_left - columns.count;
    const int64_t voxel_stride = walk.column_stride * s.column;
    const T* first = plane + (columns.begin * walk.column_stride + phase.column) * s.column;
    auto source_row = [&](int64_t r) {
      const int64_t row = (row_begin + r) * walk.row_stride + phase.row;
      return row >= 0 && row < walk.in_rows ? first + row * s.row : nullptr;
    };
    if (transposed) {
      for (int64_t r = 0; r < rows; ++r) {
        T* q = to + r * walk.pitch;
        const T* p = columns.count > 0 ? source_row(r) : nullptr;
        if (p == nullptr) {
          for (int64_t c = 0; c < channels; ++c) fill_zero(q + c * walk.channel_stride, walk.pitch);
          continue;
        }
        pack_row_channels_last(q + columns.zeros_left, walk.channel_stride, p, voxel_stride, channels,
                               columns.count);
        for (int64_t c = 0; c < channels; ++c) {
          fill_zero(q + c * walk.channel_stride, columns.zeros_left);
          fill_zero(q + c * walk.channel_stride + columns.zeros_left + columns.count, zeros_right);
        }
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        T* q = to + c * walk.channel_stride;
        for (int64_t r = 0; r < rows; ++r, q += walk.pitch) {
          const T* p = source_row(r);
          if (p == nullptr) {
            fill_zero(q, walk.pitch);
            continue;
          }
          p += c * s.channel;
          fill_zero(q, columns.zeros_left);
          T* inside = q + columns.zeros_left;
          if (voxel_stride == 1) {
            copy_row(inside, p, columns.count);
          } else if (voxel_stride == 2 && s.column == 1) {
            const int64_t available = walk.in_columns - 2 * columns.begin;
            if (phase.column == 0) {
              copy_every_other<T, 0>(inside, p, columns.count, available);
            } else {
              copy_every_other<T, 1>(inside, p - 1, columns.count, available);
            }
          } else {
            for (int64_t w = 0; w < columns.count; ++w) inside[w] = p[w * voxel_stride];
          }
          fill_zero(inside + columns.count, zeros_right);
        }
      }
    }
    // The last row has no next one whose left zeros could be its right border.
    const int64_t end = rows * walk.pitch;
    const int64_t border = walk.channel_stride - end < walk.pitch ? walk.channel_stride - end : walk.pitch;
    for (int64_t c = 0; c < channels; ++c) fill_zero(to + c * walk.channel_stride + end, border);
  }
}

// Writes what is staged for one output plane of a strip: `channels` flat rows, `walk.stage_channel` apart, of
// which every pitch holds out_columns outputs. `to` points to the first channel in the strip's first row.
template <class T>
void write_plane(const Walk& walk, const T* stage, int64_t channels, int64_t rows, T* to) {
  constexpr int lanes = kLanes<T>;
  const Strides5& s = walk.output;
  if (s.column == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t r = 0; r < rows; ++r) {
        copy_row(to + c * s.channel + r * s.row, stage + c * walk.stage_channel + r * walk.pitch,
                 walk.out_columns);
      }
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T* p = stage + r * walk.pitch;
    T* q = to + r * s.row;
    if (s.channel != 1 || channels < lanes) {
      for (int64_t w = 0; w < walk.out_columns; ++w) {
        for (int64_t c = 0; c < channels; ++c)
          q[w * s.column + c * s.channel] = p[c * walk.stage_channel + w];
      }
      continue;
    }
    for (int64_t w = 0; w < walk.out_columns; w += lanes) {
      const int64_t voxels = walk.out_columns - w < lanes ? walk.out_columns - w : lanes;
      for (int64_t first = 0; first < channels; first += lanes) {
        const int64_t c = first + lanes <= channels ? first : channels - lanes;
        Vec<T> square[lanes];
        unrolled<0, lanes>(
            [&](auto i) { square[i.value] = load<T>(p + (c + i.value) * walk.stage_channel + w); });
        transpose<T>(square);
        unrolled<0, lanes>([&](auto i) {
          if (i.value < voxels) store<T>(q + (w + i.value) * s.column + c, square[i.value]);
        });
      }
    }
  }
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
