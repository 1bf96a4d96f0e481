// Kernels that exercise one emulated operation each, for test_emulator.py: the wrappers' hand-made tables,
// and one kernel per kind of fault that the emulator must report. run_probe() is called through ctypes; lanes
// or threads read in[thread] and write out[thread].
#include "common/ptx_sm90.cuh"

namespace {

namespace ptx = acsconv::ptx;
using Word = int32_t;
using Kernel = void (*)(const Word*, Word*);
constexpr int kWordsPerThread = 4;  // of shared memory, for the PTX wrappers

__global__ void shuffle_index(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_sync(0xffffffffu, in[threadIdx.x], threadIdx.x * 3 + 1);
}
__global__ void shuffle_index_segment(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_sync(0xffffffffu, in[threadIdx.x], 9, 8);
}
__global__ void shuffle_xor(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 5);
}
__global__ void shuffle_down(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_down_sync(0xffffffffu, in[threadIdx.x], 3, 16);
}
__global__ void shuffle_up(const Word* in, Word* out) {
  out[threadIdx.x] = __shfl_up_sync(0xffffffffu, in[threadIdx.x], 2, 8);
}
__global__ void shuffle_half_mask(const Word* in, Word* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, in[threadIdx.x], 1);
}
__global__ void shuffle_wide(const Word* in, Word* out) {
  const double value = in[threadIdx.x] + 0.5;
  out[threadIdx.x] = static_cast<Word>(2 * __shfl_xor_sync(0xffffffffu, value, 1));
}
__global__ void votes(const Word* in, Word* out) {
  const Word value = in[threadIdx.x];
  const Word ballot = static_cast<Word>(__ballot_sync(0xffffffffu, value % 3 == 0));
  const int any = __any_sync(0xffffffffu, value == 7), all = __all_sync(0xffffffffu, value >= 0);
  const int none = __any_sync(0xffffffffu, value == 99), not_all = __all_sync(0xffffffffu, value > 0);
  out[threadIdx.x] = threadIdx.x == 0 ? ballot : any + 2 * all + 4 * none + 8 * not_all;
}
__global__ void atomics(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* sum = reinterpret_cast<Word*>(memory);
  float* real_sum = reinterpret_cast<float*>(memory + 4);
  if (threadIdx.x == 0) sum[0] = 100, real_sum[0] = 0.5f;
  __syncthreads();
  atomicAdd(sum, in[threadIdx.x]);
  atomicAdd(real_sum, 0.25f);
  __syncthreads();
  out[threadIdx.x] = sum[0] + static_cast<Word>(2 * real_sum[0]);
}
__global__ void block_reverse(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
__global__ void warp_reverse(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  shared[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 31];
}
__global__ void read_by_all_then_write(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  if (threadIdx.x == 0) shared[0] = in[0];
  __syncthreads();
  const Word seen = shared[0];
  __syncthreads();
  if (threadIdx.x == 1) shared[0] = in[1];
  __syncthreads();
  out[threadIdx.x] = seen * 10 + shared[0];
}

// Faults.
__global__ void race_write_read(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  shared[threadIdx.x] = 0;
  __syncthreads();
  shared[threadIdx.x] = in[threadIdx.x];
  __syncwarp();  // not enough: the other half of the block is another warp
  out[threadIdx.x] = shared[threadIdx.x ^ 32];
}
__global__ void race_read_write(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* shared = reinterpret_cast<Word*>(memory);
  if (threadIdx.x == 0) shared[0] = in[0];
  __syncthreads();
  out[threadIdx.x] = shared[0];
  if (threadIdx.x == blockDim.x - 1) shared[0] = 1;  // after all others have read, in this schedule
}
__global__ void race_write_write(const Word*, Word*) {
  DYNAMIC_SHARED(memory);
  reinterpret_cast<Word*>(memory)[0] = static_cast<Word>(threadIdx.x);
}
__global__ void race_between_blocks(const Word*, Word* out) {
  out[threadIdx.x] = static_cast<Word>(blockIdx.x);
}
__global__ void race_with_atomic(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  Word* sum = reinterpret_cast<Word*>(memory);
  if (threadIdx.x == 0) sum[0] = 0;
  __syncthreads();
  atomicAdd(sum, in[threadIdx.x]);
  if (threadIdx.x == blockDim.x - 1) out[0] = sum[0];
}
__global__ void uninitialised(const Word*, Word* out) {
  DYNAMIC_SHARED(memory);
  out[threadIdx.x] = reinterpret_cast<Word*>(memory)[threadIdx.x];
}
__global__ void shared_out_of_bounds(const Word* in, Word*) {
  DYNAMIC_SHARED(memory);
  reinterpret_cast<Word*>(memory)[threadIdx.x + 1] = in[threadIdx.x];
}
__global__ void device_read_past_end(const Word* in, Word* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }
__global__ void device_write_before_start(const Word* in, Word* out) {
  out[int(threadIdx.x) - 1] = in[threadIdx.x];
}
__global__ void wild_pointer(const Word* in, Word* out) { out[threadIdx.x] = in[int64_t{1} << 50]; }
__global__ void null_pointer(const Word*, Word*) { *static_cast<volatile Word*>(nullptr) = 1; }
__global__ void divergent_barrier(const Word* in, Word* out) {
  if (in[threadIdx.x] < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 0;
}
__global__ void missing_thread_at_barrier(const Word* in, Word* out) {
  if (in[threadIdx.x] == 5) return;
  __syncthreads();
  out[threadIdx.x] = 0;
}
__global__ void missing_lanes_at_shuffle(const Word* in, Word* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
}
__global__ void lane_outside_its_mask(const Word*, Word*) { __syncwarp(1u); }

// A pipeline of two stages as the tensor-core kernels have it: a thread copies a word per chunk and reads
// that of a thread of another warp. out[i] is the sum over five chunks. The parameters plant bugs.
constexpr int kChunks = 5;
enum class Bug { None, WeakWait, NoBarrierAfterWait, NoBarrierAfterUse, StageReleasedEarly, NoWaitAtEnd };

template <Bug kBug>
__global__ void pipeline(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  const Word* shared = reinterpret_cast<const Word*>(memory);
  const int thread = threadIdx.x, threads = blockDim.x;
  const uint32_t own = ptx::shared_address(memory) + thread * 4, stage_bytes = threads * 4;
  const auto load = [&](int chunk, int stage) {
    if (chunk < kChunks) ptx::cp_async<4>(own + stage * stage_bytes, in + (thread + chunk) % threads, 4);
    ptx::cp_async_commit();
  };
  load(0, 0);
  Word sum = 0;
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    load(chunk + 1, (kBug == Bug::StageReleasedEarly ? chunk : chunk + 1) % 2);
    ptx::cp_async_wait<kBug == Bug::WeakWait ? 2 : 1>();
    if (kBug != Bug::NoBarrierAfterWait) __syncthreads();
    sum += shared[chunk % 2 * threads + (thread ^ 33)];
    if (kBug != Bug::NoBarrierAfterUse) __syncthreads();
  }
  if (kBug == Bug::NoWaitAtEnd) load(0, 0);
  if (kBug != Bug::NoWaitAtEnd) ptx::cp_async_wait<0>();
  out[thread] = sum;
}

// The same pipeline with the TMA: thread 0 copies 32 words per chunk, all threads read them. out[i] is the
// sum of words thread % 32 over five chunks of the input.
enum class BulkBug {
  None,
  NoWait,
  ReleasedEarly,
  NotReleased,
  WrongBytes,
  Misaligned,
  NoBarrierAfterInit,
  NoWaitAtEnd,
  NoProxyFence,
  NoneOverStores  // no bug, as None: stages that have been stored to, and a fence
};

template <BulkBug kBug>
__global__ void bulk_pipeline(const Word* in, Word* out) {
  DYNAMIC_SHARED(memory);
  acsconv::TensorMap map;
  const acsconv::TensorMapShape shape{in, 4, {32, 2, 1, 1, 1}, {4, 128, 256, 256, 256}, {32, 1, 1, 1, 1}};
  if (acsconv::make_tensor_map(shape, map) != nullptr) return;
  const int thread = threadIdx.x, threads = blockDim.x;
  constexpr int kStageBytes = 128;
  const uint32_t shared = ptx::shared_address(memory), full = shared + 2 * kStageBytes, empty = full + 16;
  if (thread == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      ptx::mbarrier_init(full + 8 * stage, 1);
      ptx::mbarrier_init(empty + 8 * stage, threads);
    }
    ptx::mbarrier_fence_init();
  }
  if (kBug == BulkBug::NoProxyFence || kBug == BulkBug::NoneOverStores) {
    reinterpret_cast<Word*>(memory)[thread] = -1;
    if (kBug != BulkBug::NoProxyFence) ptx::proxy_fence();
  }
  if (kBug != BulkBug::NoBarrierAfterInit) __syncthreads();
  const auto load = [&](int chunk) {
    const int stage = chunk % 2;
    ptx::mbarrier_arrive_expect(full + 8 * stage, kBug == BulkBug::WrongBytes ? 64 : kStageBytes);
    ptx::tma_load(shared + stage * kStageBytes + (kBug == BulkBug::Misaligned ? 16 : 0), map,
                  full + 8 * stage, 0, chunk % 2, 0, 0, 0);
  };
  if (thread == 0) load(0);
  Word sum = 0;
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int stage = chunk % 2, phase = chunk / 2 % 2;
    if (thread == 0 && chunk + 1 < kChunks) {
      const int next = chunk + 1;
      if (next >= 2 && kBug != BulkBug::ReleasedEarly)
        ptx::mbarrier_wait(empty + 8 * (next % 2), (next / 2 + 1) % 2);
      load(next);
    }
    if (kBug != BulkBug::NoWait) ptx::mbarrier_wait(full + 8 * stage, phase);
    sum += reinterpret_cast<const Word*>(memory + stage * kStageBytes)[thread % 32];
    if (kBug != BulkBug::NotReleased) ptx::mbarrier_arrive(empty + 8 * stage);
  }
  if (kBug == BulkBug::NoWaitAtEnd) {
    __syncthreads();
    if (thread == 0) load(1);
  }
  out[thread] = sum;
}

