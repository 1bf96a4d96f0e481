// Depthwise passes of tensors whose channels are adjacent in memory: vectors run over the channels of one
// view, so that nothing is transposed and nothing is computed outside the volume. Slices of the volume, in
// the plane of the view, are packed: the tensor's own lines may lie so far apart that they share few sets of
// the cache. Like vec.h for sources compiled once per instruction set; depthwise.cpp includes it.
#pragma once

#include "depthwise_lines.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Stores `count` lanes of a vector, less than all, from `skip` on.
template <class S, class T>
[[gnu::always_inline]] inline void store_lanes(S* to, Vec<T> value, int64_t skip, int64_t count) {
#ifdef __AVX512F__
  const uint32_t lanes = ((1u << count) - 1) << skip;
  if constexpr (sizeof(S) == 8) return _mm512_mask_storeu_pd(to - skip, lanes, bits_as<__m512d>(value));
  if constexpr (sizeof(S) == 4) return _mm512_mask_storeu_ps(to - skip, lanes, bits_as<__m512>(value));
#endif
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

// Of one channel, where there is a bias.
template <class S>
[[gnu::always_inline]] inline Computed<S> bias_of(const void* bias, int64_t channel) {
  return bias == nullptr ? Computed<S>(0) : widen(static_cast<const S*>(bias)[channel]);
}

// Packs a task's sources, some slices at a time, and calls body(x, tap, outputs, target) for all tiles: the
// first column tap that is read, and the offset of the first output from the sample's first channel of the
// block. Voxels are as far apart as the processor does not foresee, so those that the next slices read and
// write are fetched meanwhile.
template <class S, class T, class Body>
[[gnu::always_inline]] inline void for_each_slice_tile(const DepthwiseSlices& slices, const SliceTask& task,
                                                       const S* source, const S* target, T* packed,
                                                       const Body& body) {
  constexpr int lanes = kLanes<T>;
  const int64_t kernel = slices.kernel;
  const SliceView& view = slices.views[slices.blocks[task.block].view];
  const DepthwiseAxis &slice = view.slice, &line = view.line, &column = view.column;
  auto inside = [&](int64_t s) { return s + slice.first >= 0 && s + slice.first < slice.in_size; };
  for (int64_t column_begin = task.column_begin; column_begin < task.column_end; column_begin += view.piece) {
    const int64_t column_end = clamped(column_begin + view.piece, 0, task.column_end);
    const int64_t begin = clamped(column_begin + column.first, 0, column.in_size);
    const int64_t end = clamped(column_end - 1 + column.first + kernel, begin, column.in_size);
    for (int64_t first_slice = task.slice_begin; first_slice < task.slice_end; first_slice += view.together) {
      const int64_t count = clamped(view.together, 0, task.slice_end - first_slice);
      const S* from = source + (first_slice + slice.first) * slice.source + begin * column.source;
      for (int64_t l = 0; l < line.in_size; ++l, from += line.source) {
        for (int64_t c = 0; c < end - begin; ++c) {
          for (int64_t s = 0; s < count; ++s) {
            if (!inside(first_slice + s)) continue;
            store<T>(packed + s * view.packed_slice + l * view.packed_line + c * lanes,
                     load_wide(from + c * column.source + s * slice.source));
          }
        }
      }
      for_each_piece(line.out_size, [&](int64_t l, int64_t outputs) {
        const int64_t first_line = l + line.first, places = outputs + kernel - 1;
        LineSource<T> x{};
        x.line = view.packed_line, x.other = lanes;
        x.place_begin = static_cast<int>(clamped(-first_line, 0, places));
        x.place_end = static_cast<int>(clamped(line.in_size - first_line, 0, places));
        for (int64_t c = column_begin; c < column_end; ++c) {
          const int64_t first_column = c + column.first;
          const int64_t tap = clamped(-first_column, 0, kernel);
          const int64_t tap_end = clamped(column.in_size - first_column, tap, kernel);
          for (int64_t s = first_slice; s < first_slice + count; ++s) {
            const int64_t at = s * slice.target + l * line.target + c * column.target;
            if (s + view.together < task.slice_end) {
              const S* next = target + at + view.together * slice.target;
              const S* next_source = source + (s + slice.first + view.together) * slice.source +
                                     l * line.source + c * column.source;
              for (int64_t o = 0; o < outputs; ++o) {
                __builtin_prefetch(next + o * line.target);
                __builtin_prefetch(next_source + o * line.source);
              }
            }
            x.columns = inside(s) ? static_cast<int>(tap_end - tap) : 0;
            x.source = packed + (s - first_slice) * view.packed_slice + first_line * view.packed_line +
                       (first_column + tap - begin) * lanes;
            body(x, tap, outputs, at);
          }
        }
      });
    }
  }
}

template <class S>
void run_slice(const DepthwiseSlices& slices, const SliceTask& task, const void* source,
               const void* weight_data, const void* bias_data, void* target_data, void* packed) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  const int64_t kernel = slices.kernel;
  const Lines<T>& lines = lines_for<T, false>(kernel);
  const SliceBlock& block = slices.blocks[task.block];
  const int64_t line = slices.views[block.view].line.target;
  const int64_t taps = kernel * kernel;
  const S* weight = static_cast<const S*>(weight_data) + block.first * taps;
  T weights[kMostTaps * lanes], bias[lanes];
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t i = 0; i < taps; ++i) {
      weights[i * lanes + lane] = widen(weight[lane * taps + slices.weight_places[i]]);
    }
    bias[lane] = bias_of<S>(bias_data, block.first + lane);
  }
  S* target = static_cast<S*>(target_data) + task.sample * slices.target_batch + block.first;
  for_each_slice_tile(
      slices, task, static_cast<const S*>(source) + task.sample * slices.source_batch + block.first, target,
      static_cast<T*>(packed), [&](const LineSource<T>& x, int64_t tap, int64_t outputs, int64_t at) {
        const T* w = weights + tap * kernel * lanes;
        if constexpr (sizeof(S) == sizeof(T)) {
          if (block.count == lanes) return lines.outputs[outputs](x, w, bias, target + at, line);
        }
        T sums[kLine * lanes];
        lines.outputs[outputs](x, w, bias, sums, lanes);
        for (int64_t o = 0; o < outputs; ++o) {
          const Vec<T> sum = load<T>(sums + o * lanes);
          if (block.count == lanes) {
            store_narrow(target + at + o * line, sum);
          } else {
            store_lanes<S, T>(target + at + o * line + block.skip, sum, block.skip, block.count);
          }
        }
      });
}

