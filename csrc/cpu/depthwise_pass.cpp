// Drives the depthwise kernels: plans, packs weights, hands slabs to the threads.
#include "depthwise_pass.h"

#include <algorithm>
#include <vector>

#include "depthwise_plan.h"
#include "integers.h"
#include "isa.h"
#include "memory.h"

namespace acsconv {
namespace {

constexpr int64_t kTasks = 16;  // of the gradient of the weight: what is worth parts of the volume

// Where each of a channel's weights lies in its kernel, in the order in which the tiles take them: rows of
// one column after the other.
std::vector<int64_t> kernel_places(const Problem& p, bool mirrored) {
  const int64_t side = p.kernel_h, last = side * side - 1;
  std::vector<int64_t> places(side * side);
  for (int64_t i = 0; i <= last; ++i) {
    const int64_t place = i % side * side + i / side;
    places[i] = mirrored ? last - place : place;
  }
  return places;
}

template <class T>
void gather_slices(const Problem& p, bool mirrored, const void* source, const T* weight, const T* bias,
                   void* target, const Threads& threads) {
  const Isa& isa = cpu_isa();
  const int type = static_cast<int>(p.type), lanes = isa.walk[type]->lanes;
  const SlicePlan plan(p, mirrored, lanes, sizeof(T), cache_size());
  const auto blocks = static_cast<int64_t>(plan.blocks().size()), taps = p.kernel_h * p.kernel_w;
  thread_local Buffer weight_buffer;
  auto* weights = static_cast<T*>(weight_buffer.get(blocks * (taps + 1) * lanes * sizeof(T)));
  T* biases = weights + blocks * taps * lanes;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = plan.blocks()[b].first;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t i = 0; i < taps; ++i) {
        weights[(b * taps + i) * lanes + lane] = weight[(first + lane) * taps + i];
      }
      biases[b * lanes + lane] = bias[first + lane];
    }
  }
  parallel(threads, static_cast<int64_t>(plan.tasks().size()), [&](int64_t i) {
    thread_local Buffer packed;
    isa.depthwise[type]->run_slices(plan.walk(), plan.tasks()[i], source, weights, biases, target,
                                    packed.get(plan.packed_size() * sizeof(T)));
  });
}

template <class T>
void gather(const Problem& p, bool mirrored, const void* source, const void* weight, const void* bias,
            void* target, const Threads& threads) {
  const Isa& isa = cpu_isa();
  const int type = static_cast<int>(p.type), lanes = isa.walk[type]->lanes;
  const DepthwiseKernel& kernel = *isa.depthwise[type];
  const Conversion& convert = *isa.conversion[type];
  advise_huge_pages(target,
                    p.batch * p.groups * volume(mirrored ? p.in_size : p.out_size) * convert.stored_size);

  const std::vector<int64_t> places = kernel_places(p, mirrored);
  const auto taps = static_cast<int64_t>(places.size());
  std::vector<T> wide(p.groups * taps), packed(p.groups * taps), wide_bias(p.groups, T(0));
  convert.widen(weight, wide.data(), p.groups * taps);
  if (bias != nullptr) convert.widen(bias, wide_bias.data(), p.groups);
  for (int64_t c = 0; c < p.groups * taps; c += taps) {
    for (int64_t i = 0; i < taps; ++i) packed[c + i] = wide[c + places[i]];
  }
  if (SlicePlan::fits(p, lanes)) {
    return gather_slices<T>(p, mirrored, source, packed.data(), wide_bias.data(), target, threads);
  }
  const DepthwisePlan plan(p, mirrored, lanes, sizeof(T), cache_size());
  parallel(threads, static_cast<int64_t>(plan.tasks().size()), [&](int64_t i) {
    thread_local Buffer slab, stage;
    const Scratch scratch{slab.get(plan.slab_size() * sizeof(T)), stage.get(plan.stage_size() * sizeof(T)),
                          nullptr};
    kernel.run(plan.walk(), plan.tasks()[i], source, packed.data(), wide_bias.data(), target, scratch);
  });
}

template <class T>
void backward_weight(const Problem& p, const void* grad_output, const void* input, void* grad_weight,
                     void* grad_bias, ScalarType gradient_type, const Threads& threads) {
  const Isa& isa = cpu_isa();
  const int type = static_cast<int>(p.type);
  const DepthwiseKernel& kernel = *isa.depthwise[type];
  const Conversion& convert = *isa.conversion[static_cast<int>(gradient_type)];
  const int lanes = isa.walk[type]->lanes;
  const DepthwisePlan plan(p, false, lanes, sizeof(T), cache_size());
  const int64_t taps = p.kernel_h * p.kernel_w, sums_per_channel = taps + 1;

  // Chunks of channels, and where these are few, parts of the volume, which are added in order.
  const int64_t chunks = ceil_div(p.groups, plan.chunk_channels());
  const int64_t parts = std::clamp<int64_t>(kTasks / chunks, 1, std::max<int64_t>(1, plan.slabs()));
  std::vector<T> sums(parts * p.groups * sums_per_channel);
  parallel(threads, chunks * parts, [&](int64_t i) {
    thread_local Buffer slab, stage, vector_buffer;
    const Scratch scratch{slab.get(plan.slab_size() * sizeof(T)), stage.get(plan.stage_size() * sizeof(T)),
                          nullptr};
    const int64_t chunk = i / parts, part = i % parts, first = chunk * plan.chunk_channels();
    const int64_t channels = std::min(plan.chunk_channels(), p.groups - first);
    const int64_t count = channels * sums_per_channel;
    auto* vectors = static_cast<T*>(vector_buffer.get(count * lanes * sizeof(T)));
    std::fill_n(vectors, count * lanes, T(0));
    for (int64_t s = part * plan.slabs() / parts; s < (part + 1) * plan.slabs() / parts; ++s) {
      kernel.run_weight(plan.walk(), plan.tasks()[chunk * plan.slabs() + s], input, grad_output, vectors,
                        scratch);
    }
    kernel.add_lanes(vectors, count, &sums[(part * p.groups + first) * sums_per_channel]);
  });

  const std::vector<int64_t> places = kernel_places(p, false);
  std::vector<T> weight(p.groups * taps), bias(p.groups);
  for (int64_t c = 0; c < p.groups; ++c) {
    for (int64_t i = 0; i < sums_per_channel; ++i) {
      T sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += sums[(part * p.groups + c) * sums_per_channel + i];
      (i == 0 ? bias[c] : weight[c * taps + places[i - 1]]) = sum;
    }
  }
  convert.narrow(weight.data(), grad_weight, p.groups * taps);
  if (grad_bias != nullptr) convert.narrow(bias.data(), grad_bias, p.groups);
}

}  // namespace

void depthwise_gather(const Problem& p, bool mirrored, const void* source, const void* weight,
                      const void* bias, void* target, const Threads& threads) {
  auto run = p.type == ScalarType::Float64 ? gather<double> : gather<float>;
  run(p, mirrored, source, weight, bias, target, threads);
}

void depthwise_backward_weight(const Problem& p, const void* grad_output, const void* input,
                               void* grad_weight, void* grad_bias, ScalarType gradient_type,
                               const Threads& threads) {
  auto run = p.type == ScalarType::Float64 ? backward_weight<double> : backward_weight<float>;
  run(p, grad_output, input, grad_weight, grad_bias, gradient_type, threads);
}

}  // namespace acsconv
