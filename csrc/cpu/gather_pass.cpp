// The passes that gather, forward and gradient of the input: plans the walk, packs the weights, and hands the
// tasks to the threads.
#include <algorithm>
#include <vector>

#include "depthwise_pass.h"
#include "depthwise_plan.h"
#include "integers.h"
#include "isa.h"
#include "memory.h"
#include "pairs.h"
#include "passes.h"
#include "plan.h"
#include "pointwise_pass.h"
#include "tile_pass.h"

namespace acsconv {
namespace {

// T is what sums are made in, and as large as the numbers of packed arrays; `pairs` is null, or gather and
// kernel are those of pairs.
template <class T>
void run_gather(const Gather& gather, const PairedGather* pairs, const WalkKernel& kernel, ScalarType type,
                const GatherTensors& tensors, const Threads& threads) {
  const Isa& isa = cpu_isa();
  const Conversion& convert = *isa.conversion[static_cast<int>(type)];
  advise_huge_pages(tensors.target, tensors.target_numbers * convert.stored_size);
  const CpuPlan plan(gather, {kernel.lanes, kernel.accumulators, sizeof(T), threads.count, cache_size()});

  const Walk& walk = plan.walk();

  thread_local Buffer weight_buffer, wide_buffer;
  // Vectors reach beyond the last channel.
  const int64_t bias_size = round_up(tensors.bias_numbers + 2 * kernel.lanes, kernel.lanes);
  const int64_t shared_size = plan.weights_used_once() ? 0 : plan.weights_size();
  T* const bias = static_cast<T*>(weight_buffer.get((bias_size + shared_size) * sizeof(T)));
  T* const packed = bias + bias_size;
  if (tensors.bias == nullptr) {
    std::fill_n(bias, tensors.bias_numbers, T(0));
  } else {
    convert.widen(tensors.bias, bias, tensors.bias_numbers);
  }
  const void* weight = tensors.weight;
  if (pairs != nullptr) {
    auto* packed_pairs = static_cast<uint32_t*>(wide_buffer.get(pairs->weight_numbers() * sizeof(uint32_t)));
    parallel(threads, pairs->weight_rows(), [&](int64_t row) {
      pairs->pack_weights(static_cast<const uint16_t*>(tensors.weight), row, packed_pairs);
    });
    weight = packed_pairs;
  } else if (convert.stored_size != sizeof(T)) {
    void* wide = wide_buffer.get(tensors.weight_numbers * sizeof(T));
    convert.widen(tensors.weight, static_cast<T*>(wide), tensors.weight_numbers);
    weight = wide;
  }
  if (!walk.weights_in_tasks) {
    parallel(threads, static_cast<int64_t>(plan.blocks().size()), [&](int64_t i) {
      const Block& block = plan.blocks()[i];
      kernel.pack_weights(walk, block, weight, packed + block.weights);
    });
  }

  parallel(threads, static_cast<int64_t>(plan.tasks().size()), [&](int64_t i) {
    thread_local Buffer ring, stage, segments, weights;
    const Scratch scratch{ring.get(plan.ring_size() * sizeof(T)), stage.get(plan.stage_size() * sizeof(T)),
                          segments.get(plan.segment_count() * kernel.segment_size)};
    void* own = plan.weights_used_once() ? weights.get(plan.weights_size() * sizeof(T)) : packed;
    kernel.run(walk, plan.tasks()[i], tensors.source, weight, own, bias, tensors.target, scratch);
  });
}

void run_gather(const Gather& gather, ScalarType type, const GatherTensors& tensors, const Threads& threads) {
  const Isa& isa = cpu_isa();
  if (type == ScalarType::BFloat16 && isa.pairs != nullptr) {
    const PairedGather pairs(gather);
    if (pairs.pays()) {
      return run_gather<float>(pairs.gather(), &pairs, *isa.pairs, type, tensors, threads);
    }
  }
  if (type == ScalarType::BFloat16 && tile_gather(gather, tensors, threads)) return;
  const auto run = type == ScalarType::Float64 ? run_gather<double> : run_gather<float>;
  run(gather, nullptr, *isa.walk[static_cast<int>(type)], type, tensors, threads);
}

}  // namespace

void cpu_forward(const Problem& p, bool soft, const void* input, const void* weight, const void* bias,
                 void* output, const Threads& threads) {
  if (is_depthwise(p, soft)) return depthwise_gather(p, false, input, weight, bias, output, threads);
  if (is_pointwise(p, soft, false)) return pointwise_gather(p, false, input, weight, bias, output, threads);
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
  if (is_pointwise(p, soft, true)) {
    return pointwise_gather(p, true, grad_output, weight, nullptr, grad_input, threads);
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