template <class S>
void run_slice_weight(const DepthwiseSlices& slices, const SliceTask& task, const void* source,
                      const void* grad_data, void* sums, void* packed) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  const int64_t kernel = slices.kernel;
  const Lines<T>& lines = lines_for<T, false>(kernel);
  const SliceBlock& block = slices.blocks[task.block];
  const int64_t line = slices.views[block.view].line.target;
  const S* grad = static_cast<const S*>(grad_data) + task.sample * slices.target_batch + block.first;
  TileSums<T> tile_sums(static_cast<T*>(sums), kernel * kernel);
  for_each_slice_tile(
      slices, task, static_cast<const S*>(source) + task.sample * slices.source_batch + block.first, grad,
      static_cast<T*>(packed), [&](const LineSource<T>& x, int64_t tap, int64_t outputs, int64_t at) {
        auto add = [&](const T* g, int64_t grad_line) {
          tile_sums.add_grad(g, grad_line, outputs);
          lines.products[outputs](x, g, grad_line, tile_sums.next() + tap * kernel * lanes);
        };
        if constexpr (sizeof(S) == sizeof(T)) {
          add(grad + at, line);
        } else {
          T wide[kLine * lanes];
          for (int64_t o = 0; o < outputs; ++o) store<T>(wide + o * lanes, load_wide(grad + at + o * line));
          add(wide, lanes);
        }
      });
  tile_sums.add_up();
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
