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

constexpr int64_t kNarrowed = 1 << 15;  // numbers that a thread rounds at a time

// One block's sums of all parts, added, to where its taps' weights lie.
template <class T>
void scatter_block(const Gather& gather, const WeightPlan& plan, const WeightBlock& block, const T* sums,
                   T* grad_weight) {
  constexpr int64_t kTogether = 64;
  const int64_t taps = block.tap_end - block.tap_begin;
  for (int64_t c = 0; c < plan.walk().group_channels; c += plan.walk().panel_width) {
    const int64_t width = plan.width_of_panel(c);
    const int64_t channels = std::min(width, plan.walk().group_channels - c);
    for (int64_t o = 0; o < block.out_count; ++o) {
      T* to = grad_weight + (block.out_begin + o) * gather.weight_out + c * gather.weight_in;
      for (int64_t t = 0; t < taps; ++t) {
        const T* first = sums + block.sums + c * taps * block.width + (t * block.width + o) * width;
        const GatherTap& tap = gather.taps[block.tap_begin + t];
        for (int64_t begin = 0; begin < channels; begin += kTogether) {
          const int64_t count = std::min(kTogether, channels - begin);
          T total[kTogether];
          std::copy_n(first + begin, count, total);
          for (int64_t part = 1; part < plan.parts(); ++part) {
            const T* other = first + part * plan.sums_size() + begin;
            for (int64_t i = 0; i < count; ++i) total[i] += other[i];
          }
          for (int k = 0; k < tap.weight_count; ++k) {
            T* weight = to + begin * gather.weight_in + tap.weights[k];
            for (int64_t i = 0; i < count; ++i) weight[i * gather.weight_in] = total[i];
          }
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
  const TileWeightKernel* tiles = p.type == ScalarType::BFloat16 ? isa.tile_weight : nullptr;
  const WeightPlan plan(gather, {isa.outer[type]->lanes, isa.outer[type]->accumulators, sizeof(T), tiles,
                                 cache_size(), threads.count});
  const WeightKernel& kernel = plan.form() == WeightForm::kTiles   ? tiles->kernel
                               : plan.form() == WeightForm::kOuter ? *isa.outer[type]
                                                                   : *isa.dots[type];

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
    const WeightScratch scratch{ring.get(plan.ring_size() * plan.number_size()),
                                grad.get(plan.grad_size() * plan.number_size()),
                                vectors.get(plan.vectors_size() * plan.number_size()),
                                items.get(plan.item_count() * kernel.item_size)};
    kernel.run(plan.walk(), task, input, grad_output, own, scratch);
  });

  // 16-bit gradients are rounded once, from sums of all parts.
  const bool wide = convert.stored_size != sizeof(T);
  auto* result =
      static_cast<T*>(wide ? wide_buffer.get((weights + p.out_channels) * sizeof(T)) : grad_weight);
  // Weights that no output reads inside the volume have no tap.
  int64_t reached = 0;
  for (const GatherTap& tap : gather.taps) reached += tap.weight_count;
  if (reached < kViews * p.kernel_h * p.kernel_w) std::fill_n(result, weights, T(0));
  parallel(threads, static_cast<int64_t>(plan.blocks().size()),
           [&](int64_t i) { scatter_block(gather, plan, plan.blocks()[i], sums, result); });
  if (wide) {
    parallel(threads, (weights + kNarrowed - 1) / kNarrowed, [&](int64_t i) {
      const int64_t begin = i * kNarrowed;
      convert.narrow(result + begin, static_cast<char*>(grad_weight) + begin * convert.stored_size,
                     std::min(kNarrowed, weights - begin));
    });
  }
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
  if (p.batch * p.out_size[0] * p.out_size[1] * p.out_size[2] == 0) {  // nothing that a plan could cut up
    const int64_t size = cpu_isa().conversion[static_cast<int>(gradient_type)]->stored_size;
    std::memset(grad_weight, 0, weight_numbers(p, soft) * size);
    if (grad_bias != nullptr) std::memset(grad_bias, 0, p.out_channels * size);
    return;
  }
  if (is_depthwise(p, soft)) {
    return depthwise_backward_weight(p, grad_output, input, grad_weight, grad_bias, gradient_type, threads);
  }
  const auto run = p.type == ScalarType::Float64 ? backward_weight<double> : backward_weight<float>;
  run(p, soft, grad_output, input, grad_weight, grad_bias, gradient_type, threads);
}

}  // namespace acsconv
