// The innermost loops of the kernels that gather, walk.cpp and pointwise.cpp: sums of products in registers,
// with vectors over voxels or over target channels, one function for every shape of block. Like vec.h for
// sources compiled once per instruction set.
#pragma once

#include <cstdint>

#include "pair.h"

namespace acsconv {
namespace ACSCONV_ISA {

// One run of the reduction: `count` source channels of one tap.
template <class N>
struct Segment {
  const N* x;        // the source that the strip's first target voxel reads, in the first of the channels
  const N* weights;  // [channel][out_count]
  int64_t count;
};

// The length of one chain of additions; a segment, at most Walk::channel_slice products, is not cut.
constexpr int64_t kTermsPerSum = 64;

// Adds the segments to Vectors * lanes targets of Channels target channels: to the bias, if there is one, or
// to what `out` holds. The first vector begins at flat voxel index `voxel`, the next one `spacing` further.
// Single: every segment is one channel, as in a depthwise layer.
template <class N, int Vectors, int Channels, bool Single>
[[gnu::noinline]] void multiply(const Segment<N>* segment, const Segment<N>* end, int64_t voxel,
                                int64_t spacing, int64_t channel_stride, const SumOf<N>* bias, SumOf<N>* out,
                                int64_t out_stride) {
  using T = SumOf<N>;
  Vec<T> sum[Channels][Vectors];
  unrolled<0, Channels>(
      [&](auto c) { unrolled<0, Vectors>([&](auto v) { sum[c.value][v.value] = broadcast(T(0)); }); });
  for (; segment != end; ++segment) {
    const N* x = segment->x + voxel;
    const N* w = segment->weights;
    for (int64_t left = Single ? 1 : segment->count; left > 0; --left, x += channel_stride, w += Channels) {
      Vec<N> voxels[Vectors];
      unrolled<0, Vectors>([&](auto v) { voxels[v.value] = load<N>(x + v.value * spacing); });
      unrolled<0, Channels>([&](auto c) {
        const Vec<N> weight = broadcast(w[c.value]);
        unrolled<0, Vectors>([&](auto v) {
          sum[c.value][v.value] = add_product<N>(sum[c.value][v.value], voxels[v.value], weight);
        });
      });
    }
  }
  auto add_to = [&](const auto& before) __attribute__((always_inline)) {
    T* to = out;
    unrolled<0, Channels>([&](auto c) {
      unrolled<0, Vectors>([&](auto v) {
        T* at = to + v.value * spacing;
        store<T>(at, sum[c.value][v.value] + before(at, c.value));
      });
      to += out_stride;
      asm volatile("" : "+r"(to));  // or all addresses are computed first, more than there are registers
    });
  };
  if (bias != nullptr) {
    add_to([&](const T*, int c) { return broadcast(bias[c]); });
  } else {
    add_to([&](const T* at, int) { return load<T>(at); });
  }
}

// The same where vectors run over target channels: adds the segments to `Positions` targets of Vectors *
// lanes channels in each of `Rows` rows, `pitch` positions apart. The first is at `out`, positions are
// `out_stride` apart.
template <class N, int Vectors, int Positions, int Rows>
[[gnu::noinline]] void multiply_channels(const Segment<N>* segment, const Segment<N>* end, int64_t voxel,
                                         int64_t pitch, int64_t channel_stride, const SumOf<N>* bias,
                                         SumOf<N>* out, int64_t out_stride) {
  using T = SumOf<N>;
  constexpr int lanes = kLanes<N>;
  constexpr int targets = Rows * Positions;
  Vec<T> sum[targets][Vectors];
  unrolled<0, targets>(
      [&](auto p) { unrolled<0, Vectors>([&](auto v) { sum[p.value][v.value] = broadcast(T(0)); }); });
  for (; segment != end; ++segment) {
    const N* x = segment->x + voxel;
    const N* w = segment->weights;
    for (int64_t left = segment->count; left > 0; --left, x += channel_stride, w += Vectors * lanes) {
      Vec<N> weights[Vectors];
      unrolled<0, Vectors>([&](auto v) { weights[v.value] = load<N>(w + v.value * lanes); });
      unrolled<0, targets>([&](auto p) {
        const Vec<N> source = broadcast(x[p.value / Positions * pitch + p.value % Positions]);
        unrolled<0, Vectors>([&](auto v) {
          sum[p.value][v.value] = add_product<N>(sum[p.value][v.value], weights[v.value], source);
        });
      });
    }
  }
  auto add_to = [&](int64_t stride) __attribute__((always_inline)) {
    unrolled<0, targets>([&](auto p) {
      unrolled<0, Vectors>([&](auto v) {
        T* to = out + (p.value / Positions * pitch + p.value % Positions) * stride + v.value * lanes;
        store<T>(to, sum[p.value][v.value] + load<T>(bias != nullptr ? bias + v.value * lanes : to));
      });
    });
  };
  if (out_stride == Vectors * lanes) {
    add_to(Vectors * lanes);  // constant addresses
  } else {
    add_to(out_stride);
  }
}

template <class N>
using Multiply = void (*)(const Segment<N>*, const Segment<N>*, int64_t, int64_t, int64_t, const SumOf<N>*,
                          SumOf<N>*, int64_t);

constexpr int kMaxVectors = 4, kMaxChannels = 14, kMaxSingle = 2;

template <class N, bool Single>
struct MultiplyTable {
  Multiply<N> entry[kMaxVectors + 1][kMaxChannels + 1] = {};

  constexpr MultiplyTable() {
    unrolled<1, kMaxVectors>([&](auto v) {
      unrolled<1, Single ? kMaxSingle : kMaxChannels>([&](auto c) {
        if constexpr (v.value * c.value <= ACSCONV_ACCUMULATORS) {
          entry[v.value][c.value] = multiply<N, v.value, c.value, Single>;
        }
      });
    });
  }
};

template <class N>
using MultiplyChannels = void (*)(const Segment<N>*, const Segment<N>*, int64_t, int64_t, int64_t,
                                  const SumOf<N>*, SumOf<N>*, int64_t);

constexpr int kMaxPositions = 14, kMaxChannelVectors = 2;

template <class N>
struct MultiplyChannelsTable {
  MultiplyChannels<N> entry[kMaxChannelVectors + 1][kMaxPositions + 1] = {};
  MultiplyChannels<N> two_rows[kMaxChannelVectors + 1][kMaxPositions + 1] = {};

  constexpr MultiplyChannelsTable() {
    unrolled<1, kMaxChannelVectors>([&](auto v) {
      unrolled<1, kMaxPositions>([&](auto p) {
        if constexpr (kMaxChannelVectors * p.value <= ACSCONV_ACCUMULATORS) {
          entry[v.value][p.value] = multiply_channels<N, v.value, p.value, 1>;
        }
        if constexpr (kMaxChannelVectors * 2 * p.value <= ACSCONV_ACCUMULATORS) {
          two_rows[v.value][p.value] = multiply_channels<N, v.value, p.value, 2>;
        }
      });
    });
  }
};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
