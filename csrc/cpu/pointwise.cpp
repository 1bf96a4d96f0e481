// The kernel of 1x1 layers on the CPU: target[channel][voxel] += weight[channel][c] * source[c][voxel],
// for outputs, and for gradients of the input with stride 1.
//
// As in walk.cpp, but no voxel is read twice, so there are no rings of planes: a panel of some dozens of
// voxels is packed, which stays in the first- or second-level cache, multiplied by all weights, and the sums
// go to the target at once, those of 16-bit tensors by way of a stage. Sources of the next panel are fetched
// meanwhile: a stride makes short pieces of them. Between channels-last tensors nothing is packed: sources
// are multiplied where they are (run_in_place), or, for few target channels, squares of them are transposed
// and multiplied in registers (run_streamed).
//
// S: a number in a tensor, T: what it is computed in.
//
// Compiled once per instruction set, see walk.h; pointwise_pass.cpp calls it.
#include "pointwise_walk.h"

#include "multiply.h"
#include "multiply_in_place.h"
#include "pack.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Target channels of run_streamed: sums of a vector of voxels and a square of sources fill the registers.
constexpr int kMostStreamed = ACSCONV_ACCUMULATORS >= 24 ? 8 : 4;

// Calls body(at, from, column, n) for the pieces of rows of a panel: its voxels [at, at + n), whose sources
// begin at `from`, the first one being in this column.
template <class S, class Body>
[[gnu::always_inline]] inline void for_each_piece(const PointwiseWalk& walk, const S* source, int64_t begin,
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
template <class S, class T>
void pack_transposed(T* to, int64_t channel_stride, const S* from, int64_t voxel_stride, int64_t channels,
                     int64_t count) {
  constexpr int lanes = kLanes<T>;
  for (int64_t first = 0; first < channels; first += lanes) {
    // The last square overlaps the one before it rather than read past the channels.
    const int64_t c = first + lanes <= channels ? first : channels - lanes;
    for (int64_t voxel = 0; voxel < count; voxel += lanes) {
      Vec<T> square[lanes];
      unrolled<0, lanes>([&](auto i) {
        const int64_t at = voxel + i.value;
        square[i.value] = at < count ? load_wide(from + at * voxel_stride + c) : Vec<T>{};
      });
      transpose<T>(square);
      T* q = to + c * channel_stride + voxel;
      unrolled<0, lanes>([&](auto i) { store<T>(q + i.value * channel_stride, square[i.value]); });
    }
  }
}

template <class S, class T>
void pack_panel(const PointwiseWalk& walk, const S* source, int64_t begin, int64_t voxels, T* panel) {
  const Strides5& s = walk.source;
  const bool transposed = s.channel == 1 && s.column != 1 && walk.in_channels >= kLanes<T>;
  for_each_piece(walk, source, begin, voxels, [&](int64_t at, const S* p, int64_t column, int64_t n) {
    T* q = panel + at;
    if (transposed) {
      pack_transposed(q, walk.panel_stride, p, s.column, walk.in_channels, n);
      return;
    }
    for (int64_t c = 0; c < walk.in_channels; ++c, p += s.channel, q += walk.panel_stride) {
      if (s.column == 1) {
        copy_wide(q, p, n);
      } else if (walk.spacing == 2 && walk.in_columns > 0) {
        copy_every_other(q, p, n, walk.in_columns - 2 * column);
      } else {
        for (int64_t i = 0; i < n; ++i) q[i] = widen(p[i * s.column]);
      }
    }
  });
}

// Fetches the part `index` of `count` of the sources of a panel into the second-level cache.
template <class S>
void fetch_panel(const PointwiseWalk& walk, const S* source, int64_t begin, int64_t voxels, int64_t index,
                 int64_t count) {
  constexpr int64_t line = 64 / sizeof(S);
  const Strides5& s = walk.source;
  const int64_t first = index * walk.in_channels / count, last = (index + 1) * walk.in_channels / count;
  for_each_piece(walk, source, begin, voxels, [&](int64_t, const S* p, int64_t, int64_t n) {
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

// A write waits for its line as a read does.
template <class T>
[[gnu::always_inline]] inline void prefetch_written(const T* to, int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += line) __builtin_prefetch(to + i, 1, 2);
}

// Sums of one block and one panel, `voxels` of them, where vectors run over voxels: whole vectors to
// [channel][voxel] at `to`, what remains to the same at `rest`, where a vector has room. At `ahead`, if it is
// not null, the next block's sums will be written.
template <class T>
void run_voxels(const PointwiseWalk& walk, const T* panel, const T* weights, int64_t width, int64_t voxels,
                const T* bias, T* to, int64_t to_stride, T* rest, int64_t rest_stride, const T* ahead) {
  static constexpr MultiplyTable<T, false> table;
  constexpr int lanes = kLanes<T>;
  for_chains(walk, panel, weights, width, bias, [&](const Segment<T>* segment, const T* before) {
    for (int64_t voxel = 0; voxel < voxels;) {
      int vectors = walk.vectors;
      while (vectors > 1 && voxels - voxel < vectors * lanes) --vectors;
      const bool whole = voxels - voxel >= lanes;
      for (int64_t o = 0; o < width && ahead != nullptr && before != nullptr; ++o) {
        prefetch_written(ahead + o * to_stride + voxel, vectors * lanes);
      }
      table.entry[vectors][width](segment, segment + 1, voxel, lanes, walk.panel_stride, before,
                                  whole ? to + voxel : rest, whole ? to_stride : rest_stride);
      voxel += vectors * lanes;
    }
  });
}

// The same where vectors run over channels, to [voxel][channel].
template <class T>
void run_positions(const PointwiseWalk& walk, const T* panel, const T* weights, int64_t width, int64_t voxels,
                   const T* bias, T* to, int64_t to_stride, const T* ahead) {
  static constexpr MultiplyChannelsTable<T> table;
  const int64_t pieces = (voxels + walk.positions - 1) / walk.positions;
  for_chains(walk, panel, weights, width, bias, [&](const Segment<T>* segment, const T* before) {
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t voxel = i * voxels / pieces, next = (i + 1) * voxels / pieces;
      for (int64_t v = voxel; v < next && before != nullptr; ++v) {
        prefetch_written(ahead + v * to_stride, width);
      }
      table.entry[width / kLanes<T>][next - voxel](segment, segment + 1, voxel, 0, walk.panel_stride, before,
                                                   to + voxel * to_stride, to_stride);
    }
  });
}

// The source of a target's voxel.
template <class S>
const S* source_of(const PointwiseWalk& walk, const S* source, int64_t voxel) {
  const Strides5& s = walk.source;
  return source + voxel / walk.columns / walk.rows * s.plane + voxel / walk.columns % walk.rows * s.row +
         voxel % walk.columns * s.column;
}

// The same from sources that are not packed: the panel's first voxel is `begin`. The part `block` of the next
// panel's sources is fetched, of which there are `next_voxels`.
template <class T>
void run_in_place(const PointwiseWalk& walk, const T* source, int64_t begin, int64_t voxels,
                  int64_t next_voxels, int64_t block, const T* weights, int64_t width, const T* bias, T* to,
                  int64_t to_stride, const T* ahead) {
  static constexpr MultiplyInPlaceTable<T> table;
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t stride = walk.source.column;
  const int64_t part = ((walk.in_channels - 1) / walk.block_count / line + 1) * line;
  const int64_t others = walk.in_channels - block * part;
  for (int64_t c = 0; c < walk.in_channels; c += kTermsPerSum) {
    const int64_t left = walk.in_channels - c, count = left < kTermsPerSum ? left : kTermsPerSum;
    for_each_piece(walk, source + c, begin, voxels, [&](int64_t at, const T* from, int64_t, int64_t n) {
      const int64_t pieces = (n + walk.positions - 1) / walk.positions;
      for (int64_t i = 0; i < pieces; ++i) {
        const int64_t voxel = i * n / pieces, next = (i + 1) * n / pieces;
        Fetched<T> fetched{};
        if (c == 0) {
          fetched = {ahead + (at + voxel) * to_stride, source, to_stride, 0, next - voxel};
          if (at + next <= next_voxels && others > 0) {
            fetched.read = source_of(walk, source, begin + voxels + at + voxel) + block * part;
            fetched.read_numbers = others < part ? others : part;
          }
        }
        table.entry[width / kLanes<T>][next - voxel](from + voxel * stride, stride, weights + c * width,
                                                     count, c == 0 ? bias : nullptr,
                                                     to + (at + voxel) * to_stride, to_stride, &fetched);
      }
    });
  }
}

// Writes the sums of a panel, [channel][voxel], into a channels-last target.
template <class S, class T>
void write_voxels(const T* stage, int64_t panel_stride, int64_t channels, int64_t voxels, S* to) {
  if (channels >= kLanes<T>) {
    write_row_channels_last(to, channels, stage, panel_stride, channels, voxels);
    return;
  }
  for (int64_t i = 0; i < voxels; ++i) {
    for (int64_t o = 0; o < channels; ++o) *to++ = narrow<S>(stage[o * panel_stride + i]);
  }
}

template <class S>
void run_panels(const PointwiseWalk& walk, const PointwiseTask& task, const S* source,
                const Computed<S>* weights, const Computed<S>* bias, S* target,
                const PointwiseScratch& scratch) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  T* panel = static_cast<T*>(scratch.panel);
  T* stage = static_cast<T*>(scratch.stage);
  for (int64_t begin = task.begin; begin < task.end; begin += walk.panel) {
    const int64_t left = task.end - begin;
    const int64_t voxels = left < walk.panel ? left : walk.panel;
    const int64_t whole = voxels / lanes * lanes;
    if (!walk.in_place) pack_panel(walk, source, begin, voxels, panel);
    const int64_t next = begin + voxels;
    const int64_t ahead = task.end - next < walk.panel ? task.end - next : walk.panel;
    for (int64_t block = 0; block < walk.block_count; ++block) {
      if (!walk.in_place) fetch_panel(walk, source, next, ahead, block, walk.block_count);
      const int64_t first = block * walk.width, others = walk.out_channels - first;
      const int64_t width = others < walk.width ? others : walk.width;
      const T* w = weights + block * walk.block_stride;
      S* const rows = target + first * walk.target_channel + begin;
      const bool is_last = block + 1 == walk.block_count;
      if constexpr (sizeof(S) == sizeof(T)) {
        if (walk.form == PointwiseTarget::Channels) {
          S* const to = target + begin * walk.out_channels + first;
          const S* after = is_last ? target + next * walk.out_channels : to + walk.width;
          if (walk.in_place) {
            run_in_place(walk, source, begin, voxels, ahead, block, w, width, bias + first, to,
                         walk.out_channels, after);
          } else {
            run_positions(walk, panel, w, width, voxels, bias + first, to, walk.out_channels, after);
          }
          continue;
        }
        if (walk.form == PointwiseTarget::Rows) {
          run_voxels(walk, panel, w, width, voxels, bias + first, rows, walk.target_channel, stage, lanes,
                     is_last ? target + next : rows + walk.width * walk.target_channel);
          for (int64_t o = 0; o < width && whole < voxels; ++o) {
            copy_wide(rows + o * walk.target_channel + whole, stage + o * lanes, voxels - whole);
          }
          continue;
        }
      }
      T* to = stage + (walk.form == PointwiseTarget::StagedRows ? 0 : first * walk.panel_stride);
      run_voxels(walk, panel, w, width, voxels, bias + first, to, walk.panel_stride, to + whole,
                 walk.panel_stride, static_cast<const T*>(nullptr));
      for (int64_t o = 0; o < width && walk.form == PointwiseTarget::StagedRows; ++o) {
        copy_narrow(rows + o * walk.target_channel, stage + o * walk.panel_stride, voxels);
      }
    }
    if (walk.form == PointwiseTarget::Staged) {
      write_voxels(stage, walk.panel_stride, walk.out_channels, voxels, target + begin * walk.out_channels);
    }
  }
}

// [Count][lanes] to [lanes][Count], as it lies in memory; Count is a power of two.
template <class T, int Count, int Length = 1>
[[gnu::always_inline]] inline void interleave(Vec<T> (&rows)[Count]) {
  if constexpr (Length < Count) {
    Vec<T> next[Count];
    unrolled<0, Count / 2>([&](auto i) {
      constexpr int lanes = kLanes<T>;
      const Vec<T> a = rows[i.value], b = rows[i.value + Count / 2];
      next[2 * i.value] = interleaved<T, 0>(a, b, typename MakeIndices<lanes>::Type{});
      next[2 * i.value + 1] = interleaved<T, lanes / 2>(a, b, typename MakeIndices<lanes>::Type{});
    });
    unrolled<0, Count>([&](auto i) { rows[i.value] = next[i.value]; });
    interleave<T, Count, 2 * Length>(rows);
  }
}

// Channels-last sources, of whole vectors of channels, to Count adjacent target channels: the voxels of a
// vector, of which `count` exist, at `from` and `voxel_stride` apart.
template <class S, int Count, bool Whole>
[[gnu::always_inline]] inline void stream_vector(const PointwiseWalk& walk, const S* from,
                                                 int64_t voxel_stride, int64_t count,
                                                 const Computed<S>* weights, const Computed<S>* bias, S* to) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  Vec<T> total[Count];
  unrolled<0, Count>([&](auto o) { total[o.value] = broadcast(bias[o.value]); });
  for (int64_t begin = 0; begin < walk.in_channels; begin += kTermsPerSum) {
    const int64_t left = walk.in_channels - begin, end = begin + (left < kTermsPerSum ? left : kTermsPerSum);
    Vec<T> sum[Count] = {};
    for (int64_t c = begin; c < end; c += lanes) {
      Vec<T> square[lanes];
      unrolled<0, lanes>([&](auto i) {
        const int64_t voxel = Whole || i.value < count ? i.value : count - 1;
        square[i.value] = load_wide(from + voxel * voxel_stride + c);
      });
      transpose<T>(square);
      unrolled<0, lanes>([&](auto i) {
        unrolled<0, Count>([&](auto o) {
          sum[o.value] += square[i.value] * broadcast(weights[(c + i.value) * Count + o.value]);
        });
      });
    }
    unrolled<0, Count>([&](auto o) { total[o.value] = sum[o.value] + total[o.value]; });
  }
  if constexpr (Whole && (Count & (Count - 1)) == 0) {
    interleave<T>(total);
    unrolled<0, Count>([&](auto o) { store_narrow(to + o.value * lanes, total[o.value]); });
  } else {
    for (int64_t i = 0; i < count; ++i) {
      unrolled<0, Count>([&](auto o) { to[i * Count + o.value] = narrow<S>(total[o.value][i]); });
    }
  }
}

