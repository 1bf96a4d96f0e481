// Plans, packs the weights of all blocks, and hands the tasks to the threads.
#include "tile_pass.h"

#include <algorithm>
#include <cstring>

#include "isa.h"
#include "memory.h"
#include "tile_plan.h"

namespace acsconv {
namespace {

// to[number][2] = {even[number], odd[number]}.
void interleave(const uint16_t* even, const uint16_t* odd, uint16_t* to) {
  uint32_t pairs[kTileColumns];
  for (int64_t i = 0; i < kTileColumns; ++i) pairs[i] = even[i] | static_cast<uint32_t>(odd[i]) << 16;
  std::memcpy(to, pairs, sizeof(pairs));
}

// Whether the weights of a target channel are adjacent in memory: in forward passes, but for those of several
// views in Soft ACS.
bool are_adjacent(const Gather& gather) {
  return gather.weight_out >= gather.weight_in &&
         std::all_of(gather.taps.begin(), gather.taps.end(), [&](const GatherTap& tap) {
           return tap.weight_count == 1 && tap.weights[0] < gather.weight_in;
         });
}

// The weights of one block, see TileBlock; zeros where a tile has more channels than the block, or a step
// more numbers than are left of its run. Adjacent ones are transposed first.
void pack_weights(const TileKernel& kernel, const Gather& gather, const TilePlan& plan,
                  const TileBlock& block, bool adjacent_weights, const uint16_t* weight, uint16_t* packed) {
  static constexpr uint16_t kZeros[kTileColumns] = {};
  thread_local Buffer transposed_buffer;
  uint16_t single[kTileDepth][kTileColumns];
  for (int32_t tile = 0; tile < block.tiles; ++tile) {
    const int64_t channels = std::min<int64_t>(kTileColumns, block.out_count - kTileColumns * tile);
    const uint16_t *transposed = nullptr, *transposed_from = nullptr;
    for (int32_t index = block.step_begin; index < block.step_end; ++index) {
      const TilePlan::StepWeights& step = plan.weights_of_step(index);
      const uint16_t* first = weight + step.part_weight + kTileColumns * tile * gather.weight_out;
      const int64_t numbers = step.in_count * gather.weight_in;
      const bool adjacent = adjacent_weights && numbers >= kTileDepth;
      if (adjacent && first != transposed_from) {
        auto* to = static_cast<uint16_t*>(transposed_buffer.get(numbers * kTileColumns * sizeof(uint16_t)));
        kernel.transpose(first, gather.weight_out, channels, numbers, to);
        transposed = to, transposed_from = first;
      }
      const uint16_t* rows[kTileDepth];  // of the step's numbers
      std::fill_n(rows, kTileDepth, kZeros);
      const int64_t end = std::min<int64_t>(kTileDepth, step.numbers - step.run_begin);
      int64_t tap = step.begin / step.in_count, in = step.begin % step.in_count;
      for (int64_t i = step.begin - step.run_begin; i < end; in = 0, ++tap) {
        int64_t number =
            gather.taps[plan.tap_of_run(step.run, tap)].weights[step.weight] + in * gather.weight_in;
        const int64_t tap_end = std::min(end, i + step.in_count - in);
        for (; i < tap_end; ++i, number += gather.weight_in) {
          if (adjacent) {
            rows[i] = transposed + number * kTileColumns;
          } else {
            std::fill_n(single[i], kTileColumns, uint16_t{0});
            for (int64_t o = 0; o < channels; ++o) single[i][o] = first[number + o * gather.weight_out];
            rows[i] = single[i];
          }
        }
      }
      uint16_t* to = packed + block.weights +
                     ((index - block.step_begin) * block.tiles + tile) * kTileDepth * kTileColumns;
      for (int64_t i = 0; i < kTileDepth; i += 2, to += 2 * kTileColumns)
        interleave(rows[i], rows[i + 1], to);
    }
  }
}

}  // namespace

bool tile_gather(const Gather& gather, const GatherTensors& tensors, const Threads& threads) {
  const Isa& isa = cpu_isa();
  if (isa.tiles == nullptr) return false;
  const TilePlan plan(gather, threads.count, cache_size());
  if (!plan.pays()) return false;
  advise_huge_pages(tensors.target, tensors.target_numbers * sizeof(uint16_t));

  thread_local Buffer weight_buffer, bias_buffer;
  auto* packed = static_cast<uint16_t*>(weight_buffer.get(plan.weights_size() * sizeof(uint16_t)));
  const int64_t bias_size = tensors.bias_numbers + kTileColumns;  // vectors reach beyond the last channel
  auto* bias = static_cast<float*>(bias_buffer.get(bias_size * sizeof(float)));
  std::fill_n(bias, bias_size, 0.0f);
  if (tensors.bias != nullptr) {
    isa.conversion[static_cast<int>(ScalarType::BFloat16)]->widen(tensors.bias, bias, tensors.bias_numbers);
  }
  auto* weight = static_cast<const uint16_t*>(tensors.weight);
  const bool adjacent = are_adjacent(gather);
  parallel(threads, static_cast<int64_t>(plan.blocks().size()), [&](int64_t i) {
    pack_weights(*isa.tiles, gather, plan, plan.blocks()[i], adjacent, weight, packed);
  });

  parallel(threads, static_cast<int64_t>(plan.tasks().size()), [&](int64_t i) {
    thread_local Buffer ring, stage, segments;
    const Scratch scratch{ring.get(plan.ring_size() * sizeof(uint16_t)),
                          stage.get(plan.stage_size() * sizeof(float)),
                          segments.get(plan.segment_count() * isa.tiles->segment_size)};
    isa.tiles->run(plan.walk(), plan.tasks()[i], tensors.source, packed, bias, tensors.target, scratch);
  });
  return true;
}

}  // namespace acsconv
