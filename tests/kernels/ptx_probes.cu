// One kernel per wrapper of csrc/common/ptx*.cuh, each a single warp: what the instruction does to given
// words. The same source is compiled by g++ for the emulator (test_ptx.py compares it with tables) and by
// nvcc for a GPU (tests/gpu/golden.py records what the chip gives). run_ptx_probe() is called through ctypes.
#include <cstring>

#include "common/ptx_sm90.cuh"

namespace {

using namespace acsconv;

using Kernel = void (*)(const uint32_t*, uint32_t*);
constexpr int kWords = 1024;  // of input, of output and of shared memory

// Shared memory becomes a copy of the input.
__device__ __forceinline__ uint32_t fill(const uint32_t* in) {
  DYNAMIC_SHARED(memory);
  uint32_t* shared = reinterpret_cast<uint32_t*>(memory);
  for (int i = threadIdx.x; i < kWords; i += 32) shared[i] = in[i];
  __syncthreads();
  return ptx::shared_address(memory);
}

// Lane i gives the address of row 5 i mod 32: rows of one matrix lie apart.
__device__ __forceinline__ uint32_t row_address(const uint32_t* in) {
  return fill(in) + threadIdx.x * 5 % 32 * 16;
}

__global__ void ldmatrix_x4(const uint32_t* in, uint32_t* out) {
  uint32_t r[4];
  ptx::ldmatrix_x4(r, row_address(in));
  for (int j = 0; j < 4; ++j) out[j * 32 + threadIdx.x] = r[j];
}
__global__ void ldmatrix_x4_trans(const uint32_t* in, uint32_t* out) {
  uint32_t r[4];
  ptx::ldmatrix_x4_trans(r, row_address(in));
  for (int j = 0; j < 4; ++j) out[j * 32 + threadIdx.x] = r[j];
}
__global__ void ldmatrix_x2(const uint32_t* in, uint32_t* out) {
  uint32_t r[2];
  ptx::ldmatrix_x2(r, row_address(in));
  for (int j = 0; j < 2; ++j) out[j * 32 + threadIdx.x] = r[j];
}
__global__ void ldmatrix_x2_trans(const uint32_t* in, uint32_t* out) {
  uint32_t r[2];
  ptx::ldmatrix_x2_trans(r, row_address(in));
  for (int j = 0; j < 2; ++j) out[j * 32 + threadIdx.x] = r[j];
}

// Input: 4 words of A, 2 of B, 4 of D per lane.
template <class T>
__global__ void mma(const uint32_t* in, uint32_t* out) {
  uint32_t a[4], b[2];
  float d[4];
  const uint32_t* lane = in + threadIdx.x * 10;
  for (int i = 0; i < 4; ++i) a[i] = lane[i];
  for (int i = 0; i < 2; ++i) b[i] = lane[4 + i];
  memcpy(d, lane + 6, sizeof d);
  ptx::mma<T>(d, a, b);
  memcpy(out + threadIdx.x * 4, d, sizeof d);
}
// Input: 3 fragments of A, of which the last two are multiplied, and 3 of B; tile (m, n) begins with 3 m + n.
template <class T>
__global__ void mma_tiles(const uint32_t* in, uint32_t* out) {
  uint32_t a[3][4], b[3][2];
  float d[2][3][4];
  const uint32_t* lane = in + threadIdx.x * 18;
  for (int m = 0; m < 3; ++m) {
    for (int i = 0; i < 4; ++i) a[m][i] = lane[4 * m + i];
  }
  for (int n = 0; n < 3; ++n) {
    for (int i = 0; i < 2; ++i) b[n][i] = lane[12 + 2 * n + i];
  }
  for (int m = 0; m < 2; ++m) {
    for (int n = 0; n < 3; ++n) {
      for (int i = 0; i < 4; ++i) d[m][n][i] = static_cast<float>(3 * m + n);
    }
  }
  ptx::mma_tiles<T>(d, a, 1, b);
  memcpy(out + threadIdx.x * 24, d, sizeof d);
}

// Even lanes copy, odd lanes write zeros; the rest of shared memory keeps the input.
template <int kBytes>
__global__ void cp_async(const uint32_t* in, uint32_t* out) {
  DYNAMIC_SHARED(memory);
  const uint32_t shared = fill(in);
  const int lane = threadIdx.x, from = (lane + 7) % 32;
  ptx::cp_async<kBytes>(shared + lane * 16, in + from * 4, lane % 2 == 0 ? kBytes : 0);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  for (int i = lane; i < 128; i += 32) out[i] = reinterpret_cast<const uint32_t*>(memory)[i];
}

__global__ void to_tf32(const uint32_t* in, uint32_t* out) {
  float value;
  memcpy(&value, in + threadIdx.x, sizeof value);
  out[threadIdx.x] = ptx::to_tf32(value);
}

__global__ void indices(const uint32_t*, uint32_t* out) {
  out[ptx::thread_x()] = static_cast<uint32_t>(ptx::thread_x() + 100 * ptx::block_x());
}

// Three phases: every lane reads what its neighbours wrote in the phase before.
__global__ void mbarrier(const uint32_t* in, uint32_t* out) {
  DYNAMIC_SHARED(memory);
  uint32_t* shared = reinterpret_cast<uint32_t*>(memory);
  const int lane = threadIdx.x;
  const uint32_t barrier = ptx::shared_address(memory) + 2048;
  if (lane == 0) {
    ptx::mbarrier_init(barrier, 32);
    ptx::mbarrier_fence_init();
  }
  shared[lane] = in[lane];
  __syncthreads();
  for (int phase = 0; phase < 3; ++phase) {
    shared[(phase + 1) * 32 + lane] = shared[phase * 32 + (lane ^ 1 << phase)] + 1;
    ptx::mbarrier_arrive(barrier);
    ptx::mbarrier_wait(barrier, phase % 2);
  }
  out[lane] = shared[96 + (lane ^ 31)];
}

// Two boxes of 2 x 2 x 3 x 4 voxels of 8 16-bit channels, both partly outside a tensor of [2, 4, 5, 6, 8].
constexpr int kBoxBytes = 2 * 2 * 3 * 4 * 8 * 2;
__global__ void tma_boxes(const __grid_constant__ TensorMap map, uint32_t* out) {
  DYNAMIC_SHARED(memory);
  const uint32_t shared = ptx::shared_address(memory), barrier = shared + 2048;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(barrier, 1);
    ptx::mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(barrier, 2 * kBoxBytes);
    ptx::tma_load(shared, map, barrier, 0, -1, 3, -1, 1);
    ptx::tma_load(shared + kBoxBytes, map, barrier, 3, 4, -2, 3, 0);
  }
  ptx::mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < 2 * kBoxBytes / 4; i += 32) {
    out[i] = reinterpret_cast<const uint32_t*>(memory)[i];
  }
}