// The processor by itself fetches too little ahead.
constexpr int64_t kVoxelsAhead = 64;

template <class S, int Count>
void run_streamed(const PointwiseWalk& walk, const PointwiseTask& task, const S* source,
                  const Computed<S>* weights, const Computed<S>* bias, S* target) {
  constexpr int lanes = kLanes<Computed<S>>;
  constexpr int64_t line = 64 / sizeof(S);
  const int64_t stride = walk.source.column;
  for_each_piece(walk, source, task.begin, task.end - task.begin,
                 [&](int64_t at, const S* from, int64_t, int64_t count) {
                   S* to = target + (task.begin + at) * Count;
                   int64_t i = 0;
                   for (; i + lanes <= count; i += lanes, from += lanes * stride, to += lanes * Count) {
                     for (int64_t v = kVoxelsAhead; v < kVoxelsAhead + lanes && i + v < count; ++v) {
                       for (int64_t c = 0; c < walk.in_channels; c += line) {
                         __builtin_prefetch(from + v * stride + c, 0, 2);
                       }
                     }
                     stream_vector<S, Count, true>(walk, from, stride, lanes, weights, bias, to);
                   }
                   if (i < count) {
                     stream_vector<S, Count, false>(walk, from, stride, count - i, weights, bias, to);
                   }
                 });
}

