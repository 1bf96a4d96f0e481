// The gradients of weight and bias: plans, hands the tasks to the threads, and adds the parts in order.
#include <algorithm>
#include <cstring>

#include "depthwise_pass.h"
#include "depthwise_plan.h"
#include "isa.h"
#include "memory.h"
#include "passes.h"
#include "weight_plan.h"

namespace acsconv {
namespace {

// One block's sums of all parts, added, to where its taps' weights lie.
template <class T>
void scatter_block(const Gather& gather, const WeightPlan& plan, const WeightBlock& block, const T* sums,
                   T* grad_weight) {
  const int64_t outs = block.out_count, taps = block.tap_end - block.tap_begin;
  for (int64_t c = 0; c < plan.walk().group_channels; c += plan.walk().panel_width) {
    const int64_t width = plan.width_of_panel(c);
    const int64_t channels = std::min(width, plan.walk().group_channels - c);
    for (int64_t o = 0; o < outs; ++o) {
      for (int64_t i = 0; i < channels; ++i) {
        T* to = grad_weight + (block.out_begin + o) * gather.weight_out + (c + i) * gather.weight_in;
        for (int64_t t = 0; t < taps; ++t) {
          const T* first = sums + block.sums + c * taps * outs + (t * outs + o) * width + i;
          T sum = *first;
          for (int64_t part = 1; part < plan.parts(); ++part) sum += first[part * plan.sums_size()];
          const GatherTap& tap = gather.taps[block.tap_begin + t];
          for (int k = 0; k < tap.weight_count; ++k) to[tap.weights[k]] = sum;
        }
      }
    }
  }
}

// T is what sums are made in.
template <class T>
void backward_weight(const Problem& p, bool soft, const void* grad_output, const void* input,
                     void* grad_weight, void* grad_bias, ScalarType gradient_type, const Threads& threads) {
  const Isa& isa = cpu_isa();
  const int type = static_cast<int>(p.type);
  const Conversion& convert = *isa.conversion[static_cast<int>(gradient_type)];
  const Gather gather = forward_gather(p, soft);
  const WeightPlan plan(gather, {isa.outer[type]->lanes, isa.outer[type]->accumulators, sizeof(T),
                                 cache_size(), threads.count});
  const WeightKernel& kernel = plan.outer() ? *isa.outer[type] : *isa.dots[type];

  const int64_t weights = weight_numbers(p, soft);
  thread_local Buffer sums_buffer, wide_buffer;
  auto* sums = static_cast<T*>(sums_buffer.get(plan.parts() * plan.sums_size() * sizeof(T)));
  parallel(threads, static_cast<int64_t>(plan.tasks().size()), [&](int64_t i) {
    thread_local Buffer ring, grad, vectors, items;
    const WeightTask& task = plan.tasks()[i];
    const WeightBlock &first = plan.blocks()[task.block_begin], &last = plan.blocks()[task.block_end - 1];
    T* own = sums + task.part * plan.sums_size();
    const int64_t end = task.block_end < static_cast<int64_t>(plan.blocks().size())
                            ? plan.blocks()[task.block_end].sums
                            : plan.walk().bias_sums;
    std::fill(own + first.sums, own + end, T(0));
    for (T* bias : {own + plan.walk().bias_sums, own + plan.walk().bias_lost}) {
      std::fill(bias + first.out_begin, bias + last.out_begin + last.out_count, T(0));
    }
    const WeightScratch scratch{
        ring.get(plan.ring_size() * sizeof(T)), grad.get(plan.grad_size() * sizeof(T)),
        vectors.get(plan.vectors_size() * sizeof(T)), items.get(plan.item_count() * kernel.item_size)};
    kernel.run(plan.walk(), task, input, grad_output, own, scratch);
  });

  // 16-bit gradients are rounded once, from sums of all parts.
  const bool wide = convert.stored_size != sizeof(T);
  auto* result =
      static_cast<T*>(wide ? wide_buffer.get((weights + p.out_channels) * sizeof(T)) : grad_weight);
  std::fill_n(result, weights, T(0));
  parallel(threads, static_cast<int64_t>(plan.blocks().size()),
           [&](int64_t i) { scatter_block(gather, plan, plan.blocks()[i], sums, result); });
  if (wide) convert.narrow(result, grad_weight, weights);
  if (grad_bias == nullptr) return;
  T* bias = wide ? result + weights : static_cast<T*>(grad_bias);
  for (int64_t o = 0; o < p.out_channels; ++o) {
    double sum = 0;
    for (int64_t part = 0; part < plan.parts(); ++part) {
      const T* own = sums + part * plan.sums_size() + o;
      sum +=
          static_cast<double>(own[plan.walk().bias_sums]) + static_cast<double>(own[plan.walk().bias_lost]);
    }
    bias[o] = static_cast<T>(sum);
  }
  if (wide) convert.narrow(bias, grad_bias, p.out_channels);
}

}  // namespace

void cpu_backward_weight(const Problem& p, bool soft, const void* grad_output, const void* input,
                         void* grad_weight, void* grad_bias, ScalarType gradient_type,
                         const Threads& threads) {
  if (is_depthwise(p, soft)) {
    return depthwise_backward_weight(p, grad_output, input, grad_weight, grad_bias, gradient_type, threads);
  }
  const auto run = p.type == ScalarType::Float64 ? backward_weight<double> : backward_weight<float>;
  run(p, soft, grad_output, input, grad_weight, grad_bias, gradient_type, threads);
}

}  // namespace acsconv
