// Forward pass of layers with 1 to 4 input channels, for any dtype, stride, dilation and split, without
// groups: C_in * K^2 products for every element of the output, so that writing the output is the limit (and
// for large kernels the products, which take every value from shared memory).
//
//   out[n, o, voxel] = bias[o] + sum over r = (channel, row tap, column tap) of weight[o, r] * x[...]
//
// A block keeps the weights of its slab of output channels in shared memory and takes tiles of voxels in
// turn. View by view it copies the box of x that the tile reads there: each value is read from memory once
// and serves all taps and all channels of the view. A thread computes 4 voxels times an octet of 8 channels
// in registers; the two groups of a block take the octets in turn. An octet begins at a multiple of 8
// channels, whatever the split, so that a voxel's channels leave in vectors of 16 bytes; where views meet
// inside one, it is computed once for each of them, with weights of zero for the other's channels. The box
// and the sizes are those of few_channels_plan.h. Launched by simt_few_channels.cu.
#pragma once

#include "../common/scalar.cuh"
#include "../few_channels_plan.h"
#include "channel_tiles.h"

namespace acsconv {

// Kernel argument.
struct FewWork {
  Problem problem;
  int log_tile[3];
  int box;  // elements
  int slabs, slab_octets;
  unsigned tiles, tiles_along[3];
  bool vectors;  // the channels of a voxel are stored as vectors
};

template <class Scalar_>
struct SimtFewChannels {
  using Scalar = Scalar_;
  using Sum = Accumulator<Scalar>;
  static constexpr int kOctet = kFewOctet, kGroups = kFewGroups;
  static constexpr int kVoxels = 1 << kFewLogVoxels, kRows = 4;  // of a tile, of a thread
  static constexpr int kGroupThreads = kVoxels / kRows, kThreads = kGroups * kGroupThreads;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kLoads = 4;  // values of x of a thread on their way
  static constexpr int kBlocks =
      sizeof(Sum) == 8 ? 1 : 3;  // per multiprocessor: 255 or 80 registers a thread

  // Sums, the factors of a product, and about 32 for addresses.
  static_assert((kRows * kOctet + kRows + kOctet) * int{sizeof(Sum)} / 4 + 32 <=
                register_budget(kThreads, kBlocks));

  // What a view needs of the block's slab.
  struct View {
    int first, end;           // octets that hold channels of the view
    int pass;                 // of the first octet
    int extent[3], step[3];   // of the box, in positions; volume positions between them
    int voxel[3];             // elements of the box between neighbouring outputs
    int phases, length;       // of a row: few_row_pitch()
    int row, plane, channel;  // elements of the box between rows (along H), planes, channels
  };
  struct Header {
    int64_t destination[kVoxels];  // offset in the output; -1 outside the volume
    View view[kViews];
  };
  static_assert(sizeof(Header) <= kFewHeaderBytes && kFewHeaderBytes % 16 == 0);
};

template <class Config>
struct FewShared {
  int64_t* destination;
  typename Config::View* view;
  typename Config::Sum* weight;  // [pass][reduction][octet]
  typename Config::Sum* bias;    // [channel of the slab]
  typename Config::Sum* box;
  int* tap;  // [view][reduction]: what a tap adds to an output's place in the box

