// The kernel of 1x1 layers on the CPU: target[channel][voxel] += weight[channel][c] * source[c][voxel],
// float32 and float64, for outputs, and for gradients of the input with stride 1.
//
// As in walk.cpp, but no voxel is read twice, so there are no rings of planes: a panel of some dozens of
// voxels is packed, which stays in the first- or second-level cache, multiplied by all weights, and the sums
// go to the target at once. Sources of the next panel are fetched meanwhile: a stride makes short pieces of
// them.
//
// Compiled once per instruction set, see walk.h; pointwise_pass.cpp calls it.
#include "pointwise_walk.h"

#include "multiply.h"
#include "pack.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Calls body(at, from, column, n) for the pieces of rows of a panel: its voxels [at, at + n), whose sources
// begin at `from`, the first one being in this column.
template <class T, class Body>
[[gnu::always_inline]] inline void for_each_piece(const PointwiseWalk& walk, const T* source, int64_t begin,
                                                  int64_t voxels, const Body& body) {
  const Strides5& s = walk.source;
  int64_t column = begin % walk.columns;
  int64_t row = begin / walk.columns % walk.rows, plane = begin / walk.columns / walk.rows;
  for (int64_t at = 0; at < voxels; column = 0) {
    const int64_t left = voxels - at, in_row = walk.columns - column;
    const int64_t n = left < in_row ? left : in_row;
    body(at, source + plane * s.plane + row * s.row + column * s.column, column, n);
    at += n;
    if (++row == walk.rows) row = 0, ++plane;
  }
}

// [voxel][channel] to [channel][voxel] in squares of lanes x lanes numbers, of lanes channels at least.
// Writes up to a vector beyond `count` voxels.
template <class T>
void pack_transposed(T* to, int64_t channel_stride, const T* from, int64_t voxel_stride, int64_t channels,
                     int64_t count) {
  constexpr int lanes = kLanes<T>;
  for (int64_t first = 0; first < channels; first += lanes) {
    // The last square overlaps the one before it rather than read past the channels.
    const int64_t c = first + lanes <= channels ? first : channels - lanes;
    for (int64_t voxel = 0; voxel < count; voxel += lanes) {
      Vec<T> square[lanes];
      unrolled<0, lanes>([&](auto i) {
        const int64_t at = voxel + i.value;
        square[i.value] = at < count ? load<T>(from + at * voxel_stride + c) : Vec<T>{};
      });
      transpose<T>(square);
      T* q = to + c * channel_stride + voxel;
      unrolled<0, lanes>([&](auto i) { store<T>(q + i.value * channel_stride, square[i.value]); });
    }
  }
}

template <class T>
void pack_panel(const PointwiseWalk& walk, const T* source, int64_t begin, int64_t voxels, T* panel) {
  const Strides5& s = walk.source;
  const bool transposed = s.channel == 1 && s.column != 1 && walk.in_channels >= kLanes<T>;
  for_each_piece(walk, source, begin, voxels, [&](int64_t at, const T* p, int64_t column, int64_t n) {
    T* q = panel + at;
    if (transposed) {
      pack_transposed(q, walk.panel_stride, p, s.column, walk.in_channels, n);
      return;
    }
    for (int64_t c = 0; c < walk.in_channels; ++c, p += s.channel, q += walk.panel_stride) {
      if (s.column == 1) {
        copy_wide(q, p, n);
      } else if (walk.spacing == 2 && walk.in_columns > 0) {
        copy_every_other<T, 0>(q, p, n, walk.in_columns - 2 * column);
      } else {
        for (int64_t i = 0; i < n; ++i) q[i] = p[i * s.column];
      }
    }
  });
}

// Fetches the part `index` of `count` of the sources of a panel into the second-level cache.
template <class T>
void fetch_panel(const PointwiseWalk& walk, const T* source, int64_t begin, int64_t voxels, int64_t index,
                 int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  const Strides5& s = walk.source;
  const int64_t first = index * walk.in_channels / count, last = (index + 1) * walk.in_channels / count;
  for_each_piece(walk, source, begin, voxels, [&](int64_t, const T* p, int64_t, int64_t n) {
    if (s.channel == 1) {
      for (int64_t i = index * n / count; i < (index + 1) * n / count; ++i) {
        for (int64_t c = 0; c < walk.in_channels; c += line) __builtin_prefetch(p + i * s.column + c, 0, 2);
      }
      return;
    }
    for (int64_t c = first; c < last; ++c) {
      for (int64_t i = 0; i < n * s.column; i += line) __builtin_prefetch(p + c * s.channel + i, 0, 2);
    }
  });
}

// Calls add(segment, before) for the chains of additions of one block and one panel, all voxels of which go
// through the weights of one chain before those of the next; `before` is the bias for the first.
template <class T, class Add>
[[gnu::always_inline]] inline void for_chains(const PointwiseWalk& walk, const T* panel, const T* weights,
                                              int64_t width, const T* bias, const Add& add) {
  for (int64_t c = 0; c < walk.in_channels; c += kTermsPerSum) {
    const int64_t left = walk.in_channels - c;
    const Segment<T> segment{panel + c * walk.panel_stride, weights + c * width,
                             left < kTermsPerSum ? left : kTermsPerSum};
    add(&segment, c == 0 ? bias : nullptr);
  }
}

