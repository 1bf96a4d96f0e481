// The gather kernel on the CPU, which computes outputs and gradients of the input: vectors run over voxels,
// and each is multiplied by one weight per target channel.
//
//   accumulator[channel][16 voxels] += weight[channel] * source[16 voxels]
//
// so that no lane is lost on a view of 11 or 21 channels, and one loop serves all kernels, strides and
// layouts: they only change the addresses. Accumulators stay in registers for kTermsPerSum products, then
// they are added to the staged output: one long chain of float additions would lose digits. Every target is
// the same sum in the same order, whatever strip, vector or thread it falls into. Where rows are short,
// vectors run over a view's channels and each is multiplied by one source (run_channels): lanes are lost in a
// view's last vector then, and not at the ends of the rows.
//
// Numbers of packed planes and of weights are those of the tensors, widened (walk.cpp), or pairs of bfloat16
// numbers of two source channels, whose products are added to one sum (walk_pairs.cpp). Like vec.h for
// sources compiled once per instruction set; it includes nothing with inline functions outside their
// namespace, see walk.h.
#pragma once

#include "multiply.h"
#include "pack.h"
#include "pack_weights.h"
#include "sweep.h"
#include "walk.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Bytes of weights that all voxels of a plane are multiplied by before the next weights: they stay in the
// first-level cache.
constexpr int64_t kNearWeights = 12000;

// Cache lines of the next weights that are fetched for every sum.
constexpr int kLinesAhead = 16;

// The end of the chain of additions that begins at `segment`.
template <class T>
const Segment<T>* end_of_sum(const Segment<T>* segment, const Segment<T>* end) {
  int64_t terms = 0;
  while (segment != end && (terms == 0 || terms + segment->count <= kTermsPerSum)) terms += segment++->count;
  return segment;
}

// The taps of a block whose source plane lies inside the volume, as segments.
template <class T>
const Segment<T>* segments_of(const Walk& walk, const Block& block, int64_t out_plane, const T* ring,
                              const T* weights, int64_t channels, Segment<T>* segments) {
  const int64_t first_plane = out_plane * walk.plane_stride + walk.plane_min;
  const int64_t remainder = first_plane % walk.ring_planes;
  const int64_t first_slot = remainder < 0 ? remainder + walk.ring_planes : remainder;
  const int64_t channel_stride = walk.packing.channel_stride;
  const int64_t phase_size = channels * channel_stride;
  const T* w = weights + block.weights;
  for (const Part* part = walk.parts + block.part_begin; part != walk.parts + block.part_end; ++part) {
    for (int64_t c = 0; c < part->in_count; c += walk.channel_slice) {
      const int64_t left = part->in_count - c;
      const int64_t count = left < walk.channel_slice ? left : walk.channel_slice;
      const T* slice = ring + (part->in_begin + c) * channel_stride;
      for (const Tap* tap = walk.taps + part->tap_begin; tap != walk.taps + part->tap_end;
           ++tap, w += count * block.width) {
        const int64_t plane = first_plane + tap->plane;
        if (plane < 0 || plane >= walk.in_planes) continue;
        const int64_t ahead = first_slot + tap->plane;
        const int64_t slot = ahead < walk.ring_planes ? ahead : ahead - walk.ring_planes;
        *segments++ = {slice + (slot * walk.packing.phase_count + tap->phase) * phase_size + tap->offset, w,
                       count};
      }
    }
  }
  return segments;
}

// Calls add(from, to, before) for sums of the segments, such that all voxels go through a few kilobytes of
// weights, body(add) being the loop over voxels, before the next ones. `before` is the bias for the first
// sum.
template <class T, class Voxels>
[[gnu::always_inline]] inline void for_near_weights(const Block& block, const Segment<T>* segments,
                                                    const Segment<T>* end, const SumOf<T>* bias,
                                                    const Voxels& voxels) {
  do {
    const Segment<T>* const begin = segments;
    int64_t near = 0;
    do {
      const Segment<T>* cut = end_of_sum<T>(segments, end);
      for (; segments != cut; ++segments) near += segments->count * block.width * int64_t{sizeof(T)};
    } while (segments != end && near < kNearWeights);
    // The next ones are fetched meanwhile: heavy weights come from beyond the second-level cache.
    const bool more = segments != end;
    auto* next = reinterpret_cast<const char*>(more ? segments->weights : nullptr);
    int64_t lines = more ? near / 64 : 0;
    voxels([&](const auto& add) {
      const SumOf<T>* before = bias;
      const Segment<T>* from = begin;
      do {
        const Segment<T>* cut = end_of_sum<T>(from, segments);
        for (int i = 0; i < kLinesAhead && lines > 0; ++i, --lines, next += 64) __builtin_prefetch(next);
        add(from, cut, before);
        from = cut, before = nullptr;
      } while (from != segments);
    });
    bias = nullptr;
  } while (segments != end);
}