// Faults of the PTX wrappers and of vector accesses.
__global__ void copy_past_the_end(const Word* in, Word*) {
  DYNAMIC_SHARED(memory);
  ptx::cp_async<16>(ptx::shared_address(memory) + threadIdx.x * 16, in + threadIdx.x * 4, 16);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}
// 32 bytes from `word` of the input to byte `byte` of shared memory.
template <int kByte, int kWord>
__global__ void bulk_copy(const Word* in, Word*) {
  DYNAMIC_SHARED(memory);
  const uint32_t shared = ptx::shared_address(memory), barrier = shared + 256;
  if (threadIdx.x != 0) return;
  ptx::mbarrier_init(barrier, 1);
  ptx::mbarrier_arrive_expect(barrier, 32);
  ptx::bulk_load(shared + kByte, in + kWord, 32, barrier);
  ptx::mbarrier_wait(barrier, 0);
}
__global__ void copy_past_shared_memory(const Word* in, Word*) {
  DYNAMIC_SHARED(memory);
  ptx::cp_async<4>(ptx::shared_address(memory) + 4 * threadIdx.x + 4 * kWordsPerThread * 31, in, 4);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}
__global__ void misaligned_copy_source(const Word* in, Word*) {
  DYNAMIC_SHARED(memory);
  ptx::cp_async<8>(ptx::shared_address(memory) + 8 * threadIdx.x, in + threadIdx.x / 2, 8);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}
