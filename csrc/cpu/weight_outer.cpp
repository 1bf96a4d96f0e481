// Gradient of the weight by outer products: vectors run over input channels, and each is multiplied by one
// number of grad_output per output channel, voxel by voxel.
//
//   accumulator[output channel][32 input channels] += grad[voxel][output channel] * source[voxel + tap]
//
// No lane has to be added to another, and a voxel takes 2 loads of vectors and up to 14 broadcasts from
// adjacent numbers for 28 products. Accumulators stay in registers for a chain of voxels, which are read for
// all taps from the first caches, and are then added to the sums in memory.
//
// Compiled once per instruction set, see walk.cpp; weight_pass.cpp calls it.
#include "places.h"
#include "weight_units.h"

namespace acsconv {
namespace ACSCONV_ISA {

constexpr int kMaxOuterVectors = 2, kMaxOuterChannels = 14;

// Voxels that lie behind one another in both packed volumes.
template <class T>
struct Run {
  const T *grad, *source;
  int64_t voxels;
};

// Adds the outer products of some runs to sums[Channels][Vectors * lanes].
template <class T, int Vectors, int Channels>
[[gnu::noinline]] void outer(const Run<T>* run, const Run<T>* end, T* sums) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[Channels][Vectors];
  unrolled<0, Channels>(
      [&](auto c) { unrolled<0, Vectors>([&](auto v) { sum[c.value][v.value] = broadcast(T(0)); }); });
  for (; run != end; ++run) {
    const T *grad = run->grad, *source = run->source;
    for (int64_t left = run->voxels; left > 0; --left, grad += Channels, source += Vectors * lanes) {
      Vec<T> x[Vectors];
      unrolled<0, Vectors>([&](auto v) { x[v.value] = load<T>(source + v.value * lanes); });
      unrolled<0, Channels>([&](auto c) {
        const Vec<T> factor = broadcast(grad[c.value]);
        unrolled<0, Vectors>([&](auto v) { sum[c.value][v.value] += x[v.value] * factor; });
      });
    }
  }
  unrolled<0, Channels>([&](auto c) {
    unrolled<0, Vectors>([&](auto v) {
      T* to = sums + (c.value * Vectors + v.value) * lanes;
      store<T>(to, load<T>(to) + sum[c.value][v.value]);
    });
  });
}

template <class T>
using Outer = void (*)(const Run<T>*, const Run<T>*, T*);

template <class T>
struct OuterTable {
  Outer<T> entry[kMaxOuterVectors + 1][kMaxOuterChannels + 1] = {};

  constexpr OuterTable() {
    unrolled<1, kMaxOuterVectors>([&](auto v) {
      unrolled<1, kMaxOuterChannels>([&](auto c) {
        if constexpr (v.value * c.value <= ACSCONV_ACCUMULATORS) {
          entry[v.value][c.value] = outer<T, v.value, c.value>;
        }
      });
    });
  }
};

// Adds `voxels` numbers of every channel of a packed block, `channels` wide.
template <class T>
void add_channels(const T* grad, int64_t channels, int64_t voxels, T* sums, T* lost) {
  constexpr int lanes = kLanes<T>;
  for (int64_t c = 0; c < channels; c += lanes) {
    T numbers[lanes];
    store<T>(numbers, sum_of_vectors(grad + c, channels, voxels));
    for (int64_t i = 0; i < lanes && c + i < channels; ++i) {
      add_exactly(numbers[i], sums[c + i], lost[c + i]);
    }
  }
}

// Numbers of one row, `voxel_stride` apart in memory, as a vector; at most `available` may be read.
template <class S>
[[gnu::always_inline]] inline Vec<Computed<S>> load_strided(const S* from, int64_t voxel_stride,
                                                            int64_t voxels, int64_t available) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  if (voxels >= lanes && voxel_stride == 1) return load_wide(from);
  if (voxels >= lanes && voxel_stride == 2 && available >= 2 * lanes) {
    return every_other<T, 0>(load_wide(from), load_wide(from + lanes), typename MakeIndices<lanes>::Type{});
  }
  T numbers[lanes];
  for (int i = 0; i < lanes; ++i) numbers[i] = i < voxels ? widen(from[i * voxel_stride]) : T(0);
  return load<T>(numbers);
}

