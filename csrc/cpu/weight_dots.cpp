// Gradient of the weight by dot products: vectors run over voxels. For layers with so few input channels per
// group, first layers and depthwise ones, that they do not fill a vector.
//
//   accumulator[output channel][item] += grad[output channel][16 voxels] * source[item][16 voxels]
//
// where an item is an input channel at a tap. Accumulators are loaded and stored for every plane, as there
// are few of them, and lanes are added to one another seldom.
//
// Compiled once per instruction set, see walk.cpp; weight_pass.cpp calls it.
#include "pack.h"
#include "weight_units.h"

namespace acsconv {
namespace ACSCONV_ISA {

constexpr int kMaxDotOutputs = 4;
constexpr int kMaxDotItems = 12;         // more pointers do not fit into registers
constexpr int64_t kLongestChain = 1024;  // sums that a lane takes up before lanes are added
constexpr int kDotAccumulators = ACSCONV_ACCUMULATORS < 24 ? ACSCONV_ACCUMULATORS : 24;

constexpr int items_beside(int outputs) {
  return kDotAccumulators / outputs < kMaxDotItems ? kDotAccumulators / outputs : kMaxDotItems;
}

// Adds products of `voxels` numbers, rounded up to vectors, to the vectors sums[Outputs][sum_stride].
template <class T, int Outputs, int Items>
[[gnu::noinline]] void dots(const T* grad, int64_t grad_stride, const T* const* items, int64_t voxels,
                            T* sums, int64_t sum_stride) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[Outputs][Items];
  const T* x[Items];
  unrolled<0, Items>([&](auto i) { x[i.value] = items[i.value]; });
  unrolled<0, Outputs>([&](auto o) {
    unrolled<0, Items>(
        [&](auto i) { sum[o.value][i.value] = load<T>(sums + o.value * sum_stride + i.value * lanes); });
  });
  for (int64_t v = 0; v < voxels; v += lanes) {
    Vec<T> g[Outputs];
    unrolled<0, Outputs>([&](auto o) { g[o.value] = load<T>(grad + o.value * grad_stride + v); });
    unrolled<0, Items>([&](auto i) {
      const Vec<T> item = load<T>(x[i.value] + v);
      unrolled<0, Outputs>([&](auto o) { sum[o.value][i.value] += g[o.value] * item; });
    });
  }
  unrolled<0, Outputs>([&](auto o) {
    unrolled<0, Items>(
        [&](auto i) { store<T>(sums + o.value * sum_stride + i.value * lanes, sum[o.value][i.value]); });
  });
}

template <class T>
using Dots = void (*)(const T*, int64_t, const T* const*, int64_t, T*, int64_t);

template <class T>
struct DotsTable {
  Dots<T> entry[kMaxDotOutputs + 1][kMaxDotItems + 1] = {};

  constexpr DotsTable() {
    unrolled<1, kMaxDotOutputs>([&](auto o) {
      unrolled<1, items_beside(o.value)>(
          [&](auto i) { entry[o.value][i.value] = dots<T, o.value, i.value>; });
    });
  }
};

template <class T>
T sum_of_lanes(const T* vector) {
  T numbers[kLanes<T>];
  store<T>(numbers, load<T>(vector));
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) numbers[i] += numbers[i + half];
  }
  return numbers[0];
}

// The `index`-th of `count` pieces of equal size, up to one: where it begins.
[[gnu::always_inline]] inline int64_t piece(int64_t index, int64_t count, int64_t size) {
  return index * size / count;
}

