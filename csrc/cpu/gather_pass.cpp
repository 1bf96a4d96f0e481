// The passes that gather, forward and gradient of the input: plans the walk, packs the weights, and hands the
// tasks to the threads.
#include <algorithm>
#include <vector>

#include "depthwise_pass.h"
#include "depthwise_plan.h"
#include "integers.h"
#include "isa.h"
#include "memory.h"
#include "passes.h"
#include "plan.h"
#include "tile_pass.h"

namespace acsconv {
namespace {

// The weights of one block, in the order in which the kernel reads them.
template <class T>
void pack_weights(const Gather& gather, const CpuPlan& plan, const Block& block, const T* weight, T* packed) {
  const Walk& walk = plan.walk();
  T* to = packed + block.weights;
  for (int32_t index = block.part_begin; index < block.part_end; ++index) {
    const Part& part = walk.parts[index];
    for (int64_t slice = 0; slice < part.in_count; slice += walk.channel_slice) {
      const int64_t end = std::min(part.in_count, slice + walk.channel_slice);
      for (int32_t t = part.tap_begin; t < part.tap_end; ++t) {
        const GatherTap& tap = gather.taps[t];
        for (int64_t c = slice; c < end; ++c) {
          const T* from = weight + plan.weight_of_part(index) + c * gather.weight_in;
          for (int32_t o = 0; o < block.out_count; ++o, from += gather.weight_out) {
            T sum = from[tap.weights[0]];
            for (int i = 1; i < tap.weight_count; ++i) sum += from[tap.weights[i]];
            *to++ = sum;
          }
        }
      }
    }
  }
}

// T is what sums are made in.
template <class T>
void run_gather(const Gather& gather, ScalarType type, const GatherTensors& tensors, const Threads& threads) {
  const Isa& isa = cpu_isa();
  const WalkKernel& kernel = *isa.walk[static_cast<int>(type)];
  const Conversion& convert = *isa.conversion[static_cast<int>(type)];
  advise_huge_pages(tensors.target, tensors.target_numbers * convert.stored_size);
  const CpuPlan plan(gather, {kernel.lanes, kernel.accumulators, sizeof(T), threads.count, cache_size()});

  thread_local Buffer weight_buffer, wide_buffer;
  auto* packed = static_cast<T*>(weight_buffer.get((plan.weights_size() + tensors.bias_numbers) * sizeof(T)));
  T* bias = packed + plan.weights_size();
  if (tensors.bias == nullptr) {
    std::fill_n(bias, tensors.bias_numbers, T(0));
  } else {
    convert.widen(tensors.bias, bias, tensors.bias_numbers);
  }
  auto* weight = static_cast<const T*>(tensors.weight);
  if (convert.stored_size != sizeof(T)) {
    auto* wide = static_cast<T*>(wide_buffer.get(tensors.weight_numbers * sizeof(T)));
    convert.widen(tensors.weight, wide, tensors.weight_numbers);
    weight = wide;
  }
  parallel(threads, static_cast<int64_t>(plan.blocks().size()),
           [&](int64_t i) { pack_weights(gather, plan, plan.blocks()[i], weight, packed); });

  parallel(threads, static_cast<int64_t>(plan.tasks().size()), [&](int64_t i) {
    thread_local Buffer ring, stage, segments;
    const Scratch scratch{ring.get(plan.ring_size() * sizeof(T)), stage.get(plan.stage_size() * sizeof(T)),
                          segments.get(plan.segment_count() * kernel.segment_size)};
    kernel.run(plan.walk(), plan.tasks()[i], tensors.source, packed, bias, tensors.target, scratch);
  });
}

void run_gather(const Gather& gather, ScalarType type, const GatherTensors& tensors, const Threads& threads) {
  if (type == ScalarType::Float64) {
    run_gather<double>(gather, type, tensors, threads);
  } else if (type != ScalarType::BFloat16 || !tile_gather(gather, tensors, threads)) {
    run_gather<float>(gather, type, tensors, threads);
  }
}

}  // namespace

void cpu_forward(const Problem& p, bool soft, const void* input, const void* weight, const void* bias,
                 void* output, const Threads& threads) {
  if (is_depthwise(p, soft)) return depthwise_gather(p, false, input, weight, bias, output, threads);
  const GatherTensors tensors{input,
                              weight,
                              bias,
                              output,
                              weight_numbers(p, soft),
                              p.out_channels,
                              p.batch * p.out_channels * volume(p.out_size)};
  run_gather(forward_gather(p, soft), p.type, tensors, threads);
}

void cpu_backward_input(const Problem& p, bool soft, const void* grad_output, const void* weight,
                        void* grad_input, const Threads& threads) {
  if (is_depthwise(p, soft)) {
    return depthwise_gather(p, true, grad_output, weight, nullptr, grad_input, threads);
  }
  const GatherTensors tensors{grad_output,
                              weight,
                              nullptr,
                              grad_input,
                              weight_numbers(p, soft),
                              p.in_channels,
                              p.batch * p.in_channels * volume(p.in_size)};
  run_gather(backward_input_gather(p, soft), p.type, tensors, threads);
}

}  // namespace acsconv
