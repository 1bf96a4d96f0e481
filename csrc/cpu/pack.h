// Between tensors and the kernels' own arrays: planes of the source are packed, planes of the target are
// written. Both for tensors with contiguous rows and for channels-last ones, which are transposed in
// registers on the way, and, one number at a time, for all others. Like vec.h for sources compiled once per
// instruction set. From: points to numbers of the source, if not to pairs of them that lie apart (pair.h).
#pragma once

#include "pair.h"
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
[[gnu::always_inline]] inline void prefetch(const PairsApart& from, int64_t count) {
  prefetch(from.first, count);
  prefetch(from.first + from.distance, count);
}

// The packed rows of a phase that lie inside the volume, of `count`, and which row of the volume the first
// is.
struct RowsOfPhase {
  int64_t count, begin, end, first;
};

inline RowsOfPhase rows_of_phase(const Packing& p, const Phase& phase, int64_t row_begin, int64_t count) {
  const int64_t valid = (p.in_rows - phase.row + p.row_stride - 1) / p.row_stride;
  const int64_t begin = row_begin < 0 ? -row_begin : 0;
  const int64_t end = valid - row_begin < count ? valid - row_begin : count;
  const bool any = begin < end;
  return {count, any ? begin : 0, any ? end : 0, (row_begin + begin) * p.row_stride + phase.row};
}

