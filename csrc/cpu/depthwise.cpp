// The depthwise kernels: outputs and gradients of the input, and of the weight. Here, for tensors whose rows
// are contiguous, and all others: vectors run over the voxels of a channel.
//
// Where a layer has one channel per group, a source serves a single product of the gather kernel, and loads
// decide; here it serves up to 7, and weights stay in registers (depthwise_lines.h).
//
// Compiled once per instruction set, see walk.cpp; depthwise_pass.cpp calls it.
#include "depthwise_slices.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Rows of one line, as they are packed.
struct PackedRows {
  int64_t row_begin, rows, in_rows;  // in rows of the tensor; those outside are zeros
  int64_t count, pitch;              // of a row; what is left are zeros
  int64_t row_stride, column_stride;
  int64_t size;  // up to here zeros follow: at least a vector
};

// Writes n zeros and, as what follows them is written later, up to a vector beyond.
template <class T>
[[gnu::always_inline]] inline void zeros_ahead(T* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<T>) store<T>(to + i, Vec<T>{});
}

// `from`: the first row's first column inside. Numbers before `readable` are there to be read.
template <class S, class T>
void pack_rows(const PackedRows& packed, const S* from, const S* readable, T* to) {
  constexpr int lanes = kLanes<T>;
  T* const end = to + packed.size;
  const int64_t count = packed.count, zeros_right = packed.pitch - count;
  // Of the packed rows, those inside the volume.
  const int64_t first = clamped(-packed.row_begin, 0, packed.rows);
  const int64_t last = clamped(packed.in_rows - packed.row_begin, first, packed.rows);
  zeros_ahead(to, first * packed.pitch);
  to += first * packed.pitch;
  from += (packed.row_begin + first) * packed.row_stride;
  if (packed.column_stride == 1 && packed.row_stride == packed.pitch && count == packed.pitch) {
    copy_wide(to, from, (last - first) * count);
    to += (last - first) * count;
  } else {
    for (int64_t r = first; r < last; ++r, from += packed.row_stride, to += packed.pitch) {
      if (packed.column_stride != 1) {
        for (int64_t c = 0; c < count; ++c) to[c] = widen(from[c * packed.column_stride]);
      } else if (readable - from >= (count + lanes - 1) / lanes * lanes) {
        for (int64_t c = 0; c < count; c += lanes) store<T>(to + c, load_wide(from + c));
      } else {
        copy_wide(to, from, count);
      }
      zeros_ahead(to + count, zeros_right);
    }
  }
  zeros_ahead(to, end - to - lanes);
  store<T>(end - lanes, Vec<T>{});
}

// Writes rows of `columns` numbers. `ahead`: what lies behind a line's rows in memory is written later.
template <class S, class T>
void write_rows(const T* from, int64_t pitch, int64_t rows, int64_t columns, S* to, int64_t row_stride,
                int64_t column_stride, bool ahead) {
  constexpr int lanes = kLanes<T>;
  if (column_stride == 1 && row_stride == columns && pitch == columns) {
    return copy_narrow(to, from, rows * columns);
  }
  const bool next_row = row_stride == columns;
  for (int64_t r = 0; r < rows; ++r, from += pitch, to += row_stride) {
    if (column_stride != 1) {
      for (int64_t c = 0; c < columns; ++c) to[c * column_stride] = narrow<S>(from[c]);
    } else if (2 * columns >= lanes && (next_row ? r + 1 < rows : ahead)) {
      for (int64_t c = 0; c < columns; c += lanes) store_narrow(to + c, load<T>(from + c));
    } else if (columns >= lanes) {
      copy_narrow(to, from, columns);
    } else {
      store_lanes<S, T>(to, load<T>(from), 0, columns);
    }
  }
}

// Packs a task's sources and calls body(x, outputs, flat) for all tiles of a piece of its lines, at the flat
// index of each vector of voxels. begin_piece(first, outputs) is called before them, end_piece after them;
// the piece begins with line `first` of the task.
template <class S, class T, class Begin, class Body, class End>
[[gnu::always_inline]] inline void for_each_slab_tile(const DepthwiseSlabs& slabs, const SlabTask& task,
                                                      const S* source, T* packed, const Begin& begin_piece,
                                                      const Body& body, const End& end_piece) {
  const SlabView& view = slabs.views[task.view];
  const DepthwiseAxis &line = view.line, &row = view.row, &column = view.column;
  const int64_t rows = task.row_end - task.row_begin, lines = task.line_end - task.line_begin;
  const PackedRows packed_rows{task.row_begin + row.first,
                               rows + view.row_halo,
                               row.in_size,
                               view.count,
                               view.pitch,
                               row.source,
                               column.source,
                               view.packed_line - view.lead};
  const int64_t first_line = task.line_begin + line.first;
  const int64_t begin = clamped(first_line, 0, line.in_size);
  const int64_t end = clamped(first_line + lines + slabs.kernel - 1, begin, line.in_size);
  const S* volume = source + task.sample * slabs.source_batch + task.channel * slabs.source_channel;
  const S* readable =
      volume + (line.in_size - 1) * line.source + (row.in_size - 1) * row.source + column.in_size;
  for (int64_t l = begin; l < end; ++l) {
    pack_rows(packed_rows, volume + l * line.source + view.begin * column.source, readable,
              packed + (l - begin) * view.packed_line + view.lead);
  }
  const int64_t voxels = (rows - 1) * view.pitch + column.out_size;
  for_each_piece(lines, [&](int64_t l, int64_t outputs) {
    begin_piece(l, outputs);
    const int64_t places = outputs + slabs.kernel - 1, from_line = first_line + l;
    LineSource<T> x{};
    x.line = view.packed_line, x.other = view.other, x.inside_other = view.inside_other;
    x.columns = static_cast<int>(slabs.kernel);
    x.place_begin = static_cast<int>(clamped(-from_line, 0, places));
    x.place_end = static_cast<int>(clamped(line.in_size - from_line, 0, places));
    for (int64_t flat = 0; flat < voxels; flat += kLanes<T>) {
      x.source = packed + (from_line - begin) * view.packed_line + view.tap + flat;
      if (view.inside != nullptr) x.inside = view.inside + flat % view.pitch;
      body(x, outputs, flat);
    }
    end_piece(l, outputs);
  });
}

