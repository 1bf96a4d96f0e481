// The forward kernel on the CPU: vectors run over voxels, and each is multiplied by one weight per output
// channel.
//
//   accumulator[channel][16 voxels] += weight[channel] * x[16 voxels]
//
// so that no lane is lost on a view of 11 or 21 channels, and one loop serves all kernels, strides and
// layouts: they only change the addresses. Accumulators stay in registers for kTermsPerSum products, then
// they are added to the staged output: one long chain of float additions would lose digits. Every output is
// the same sum in the same order, whatever strip, vector or thread it falls into.
//
// This file is compiled once per instruction set, with ACSCONV_ISA as its namespace. It includes nothing with
// inline functions outside that namespace, see walk.h; forward.cpp calls it.
#include "walk.h"

#include "pack.h"
#include "vec.h"

namespace acsconv {
namespace ACSCONV_ISA {

// One run of the reduction: `count` input channels of one tap.
template <class T>
struct Segment {
  const T* x;        // the input that the strip's first output voxel reads, in the first of the channels
  const T* weights;  // [channel][out_count]
  int64_t count;
};

// The length of one chain of additions; a segment, at most Walk::channel_slice products, is not cut.
constexpr int64_t kTermsPerSum = 32;

// Adds the segments to Vectors * lanes outputs of Channels output channels, from flat voxel index `voxel` on:
// to the bias, if there is one, or to what `out` holds.
// Single: every segment is one channel, as in a depthwise layer.
template <class T, int Vectors, int Channels, bool Single>
[[gnu::noinline]] void multiply(const Segment<T>* segment, const Segment<T>* end, int64_t voxel,
                                int64_t channel_stride, const T* bias, T* out, int64_t out_stride) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum[Channels][Vectors];
  unrolled<0, Channels>(
      [&](auto c) { unrolled<0, Vectors>([&](auto v) { sum[c.value][v.value] = broadcast(T(0)); }); });
  for (; segment != end; ++segment) {
    const T* x = segment->x + voxel;
    const T* w = segment->weights;
    for (int64_t left = Single ? 1 : segment->count; left > 0; --left, x += channel_stride, w += Channels) {
      Vec<T> voxels[Vectors];
      unrolled<0, Vectors>([&](auto v) { voxels[v.value] = load<T>(x + v.value * lanes); });
      unrolled<0, Channels>([&](auto c) {
        const Vec<T> weight = broadcast(w[c.value]);
        unrolled<0, Vectors>([&](auto v) { sum[c.value][v.value] += voxels[v.value] * weight; });
      });
    }
  }
  unrolled<0, Channels>([&](auto c) {
    unrolled<0, Vectors>([&](auto v) {
      T* to = out + c.value * out_stride + v.value * lanes;
      store<T>(to, sum[c.value][v.value] + (bias ? broadcast(bias[c.value]) : load<T>(to)));
    });
  });
}

// The end of the chain of additions that begins at `segment`.
template <class T>
const Segment<T>* end_of_sum(const Segment<T>* segment, const Segment<T>* end) {
  int64_t terms = 0;
  while (segment != end && (terms == 0 || terms + segment->count <= kTermsPerSum)) terms += segment++->count;
  return segment;
}

template <class T>
using Multiply = void (*)(const Segment<T>*, const Segment<T>*, int64_t, int64_t, const T*, T*, int64_t);

constexpr int kMaxVectors = 4, kMaxChannels = 14, kMaxSingle = 2;

template <class T, bool Single>
struct MultiplyTable {
  Multiply<T> entry[kMaxVectors + 1][kMaxChannels + 1] = {};

