// Between tensors and the kernels' own arrays: planes of the source are packed, planes of the target are
// written. Both for tensors with contiguous rows and for channels-last ones, which are transposed in
// registers on the way, and, one number at a time, for all others. Like vec.h for sources compiled once per
// instruction set.
#pragma once

#include "number.h"
#include "walk.h"

namespace acsconv {
namespace ACSCONV_ISA {

// The columns of a phase that lie inside the volume: packed column c is column c * column_stride +
// phase.column.
struct Columns {
  int64_t zeros_left, begin, count;
};

inline Columns columns_of_phase(const Packing& p, const Phase& phase) {
  const int64_t valid = (p.in_columns - phase.column + p.column_stride - 1) / p.column_stride;
  const int64_t begin = p.column_min > 0 ? p.column_min : 0;
  const int64_t last = p.column_min + p.pitch < valid ? p.column_min + p.pitch : valid;
  return {begin - p.column_min < p.pitch ? begin - p.column_min : p.pitch, begin,
          last > begin ? last - begin : 0};
}

template <class T>
[[gnu::always_inline]] inline void fill_zero(T* to, int64_t n) {
  // Mostly one or two: the call that compilers make of such a loop would cost more.
  if (n < kLanes<T>) {
    for (int64_t i = 0; i < n; ++i) {
      to[i] = 0;
      asm volatile("");
    }
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = 0;
  }
}

// Channels' rows lie too far apart for the processor to foresee the next ones.
constexpr int64_t kChannelsAhead = 4;

template <class S>
[[gnu::always_inline]] inline void prefetch(const S* from, int64_t count) {
  constexpr int64_t line = 64 / sizeof(S);
  for (int64_t i = 0; i < count; i += line) __builtin_prefetch(from + i);
}

// A phase of a plane whose channels are adjacent in memory: squares of lanes x lanes numbers, of packed
// positions that may lie in several rows, are transposed, zeros between the rows with them. source_row(r) is
// packed row r's first voxel inside the volume, or null where the row lies outside.
template <class S, class T, class SourceRow>
void pack_phase_channels_last(const Packing& packing, const Columns& columns, int64_t voxel_stride,
                              int64_t channels, int64_t rows, T* to, const SourceRow& source_row) {
  constexpr int lanes = kLanes<T>;
  const S zeros[lanes] = {};
  const int64_t wanted = (rows + 1) * packing.pitch + lanes;
  int64_t row = 0, column = 0;
  const S* row_begin = source_row(0);
  for (int64_t position = 0; position < wanted && position < packing.channel_stride; position += lanes) {
    const S* voxels[lanes];
    bool any = false;
    for (const S*& voxel : voxels) {
      const int64_t inside = column - columns.zeros_left;
      voxel = row_begin != nullptr && inside >= 0 && inside < columns.count
                  ? row_begin + inside * voxel_stride
                  : nullptr;
      any |= voxel != nullptr;
      if (++column == packing.pitch) {
        column = 0;
        row_begin = ++row < rows ? source_row(row) : nullptr;
      }
    }
    for (int64_t begin = 0; begin < channels; begin += lanes) {
      // The last square overlaps the one before it rather than read past the channels.
      const int64_t c = begin + lanes <= channels ? begin : channels - lanes;
      Vec<T> square[lanes] = {};
      if (any) {
        unrolled<0, lanes>([&](auto i) {
          square[i.value] = load_wide(voxels[i.value] != nullptr ? voxels[i.value] + c : zeros);
        });
        transpose<T>(square);
      }
      T* q = to + c * packing.channel_stride + position;
      unrolled<0, lanes>([&](auto i) { store<T>(q + i.value * packing.channel_stride, square[i.value]); });
    }
  }
}

// pack_plane for some channels; `phase_size` numbers lie between a channel's phases.
template <class S, class T>
void pack_channels(const Packing& packing, const S* plane, int64_t channels, bool transposed,
                   int64_t row_begin, int64_t rows, T* to, int64_t phase_size) {
  const Strides5& s = packing.source;
  const int64_t channel_stride = packing.channel_stride;
  for (int32_t index = 0; index < packing.phase_count; ++index, to += phase_size) {
    const Phase phase = packing.phases[index];
    const Columns columns = columns_of_phase(packing, phase);
    const int64_t zeros_right = packing.pitch - columns.zeros_left - columns.count;
    const int64_t voxel_stride = packing.column_stride * s.column;
    const S* first = plane + (columns.begin * packing.column_stride + phase.column) * s.column;
    auto source_row = [&](int64_t r) {
      const int64_t row = (row_begin + r) * packing.row_stride + phase.row;
      return row >= 0 && row < packing.in_rows ? first + row * s.row : nullptr;
    };
    if (transposed) {
      pack_phase_channels_last<S>(packing, columns, voxel_stride, channels, rows, to, source_row);
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      T* q = to + c * channel_stride;
      for (int64_t r = 0; r < rows; ++r, q += packing.pitch) {
        const S* p = source_row(r);
        if (p == nullptr) {
          fill_zero(q, packing.pitch);
          continue;
        }
        p += c * s.channel;
        if (s.column == 1) prefetch(p + kChannelsAhead * s.channel, columns.count * voxel_stride);
        fill_zero(q, columns.zeros_left);
        T* inside = q + columns.zeros_left;
        if (voxel_stride == 1) {
          copy_wide(inside, p, columns.count);
        } else if (voxel_stride == 2 && s.column == 1) {
          const int64_t available = packing.in_columns - 2 * columns.begin;
          if (phase.column == 0) {
            copy_every_other<S, 0>(inside, p, columns.count, available);
          } else {
            copy_every_other<S, 1>(inside, p - 1, columns.count, available);
          }
        } else {
          for (int64_t w = 0; w < columns.count; ++w) inside[w] = widen(p[w * voxel_stride]);
        }
        fill_zero(inside + columns.count, zeros_right);
      }
    }
    // The last row has no next one whose left zeros could be its right border; a vector may reach further.
    const int64_t end = rows * packing.pitch, left = channel_stride - end;
    const int64_t border = left < packing.pitch + kLanes<T> ? left : packing.pitch + kLanes<T>;
    for (int64_t c = 0; c < channels; ++c) fill_zero(to + c * channel_stride + end, border);
  }
}

// Packs the rows of one source plane that a strip needs. `plane` points to the first channel in that plane;
// `row_begin` is the first packed row, in rows of a phase, and may lie outside the volume like any other.
template <class S, class T>
void pack_plane(const Packing& packing, const S* plane, int64_t channels, int64_t row_begin, int64_t rows,
                T* to) {
  constexpr int64_t kTogether = 8;  // channels whose rows stay in the first-level cache for all phases
  const Strides5& s = packing.source;
  const bool transposed = s.channel == 1 && s.column != 1 && channels >= kLanes<T>;
  const int64_t together = transposed ? channels : kTogether;
  for (int64_t c = 0; c < channels; c += together) {
    pack_channels(packing, plane + c * s.channel, channels - c < together ? channels - c : together,
                  transposed, row_begin, rows, to + c * packing.channel_stride,
                  channels * packing.channel_stride);
  }
}

// Packs the rows of a plane that a strip needs, see pack_plane, as [phase][position][width]. pack_row(to,
// from, voxel_stride, count, available) packs one of them: `count` voxels from `from` on, where `available`
// numbers may be read.
template <class S, class T, class PackRow>
void pack_positions(const Packing& packing, const S* plane, int64_t row_begin, int64_t rows, int64_t width,
                    int64_t positions, T* to, const PackRow& pack_row) {
  const Strides5& s = packing.source;
  for (int32_t index = 0; index < packing.phase_count; ++index, to += positions * width) {
    const Phase phase = packing.phases[index];
    const Columns columns = columns_of_phase(packing, phase);
    const int64_t first_column = columns.begin * packing.column_stride + phase.column;
    T* q = to;
    for (int64_t r = 0; r < rows; ++r, q += packing.pitch * width) {
      const int64_t row = (row_begin + r) * packing.row_stride + phase.row;
      if (row < 0 || row >= packing.in_rows) {
        fill_zero(q, packing.pitch * width);
        continue;
      }
      fill_zero(q, columns.zeros_left * width);
      // Only where columns are adjacent does a vector read numbers between those that it needs.
      const int64_t available = s.column == 1 ? packing.in_columns - first_column : 0;
      pack_row(q + columns.zeros_left * width, plane + row * s.row + first_column * s.column,
               packing.column_stride * s.column, columns.count, available);
      const int64_t filled = columns.zeros_left + columns.count;
      fill_zero(q + filled * width, (packing.pitch - filled) * width);
    }
    fill_zero(q, (positions - rows * packing.pitch) * width);
  }
}

// Writes one row of `columns` voxels of every channel into a tensor whose channels are adjacent.
template <class S, class T>
void write_row_channels_last(S* to, int64_t voxel_stride, const T* from, int64_t channel_stride,
                             int64_t channels, int64_t columns) {
  constexpr int lanes = kLanes<T>;
  for (int64_t w = 0; w < columns; w += lanes) {
    const int64_t voxels = columns - w < lanes ? columns - w : lanes;
    for (int64_t first = 0; first < channels; first += lanes) {
      const int64_t c = first + lanes <= channels ? first : channels - lanes;
      Vec<T> square[lanes];
      unrolled<0, lanes>(
          [&](auto i) { square[i.value] = load<T>(from + (c + i.value) * channel_stride + w); });
      transpose<T>(square);
      unrolled<0, lanes>([&](auto i) {
        if (i.value < voxels) store_narrow(to + (w + i.value) * voxel_stride + c, square[i.value]);
      });
    }
  }
}

// Writes what is staged for one target plane of a strip, for all classes of columns: [class][channel] flat
// rows, `walk.stage_channel` apart. `to` points to the first channel in the strip's first row, of which there
// are `rows`, `row_stride` apart.
template <class S, class T>
void write_plane(const Sweep& walk, const T* stage, int64_t channels, int64_t rows, int64_t row_stride,
                 S* to) {
  const Strides5& s = walk.target;
  const int64_t classes = walk.classes[2], pitch = walk.packing.pitch, columns = walk.out_size[2];
  const int64_t class_size = channels * walk.stage_channel;
  if (s.column == 1 && walk.out_stride[2] <= 2 && classes == walk.out_stride[2]) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t r = 0; r < rows; ++r) {
        const T* p = stage + c * walk.stage_channel + r * pitch;
        S* q = to + c * s.channel + r * row_stride;
        if (classes == 1) {
          copy_narrow(q, p, columns);
        } else {
          interleave_narrow(q, p, p + class_size, columns);
        }
      }
    }
    return;
  }
  const int64_t voxel_stride = s.column * walk.out_stride[2];
  for (int64_t k = 0; k < classes; ++k) {
    const int64_t count = (columns - k + walk.out_stride[2] - 1) / walk.out_stride[2];
    for (int64_t r = 0; r < rows; ++r) {
      const T* p = stage + k * class_size + r * pitch;
      S* q = to + r * row_stride + k * s.column;
      if (s.channel == 1 && s.column != 1 && channels >= kLanes<T>) {
        write_row_channels_last(q, voxel_stride, p, walk.stage_channel, channels, count);
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t w = 0; w < count; ++w) {
          q[w * voxel_stride + c * s.channel] = narrow<S>(p[c * walk.stage_channel + w]);
        }
      }
    }
  }
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