__global__ void misaligned_copy_destination(const Word* in, Word*) {
  DYNAMIC_SHARED(memory);
  ptx::cp_async<16>(ptx::shared_address(memory) + 8 * threadIdx.x, in, 16);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}
__global__ void half_a_copy(const Word* in, Word*) {
  DYNAMIC_SHARED(memory);
  ptx::cp_async<16>(ptx::shared_address(memory) + 16 * threadIdx.x, in, 8);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}
__global__ void matrix_past_shared_memory(const Word*, Word*) {
  DYNAMIC_SHARED(memory);
  for (int i = 0; i < kWordsPerThread; ++i) reinterpret_cast<Word*>(memory)[i * 32 + threadIdx.x] = 0;
  __syncthreads();
  uint32_t r[4];
  ptx::ldmatrix_x4(r, ptx::shared_address(memory) + (threadIdx.x + 1) * 4 * kWordsPerThread);
}
__global__ void misaligned_matrix(const Word*, Word*) {
  DYNAMIC_SHARED(memory);
  uint32_t r[4];
  ptx::ldmatrix_x4_trans(r, ptx::shared_address(memory) + 8);
}
__global__ void uninitialised_matrix(const Word*, Word*) {
  DYNAMIC_SHARED(memory);
  uint32_t r[2];
  ptx::ldmatrix_x2(r, ptx::shared_address(memory) + threadIdx.x * 16);
}
__global__ void divergent_matrix(const Word*, Word*) {
  DYNAMIC_SHARED(memory);
  for (int i = 0; i < kWordsPerThread; ++i) reinterpret_cast<Word*>(memory)[i * 32 + threadIdx.x] = 0;
  __syncthreads();
  uint32_t r[4];
  if (threadIdx.x < 16) {
    ptx::ldmatrix_x4(r, ptx::shared_address(memory));
  } else {
    ptx::ldmatrix_x4(r, ptx::shared_address(memory) + 16);
  }
}
__global__ void missing_lanes_at_mma(const Word*, Word*) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x < 31) ptx::mma<acsconv::Float16>(d, a, b);
}
__global__ void misaligned_device_read(const Word* in, Word* out) {
  const uint4 value = *reinterpret_cast<const uint4*>(in + 2);
  out[threadIdx.x] = static_cast<Word>(value.x + value.y + value.z + value.w);
}
__global__ void misaligned_device_write(const Word*, Word* out) {
  *reinterpret_cast<uint2*>(out + 1) = make_uint2(threadIdx.x, 0);
}
__global__ void misaligned_shared_write(const Word*, Word*) {
  DYNAMIC_SHARED(memory);
  *reinterpret_cast<float4*>(memory + threadIdx.x * 8) = make_float4(1, 2, 3, 4);
}