// Sums of one block and one panel, `voxels` of them, where vectors run over voxels: whole vectors to
// [channel][voxel] at `to`, what remains to the same at `rest`, where a vector has room.
template <class T>
void run_voxels(const PointwiseWalk& walk, const T* panel, const T* weights, int64_t width, int64_t voxels,
                const T* bias, T* to, int64_t to_stride, T* rest, int64_t rest_stride) {
  static constexpr MultiplyTable<T, false> table;
  constexpr int lanes = kLanes<T>;
  for_chains(walk, panel, weights, width, bias, [&](const Segment<T>* segment, const T* before) {
    for (int64_t voxel = 0; voxel < voxels;) {
      int vectors = walk.vectors;
      while (vectors > 1 && voxels - voxel < vectors * lanes) --vectors;
      const bool whole = voxels - voxel >= lanes;
      table.entry[vectors][width](segment, segment + 1, voxel, lanes, walk.panel_stride, before,
                                  whole ? to + voxel : rest, whole ? to_stride : rest_stride);
      voxel += vectors * lanes;
    }
  });
}

// The same where vectors run over channels, to [voxel][channel].
template <class T>
void run_positions(const PointwiseWalk& walk, const T* panel, const T* weights, int64_t width, int64_t voxels,
                   const T* bias, T* to, int64_t to_stride) {
  static constexpr MultiplyChannelsTable<T> table;
  const int64_t pieces = (voxels + walk.positions - 1) / walk.positions;
  for_chains(walk, panel, weights, width, bias, [&](const Segment<T>* segment, const T* before) {
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t voxel = i * voxels / pieces, next = (i + 1) * voxels / pieces;
      table.entry[width / kLanes<T>][next - voxel](segment, segment + 1, voxel, walk.panel_stride, before,
                                                   to + voxel * to_stride, to_stride);
    }
  });
}

// Writes the sums of a panel, [channel][voxel], into a channels-last target.
template <class T>
void write_voxels(const T* stage, int64_t panel_stride, int64_t channels, int64_t voxels, T* to) {
  if (channels >= kLanes<T>) {
    write_row_channels_last(to, channels, stage, panel_stride, channels, voxels);
    return;
  }
  for (int64_t i = 0; i < voxels; ++i) {
    for (int64_t o = 0; o < channels; ++o) *to++ = stage[o * panel_stride + i];
  }
}

template <class T>
void run(const PointwiseWalk& walk, const PointwiseTask& task, const void* source_data,
         const void* weight_data, const void* bias_data, void* target_data, const PointwiseScratch& scratch) {
  constexpr int lanes = kLanes<T>;
  const T* source = static_cast<const T*>(source_data) + task.sample * walk.source.batch;
  const T* weights = static_cast<const T*>(weight_data);
  const T* bias = static_cast<const T*>(bias_data);
  T* target = static_cast<T*>(target_data) + task.sample * walk.target_batch;
  T* panel = static_cast<T*>(scratch.panel);
  T* stage = static_cast<T*>(scratch.stage);
  for (int64_t begin = task.begin; begin < task.end; begin += walk.panel) {
    const int64_t left = task.end - begin;
    const int64_t voxels = left < walk.panel ? left : walk.panel;
    const int64_t whole = voxels / lanes * lanes;
    pack_panel(walk, source, begin, voxels, panel);
    const int64_t next = begin + voxels;
    const int64_t ahead = task.end - next < walk.panel ? task.end - next : walk.panel;
    for (int64_t block = 0; block < walk.block_count; ++block) {
      fetch_panel(walk, source, next, ahead, block, walk.block_count);
      const int64_t first = block * walk.width, others = walk.out_channels - first;
      const int64_t width = others < walk.width ? others : walk.width;
      const T* w = weights + block * walk.block_stride;
      if (walk.form == PointwiseTarget::Channels) {
        run_positions(walk, panel, w, width, voxels, bias + first, target + begin * walk.out_channels + first,
                      walk.out_channels);
      } else if (walk.form == PointwiseTarget::Rows) {
        T* to = target + first * walk.target_channel + begin;
        run_voxels(walk, panel, w, width, voxels, bias + first, to, walk.target_channel, stage, lanes);
        for (int64_t o = 0; o < width && whole < voxels; ++o) {
          copy_wide(to + o * walk.target_channel + whole, stage + o * lanes, voxels - whole);
        }
      } else {
        T* to = stage + first * walk.panel_stride;
        run_voxels(walk, panel, w, width, voxels, bias + first, to, walk.panel_stride, to + whole,
                   walk.panel_stride);
      }
    }
    if (walk.form == PointwiseTarget::Staged) {
      write_voxels(stage, walk.panel_stride, walk.out_channels, voxels, target + begin * walk.out_channels);
    }
  }
}

// [source channel][target channel of the block]. May write up to a vector beyond it.
template <class T>
void pack_weights(const PointwiseWalk& walk, int64_t block, const void* weight_data, void* packed) {
  const int64_t first = block * walk.width, others = walk.out_channels - first;
  const int64_t width = others < walk.width ? others : walk.width;
  const T* weight = static_cast<const T*>(weight_data) + first * walk.weight_out;
  T* to = static_cast<T*>(packed) + block * walk.block_stride;
  constexpr int lanes = kLanes<T>;
  const bool squares =
      width <= lanes || width % lanes == 0;  // else the end of a row would overwrite the next
  if (walk.weight_in == 1 && squares && walk.in_channels >= lanes) {
    pack_transposed(to, width, weight, walk.weight_out, walk.in_channels, width);
    return;
  }
  for (int64_t c = 0; c < walk.in_channels; ++c, to += width) {
    for (int64_t o = 0; o < width; ++o) to[o] = weight[c * walk.weight_in + o * walk.weight_out];
  }
}

extern const PointwiseKernel kPointwiseFloat64, kPointwiseFloat32;
const PointwiseKernel kPointwiseFloat64 = {kLanes<double>, ACSCONV_ACCUMULATORS, run<double>,
                                           pack_weights<double>};
const PointwiseKernel kPointwiseFloat32 = {kLanes<float>, ACSCONV_ACCUMULATORS, run<float>,
                                           pack_weights<float>};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