template <class S>
void run_dots(const WeightWalk& walk, const WeightTask& task, const void* source_data, const void* grad_data,
              void* sums_data, const WeightScratch& scratch) {
  using T = Computed<S>;
  static constexpr DotsTable<T> table;
  constexpr int lanes = kLanes<T>;
  const WeightChunk& chunk = walk.chunks[task.chunk];
  const WeightBlock* block_begin = walk.blocks + task.block_begin;
  const WeightBlock* block_end = walk.blocks + task.block_end;
  const int64_t out_begin = block_begin->out_begin;
  const int64_t out_count = block_end[-1].out_begin + block_end[-1].out_count - out_begin;
  const Strides5 &from = walk.source.source, &grad_from = walk.grad.source;
  const S* source = static_cast<const S*>(source_data) + chunk.in_begin * from.channel;
  const S* grad = static_cast<const S*>(grad_data) + out_begin * grad_from.channel;
  const S* const source_end = static_cast<const S*>(source_data) + walk.source.source_numbers;
  const S* const grad_end = static_cast<const S*>(grad_data) + walk.grad.source_numbers;
  T* ring = static_cast<T*>(scratch.ring);
  T* packed_grad = static_cast<T*>(scratch.grad);
  T* to = static_cast<T*>(sums_data);
  T* vectors = static_cast<T*>(scratch.vectors);
  const T** items = static_cast<const T**>(scratch.items);

  const int64_t channels = walk.group_channels, channel_stride = walk.source.channel_stride;
  const int64_t phase_size = chunk.in_count * channel_stride;
  const int64_t plane_size = walk.source.phase_count * phase_size;
  // Behind the planes of the ring: what taps outside the volume read.
  T* zeros = ring + walk.ring_planes * plane_size;
  fill_zero(zeros, channel_stride);

  int64_t vector_count = 0;
  for (const WeightBlock* block = block_begin; block != block_end; ++block) {
    vector_count += block->out_count * (block->tap_end - block->tap_begin) * channels;
  }
  fill_zero(vectors, vector_count * lanes);

  auto pack_source = [&](const Unit& unit, int64_t plane) {
    pack_plane(walk.source, source + unit.sample * from.batch + plane * from.plane, source_end,
               chunk.in_count, walk.source.row_min + unit.row_begin, unit.rows + walk.source.halo_rows,
               ring + plane % walk.ring_planes * plane_size);
  };

  auto compute = [&](const Unit& unit) {
    pack_plane(walk.grad, grad + unit.sample * grad_from.batch + unit.plane * grad_from.plane, grad_end,
               out_count, unit.row_begin, unit.rows, packed_grad);
    const int64_t voxels = (unit.rows - 1) * walk.source.pitch + walk.out_columns;
    for (int64_t o = 0; o < out_count; ++o) {
      const T* g = packed_grad + o * walk.grad.channel_stride;
      T sum[lanes];
      store<T>(sum, sum_of_vectors(g, lanes, (voxels + lanes - 1) / lanes));
      add_exactly(sum_of_lanes(sum), to[walk.bias_sums + out_begin + o], to[walk.bias_lost + out_begin + o]);
    }
    T* sums = vectors;
    for (const WeightBlock* block = block_begin; block != block_end; ++block) {
      int64_t count = 0;
      for (const Tap* tap = walk.taps + block->tap_begin; tap != walk.taps + block->tap_end; ++tap) {
        const int64_t plane = plane_of_tap(walk, unit.plane, *tap);
        const T* x = ring + (plane < 0 ? 0 : plane % walk.ring_planes) * plane_size +
                     tap->phase * phase_size + block->in_begin * channel_stride + tap->offset;
        for (int64_t c = 0; c < channels; ++c) items[count++] = plane < 0 ? zeros : x + c * channel_stride;
      }
      const int64_t outs = block->out_count;
      const int64_t out_pieces = (outs + kMaxDotOutputs - 1) / kMaxDotOutputs;
      for (int64_t a = 0; a < out_pieces; ++a) {
        const int64_t o = piece(a, out_pieces, outs), out_width = piece(a + 1, out_pieces, outs) - o;
        const int64_t widest = items_beside(static_cast<int>(out_width));
        const int64_t item_pieces = (count + widest - 1) / widest;
        const T* g = packed_grad + (block->out_begin - out_begin + o) * walk.grad.channel_stride;
        for (int64_t b = 0; b < item_pieces; ++b) {
          const int64_t i = piece(b, item_pieces, count), width = piece(b + 1, item_pieces, count) - i;
          table.entry[out_width][width](g, walk.grad.channel_stride, items + i, voxels,
                                        sums + (o * count + i) * lanes, count * lanes);
        }
      }
      sums += outs * count * lanes;
    }
  };

  int64_t chain = 0;
  auto add_up = [&] {
    const T* sums = vectors;
    for (const WeightBlock* block = block_begin; block != block_end; ++block) {
      const int64_t taps = block->tap_end - block->tap_begin;
      for (int64_t o = 0; o < block->out_count; ++o) {
        for (int64_t t = 0; t < taps; ++t) {
          for (int64_t c = 0; c < channels; ++c, sums += lanes) {
            to[block->sums + (t * block->out_count + o) * channels + c] += sum_of_lanes(sums);
          }
        }
      }
    }
    fill_zero(vectors, vector_count * lanes);
    chain = 0;
  };

  for_each_unit(walk, task, pack_source, [&](const Unit& unit) {
    compute(unit);
    chain += unit.rows * walk.source.pitch / lanes;
    if (chain >= kLongestChain) add_up();
  });
  add_up();
}

template <class S>
constexpr WeightKernel dots_kernel() {
  return {kLanes<Computed<S>>, ACSCONV_ACCUMULATORS, sizeof(void*), run_dots<S>};
}

extern const WeightKernel kDotsFloat64, kDotsFloat32, kDotsFloat16, kDotsBFloat16;
const WeightKernel kDotsFloat64 = dots_kernel<double>();
const WeightKernel kDotsFloat32 = dots_kernel<float>();
const WeightKernel kDotsFloat16 = dots_kernel<Half>();
const WeightKernel kDotsBFloat16 = dots_kernel<BFloat16>();

}  // namespace ACSCONV_ISA
}  // namespace acsconv