  constexpr MultiplyTable() {
    unrolled<1, kMaxVectors>([&](auto v) {
      unrolled<1, Single ? kMaxSingle : kMaxChannels>([&](auto c) {
        if constexpr (v.value * c.value <= ACSCONV_ACCUMULATORS) {
          entry[v.value][c.value] = multiply<T, v.value, c.value, Single>;
        }
      });
    });
  }
};

// The taps of a block whose input plane lies inside the volume, as segments.
template <class T>
const Segment<T>* segments_of(const Walk& walk, const Block& block, int64_t out_plane, const T* ring,
                              const T* weights, int64_t channels, Segment<T>* segments) {
  const Tap* begin = walk.taps + walk.tap_begin[block.view];
  const Tap* end = walk.taps + walk.tap_begin[block.view + 1];
  const int64_t first_plane = out_plane * walk.plane_stride + walk.plane_min;
  const int64_t remainder = first_plane % walk.ring_planes;
  const int64_t first_slot = remainder < 0 ? remainder + walk.ring_planes : remainder;
  const int64_t phase_size = channels * walk.channel_stride;
  const T* w = weights + block.weights;
  for (int64_t c = 0; c < walk.group_channels; c += walk.channel_slice) {
    const int64_t left = walk.group_channels - c;
    const int64_t count = left < walk.channel_slice ? left : walk.channel_slice;
    const T* slice = ring + (block.in_begin + c) * walk.channel_stride;
    for (const Tap* tap = begin; tap != end; ++tap, w += count * block.out_count) {
      const int64_t plane = first_plane + tap->plane;
      if (plane < 0 || plane >= walk.in_planes) continue;
      const int64_t ahead = first_slot + tap->plane;
      const int64_t slot = ahead < walk.ring_planes ? ahead : ahead - walk.ring_planes;
      *segments++ = {slice + (slot * walk.phase_count + tap->phase) * phase_size + tap->offset, w, count};
    }
  }
  return segments;
}

template <class T>
void run(const Walk& walk, const Task& task, const void* input_data, const void* weight_data,
         const void* bias_data, void* output_data, const Scratch& scratch) {
  static constexpr MultiplyTable<T, false> general;
  static constexpr MultiplyTable<T, true> single;
  constexpr int lanes = kLanes<T>;
  const Chunk& chunk = walk.chunks[task.chunk];
  const T* weights = static_cast<const T*>(weight_data);
  const T* bias = static_cast<const T*>(bias_data);
  T* ring = static_cast<T*>(scratch.ring);
  T* stage = static_cast<T*>(scratch.stage);
  auto* segments = static_cast<Segment<T>*>(scratch.segments);
  const T* input = static_cast<const T*>(input_data) + task.sample * walk.input.batch +
                   chunk.in_begin * walk.input.channel;
  const Block* block_begin = walk.blocks + task.block_begin;
  const Block* block_end = walk.blocks + task.block_end;
  const int64_t out_begin = block_begin->out_begin;
  const int64_t out_count = block_end[-1].out_begin + block_end[-1].out_count - out_begin;
  T* output = static_cast<T*>(output_data) + task.sample * walk.output.batch +
              out_begin * walk.output.channel + task.row_begin * walk.output.row;

  const int64_t rows = task.row_end - task.row_begin;
  const int64_t voxels = (rows - 1) * walk.pitch + walk.out_columns;
  const int64_t plane_size = walk.phase_count * chunk.in_count * walk.channel_stride;
  int64_t packed_end = -1;  // planes below this one have been packed, as far as any tap reads them

  for (int64_t first = task.plane_begin; first < task.plane_end; first += walk.step_planes) {
    const int64_t left = task.plane_end - first;
    const int64_t planes = left < walk.step_planes ? left : walk.step_planes;

    for (int64_t o = first; o < first + planes; ++o) {
      int64_t begin = o * walk.plane_stride + walk.plane_min;
      int64_t end = o * walk.plane_stride + walk.plane_max + 1;
      begin = begin < 0 ? 0 : begin;
      begin = begin < packed_end ? packed_end : begin;
      end = end > walk.in_planes ? walk.in_planes : end;
      for (int64_t plane = begin; plane < end; ++plane) {
        if (!walk.plane_read[(plane - walk.plane_min) % walk.plane_stride]) continue;
        pack_plane(walk, input + plane * walk.input.plane, chunk.in_count, walk.row_min + task.row_begin,
                   rows + walk.halo_rows, ring + plane % walk.ring_planes * plane_size);
      }
      packed_end = end > packed_end ? end : packed_end;
    }

    for (const Block* block = block_begin; block != block_end; ++block) {
      const bool alone = walk.group_channels == 1 && block->out_count <= kMaxSingle;
      for (int64_t o = 0; o < planes; ++o) {
        const Segment<T>* end = segments_of(walk, *block, first + o, ring, weights, chunk.in_count, segments);
        T* to = stage + (block->out_begin - out_begin) * walk.stage_channel + o * walk.stage_plane;
        for (int64_t voxel = 0; voxel < voxels;) {
          int vectors = block->vectors;
          while (vectors > 1 && voxels - voxel <= (vectors - 1) * lanes) --vectors;
          const Multiply<T> add =
              alone ? single.entry[vectors][block->out_count] : general.entry[vectors][block->out_count];
          const Segment<T>* cut = end_of_sum<T>(segments, end);
          add(segments, cut, voxel, walk.channel_stride, bias + block->out_begin, to + voxel,
              walk.stage_channel);
          while (cut != end) {
            const Segment<T>* from = cut;
            cut = end_of_sum<T>(from, end);
            add(from, cut, voxel, walk.channel_stride, nullptr, to + voxel, walk.stage_channel);
          }
          voxel += vectors * lanes;
        }
      }
    }

    for (int64_t o = 0; o < planes; ++o) {
      write_plane(walk, stage + o * walk.stage_plane, out_count, rows,
                  output + (first + o) * walk.output.plane);
    }
  }
}

extern const WalkKernels kFloat, kDouble;
const WalkKernels kFloat = {kLanes<float>, ACSCONV_ACCUMULATORS, sizeof(Segment<float>), run<float>};
const WalkKernels kDouble = {kLanes<double>, ACSCONV_ACCUMULATORS, sizeof(Segment<double>), run<double>};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
