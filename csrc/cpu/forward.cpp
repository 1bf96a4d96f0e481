// Forward ACS convolution on the CPU: plans the walk, packs the weights, and hands the tasks to the threads.
#include "forward.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "isa.h"
#include "plan.h"

namespace acsconv {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kTypicalCache = 1 << 20;

// Asks for huge pages in what lies wholly inside [begin, begin + size): a first touch of a small page costs
// about as much as computing its contents.
void advise_huge_pages(void* begin, size_t size) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (address + size) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

// Memory of one thread, kept from call to call because fresh pages are slow.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  void* get(size_t size) {
    if (size > size_) {
      std::free(data_);
      size_ = (size + kHugePage - 1) / kHugePage * kHugePage;
      data_ = std::aligned_alloc(kHugePage, size_);
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
      advise_huge_pages(data_, size_);
      std::memset(data_, 0, size_);
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

int64_t cache_size() {
  static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return size > 0 ? size : kTypicalCache;
}

// weight[C_out, C_in / groups, K_h, K_w] -> for each block [channel slice][tap][channel][output channel]
template <class T>
void pack_weights(const Walk& walk, const Block& block, int64_t taps, const T* weight, T* packed) {
  T* to = packed + block.weights;
  for (int64_t slice = 0; slice < walk.group_channels; slice += walk.channel_slice) {
    const int64_t end = std::min(walk.group_channels, slice + walk.channel_slice);
    for (int32_t t = walk.tap_begin[block.view]; t < walk.tap_begin[block.view + 1]; ++t) {
      for (int64_t c = slice; c < end; ++c) {
        const T* from =
            weight + (block.out_begin * walk.group_channels + c) * taps + walk.taps[t].kernel_index;
        for (int32_t o = 0; o < block.out_count; ++o) *to++ = from[o * walk.group_channels * taps];
      }
    }
  }
}

// Calls body(index) for all indices below `count`, which the threads take as they come.
template <class Body>
void parallel(const Threads& threads, int64_t count, const Body& body) {
  struct Shared {
    std::atomic<int64_t> next;
    int64_t count;
    const Body& body;
  } shared{{0}, count, body};
  auto work = [](int, void* context) {
    auto& shared = *static_cast<Shared*>(context);
    for (int64_t i; (i = shared.next.fetch_add(1)) < shared.count;) shared.body(i);
  };
  const auto workers = static_cast<int>(std::min<int64_t>(threads.count, count));
  if (workers <= 1) {
    work(0, &shared);
  } else {
    threads.run(workers, work, &shared);
  }
}

template <class T>
void forward(const Problem& p, const WalkKernels& kernels, const T* input, const T* weight, const T* bias,
             T* output, const Threads& threads) {
  const CpuPlan plan(p, {kernels.lanes, kernels.accumulators, sizeof(T), threads.count, cache_size()});
  const Walk& walk = plan.walk();

  thread_local Buffer weight_buffer;
  auto* packed = static_cast<T*>(weight_buffer.get((plan.weights_size() + p.out_channels) * sizeof(T)));
  if (bias == nullptr) {
    T* zeros = packed + plan.weights_size();
    std::fill_n(zeros, p.out_channels, T(0));
    bias = zeros;
  }
  const auto blocks = static_cast<int64_t>(plan.blocks().size());
  parallel(threads, blocks,
           [&](int64_t i) { pack_weights(walk, plan.blocks()[i], p.kernel_h * p.kernel_w, weight, packed); });

  parallel(threads, static_cast<int64_t>(plan.tasks().size()), [&](int64_t i) {
    thread_local Buffer ring, stage, segments;
    const Scratch scratch{ring.get(plan.ring_size() * sizeof(T)), stage.get(plan.stage_size() * sizeof(T)),
                          segments.get(plan.segment_count() * kernels.segment_size)};
    kernels.run(walk, plan.tasks()[i], input, packed, bias, output, scratch);
  });
}

}  // namespace

void cpu_forward(const Problem& p, const void* input, const void* weight, const void* bias, void* output,
                 const Threads& threads) {
  const Isa& isa = cpu_isa();
  const size_t number_size = p.type == ScalarType::Float64 ? sizeof(double) : sizeof(float);
  advise_huge_pages(output,
                    p.batch * p.out_channels * p.out_size[0] * p.out_size[1] * p.out_size[2] * number_size);
  if (p.type == ScalarType::Float64) {
    forward(p, *isa.float64, static_cast<const double*>(input), static_cast<const double*>(weight),
            static_cast<const double*>(bias), static_cast<double*>(output), threads);
  } else {
    forward(p, *isa.float32, static_cast<const float*>(input), static_cast<const float*>(weight),
            static_cast<const float*>(bias), static_cast<float*>(output), threads);
  }
}

}  // namespace acsconv