// Cache lines that are about to be written, `runs` of `bytes`: a few of them are fetched for every sum.
struct Ahead {
  const char* run;
  int64_t runs, stride, bytes, at;

  [[gnu::always_inline]] void fetch() {
    for (int i = 0; i < 8 && runs > 0; ++i) {
      __builtin_prefetch(run + at, 1, 2);
      at += 64;
      if (at >= bytes) at = 0, run += stride, --runs;
    }
  }
};

// What a block will write to a plane of the task's strip, its channels being those from `channel` of the
// task's `out_count`. Where a voxel's channels are adjacent, the first block has the lines of all; where
// classes interleave, there is nothing, since they share lines.
template <class S>
Ahead lines_of(const Walk& walk, const Task& task, const S* target, const Block& block, int64_t channel,
               int64_t out_count, int64_t plane) {
  const Strides5& to = walk.target;
  constexpr int64_t size = sizeof(S);
  if (walk.out_stride[0] * walk.out_stride[1] * walk.out_stride[2] != 1) return {};
  const S* first = target + plane * to.plane + task.row_begin * to.row + channel * to.channel;
  const int64_t rows = task.row_end - task.row_begin;
  const int64_t bytes = ((rows - 1) * to.row + walk.out_size[2] * to.column) * size;
  const char* run = reinterpret_cast<const char*>(first);
  if (to.column == 1) return {run, block.out_count, to.channel * size, bytes, 0};
  if (to.channel == 1 && to.column == out_count && channel == 0) return {run, 1, 0, bytes, 0};
  return {};
}

// Computes a block in one target plane of a strip, `voxels` flat numbers per channel.
template <class T>
void run_block(const Walk& walk, const Block& block, const Segment<T>* segments, const Segment<T>* end,
               int64_t voxels, const SumOf<T>* bias, Ahead ahead, SumOf<T>* to) {
  static constexpr MultiplyTable<T, false> general;
  static constexpr MultiplyTable<T, true> single;
  constexpr int lanes = kLanes<T>;
  const bool alone = block.single && block.out_count <= kMaxSingle;
  for_near_weights<T>(block, segments, end, bias + block.out_begin, [&](const auto& for_sums) {
    auto add_vectors = [&](int64_t voxel, int vectors, int64_t spacing) {
      const Multiply<T> add =
          alone ? single.entry[vectors][block.out_count] : general.entry[vectors][block.out_count];
      for_sums([&](const Segment<T>* from, const Segment<T>* cut, const SumOf<T>* before) {
        ahead.fetch();
        add(from, cut, voxel, spacing, walk.packing.channel_stride, before, to + voxel, walk.stage_channel);
      });
    };
    if (block.whole_rows) {  // so many rows together: no lane falls on a border
      const int64_t pitch = walk.packing.pitch, rows = (voxels + pitch - 1) / pitch;
      for (int64_t row = 0; row < rows; row += block.vectors) {
        const int64_t left = rows - row;
        const int vectors = left < block.vectors ? static_cast<int>(left) : block.vectors;
        for (int64_t column = 0; column < walk.class_columns; column += lanes) {
          add_vectors(row * pitch + column, vectors, pitch);
        }
      }
      return;
    }
    for (int64_t voxel = 0; voxel < voxels;) {
      int vectors = block.vectors;
      while (vectors > 1 && voxels - voxel <= (vectors - 1) * lanes) --vectors;
      add_vectors(voxel, vectors, lanes);
      voxel += vectors * lanes;
    }
  });
}