  __device__ __forceinline__ FewShared(unsigned char* memory, const FewWork& work) {
    const int reduction = static_cast<int>(few_reduction(work.problem));
    const int passes = static_cast<int>(few_passes(work.slab_octets));
    auto& header = *reinterpret_cast<typename Config::Header*>(memory);
    destination = header.destination;
    view = header.view;
    weight = reinterpret_cast<typename Config::Sum*>(memory + kFewHeaderBytes);
    bias = weight + passes * reduction * Config::kOctet;
    box = bias + passes * Config::kOctet;
    tap = reinterpret_cast<int*>(box + work.box);
  }
};

template <class Config>
__device__ inline void describe_view(const FewWork& work, int view, int slab, typename Config::View& to) {
  const Problem& p = work.problem;
  const int slab_first = slab * work.slab_octets;
  const int octets = static_cast<int>(ceil_div(p.out_channels, Config::kOctet));
  const int slab_end = slab_first + work.slab_octets < octets ? slab_first + work.slab_octets : octets;
  to.pass = 0;
  for (int earlier = 0; earlier <= view; ++earlier) {
    const int64_t begin = view_channels_begin(p.split, earlier), end = begin + p.split[earlier];
    const int first = static_cast<int>(begin / Config::kOctet);
    const int last = begin == end ? first : static_cast<int>(ceil_div(end, Config::kOctet));
    to.pass += earlier == 0 ? 0 : to.end - to.first;
    to.first = first > slab_first ? first : slab_first;
    to.end = last < slab_end ? last : slab_end;
    if (to.end < to.first) to.end = to.first;
  }
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const FewBoxAxis a = few_box_axis(p, view, axis, int64_t{1} << work.log_tile[axis]);
    to.extent[axis] = static_cast<int>(a.extent);
    to.step[axis] = static_cast<int>(a.step);
    to.voxel[axis] = static_cast<int>(a.voxel);
    if (axis < 2) continue;
    to.phases = to.voxel[2];
    to.length = static_cast<int>(few_row_length(a));
    to.row = static_cast<int>(few_row_pitch(a));
  }
  to.plane = to.extent[1] * to.row;
  to.channel = to.extent[0] * to.plane;
  to.voxel[0] *= to.plane;
  to.voxel[1] *= to.row;
  to.voxel[2] = 1;
}

// Fills in what does not depend on the tile: taps, weights and bias. All threads have passed a barrier since
// the views were described.
template <class Config>
__device__ inline void prepare_slab(const FewWork& work, int slab, const typename Config::Scalar* weight,
                                    const typename Config::Scalar* bias, const FewShared<Config>& shared) {
  using Sum = typename Config::Sum;
  const Problem& p = work.problem;
  const int kernel_w = static_cast<int>(p.kernel_w), taps = static_cast<int>(p.kernel_h) * kernel_w;
  const int reduction = static_cast<int>(p.in_channels) * taps;
  for (int view = 0; view < kViews; ++view) {
    const auto& v = shared.view[view];
    for (int r = threadIdx.x; r < reduction; r += Config::kThreads) {
      int at[3] = {0, 0, 0};
      at[row_axis(view)] = r % taps / kernel_w * static_cast<int>(p.dilation[view][row_axis(view)]);
      at[column_axis(view)] = r % kernel_w * static_cast<int>(p.dilation[view][column_axis(view)]);
      shared.tap[view * reduction + r] = r / taps * v.channel + at[0] * v.plane + at[1] * v.row +
                                         at[2] % v.phases * v.length + at[2] / v.phases;
    }
    const int64_t begin = view_channels_begin(p.split, view), end = begin + p.split[view];
    Sum* to = shared.weight + v.pass * reduction * Config::kOctet;
    for (int i = threadIdx.x; i < (v.end - v.first) * reduction * Config::kOctet; i += Config::kThreads) {
      const int r = i / Config::kOctet % reduction, octet = v.first + i / Config::kOctet / reduction;
      const int64_t channel = int64_t{octet} * Config::kOctet + i % Config::kOctet;
      to[i] = channel >= begin && channel < end ? widen(weight[channel * reduction + r]) : Sum(0);
    }
  }
  for (int i = threadIdx.x; i < work.slab_octets * Config::kOctet; i += Config::kThreads) {
    const int64_t channel = int64_t{slab} * work.slab_octets * Config::kOctet + i;
    shared.bias[i] = bias && channel < p.out_channels ? widen(bias[channel]) : Sum(0);
  }
}