// Boxes inside the tensor, then over them boxes that lie wholly outside: beyond the last channel, before the
// first voxel of a row, after the last sample.
__global__ void tma_outside(const __grid_constant__ TensorMap map, uint32_t* out) {
  DYNAMIC_SHARED(memory);
  const uint32_t shared = ptx::shared_address(memory), barrier = shared + 3072;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(barrier, 1);
    ptx::mbarrier_fence_init();
  }
  __syncthreads();
  for (int phase = 0; phase < 2; ++phase) {
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect(barrier, 3 * kBoxBytes);
      ptx::tma_load(shared, map, barrier, phase * 8, 0, 0, 0, 0);
      ptx::tma_load(shared + kBoxBytes, map, barrier, 0, phase * -4, 0, 0, 0);
      ptx::tma_load(shared + 2 * kBoxBytes, map, barrier, 0, 0, 0, 0, phase * 2);
    }
    ptx::mbarrier_wait(barrier, phase);
  }
  for (int i = threadIdx.x; i < 3 * kBoxBytes / 4; i += 32) {
    out[i] = reinterpret_cast<const uint32_t*>(memory)[i];
  }
}

// A box of 2 x 3 x 4 voxels of 4 32-bit channels of a tensor of 6 channels, 8 apart: the last two are zeros.
constexpr int kFloatBoxBytes = 2 * 3 * 4 * 16;
__global__ void tma_floats(const __grid_constant__ TensorMap map, uint32_t* out) {
  DYNAMIC_SHARED(memory);
  const uint32_t shared = ptx::shared_address(memory), barrier = shared + 2048;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(barrier, 1);
    ptx::mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(barrier, kFloatBoxBytes);
    ptx::tma_load(shared, map, barrier, 4, -1, 1, 0, 0);
  }
  ptx::mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < kFloatBoxBytes / 4; i += 32) {
    out[i] = reinterpret_cast<const uint32_t*>(memory)[i];
  }
}

