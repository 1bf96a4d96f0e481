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

// T is what sums are made in.
template <class T>
void run_gather(const Gather& gather, ScalarType type, const GatherTensors& tensors, const Threads& threads) {
  const Isa& isa = cpu_isa();
  const WalkKernel& kernel = *isa.walk[static_cast<int>(type)];
  const Conversion& convert = *isa.conversion[static_cast<int>(type)];
  advise_huge_pages(tensors.target, tensors.target_numbers * convert.stored_size);
  const CpuPlan plan(gather, {kernel.lanes, kernel.accumulators, sizeof(T), threads.count, cache_size()});

  thread_local Buffer weight_buffer, wide_buffer;
  const int64_t bias_size = tensors.bias_numbers + 2 * kernel.lanes;  // vectors reach beyond the last channel
  auto* packed = static_cast<T*>(weight_buffer.get((plan.weights_size() + bias_size) * sizeof(T)));
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
           [&](int64_t i) { kernel.pack_weights(plan.walk(), plan.blocks()[i], weight, packed); });

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