// One row of `channels` <= width channels as [position][width]. The last vector of a position may reach into
// the next one, which is written after it.
template <class S, class T>
void pack_panel_row(T* to, int64_t width, const S* from, int64_t channel_stride, int64_t voxel_stride,
                    int64_t channels, int64_t count, int64_t available) {
  constexpr int lanes = kLanes<T>;
  if (channel_stride == 1) {
    for (int64_t w = 0; w < count; ++w, to += width, from += voxel_stride) {
      copy_wide(to, from, channels);
      fill_zero(to + channels, width - channels);
    }
    return;
  }
  for (int64_t w = 0; w < count; w += lanes) {
    const int64_t voxels = count - w < lanes ? count - w : lanes;
    for (int64_t c = (width - 1) / lanes * lanes; c >= 0; c -= lanes) {
      Vec<T> square[lanes];
      unrolled<0, lanes>([&](auto i) {
        square[i.value] = c + i.value < channels
                              ? load_strided(from + w * voxel_stride + (c + i.value) * channel_stride,
                                             voxel_stride, voxels, available - w * voxel_stride)
                              : Vec<T>{};
      });
      transpose<T>(square);
      unrolled<0, lanes>([&](auto i) {
        if (i.value < voxels) store<T>(to + (w + i.value) * width + c, square[i.value]);
      });
    }
  }
}

// All rows of `channels` channels, to the places of their voxels. The last vector of a position may reach
// into the next one, which is written after it, or which is zero.
template <class S, class T>
void pack_panel_plane(const PlanePlaces& places, const S* plane, int64_t channel_stride, int64_t channels,
                      int64_t width, T* to) {
  constexpr int lanes = kLanes<T>;
  for (int64_t next = 0; next < places.count; next += lanes) {
    // The last square overlaps the one before it rather than read past the plane.
    const int64_t v = next + lanes <= places.count ? next : places.count - lanes;
    const int32_t* place = places.place + v;
    for (int64_t c = (width - 1) / lanes * lanes; c >= 0; c -= lanes) {
      const S* from = plane + places.first + v + c * channel_stride;
      Vec<T> square[lanes];
      unrolled<0, lanes>([&](auto i) {
        square[i.value] = c + i.value < channels ? load_wide(from + i.value * channel_stride) : Vec<T>{};
      });
      transpose<T>(square);
      unrolled<0, lanes>([&](auto i) {
        if (place[i.value] >= 0) store<T>(to + place[i.value] * width + c, square[i.value]);
      });
    }
  }
}

// Packs `channels` of a plane, see pack_positions; `places` where find_places found them, else null.
template <class S, class T>
void pack_panel(const Packing& packing, const PlanePlaces* places, const S* plane, int64_t channels,
                int64_t row_begin, int64_t rows, int64_t width, int64_t positions, T* to) {
  const int64_t channel_stride = packing.source.channel;
  if (places != nullptr) {
    pack_panel_plane(*places, plane, channel_stride, channels, width, to);
    pack_zeros(packing, plane, row_begin, rows, width, positions, to);
    return;
  }
  pack_positions(packing, plane, row_begin, rows, width, positions, to,
                 [&](T* row, const S* from, int64_t voxel_stride, int64_t count, int64_t available) {
                   pack_panel_row(row, width, from, channel_stride, voxel_stride, channels, count, available);
                 });
}