// Copies the box of a view: `first` is the tile's first output along each axis. A warp takes rows along W.
template <class Config>
__device__ inline void load_box(const Problem& p, int view, const int (&first)[3],
                                const typename Config::View& v, const typename Config::Scalar* input,
                                typename Config::Sum* box) {
  using Sum = typename Config::Sum;
  int start[3];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    start[axis] = first[axis] * static_cast<int>(p.stride[axis]) + static_cast<int>(p.origin[view][axis]);
  }
  const int channels = static_cast<int>(p.in_channels), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int w = lane; w < v.extent[2]; w += 32) {
    const int column = start[2] + w * v.step[2];
    const bool column_inside = column >= 0 && column < p.in_size[2];
    const typename Config::Scalar* from = input + column * p.input.axis[2];
    Sum* to = box + w % v.phases * v.length + w / v.phases;
    int channel = 0, plane = 0, row = warp;
    while (true) {
      Sum value[Config::kLoads];
      int place[Config::kLoads];
#pragma unroll
      for (int i = 0; i < Config::kLoads; ++i, row += Config::kWarps) {
        for (; row >= v.extent[1]; row -= v.extent[1]) {
          if (++plane == v.extent[0]) plane = 0, ++channel;
        }
        place[i] = channel < channels ? channel * v.channel + plane * v.plane + row * v.row : -1;
        const int d = start[0] + plane * v.step[0], h = start[1] + row * v.step[1];
        const bool inside =
            place[i] >= 0 && column_inside && d >= 0 && d < p.in_size[0] && h >= 0 && h < p.in_size[1];
        value[i] = inside ? widen(from[channel * p.input.channel + d * p.input.axis[0] + h * p.input.axis[1]])
                          : Sum(0);
      }
#pragma unroll
      for (int i = 0; i < Config::kLoads; ++i) {
        if (place[i] >= 0) to[place[i]] = value[i];
      }
      if (channel >= channels) break;
    }
  }
}

// Where the tile has its voxel number `voxel`, which runs along W first.
__device__ __forceinline__ int place_in_tile(const FewWork& work, int voxel, int axis) {
  for (int inner = 2; inner > axis; --inner) voxel >>= work.log_tile[inner];
  return voxel & ((1 << work.log_tile[axis]) - 1);
}

// Adds the products of one pass: an octet in one view.
template <class Config>
__device__ __forceinline__ void add_pass(const typename Config::Sum* weight, const typename Config::Sum* box,
                                         const int* tap, int reduction, const int (&base)[Config::kRows],
                                         typename Config::Sum (&sum)[Config::kRows][Config::kOctet]) {
#pragma unroll 2
  for (int r = 0; r < reduction; ++r, weight += Config::kOctet) {
    const typename Config::Sum* at = box + tap[r];
    typename Config::Sum x[Config::kRows], w[Config::kOctet];
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) x[i] = at[base[i]];
#pragma unroll
    for (int j = 0; j < Config::kOctet; ++j) w[j] = weight[j];
#pragma unroll
    for (int i = 0; i < Config::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Config::kOctet; ++j) sum[i][j] += x[i] * w[j];
    }
  }
}

