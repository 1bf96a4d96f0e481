// Drives the depthwise kernels: plans, packs weights, hands tasks to the threads.
#include "depthwise_pass.h"

#include <algorithm>
#include <vector>

#include "depthwise_plan.h"
#include "integers.h"
#include "isa.h"
#include "memory.h"

namespace acsconv {
namespace {

constexpr int64_t kTasks = 16;          // of the gradient of the weight: what is worth parts of the volume
constexpr int64_t kSliceTasks = 64;     // of the same, what slices are cut into, whatever the threads
constexpr int64_t kTasksPerThread = 8;  // of slices in the other passes

// Sums of vectors, [1 + taps][lane], of every unit, a block or a channel: run(unit, part, parts, sums) adds
// to them for a part of the volume, where units are few, and the parts are added in order. Unit i's sums
// begin at i * stride.
template <class T>
struct Sums {
  const T* first;
  int64_t stride;
};

template <class T, class Run>
Sums<T> sums_of_units(int64_t units, int64_t numbers, const Threads& threads, const Run& run) {
  const int64_t parts = std::max<int64_t>(1, kTasks / units), stride = parts * numbers;
  thread_local Buffer buffer;
  auto* sums = static_cast<T*>(buffer.get(units * stride * sizeof(T)));
  parallel(threads, units * parts, [&](int64_t i) {
    std::fill_n(sums + i * numbers, numbers, T(0));
    run(i / parts, i % parts, parts, sums + i * numbers);
  });
  for (int64_t i = 0; i < units; ++i) {
    T* all = sums + i * stride;
    for (int64_t k = numbers; k < stride; ++k) all[k % numbers] += all[k];
  }
  return {sums, stride};
}

template <class T>
void backward_weight(const Problem& p, const void* grad_output, const void* input, void* grad_weight,
                     void* grad_bias, ScalarType gradient_type, const Threads& threads) {
  const Isa& isa = cpu_isa();
  const int type = static_cast<int>(p.type), lanes = isa.walk[type]->lanes;
  const DepthwiseKernel& kernel = *isa.depthwise[type];
  const Conversion& convert = *isa.conversion[static_cast<int>(gradient_type)];
  const int64_t taps = p.kernel_h * p.kernel_w;
  const int64_t numbers = (1 + taps) * lanes;

  std::vector<T> weight(p.groups * taps), bias(p.groups);
  const int32_t* places = nullptr;
  auto sum_to = [&](int64_t channel, int64_t i) -> T& {
    return i == 0 ? bias[channel] : weight[channel * taps + places[i - 1]];
  };
  if (SlicePlan::fits(p, lanes)) {
    const SlicePlan plan(p, false, lanes, sizeof(T), cache_size(), kSliceTasks);
    places = plan.slices().weight_places;
    const auto blocks = static_cast<int64_t>(plan.blocks().size());
    const Sums<T> sums =
        sums_of_units<T>(blocks, numbers, threads, [&](int64_t block, int64_t part, int64_t parts, T* own) {
          thread_local Buffer packed;
          const int64_t first = plan.first_task(block), count = plan.first_task(block + 1) - first;
          for (int64_t i = part * count / parts; i < (part + 1) * count / parts; ++i) {
            kernel.run_slice_weight(plan.slices(), plan.tasks()[first + i], input, grad_output, own,
                                    packed.get(plan.packed_size() * sizeof(T)));
          }
        });
    for (int64_t b = 0; b < blocks; ++b) {
      const SliceBlock& block = plan.blocks()[b];
      for (int64_t lane = block.skip; lane < block.skip + block.count; ++lane) {
        for (int64_t i = 0; i <= taps; ++i)
          sum_to(block.first + lane, i) = sums.first[b * sums.stride + i * lanes + lane];
      }
    }
  } else {
    const SlabPlan plan(p, false, lanes, sizeof(T), cache_size());
    places = plan.slabs().weight_places;
    const Sums<T> sums = sums_of_units<T>(
        p.groups, numbers, threads, [&](int64_t channel, int64_t part, int64_t parts, T* own) {
          thread_local Buffer slab, stage;
          const int64_t first = plan.first_task(channel), count = plan.first_task(channel + 1) - first;
          for (int64_t i = part * count / parts; i < (part + 1) * count / parts; ++i) {
            kernel.run_slab_weight(plan.slabs(), plan.tasks()[first + i], input, grad_output, own,
                                   slab.get(plan.packed_size() * sizeof(T)),
                                   stage.get(plan.staged_size() * sizeof(T)));
          }
        });
    for (int64_t c = 0; c < p.groups; ++c) {
      for (int64_t i = 0; i <= taps; ++i) {
        const T* from = sums.first + c * sums.stride + i * lanes;
        T sum = 0;
        for (int lane = 0; lane < lanes; ++lane) sum += from[lane];
        sum_to(c, i) = sum;
      }
    }
  }
  convert.narrow(weight.data(), grad_weight, p.groups * taps);
  if (grad_bias != nullptr) convert.narrow(bias.data(), grad_bias, p.groups);
}

}  // namespace

void depthwise_gather(const Problem& p, bool mirrored, const void* source, const void* weight,
                      const void* bias, void* target, const Threads& threads) {
  const Isa& isa = cpu_isa();
  const int type = static_cast<int>(p.type), lanes = isa.walk[type]->lanes;
  const int size = p.type == ScalarType::Float64 ? sizeof(double) : sizeof(float);
  const DepthwiseKernel& kernel = *isa.depthwise[type];
  advise_huge_pages(target, p.batch * p.groups * volume(mirrored ? p.in_size : p.out_size) *
                                isa.conversion[type]->stored_size);
  if (SlicePlan::fits(p, lanes)) {
    const SlicePlan plan(p, mirrored, lanes, size, cache_size(), kTasksPerThread * threads.count);
    parallel(threads, static_cast<int64_t>(plan.tasks().size()), [&](int64_t i) {
      thread_local Buffer packed;
      kernel.run_slice(plan.slices(), plan.tasks()[i], source, weight, bias, target,
                       packed.get(plan.packed_size() * size));
    });
  } else {
    const SlabPlan plan(p, mirrored, lanes, size, cache_size());
    parallel(threads, static_cast<int64_t>(plan.tasks().size()), [&](int64_t i) {
      thread_local Buffer slab, stage;
      kernel.run_slab(plan.slabs(), plan.tasks()[i], source, weight, bias, target,
                      slab.get(plan.packed_size() * size), stage.get(plan.staged_size() * size));
    });
  }
}

void depthwise_backward_weight(const Problem& p, const void* grad_output, const void* input,
                               void* grad_weight, void* grad_bias, ScalarType gradient_type,
                               const Threads& threads) {
  auto run = p.type == ScalarType::Float64 ? backward_weight<double> : backward_weight<float>;
  run(p, grad_output, input, grad_weight, grad_bias, gradient_type, threads);
}

}  // namespace acsconv