template <class S>
void run(const PointwiseWalk& walk, const PointwiseTask& task, const void* source_data,
         const void* weight_data, const void* bias_data, void* target_data, const PointwiseScratch& scratch) {
  using T = Computed<S>;
  const S* source = static_cast<const S*>(source_data) + task.sample * walk.source.batch;
  const T* weights = static_cast<const T*>(weight_data);
  const T* bias = static_cast<const T*>(bias_data);
  S* target = static_cast<S*>(target_data) + task.sample * walk.target_batch;
  if (walk.form != PointwiseTarget::Streamed) {
    run_panels(walk, task, source, weights, bias, target, scratch);
    return;
  }
  unrolled<1, kMostStreamed>([&](auto count) {
    if (count.value == walk.out_channels) {
      run_streamed<S, count.value>(walk, task, source, weights, bias, target);
    }
  });
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

template <class S>
constexpr PointwiseKernel kernel_of() {
  using T = Computed<S>;
  return {kLanes<T>, ACSCONV_ACCUMULATORS, kMostStreamed, run<S>, pack_weights<T>};
}

extern const PointwiseKernel kPointwiseFloat64, kPointwiseFloat32, kPointwiseFloat16, kPointwiseBFloat16;
const PointwiseKernel kPointwiseFloat64 = kernel_of<double>();
const PointwiseKernel kPointwiseFloat32 = kernel_of<float>();
const PointwiseKernel kPointwiseFloat16 = kernel_of<Half>();
const PointwiseKernel kPointwiseBFloat16 = kernel_of<BFloat16>();

}  // namespace ACSCONV_ISA
}  // namespace acsconv
