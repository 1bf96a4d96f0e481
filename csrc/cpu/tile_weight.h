// Gradient of the weight of bfloat16 tensors in products of tiles.
//
//   sum[16 outputs][16 inputs] += grad[16 outputs][32 voxels] * source[32 voxels][16 inputs]
//
// where outputs and inputs are channels. The gradient is packed [channel][position], the source in pairs of
// positions, [pair][channel][2], once with even and once with odd positions first: so a displacement is an
// address, whatever its parity, and no row of a tile crosses a cache line. After a chain of voxels sums are
// added to those in memory.
//
// What multiplies is a tile of the processor (tile_weight.cpp) or pairs of numbers (pair_weight.cpp). Like
// vec.h for sources compiled once per instruction set.
#pragma once

#include "tile_pack.h"
#include "tile_walk.h"
#include "weight_units.h"

namespace acsconv {
namespace ACSCONV_ISA {

constexpr int64_t kPanel = kWeightPanelChannels;

// Positions that lie behind one another in both packed volumes; whole tiles of them.
struct TileRun {
  const uint16_t *grad, *source;
};

inline bool channels_are_adjacent(const Packing& packing) {
  return packing.source.channel == 1 && packing.source.column != 1;
}

// `channels` <= kPanel of a plane as [phase][position][kPanel]; what lies behind the channels is any number.
inline void stage_voxels(const Packing& packing, const uint16_t* plane, int64_t channels, int64_t row_begin,
                         int64_t rows, int64_t positions, uint16_t* stage) {
  pack_positions(packing, plane, row_begin, rows, kPanel, positions, stage,
                 [&](uint16_t* row, const uint16_t* from, int64_t voxel_stride, int64_t count, int64_t) {
                   for (int64_t w = 0; w < count; ++w) {
                     copy_short(row + w * kPanel, from + w * voxel_stride, channels);
                   }
                 });
}

// to[i] = from[2 * i]
[[gnu::always_inline]] inline void copy_every_other_short(uint16_t* to, const uint16_t* from, int64_t n) {
  constexpr int lanes = kLanes<uint32_t>;
  for (int64_t i = 0; i < n; i += lanes) {
    const int64_t count = n - i < lanes ? n - i : lanes;
    const ShortWords numbers = __builtin_convertvector(load_first<2>(from + 2 * i, count), ShortWords);
    uint16_t row[lanes];
    __builtin_memcpy(row, &numbers, sizeof(row));
    copy_short(to + i, row, count);
  }
}

// `channels` of a plane as [channel][phase][position].
inline void pack_rows(const Packing& packing, const uint16_t* plane, int64_t channels, int64_t row_begin,
                      int64_t rows, int64_t positions, int64_t channel_stride, uint16_t* to) {
  const Strides5& s = packing.source;
  for (int64_t c = 0; c < channels; ++c) {
    pack_positions(packing, plane + c * s.channel, row_begin, rows, 1, positions, to + c * channel_stride,
                   [&](uint16_t* row, const uint16_t* from, int64_t voxel_stride, int64_t count, int64_t) {
                     if (s.column == 1) prefetch(from + kChannelsAhead * s.channel, count * voxel_stride);
                     if (voxel_stride == 1) return copy_short(row, from, count);
                     if (voxel_stride == 2) return copy_every_other_short(row, from, count);
                     for (int64_t w = 0; w < count; ++w) row[w] = from[w * voxel_stride];
                   });
  }
}

// Two vectors of the numbers of positions 2 * pair and 2 * pair + 1 in turns, from channel c on.
struct StagedPairs {
  Words first, last;
};
[[gnu::always_inline]] inline StagedPairs staged_pairs(const uint16_t* stage, int64_t pair, int64_t c) {
  using All = typename MakeIndices<kLanes<uint16_t>>::Type;
  const auto even = load<uint16_t>(stage + 2 * pair * kPanel + c);
  const auto odd = load<uint16_t>(stage + (2 * pair + 1) * kPanel + c);
  return {bits_as<Words>(interleaved<uint16_t, 0>(even, odd, All{})),
          bits_as<Words>(interleaved<uint16_t, kLanes<uint16_t> / 2>(even, odd, All{}))};
}

[[gnu::always_inline]] inline Words load_words(const uint16_t* from) {
  Words words;
  __builtin_memcpy(&words, from, sizeof(Words));
  return words;
}

[[gnu::always_inline]] inline void store_words(uint16_t* to, const Words& words) {
  __builtin_memcpy(to, &words, sizeof(Words));
}

// Packs the channels of one panel of the source as [phase][parity][pair of positions][width][2]: pair k has
// positions 2k and 2k + 1, or 2k + 1 and 2k + 2.
inline void pack_source_panel(const Packing& packing, const uint16_t* plane, int64_t channels, int64_t width,
                              int64_t row_begin, int64_t rows, int64_t positions, uint16_t* stage,
                              uint16_t* to) {
  constexpr int lanes = kLanes<uint32_t>;
  const bool adjacent = channels_are_adjacent(packing);
  if (adjacent) {
    stage_voxels(packing, plane, channels, row_begin, rows, positions, stage);
  } else {
    pack_rows(packing, plane, channels, row_begin, rows, positions, packing.phase_count * positions, stage);
  }
  for (int32_t phase = 0; phase < packing.phase_count; ++phase, to += 2 * positions * width) {
    const int64_t first_pair = phase * positions / 2;
    if (adjacent) {
      for (int64_t pair = 0; pair < positions / 2; ++pair) {
        for (int64_t c = 0; c < width; c += 2 * lanes) {
          const StagedPairs pairs = staged_pairs(stage, first_pair + pair, c);
          store_words(to + 2 * (pair * width + c), pairs.first);
          if (c + lanes < width) store_words(to + 2 * (pair * width + c + lanes), pairs.last);
        }
      }
    } else {
      for (int64_t pair = 0; pair < positions / 2; pair += lanes) {
        for (int64_t c = 0; c < width; c += lanes) {
          Words square[lanes];
          unrolled<0, lanes>([&](auto i) {
            square[i.value] =
                load_words(stage + (c + i.value) * packing.phase_count * positions + 2 * (first_pair + pair));
          });
          transpose<uint32_t>(square);
          unrolled<0, lanes>(
              [&](auto i) { store_words(to + 2 * ((pair + i.value) * width + c), square[i.value]); });
        }
      }
    }
    const int64_t numbers = positions * width;
    for (int64_t i = 0; i < numbers - 2 * width; i += 2 * lanes) {  // no tap reads the last odd pair
      const Words odd = load_words(to + i) >> 16 | load_words(to + i + 2 * width) << 16;
      store_words(to + numbers + i, odd);
    }
  }
}

// Packs the channels of one block of the gradient as [channel][position].
inline void pack_grad_block(const Packing& packing, const uint16_t* plane, int64_t channels,
                            int64_t row_begin, int64_t rows, int64_t positions, uint16_t* stage,
                            uint16_t* to) {
  constexpr int lanes = kLanes<uint32_t>;
  const int64_t stride = packing.channel_stride;
  if (!channels_are_adjacent(packing)) {
    return pack_rows(packing, plane, channels, row_begin, rows, positions, stride, to);
  }
  stage_voxels(packing, plane, channels, row_begin, rows, positions, stage);
  for (int64_t pair = 0; pair < positions / 2; pair += lanes) {
    for (int64_t c = 0; c < channels; c += 2 * lanes) {
      Words first[lanes], last[lanes];
      unrolled<0, lanes>([&](auto i) {
        const StagedPairs pairs = staged_pairs(stage, pair + i.value, c);
        first[i.value] = pairs.first, last[i.value] = pairs.last;
      });
      transpose<uint32_t>(first);
      transpose<uint32_t>(last);
      unrolled<0, lanes>([&](auto i) {
        uint16_t* row = to + (c + i.value) * stride + 2 * pair;
        if (c + i.value < channels) store_words(row, first[i.value]);
        if (c + lanes + i.value < channels) store_words(row + lanes * stride, last[i.value]);
      });
    }
  }
}

// Adds the numbers of some packed positions of a block.
inline void add_bias(const uint16_t* grad, int64_t channels, int64_t channel_stride, int64_t voxels,
                     float* sums, float* lost) {
  constexpr int lanes = kLanes<float>;
  for (int64_t c = 0; c < channels; c += lanes) {
    Vec<float> square[lanes];  // every channel's sums of every lane's voxels
    unrolled<0, lanes>([&](auto i) {
      const uint16_t* from = grad + (c + i.value) * channel_stride;
      Vec<float> even{}, odd{};
      for (int64_t v = 0; v < voxels; v += 2 * lanes) {
        const Words numbers = load_words(from + v);
        even += bits_as<Vec<float>>(numbers << 16);
        odd += bits_as<Vec<float>>(numbers & 0xffff0000);
      }
      square[i.value] = even + odd;
    });
    transpose<float>(square);
    Vec<float> total{};
    unrolled<0, lanes>([&](auto i) { total += square[i.value]; });
    float numbers[lanes];
    store<float>(numbers, total);
    for (int64_t i = 0; i < lanes && c + i < channels; ++i) {
      add_exactly(numbers[i], sums[c + i], lost[c + i]);
    }
  }
}

// Products::add(outputs, inputs, run, end, voxels, channel_stride, sums) adds the products of `voxels`
// positions of each run to sums[outputs][inputs], both whole tiles, as far as there are channels: numbers of
// outputs, and of inputs in tiles. Numbers of a channel of the gradient are `channel_stride` apart. `voxels`
// is a multiple of Products::kDepth.
template <class Products>
void run_tile_weight(const WeightWalk& walk, const WeightTask& task, const void* source_data,
                     const void* grad_data, void* sums_data, const WeightScratch& scratch) {
  const WeightChunk& chunk = walk.chunks[task.chunk];
  const WeightBlock* block_begin = walk.blocks + task.block_begin;
  const WeightBlock* block_end = walk.blocks + task.block_end;
  const Strides5 &from = walk.source.source, &grad_from = walk.grad.source;
  const auto* source = static_cast<const uint16_t*>(source_data) + chunk.in_begin * from.channel;
  const auto* grad = static_cast<const uint16_t*>(grad_data);
  auto* ring = static_cast<uint16_t*>(scratch.ring);
  auto* packed_grad = static_cast<uint16_t*>(scratch.grad);
  auto* stage = static_cast<uint16_t*>(scratch.vectors);
  auto* runs = static_cast<TileRun*>(scratch.items);
  auto* sums = static_cast<float*>(sums_data);
  const int64_t grad_stride = walk.grad.channel_stride;
  const int64_t padded = (walk.group_channels + kTileColumns - 1) / kTileColumns * kTileColumns;
  const int64_t channel_size = walk.source.channel_stride, plane_size = padded * channel_size;
  auto width_of_panel = [&](int64_t c) { return padded - c < kPanel ? padded - c : kPanel; };
  Products products;

  auto pack_source = [&](const Unit& unit, int64_t plane) {
    uint16_t* to = ring + plane % walk.ring_planes * plane_size;
    const uint16_t* p = source + unit.sample * from.batch + plane * from.plane;
    for (int64_t c = 0; c < walk.group_channels; c += kPanel) {
      const int64_t left = walk.group_channels - c;
      pack_source_panel(walk.source, p + c * from.channel, left < kPanel ? left : kPanel, width_of_panel(c),
                        walk.source.row_min + unit.row_begin, unit.rows + walk.source.halo_rows,
                        walk.source_positions, stage, to + c * channel_size);
    }
  };

  // [block][plane of the unit][channel][position]
  auto grad_of = [&](const WeightBlock& block, int64_t plane) {
    return packed_grad + ((&block - block_begin) * walk.step_planes + plane) * kPanel * grad_stride;
  };

  auto compute = [&](const Unit& unit) {
    const int64_t positions = (unit.rows - 1) * walk.source.pitch + walk.out_columns;
    const auto rounded = [&](int64_t depth) { return (positions + depth - 1) / depth * depth; };
    const int64_t voxels = rounded(Products::kDepth);
    for (const WeightBlock* block = block_begin; block != block_end; ++block) {
      for (int64_t o = 0; o < unit.planes; ++o) {
        uint16_t* to = grad_of(*block, o);
        pack_grad_block(walk.grad,
                        grad + unit.sample * grad_from.batch + block->out_begin * grad_from.channel +
                            (unit.plane + o) * grad_from.plane,
                        block->out_count, unit.row_begin, unit.rows, walk.grad_positions, stage, to);
        add_bias(to, block->out_count, grad_stride, rounded(kTileDepth),
                 sums + walk.bias_sums + block->out_begin, sums + walk.bias_lost + block->out_begin);
      }
    }
    for (int64_t voxel = 0; voxel < voxels; voxel += walk.chain) {
      const int64_t count = voxels - voxel < walk.chain ? voxels - voxel : walk.chain;
      for (int64_t c = 0; c < padded; c += kPanel) {
        const int64_t width = width_of_panel(c);
        for (const WeightBlock* block = block_begin; block != block_end; ++block) {
          float* to = sums + block->sums + c * (block->tap_end - block->tap_begin) * block->width;
          for (const Tap* tap = walk.taps + block->tap_begin; tap != walk.taps + block->tap_end;
               ++tap, to += width * block->width) {
            const int64_t parity = tap->offset % 2;
            const int64_t place = (2 * tap->phase + parity) * walk.source_positions + tap->offset - parity;
            TileRun* end = runs;
            for (int64_t o = 0; o < unit.planes; ++o) {
              const int64_t plane = plane_of_tap(walk, unit.plane + o, *tap);
              if (plane < 0) continue;
              *end++ = {grad_of(*block, o) + voxel, ring + plane % walk.ring_planes * plane_size +
                                                        c * channel_size + (place + voxel) * width};
            }
            if (end != runs) products.add(block->out_count, width, runs, end, count, grad_stride, to);
          }
        }
      }
    }
  };

  for_each_unit(walk, task, pack_source, compute);
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