template <class S>
void run_outer(const WeightWalk& walk, const WeightTask& task, const void* source_data, const void* grad_data,
               void* sums_data, const WeightScratch& scratch) {
  using T = Computed<S>;
  static constexpr OuterTable<T> table;
  constexpr int lanes = kLanes<T>;
  const WeightChunk& chunk = walk.chunks[task.chunk];
  const WeightBlock* block_begin = walk.blocks + task.block_begin;
  const WeightBlock* block_end = walk.blocks + task.block_end;
  const Strides5 &from = walk.source.source, &grad_from = walk.grad.source;
  const S* source = static_cast<const S*>(source_data) + chunk.in_begin * from.channel;
  const S* grad = static_cast<const S*>(grad_data);
  T* ring = static_cast<T*>(scratch.ring);
  T* packed_grad = static_cast<T*>(scratch.grad);
  T* sums = static_cast<T*>(sums_data);
  auto* runs = static_cast<Run<T>*>(scratch.items);

  const int64_t phase_positions = walk.source.phase_count * walk.source_positions;
  const int64_t padded = (walk.group_channels + lanes - 1) / lanes * lanes;
  const int64_t plane_size = phase_positions * padded;
  auto width_of_panel = [&](int64_t c) {
    return padded - c < walk.panel_width ? padded - c : walk.panel_width;
  };

  PlanePlaces places;
  auto pack_source = [&](const Unit& unit, int64_t plane) {
    T* to = ring + plane % walk.ring_planes * plane_size;
    const S* p = source + unit.sample * from.batch + plane * from.plane;
    const int64_t row_begin = walk.source.row_min + unit.row_begin, rows = unit.rows + walk.source.halo_rows;
    const bool found = find_places(walk.source, row_begin, rows, walk.source_positions, lanes, places);
    for (int64_t c = 0; c < walk.group_channels; c += walk.panel_width) {
      const int64_t left = walk.group_channels - c, width = width_of_panel(c);
      pack_panel(walk.source, found ? &places : nullptr, p + c * from.channel, left < width ? left : width,
                 row_begin, rows, width, walk.source_positions, to + c * phase_positions);
    }
  };

  // [block][plane of the unit][position][channel]
  auto grad_of = [&](const WeightBlock& block, int64_t plane) {
    return packed_grad +
           ((block.out_begin - block_begin->out_begin) * walk.step_planes + plane * block.out_count) *
               walk.grad_positions;
  };

  auto compute = [&](const Unit& unit) {
    const bool found = find_places(walk.grad, unit.row_begin, unit.rows, walk.grad_positions, lanes, places);
    for (const WeightBlock* block = block_begin; block != block_end; ++block) {
      for (int64_t o = 0; o < unit.planes; ++o) {
        pack_panel(walk.grad, found ? &places : nullptr,
                   grad + unit.sample * grad_from.batch + block->out_begin * grad_from.channel +
                       (unit.plane + o) * grad_from.plane,
                   block->out_count, unit.row_begin, unit.rows, block->out_count, walk.grad_positions,
                   grad_of(*block, o));
      }
    }
    const int64_t voxels = (unit.rows - 1) * walk.source.pitch + walk.out_columns;
    for (int64_t voxel = 0; voxel < voxels; voxel += walk.chain) {
      const int64_t count = voxels - voxel < walk.chain ? voxels - voxel : walk.chain;
      for (int64_t c = 0; c < walk.group_channels; c += walk.panel_width) {
        const int64_t width = width_of_panel(c);
        for (const WeightBlock* block = block_begin; block != block_end; ++block) {
          const int64_t outs = block->out_count;
          for (int64_t o = 0; o < unit.planes && c == 0; ++o) {
            add_channels(grad_of(*block, o) + voxel * outs, outs, count,
                         sums + walk.bias_sums + block->out_begin, sums + walk.bias_lost + block->out_begin);
          }
          const Outer<T> add = table.entry[width / lanes][outs];
          T* to = sums + block->sums + c * (block->tap_end - block->tap_begin) * outs;
          for (const Tap* tap = walk.taps + block->tap_begin; tap != walk.taps + block->tap_end;
               ++tap, to += outs * width) {
            Run<T>* end = runs;
            for (int64_t o = 0; o < unit.planes; ++o) {
              const int64_t plane = plane_of_tap(walk, unit.plane + o, *tap);
              if (plane < 0) continue;
              const T* x = ring + plane % walk.ring_planes * plane_size + c * phase_positions +
                           (tap->phase * walk.source_positions + tap->offset + voxel) * width;
              *end++ = {grad_of(*block, o) + voxel * outs, x, count};
            }
            if (end != runs) add(runs, end, to);
          }
        }
      }
    }
  };

  for_each_unit(walk, task, pack_source, compute);
}

template <class S>
constexpr WeightKernel outer_kernel() {
  return {kLanes<Computed<S>>, ACSCONV_ACCUMULATORS, sizeof(Run<Computed<S>>), run_outer<S>};
}

extern const WeightKernel kOuterFloat64, kOuterFloat32, kOuterFloat16, kOuterBFloat16;
const WeightKernel kOuterFloat64 = outer_kernel<double>();
const WeightKernel kOuterFloat32 = outer_kernel<float>();
const WeightKernel kOuterFloat16 = outer_kernel<Half>();
const WeightKernel kOuterBFloat16 = outer_kernel<BFloat16>();

}  // namespace ACSCONV_ISA
}  // namespace acsconv
