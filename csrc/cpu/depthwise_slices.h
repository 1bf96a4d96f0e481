// Depthwise outputs and gradients of the input where channels are adjacent in memory: vectors run over the
// channels of one view, so that none is transposed and nothing is computed outside the volume. Slices of the
// volume, in the plane of the view, are packed as [line][column][channel of the block]: the tensor's own
// lines lie so far apart that they would share few sets of the cache. Like vec.h for sources compiled once
// per instruction set; depthwise.cpp includes it.
#pragma once

#include "depthwise_lines.h"
#include "depthwise_walk.h"
#include "number.h"

namespace acsconv {
namespace ACSCONV_ISA {

[[gnu::always_inline]] inline int64_t clamped(int64_t value, int64_t least, int64_t most) {
  return value < least ? least : value > most ? most : value;
}

// Stores `count` lanes of a vector from `skip` on.
template <class S, class T>
[[gnu::always_inline]] inline void store_lanes(S* to, Vec<T> value, int64_t skip, int64_t count) {
  S numbers[kLanes<T>];
  store_narrow(numbers, value);
  const S* from = numbers + skip;
  unrolled<0, 4>([&](auto i) {  // 8, 4, 2 and 1: no call
    constexpr int size = 8 >> i.value;
    if constexpr (size < kLanes<T>) {
      if ((count & size) == 0) return;
      __builtin_memcpy(to, from, size * sizeof(S));
      to += size, from += size;
    }
  });
}

template <class S>
void run_slices(const DepthwiseSlices& walk, const SliceTask& task, const void* source_data,
                const void* weight_data, const void* bias_data, void* target_data, void* memory) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  const Lines<T>& lines = lines_for<T>(walk.kernel);
  const SliceBlock& block = walk.blocks[task.block];
  const SliceView& view = walk.views[block.view];
  const SliceAxis &slice = view.slice, &line = view.line, &column = view.column;
  const S* source = static_cast<const S*>(source_data) + task.sample * walk.source_batch + block.first;
  S* target = static_cast<S*>(target_data) + task.sample * walk.target_batch + block.first;
  const T* weights = static_cast<const T*>(weight_data) + task.block * walk.kernel * walk.kernel * lanes;
  const T* bias = static_cast<const T*>(bias_data) + task.block * lanes;
  T* packed = static_cast<T*>(memory);
  const bool whole = block.count == lanes;

  for (int64_t s = task.slice_begin; s < task.slice_end; ++s) {
    const bool inside = s + slice.first >= 0 && s + slice.first < slice.in_size;
    for (int64_t column_begin = 0; column_begin < column.out_size; column_begin += view.piece) {
      const int64_t column_end = clamped(column_begin + view.piece, 0, column.out_size);
      const int64_t begin = clamped(column_begin + column.first, 0, column.in_size);
      const int64_t end = clamped(column_end - 1 + column.first + walk.kernel, begin, column.in_size);
      if (inside) {
        const S* from = source + (s + slice.first) * slice.source + begin * column.source;
        for (int64_t l = 0; l < line.in_size; ++l, from += line.source) {
          for (int64_t c = 0; c < end - begin; ++c) {
            store<T>(packed + l * view.packed_line + c * lanes, load_wide(from + c * column.source));
          }
        }
      }
      for_each_piece(line.out_size, [&](int64_t l, int64_t outputs) {
        const int64_t first_line = l + line.first, places = outputs + walk.kernel - 1;
        LineSource<T> x{nullptr, view.packed_line, lanes, 0, 0, 0};
        x.place_begin = static_cast<int>(clamped(-first_line, 0, places));
        x.place_end = static_cast<int>(clamped(line.in_size - first_line, 0, places));
        for (int64_t c = column_begin; c < column_end; ++c) {
          const int64_t first_column = c + column.first;
          const int64_t tap = clamped(-first_column, 0, walk.kernel);
          const int64_t tap_end = clamped(column.in_size - first_column, tap, walk.kernel);
          x.columns = inside ? static_cast<int>(tap_end - tap) : 0;
          x.source = packed + first_line * view.packed_line + (first_column + tap - begin) * lanes;
          S* to = target + s * slice.target + l * line.target + c * column.target;
          const T* w = weights + tap * walk.kernel * lanes;
          if constexpr (sizeof(S) == sizeof(T)) {
            if (whole) {
              lines.outputs[outputs](x, w, bias, to, line.target);
              continue;
            }
          }
          T sums[kLine * lanes];
          lines.outputs[outputs](x, w, bias, sums, lanes);
          for (int64_t o = 0; o < outputs; ++o, to += line.target) {
            const Vec<T> sum = load<T>(sums + o * lanes);
            if (whole) {
              store_narrow(to, sum);
            } else {
              store_lanes<S, T>(to + block.skip, sum, block.skip, block.count);
            }
          }
        }
      });
    }
  }
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