struct Probe {
  const char* name;
  Kernel kernel;
  int words_per_thread = 1;  // of shared memory
};
#define PROBE(kernel) \
  Probe { #kernel, kernel }
#define PTX_PROBE(kernel) \
  Probe { #kernel, kernel, kWordsPerThread }
#define PIPELINE(bug) Probe{"pipeline_" #bug, pipeline<Bug::bug>, 2}
#define BULK_PIPELINE(bug) Probe{"bulk_pipeline_" #bug, bulk_pipeline<BulkBug::bug>, 5}
constexpr Probe kProbes[] = {
    PROBE(shuffle_index),
    PROBE(shuffle_index_segment),
    PROBE(shuffle_xor),
    PROBE(shuffle_down),
    PROBE(shuffle_up),
    PROBE(shuffle_half_mask),
    PROBE(shuffle_wide),
    PROBE(votes),
    PROBE(atomics),
    PROBE(block_reverse),
    PROBE(warp_reverse),
    PROBE(read_by_all_then_write),
    PROBE(race_write_read),
    PROBE(race_read_write),
    PROBE(race_write_write),
    PROBE(race_between_blocks),
    PROBE(race_with_atomic),
    PROBE(uninitialised),
    PROBE(shared_out_of_bounds),
    PROBE(device_read_past_end),
    PROBE(device_write_before_start),
    PROBE(wild_pointer),
    PROBE(null_pointer),
    PROBE(divergent_barrier),
    PROBE(missing_thread_at_barrier),
    PROBE(missing_lanes_at_shuffle),
    PROBE(lane_outside_its_mask),
    PIPELINE(None),
    PIPELINE(WeakWait),
    PIPELINE(NoBarrierAfterWait),
    PIPELINE(NoBarrierAfterUse),
    PIPELINE(StageReleasedEarly),
    PIPELINE(NoWaitAtEnd),
    BULK_PIPELINE(None),
    BULK_PIPELINE(NoWait),
    BULK_PIPELINE(ReleasedEarly),
    BULK_PIPELINE(NotReleased),
    BULK_PIPELINE(WrongBytes),
    BULK_PIPELINE(Misaligned),
    BULK_PIPELINE(NoBarrierAfterInit),
    BULK_PIPELINE(NoWaitAtEnd),
    BULK_PIPELINE(NoProxyFence),
    BULK_PIPELINE(NoneOverStores),
    PTX_PROBE(copy_past_the_end),
    Probe{"misaligned_bulk_copy", bulk_copy<8, 0>, kWordsPerThread},
    Probe{"misaligned_bulk_source", bulk_copy<0, 1>, kWordsPerThread},
    Probe{"bulk_copy_past_the_end", bulk_copy<0, 28>, kWordsPerThread},
    PTX_PROBE(copy_past_shared_memory),
    PTX_PROBE(misaligned_copy_source),
    PTX_PROBE(misaligned_copy_destination),
    PTX_PROBE(half_a_copy),
    PTX_PROBE(matrix_past_shared_memory),
    PTX_PROBE(misaligned_matrix),
    PTX_PROBE(uninitialised_matrix),
    PTX_PROBE(divergent_matrix),
    PTX_PROBE(missing_lanes_at_mma),
    PTX_PROBE(misaligned_device_read),
    PTX_PROBE(misaligned_device_write),
    PTX_PROBE(misaligned_shared_write),
};

}  // namespace

// Runs `blocks` blocks of `threads` threads on in[threads], out[threads]. Returns null, or the emulator's
// report. `random_seed` 0 is the default schedule; `async_copies` 0, 1, 2 are late, early and random.
extern "C" __attribute__((visibility("default"))) const char* run_probe(const char* name, int blocks,
                                                                        int threads, uint64_t random_seed,
                                                                        int async_copies, bool detect_races,
                                                                        const Word* in, Word* out) {
  for (const Probe& probe : kProbes) {
    if (std::strcmp(probe.name, name) != 0) continue;
    emulator::options = {};
    emulator::options.detect_races = detect_races;
    emulator::options.async_copies = static_cast<emulator::AsyncCopies>(async_copies);
    if (random_seed != 0) {
      emulator::options.schedule = emulator::Schedule::Random;
      emulator::options.seed = random_seed;
    }
    const size_t bytes = sizeof(Word) * threads;
    Word* device_in = static_cast<Word*>(emulator::allocate_device(bytes));
    Word* device_out = static_cast<Word*>(emulator::allocate_device(bytes));
    std::memcpy(device_in, in, bytes);
    const char* error =
        acsconv::launch(probe.kernel, dim3(blocks), dim3(threads), bytes * probe.words_per_thread, nullptr,
                        static_cast<const Word*>(device_in), device_out);
    std::memcpy(out, device_out, bytes);
    emulator::release_device(device_in);
    emulator::release_device(device_out);
    return error;
  }
  return "no such probe";
}