// Stores an octet of one voxel; `channels` of it exist.
template <class Config>
__device__ __forceinline__ void store_octet(const typename Config::Sum (&sum)[Config::kOctet],
                                            const typename Config::Sum* bias, bool vectors, int channels,
                                            int64_t channel_step, typename Config::Scalar* to) {
  using Scalar = typename Config::Scalar;
  Scalar value[Config::kOctet];
#pragma unroll
  for (int j = 0; j < Config::kOctet; ++j) narrow(sum[j] + bias[j], value[j]);
  if (vectors) {
    constexpr int kVectors = Config::kOctet * sizeof(Scalar) / sizeof(uint4);
    uint4 words[kVectors];
    memcpy(words, value, sizeof(value));
#pragma unroll
    for (int i = 0; i < kVectors; ++i) reinterpret_cast<uint4*>(to)[i] = words[i];
  } else {
#pragma unroll
    for (int j = 0; j < Config::kOctet; ++j) {
      if (j < channels) to[j * channel_step] = value[j];
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    simt_few_channels_kernel(const __grid_constant__ FewWork work, const typename Config::Scalar* input,
                             const typename Config::Scalar* weight, const typename Config::Scalar* bias,
                             typename Config::Scalar* output) {
  DYNAMIC_SHARED(memory);
  const FewShared<Config> shared(memory, work);
  const Problem& p = work.problem;
  const int thread = threadIdx.x, slab = static_cast<int>(blockIdx.x % work.slabs);
  if (thread < kViews) describe_view<Config>(work, thread, slab, shared.view[thread]);
  __syncthreads();
  prepare_slab<Config>(work, slab, weight, bias, shared);

  const int reduction = static_cast<int>(few_reduction(p));
  const int group = thread / Config::kGroupThreads, first_voxel = thread % Config::kGroupThreads;
  for (unsigned tile = blockIdx.x / work.slabs; tile < work.tiles; tile += gridDim.x / work.slabs) {
    unsigned rest = tile;
    int first[3];
#pragma unroll
    for (int axis = 2; axis >= 0; --axis) {
      first[axis] = static_cast<int>(rest % work.tiles_along[axis]) << work.log_tile[axis];
      rest /= work.tiles_along[axis];
    }
    const int64_t batch = rest;
    __syncthreads();  // tables, weights and box are in use until here
    for (int voxel = thread; voxel < Config::kVoxels; voxel += Config::kThreads) {
      bool inside = true;
      int64_t destination = batch * p.output.batch;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        const int at = first[axis] + place_in_tile(work, voxel, axis);
        inside = inside && at < p.out_size[axis];
        destination += at * p.output.axis[axis];
      }
      shared.destination[voxel] = inside ? destination : -1;
    }

    typename Config::Sum sum[Config::kRows][Config::kOctet] = {};
    bool loaded = false;
    for (int view = 0; view < kViews; ++view) {
      const auto& v = shared.view[view];
      if (v.first == v.end) continue;
      if (loaded) __syncthreads();
      loaded = true;
      load_box<Config>(p, view, first, v, input + batch * p.input.batch, shared.box);
      __syncthreads();
      int base[Config::kRows];
#pragma unroll
      for (int i = 0; i < Config::kRows; ++i) {
        base[i] = 0;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
          base[i] += place_in_tile(work, first_voxel + i * Config::kGroupThreads, axis) * v.voxel[axis];
        }
      }
      for (int octet = v.first + ((v.first ^ group) & 1); octet < v.end; octet += Config::kGroups) {
        const typename Config::Sum* pass =
            shared.weight + (v.pass + octet - v.first) * reduction * Config::kOctet;
        add_pass<Config>(pass, shared.box, shared.tap + view * reduction, reduction, base, sum);
        bool more = false;  // a later view has channels in this octet too
        for (int later = view + 1; later < kViews; ++later) {
          more = more || (octet >= shared.view[later].first && octet < shared.view[later].end);
        }
        if (more) continue;
        const int64_t channel = int64_t{octet} * Config::kOctet;
        const int channels = p.out_channels - channel < Config::kOctet
                                 ? static_cast<int>(p.out_channels - channel)
                                 : Config::kOctet;
        const typename Config::Sum* shift = shared.bias + (octet - slab * work.slab_octets) * Config::kOctet;
#pragma unroll
        for (int i = 0; i < Config::kRows; ++i) {
          const int64_t destination = shared.destination[first_voxel + i * Config::kGroupThreads];
          if (destination >= 0) {
            store_octet<Config>(sum[i], shift, work.vectors, channels, p.output.channel,
                                output + destination + channel * p.output.channel);
          }
#pragma unroll
          for (int j = 0; j < Config::kOctet; ++j) sum[i][j] = 0;
        }
      }
    }
  }
}

}  // namespace acsconv