// Two stages of a box and 128 bytes of `in` each, filled five times by lane 0 as soon as all lanes have read
// them. A barrier that nobody has arrived at counts as if its phase 1 had just ended.
__global__ void tma_pipeline(const __grid_constant__ TensorMap map, const uint32_t* in, uint32_t* out) {
  constexpr int kSteps = 5, kStages = 2, kStageBytes = kBoxBytes + 128;
  DYNAMIC_SHARED(memory);
  const int lane = threadIdx.x;
  const uint32_t shared = ptx::shared_address(memory), full = shared + 3072, empty = full + 8 * kStages;
  if (lane == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(full + 8 * stage, 1);
      ptx::mbarrier_init(empty + 8 * stage, 32);
    }
    ptx::mbarrier_fence_init();
  }
  __syncthreads();
  const auto fill = [&](int step) {
    const int stage = step % kStages;
    const uint32_t to = shared + stage * kStageBytes;
    ptx::mbarrier_wait(empty + 8 * stage, step / kStages % 2 ^ 1);
    ptx::mbarrier_arrive_expect(full + 8 * stage, kStageBytes);
    ptx::tma_load(to, map, full + 8 * stage, 0, step - 1, 0, 0, 0);
    ptx::bulk_load(to + kBoxBytes, in + 32 * step, 128, full + 8 * stage);
  };
  if (lane == 0) fill(0);
  uint32_t sum = 0;
  for (int step = 0; step < kSteps; ++step) {
    const int stage = step % kStages;
    if (lane == 0 && step + 1 < kSteps) fill(step + 1);
    ptx::mbarrier_wait(full + 8 * stage, step / kStages % 2);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(memory + stage * kStageBytes);
    sum = sum * 3 + words[lane] + words[kBoxBytes / 4 + lane];
    ptx::mbarrier_arrive(empty + 8 * stage);
  }
  out[lane] = sum;
}

template <Kernel kKernel>
const char* run(const uint32_t* in, uint32_t* out) {
  return launch(kKernel, dim3(1), dim3(32), kWords * sizeof(uint32_t), nullptr, in, out);
}
// With a map of the input as a tensor of [2, 4, 5, 6, 8] 16-bit elements, or of [1, 2, 3, 5, 6] 32-bit ones.
template <class TensorKernel, class... Arguments>
const char* run_with_map(TensorKernel kernel, bool floats, const uint32_t* in, Arguments... arguments) {
  TensorMap map;
  const TensorMapShape elements{in, 2, {8, 6, 5, 4, 2}, {2, 16, 96, 480, 1920}, {8, 4, 3, 2, 2}};
  const TensorMapShape words{in, 4, {6, 5, 3, 2, 1}, {4, 32, 160, 480, 960}, {4, 4, 3, 2, 1}};
  if (const char* reason = make_tensor_map(floats ? words : elements, map)) return reason;
  return launch(kernel, dim3(1), dim3(32), kWords * sizeof(uint32_t), nullptr, map, arguments...);
}
const char* run_tma_boxes(const uint32_t* in, uint32_t* out) {
  return run_with_map(tma_boxes, false, in, out);
}
const char* run_tma_outside(const uint32_t* in, uint32_t* out) {
  return run_with_map(tma_outside, false, in, out);
}
const char* run_tma_floats(const uint32_t* in, uint32_t* out) {
  return run_with_map(tma_floats, true, in, out);
}
const char* run_tma_pipeline(const uint32_t* in, uint32_t* out) {
  return run_with_map(tma_pipeline, false, in, in, out);
}

struct Probe {
  const char* name;
  const char* (*run)(const uint32_t*, uint32_t*);
};
constexpr Probe kProbes[] = {
    {"ldmatrix_x4", run<ldmatrix_x4>},
    {"ldmatrix_x4_trans", run<ldmatrix_x4_trans>},
    {"ldmatrix_x2", run<ldmatrix_x2>},
    {"ldmatrix_x2_trans", run<ldmatrix_x2_trans>},
    {"mma_bfloat16", run<mma<BFloat16>>},
    {"mma_float16", run<mma<Float16>>},
    {"mma_tf32", run<mma<float>>},
    {"mma_tiles_bfloat16", run<mma_tiles<BFloat16>>},
    {"mma_tiles_float16", run<mma_tiles<Float16>>},
    {"mma_tiles_tf32", run<mma_tiles<float>>},
    {"cp_async_4", run<cp_async<4>>},
    {"cp_async_8", run<cp_async<8>>},
    {"cp_async_16", run<cp_async<16>>},
    {"to_tf32", run<to_tf32>},
    {"indices", run<indices>},
    {"mbarrier", run<mbarrier>},
    {"tma_boxes", run_tma_boxes},
    {"tma_outside", run_tma_outside},
    {"tma_floats", run_tma_floats},
    {"tma_pipeline", run_tma_pipeline},
};

}  // namespace

// Runs a probe on in[1024] and out[1024] in device memory. Returns null, or why it failed.
extern "C" __attribute__((visibility("default"))) const char* run_ptx_probe(const char* name,
                                                                            const uint32_t* in,
                                                                            uint32_t* out) {
  for (const Probe& probe : kProbes) {
    if (std::strcmp(probe.name, name) == 0) return probe.run(in, out);
  }
  return "no such probe";
}
