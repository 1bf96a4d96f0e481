// Plans, packs the weights of all blocks, and hands the tasks to the threads.
#include "tile_pass.h"

#include <algorithm>

#include "isa.h"
#include "memory.h"
#include "tile_plan.h"

namespace acsconv {
namespace {

// The weights of one block, see TileBlock; zeros where a tile has more channels than the block, or a step
// more numbers than are left of its run.
void pack_weights(const Gather& gather, const TilePlan& plan, const TileBlock& block, const uint16_t* weight,
                  uint16_t* packed) {
  constexpr int64_t pair = 2 * kTileColumns;
  uint16_t* to = packed + block.weights;
  for (int32_t index = block.step_begin; index < block.step_end; ++index) {
    const TilePlan::StepWeights& step = plan.weights_of_step(index);
    const int64_t end = std::min<int64_t>(kTileDepth, step.numbers - step.run_begin);
    for (int32_t tile = 0; tile < block.tiles; ++tile, to += kTileDepth * kTileColumns) {
      std::fill_n(to, kTileDepth * kTileColumns, uint16_t{0});
      const uint16_t* first = weight + step.part_weight + kTileColumns * tile * gather.weight_out;
      const int64_t channels = std::min<int64_t>(kTileColumns, block.out_count - kTileColumns * tile);
      int64_t tap = step.begin / step.in_count, in = step.begin % step.in_count;
      for (int64_t i = step.begin - step.run_begin; i < end; ++i) {
        const uint16_t* from =
            first + in * gather.weight_in + gather.taps[plan.tap_of_run(step.run, tap)].weights[step.weight];
        for (int64_t o = 0; o < channels; ++o) to[i / 2 * pair + 2 * o + i % 2] = from[o * gather.weight_out];
        if (++in == step.in_count) in = 0, ++tap;
      }
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
  parallel(threads, static_cast<int64_t>(plan.blocks().size()),
           [&](int64_t i) { pack_weights(gather, plan, plan.blocks()[i], weight, packed); });

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