template <class S>
void run_slab(const DepthwiseSlabs& slabs, const SlabTask& task, const void* source, const void* weight_data,
              const void* bias_data, void* target_data, void* packed, void* staged_data) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  const SlabView& view = slabs.views[task.view];
  const Lines<T>& lines =
      view.inside != nullptr ? lines_for<T, true>(slabs.kernel) : lines_for<T, false>(slabs.kernel);
  const int64_t taps = slabs.kernel * slabs.kernel;
  const S* weights = static_cast<const S*>(weight_data) + task.channel * taps;
  T wide[kMostTaps * lanes], bias[lanes];
  for (int64_t i = 0; i < taps; ++i) {
    store<T>(wide + i * lanes, broadcast<T>(widen(weights[slabs.weight_places[i]])));
  }
  store<T>(bias, broadcast(bias_of<S>(bias_data, task.channel)));
  T* staged = static_cast<T*>(staged_data);
  const int64_t last_line = task.line_end - task.line_begin - 1;
  S* target = static_cast<S*>(target_data) + task.sample * slabs.target_batch +
              task.channel * slabs.target_channel + task.line_begin * view.line.target +
              task.row_begin * view.row.target;
  // Where the first voxel of the next vector will be written.
  const S* written = target;
  int64_t place = 0;
  for_each_slab_tile(
      slabs, task, static_cast<const S*>(source), static_cast<T*>(packed),
      [&](int64_t line, int64_t) { written = target + line * view.line.target, place = 0; },
      [&](const LineSource<T>& x, int64_t outputs, int64_t flat) {
        // Rows may be so short that the processor does not foresee the next.
        for (int64_t o = 0; o < outputs; ++o) {
          __builtin_prefetch(written + o * view.line.target + place * view.column.target);
        }
        for (place += lanes; place >= view.pitch; place -= view.pitch) written += view.row.target;
        lines.outputs[outputs](x, wide, bias, staged + flat, view.target_line);
      },
      [&](int64_t line, int64_t outputs) {
        for (int64_t o = 0; o < outputs; ++o) {
          write_rows(staged + o * view.target_line, view.pitch, task.row_end - task.row_begin,
                     view.column.out_size, target + (line + o) * view.line.target, view.row.target,
                     view.column.target, view.line.target == view.column.out_size && line + o < last_line);
        }
      });
}

template <class S>
void run_slab_weight(const DepthwiseSlabs& slabs, const SlabTask& task, const void* source,
                     const void* grad_data, void* sums, void* packed, void* staged_data) {
  using T = Computed<S>;
  const SlabView& view = slabs.views[task.view];
  const Lines<T>& lines =
      view.inside != nullptr ? lines_for<T, true>(slabs.kernel) : lines_for<T, false>(slabs.kernel);
  const int64_t rows = task.row_end - task.row_begin;
  T* staged = static_cast<T*>(staged_data);
  const S* grad = static_cast<const S*>(grad_data) + task.sample * slabs.target_batch +
                  task.channel * slabs.target_channel;
  const S* readable = grad + (view.line.out_size - 1) * view.line.target +
                      (view.row.out_size - 1) * view.row.target + view.column.out_size;
  const PackedRows packed_rows{task.row_begin,     rows,
                               view.row.out_size,  view.column.out_size,
                               view.pitch,         view.row.target,
                               view.column.target, view.target_line};
  TileSums<T> tile_sums(static_cast<T*>(sums), slabs.kernel * slabs.kernel);
  for_each_slab_tile(
      slabs, task, static_cast<const S*>(source), static_cast<T*>(packed),
      [&](int64_t line, int64_t outputs) {
        for (int64_t o = 0; o < outputs; ++o) {
          pack_rows(packed_rows, grad + (task.line_begin + line + o) * view.line.target, readable,
                    staged + o * view.target_line);
        }
      },
      [&](const LineSource<T>& x, int64_t outputs, int64_t flat) {
        tile_sums.add_grad(staged + flat, view.target_line, outputs);
        lines.products[outputs](x, staged + flat, view.target_line, tile_sums.next());
      },
      [](int64_t, int64_t) {});
  tile_sums.add_up();
}

template <class S>
constexpr DepthwiseKernel depthwise_kernel() {
  return {run_slab<S>, run_slab_weight<S>, run_slice<S>, run_slice_weight<S>};
}

extern const DepthwiseKernel kDepthwiseFloat64, kDepthwiseFloat32, kDepthwiseFloat16, kDepthwiseBFloat16;
const DepthwiseKernel kDepthwiseFloat64 = depthwise_kernel<double>();
const DepthwiseKernel kDepthwiseFloat32 = depthwise_kernel<float>();
const DepthwiseKernel kDepthwiseFloat16 = depthwise_kernel<Half>();
const DepthwiseKernel kDepthwiseBFloat16 = depthwise_kernel<BFloat16>();

}  // namespace ACSCONV_ISA
}  // namespace acsconv