// The same for a block whose vectors run over channels; `sums` is [voxel][width].
template <class N, class T = SumOf<N>>
void run_channels(const Walk& walk, const Block& block, const Segment<N>* segments, const Segment<N>* end,
                  int64_t voxels, const T* bias, Ahead ahead, T* sums, T* to) {
  static constexpr MultiplyChannelsTable<N> table;
  constexpr int lanes = kLanes<T>;
  const int64_t run = walk.rows_are_runs ? walk.class_columns : voxels;
  const int64_t pitch = walk.rows_are_runs ? walk.packing.pitch : voxels;
  // Short rows are computed in pairs.
  const bool two_rows = walk.rows_are_runs && 2 * run <= block.positions;
  const int64_t pieces = (run + block.positions - 1) / block.positions;
  for_near_weights<N>(block, segments, end, bias + block.out_begin, [&](const auto& for_sums) {
    for (int64_t row = 0; row < voxels; row += pitch) {
      const bool two = two_rows && row + pitch < voxels;
      for (int64_t i = 0; i < pieces; ++i) {
        const int64_t voxel = row + i * run / pieces, next = row + (i + 1) * run / pieces;
        const MultiplyChannels<N> add = (two ? table.two_rows : table.entry)[block.vectors][next - voxel];
        for_sums([&](const Segment<N>* from, const Segment<N>* cut, const T* before) {
          ahead.fetch();
          add(from, cut, voxel, pitch, walk.packing.channel_stride, before, sums + voxel * block.width,
              block.width);
        });
      }
      if (two) row += pitch;
    }
  });
  for (int64_t first = 0; first < block.out_count; first += lanes) {
    const int64_t left = block.out_count - first;
    for (int64_t voxel = 0; voxel < voxels; voxel += lanes) {
      Vec<T> square[lanes];
      const T* from = sums + voxel * block.width + first;
      unrolled<0, lanes>([&](auto i) { square[i.value] = load<T>(from + i.value * block.width); });
      transpose<T>(square);
      T* q = to + first * walk.stage_channel + voxel;
      unrolled<0, lanes>([&](auto i) {
        if (i.value < left) store<T>(q + i.value * walk.stage_channel, square[i.value]);
      });
    }
  }
}

// Computes a task, see WalkKernel. N: numbers of the packed arrays. S: of the target. From: points to numbers
// of the source, and may be no pointer (PairsApart).
template <class N, class S, class From>
void run_task(const Walk& walk, const Task& task, From tensor, const void* weight, void* packed,
              const void* bias_data, void* target_data, const Scratch& scratch) {
  using T = SumOf<N>;
  const Chunk& chunk = walk.chunks[task.chunk];
  N* weights = static_cast<N*>(packed);
  const T* bias = static_cast<const T*>(bias_data);
  N* ring = static_cast<N*>(scratch.ring);
  T* stage = static_cast<T*>(scratch.stage);
  auto* segments = static_cast<Segment<N>*>(scratch.segments);
  const Strides5& from = walk.packing.source;
  const From source = tensor + (task.sample * from.batch + chunk.in_begin * from.channel);
  const From source_end = tensor + walk.packing.source_numbers;
  const Block* blocks = walk.blocks + chunk.block_begin;  // of one class after the other
  const int64_t out_begin = blocks[task.block_begin].out_begin;
  const int64_t out_count =
      blocks[task.block_end - 1].out_begin + blocks[task.block_end - 1].out_count - out_begin;
  S* target =
      static_cast<S*>(target_data) + task.sample * walk.target.batch + out_begin * walk.target.channel;

  const int64_t rows = task.row_end - task.row_begin;
  const int64_t voxels = (rows - 1) * walk.packing.pitch + walk.class_columns;
  const int64_t plane_size = walk.packing.phase_count * chunk.in_count * walk.packing.channel_stride;

  const int64_t first_row = walk.packing.row_min + task.row_begin,
                packed_rows = rows + walk.packing.halo_rows;
  auto pack = [&](int64_t plane) {
    pack_plane(walk.packing, source + plane * from.plane, source_end, chunk.in_count, first_row, packed_rows,
               ring + plane % walk.ring_planes * plane_size);
  };
  auto compute = [&](int64_t residue, int64_t column_class, int64_t first, int64_t planes) {
    T* class_stage = stage + column_class * out_count * walk.stage_channel;
    const Block* begin = blocks + (residue * walk.classes[2] + column_class) * chunk.block_count;
    for (const Block* block = begin + task.block_begin; block != begin + task.block_end; ++block) {
      if (walk.weights_in_tasks && first == task.plane_begin) {
        pack_weights<N>(walk, *block, weight, weights + block->weights);
      }
      const int64_t channel = block->out_begin - out_begin;
      T* to = class_stage + channel * walk.stage_channel;
      for (int64_t o = 0; o < planes; ++o) {
        const Segment<N>* end = segments_of(walk, *block, first + o, ring, weights, chunk.in_count, segments);
        const Ahead ahead = lines_of(walk, task, target, *block, channel, out_count, first + o);
        T* plane = to + o * walk.stage_plane;
        if (block->positions > 0) {
          run_channels<N>(walk, *block, segments, end, voxels, bias, ahead, stage + walk.sums, plane);
        } else {
          run_block<N>(walk, *block, segments, end, voxels, bias, ahead, plane);
        }
      }
    }
  };
  auto write = [&](int64_t plane, int64_t position, int64_t row, int64_t rows_inside) {
    write_plane(walk, stage + plane * walk.stage_plane, out_count, rows_inside,
                walk.out_stride[1] * walk.target.row,
                target + position * walk.target.plane + row * walk.target.row);
  };
  for_each_step(walk, task, pack, compute, write);
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