// A phase of a plane whose channels are adjacent in memory: squares of lanes x lanes numbers, of packed
// positions that may lie in several rows, are transposed, zeros between the rows with them. `first` is row
// 0's first voxel inside the volume.
template <class S, class T>
void pack_phase_channels_last(const Packing& packing, const Columns& columns, int64_t voxel_stride,
                              int64_t channels, const RowsOfPhase& rows, const S* first, T* to) {
  constexpr int lanes = kLanes<T>;
  const S zeros[lanes] = {};
  const int64_t wanted = (rows.count + 1) * packing.pitch + lanes;
  const auto source_row = [&](int64_t r) {
    const int64_t source = rows.first + (r - rows.begin) * packing.row_stride;
    return r >= rows.begin && r < rows.end ? first + source * packing.source.row : nullptr;
  };
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
        row_begin = ++row < rows.count ? source_row(row) : nullptr;
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

// even[i] = from[2 * i] and odd[i] = from[2 * i + 1] for i < n, in whole vectors: up to a vector more is
// written. `available` numbers may be read.
template <class From, class T>
[[gnu::always_inline]] inline void split_row(T* even, T* odd, From from, int64_t n, int64_t available) {
  constexpr int lanes = kLanes<T>;
  using All = typename MakeIndices<lanes>::Type;
  for (int64_t i = 0; i < n; i += lanes) {
    const bool two = n - i > lanes / 2;
    if (2 * i + (two ? 2 * lanes : lanes) > available) {
      for (int64_t k = i; k < n; ++k) {
        even[k] = widen(from[2 * k]);
        if (2 * k + 1 < available) odd[k] = widen(from[2 * k + 1]);
      }
      return;
    }
    const Vec<T> a = load_wide(from + 2 * i), b = two ? load_wide(from + 2 * i + lanes) : Vec<T>{};
    store<T>(even + i, every_other<T, 0>(a, b, All{}));
    store<T>(odd + i, every_other<T, 1>(a, b, All{}));
  }
}

// to[i] = from[i] for i < n, likewise.
template <class From, class T>
[[gnu::always_inline]] inline void copy_row(T* to, From from, int64_t n, int64_t available) {
  constexpr int lanes = kLanes<T>;
  int64_t i = 0;
  for (; i < n && i + lanes <= available; i += lanes) store<T>(to + i, load_wide(from + i));
  for (; i < n; ++i) to[i] = widen(from[i]);
}

constexpr int kMostTargets = 16;

// Where phases of the same rows are packed together, and how many columns of each lie inside the volume.
template <class T, int Most>
struct PhaseTargets {
  int count;
  T* to[Most];
  int64_t columns[Most];
};

// targets.to[j][at + i] = from[i * count + j] for i < n: numbers that are adjacent in memory go to as many
// phases and channels. Writes and reads as split_row.
template <class From, class T>
[[gnu::always_inline]] inline void split_groups(const PhaseTargets<T, kMostTargets>& targets, int64_t at,
                                                From from, int64_t n, int64_t available) {
  constexpr int lanes = kLanes<T>;
  using All = typename MakeIndices<lanes>::Type;
  const int64_t count = targets.count, read = (lanes - 1) * count + (count < lanes ? lanes : count);
  for (int64_t i = 0; i < n; i += lanes) {
    const From first = from + i * count;
    if (i * count + read > available) {
      for (int64_t k = i * count; k < n * count && k < available; ++k) {
        targets.to[k % count][at + k / count] = widen(from[k]);
      }
      return;
    }
    if (count == 4) {
      Vec<T> half[4], quarter[4];
      unrolled<0, 2>([&](auto k) {
        const Vec<T> a = load_wide(first + 2 * k.value * lanes);
        const Vec<T> b = load_wide(first + (2 * k.value + 1) * lanes);
        half[k.value] = every_other<T, 0>(a, b, All{}), half[k.value + 2] = every_other<T, 1>(a, b, All{});
      });
      unrolled<0, 2>([&](auto k) {
        quarter[k.value] = every_other<T, 0>(half[2 * k.value], half[2 * k.value + 1], All{});
        quarter[k.value + 2] = every_other<T, 1>(half[2 * k.value], half[2 * k.value + 1], All{});
      });
      unrolled<0, 4>([&](auto k) { store<T>(targets.to[k.value] + at + i, quarter[k.value]); });
      continue;
    }
    for (int64_t begin = 0; begin < count; begin += lanes) {
      // The last square overlaps the one before it rather than read past the group.
      const int64_t c = count < lanes || begin + lanes <= count ? begin : count - lanes;
      Vec<T> square[lanes];
      unrolled<0, lanes>([&](auto k) { square[k.value] = load_wide(first + k.value * count + c); });
      transpose<T>(square);
      unrolled<0, lanes>([&](auto k) {
        if (c + k.value < count) store<T>(targets.to[c + k.value] + at + i, square[k.value]);
      });
    }
  }
}

// Packs phases of the same rows; pack_row(offset, from) packs a row's columns inside the volume, and may
// write a vector beyond them. `first` is the first of these columns in row 0 of the first channel.
template <class From, class T, int Most, class PackRow>
[[gnu::always_inline]] inline void pack_phases(const Packing& packing, const PhaseTargets<T, Most>& phases,
                                               int64_t zeros_left, const RowsOfPhase& rows, From first,
                                               int64_t channels, const PackRow& pack_row) {
  const Strides5& s = packing.source;
  const int64_t pitch = packing.pitch, row_stride = packing.row_stride * s.row;
  const int64_t row_numbers = s.column == 1 ? packing.in_columns : 0, ahead = kChannelsAhead * s.channel;
  // The last row has no next one whose left zeros could be its right border; a vector may reach further.
  const int64_t wanted = (rows.count + 1) * pitch + kLanes<T>;
  const int64_t numbers = wanted < packing.channel_stride ? wanted : packing.channel_stride;
  for (int64_t c = 0; c < channels; ++c) {
    int64_t q = c * packing.channel_stride;
    const int64_t q_end = q + rows.end * pitch, all_end = q + numbers;
    for (int i = 0; i < phases.count; ++i) fill_zero(phases.to[i] + q, rows.begin * pitch);
    q += rows.begin * pitch;
    From p = first + c * s.channel + rows.first * s.row;
    for (; q < q_end; q += pitch, p += row_stride) {
      prefetch(p + ahead, row_numbers);
      for (int i = 0; i < phases.count; ++i) fill_zero(phases.to[i] + q, zeros_left);
      pack_row(q + zeros_left, p);
      for (int i = 0; i < phases.count; ++i) {
        const int64_t filled = zeros_left + phases.columns[i];
        fill_zero(phases.to[i] + q + filled, pitch - filled);
      }
    }
    for (int i = 0; i < phases.count; ++i) fill_zero(phases.to[i] + q, all_end - q);
  }
}

// The phase of these rows and columns; negative if no tap reads it.
inline int32_t find_phase(const Packing& packing, int32_t row, int64_t column) {
  for (int32_t i = 0; i < packing.phase_count; ++i) {
    if (packing.phases[i].row == row && packing.phases[i].column == column) return i;
  }
  return -1;
}

// Whether taps read all columns of these rows.
inline bool has_all_columns(const Packing& packing, int32_t row) {
  int64_t column = 0;
  while (column < packing.column_stride && find_phase(packing, row, column) >= 0) ++column;
  return column == packing.column_stride;
}

// Where the numbers go that lie side by side in such rows: those of all columns, and of `channels` adjacent
// channels.
template <class T>
PhaseTargets<T, kMostTargets> targets_of_group(const Packing& packing, int32_t row, int64_t channels, T* to,
                                               int64_t phase_size) {
  PhaseTargets<T, kMostTargets> targets{};
  for (int64_t column = 0; column < packing.column_stride; ++column) {
    const int32_t index = find_phase(packing, row, column);
    const int64_t columns = columns_of_phase(packing, packing.phases[index]).count;
    for (int64_t c = 0; c < channels; ++c) {
      targets.to[targets.count] = to + index * phase_size + c * packing.channel_stride;
      targets.columns[targets.count++] = columns;
    }
  }
  return targets;
}

template <class From>
constexpr bool kMayBeChannelsLast = true;
template <>
inline constexpr bool kMayBeChannelsLast<PairsApart> = false;

// pack_plane for some channels; `phase_size` numbers lie between a channel's phases.
template <class From, class T>
void pack_channels(const Packing& packing, From plane, From end, int64_t channels, bool transposed,
                   int64_t row_begin, int64_t row_count, T* to, int64_t phase_size) {
  const Strides5& s = packing.source;
  const int64_t voxel_stride = packing.column_stride * s.column;
  const bool split = s.column == 1 && packing.column_stride == 2;
  // Numbers that lie side by side belong to four phases of a channel, or to all channels.
  const bool all_channels = s.channel == 1 && s.column == channels && !transposed;
  const int64_t adjacent = packing.column_stride * (all_channels ? channels : 1);
  const bool groups =
      all_channels ? adjacent > 4 && adjacent <= kMostTargets : s.column == 1 && adjacent == 4;
  for (int32_t index = 0; index < packing.phase_count; ++index) {
    const Phase phase = packing.phases[index];
    const Columns columns = columns_of_phase(packing, phase);
    const int32_t partner = split ? find_phase(packing, phase.row, 1 - phase.column) : -1;
    if (partner >= 0 && phase.column == 1) continue;
    const bool grouped = groups && has_all_columns(packing, phase.row);
    if (grouped && phase.column > 0) continue;
    const From first = plane + columns.begin * voxel_stride + phase.column * s.column;
    const RowsOfPhase rows = rows_of_phase(packing, phase, row_begin, row_count);
    T* const target = to + index * phase_size;
    auto pack = [&](const auto& targets, const auto& pack_row) {
      pack_phases(packing, targets, columns.zeros_left, rows, first, channels, pack_row);
    };
    if (transposed) {
      if constexpr (kMayBeChannelsLast<From>) {
        pack_phase_channels_last(packing, columns, voxel_stride, channels, rows, first, target);
      }
    } else if (grouped) {
      const auto targets = targets_of_group(packing, phase.row, all_channels ? channels : 1, to, phase_size);
      pack_phases(packing, targets, columns.zeros_left, rows, first, all_channels ? 1 : channels,
                  [&](int64_t at, From from) { split_groups(targets, at, from, columns.count, end - from); });
    } else if (partner >= 0) {
      T* const other = to + partner * phase_size;
      const int64_t other_count = columns_of_phase(packing, packing.phases[partner]).count;
      pack(PhaseTargets<T, 2>{2, {target, other}, {columns.count, other_count}}, [&](int64_t at, From from) {
        split_row(target + at, other + at, from, columns.count, end - from);
      });
    } else if (voxel_stride == 1) {
      pack(PhaseTargets<T, 1>{1, {target}, {columns.count}},
           [&](int64_t at, From from) { copy_row(target + at, from, columns.count, end - from); });
    } else if (split) {
      pack(PhaseTargets<T, 1>{1, {target}, {columns.count}},
           [&](int64_t at, From from) { copy_every_other(target + at, from, columns.count, end - from); });
    } else {
      pack(PhaseTargets<T, 1>{1, {target}, {columns.count}}, [&](int64_t at, From from) {
        for (int64_t w = 0; w < columns.count; ++w) target[at + w] = widen(from[w * voxel_stride]);
      });
    }
  }
}

// Packs the rows of one source plane that a strip needs. `plane` points to the first channel in that plane,
// `end` behind the tensor; `row_begin` is the first packed row, in rows of a phase, and may lie outside the
// volume like any other.
template <class From, class T>
void pack_plane(const Packing& packing, From plane, From end, int64_t channels, int64_t row_begin,
                int64_t rows, T* to) {
  constexpr int64_t kTogether = 8;  // channels whose rows stay in the first-level cache for all phases
  const Strides5& s = packing.source;
  const bool transposed = s.channel == 1 && s.column != 1 && channels >= kLanes<T>;
  const int64_t together = transposed ? channels : kTogether;
  for (int64_t c = 0; c < channels; c += together) {
    pack_channels(packing, plane + c * s.channel, end, channels - c < together ? channels - c : together,
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
