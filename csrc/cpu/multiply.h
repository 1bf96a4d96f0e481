// The innermost loops of the kernels that gather, walk.cpp and pointwise.cpp: sums of products in registers,
// with vectors over voxels or over target channels, one function for every shape of block. Like vec.h for
// sources compiled once per instruction set.
#pragma once

#include <cstdint>

#include "vec.h"

namespace acsconv {
namespace ACSCONV_ISA {

// One run of the reduction: `count` source channels of one tap.
template <class T>
struct Segment {
  const T* x;        // the source that the strip's first target voxel reads, in the first of the channels
  const T* weights;  // [channel][out_count]
  int64_t count;
};

// The length of one chain of additions; a segment, at most Walk::channel_slice products, is not cut.
constexpr int64_t kTermsPerSum = 64;

// Adds the segments to Vectors * lanes targets of Channels target channels: to the bias, if there is one, or
// to what `out` holds. The first vector begins at flat voxel index `voxel`, the next one `spacing` further.
// Single: every segment is one channel, as in a depthwise layer.
template <class T, int Vectors, int Channels, bool Single>
[[gnu::noinline]] void multiply(const Segment<T>* segment, const Segment<T>* end, int64_t voxel,
                                int64_t spacing, int64_t channel_stride, const T* bias, T* out,
                                int64_t out_stride) {
  Vec<T> sum[Channels][Vectors];
  unrolled<0, Channels>(
      [&](auto c) { unrolled<0, Vectors>([&](auto v) { sum[c.value][v.value] = broadcast(T(0)); }); });
  for (; segment != end; ++segment) {
    const T* x = segment->x + voxel;
    const T* w = segment->weights;
    for (int64_t left = Single ? 1 : segment->count; left > 0; --left, x += channel_stride, w += Channels) {
      Vec<T> voxels[Vectors];
      unrolled<0, Vectors>([&](auto v) { voxels[v.value] = load<T>(x + v.value * spacing); });
      unrolled<0, Channels>([&](auto c) {
        const Vec<T> weight = broadcast(w[c.value]);
        unrolled<0, Vectors>([&](auto v) { sum[c.value][v.value] += voxels[v.value] * weight; });
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
template <class T, int Vectors, int Positions, int Rows>
[[gnu::noinline]] void multiply_channels(const Segment<T>* segment, const Segment<T>* end, int64_t voxel,
                                         int64_t pitch, int64_t channel_stride, const T* bias, T* out,
                                         int64_t out_stride) {
  constexpr int lanes = kLanes<T>;
  constexpr int targets = Rows * Positions;
  Vec<T> sum[targets][Vectors];
  unrolled<0, targets>(
      [&](auto p) { unrolled<0, Vectors>([&](auto v) { sum[p.value][v.value] = broadcast(T(0)); }); });
  for (; segment != end; ++segment) {
    const T* x = segment->x + voxel;
    const T* w = segment->weights;
    for (int64_t left = segment->count; left > 0; --left, x += channel_stride, w += Vectors * lanes) {
      Vec<T> weights[Vectors];
      unrolled<0, Vectors>([&](auto v) { weights[v.value] = load<T>(w + v.value * lanes); });
      unrolled<0, targets>([&](auto p) {
        const Vec<T> source = broadcast(x[p.value / Positions * pitch + p.value % Positions]);
        unrolled<0, Vectors>([&](auto v) { sum[p.value][v.value] += weights[v.value] * source; });
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

template <class T>
using Multiply = void (*)(const Segment<T>*, const Segment<T>*, int64_t, int64_t, int64_t, const T*, T*,
                          int64_t);

constexpr int kMaxVectors = 4, kMaxChannels = 14, kMaxSingle = 2;

template <class T, bool Single>
struct MultiplyTable {
  Multiply<T> entry[kMaxVectors + 1][kMaxChannels + 1] = {};

  constexpr MultiplyTable() {
    unrolled<1, kMaxVectors>([&](auto v) {
      unrolled<1, Single ? kMaxSingle : kMaxChannels>([&](auto c) {
        if constexpr (v.value * c.value <= ACSCONV_ACCUMULATORS) {
          entry[v.value][c.value] = multiply<T, v.value, c.value, Single>;
        }
      });
    });
  }
};

template <class T>
using MultiplyChannels = void (*)(const Segment<T>*, const Segment<T>*, int64_t, int64_t, int64_t, const T*,
                                  T*, int64_t);

constexpr int kMaxPositions = 14, kMaxChannelVectors = 2;

template <class T>
struct MultiplyChannelsTable {
  MultiplyChannels<T> entry[kMaxChannelVectors + 1][kMaxPositions + 1] = {};
  MultiplyChannels<T> two_rows[kMaxChannelVectors + 1][kMaxPositions + 1] = {};

  constexpr MultiplyChannelsTable() {
    unrolled<1, kMaxChannelVectors>([&](auto v) {
      unrolled<1, kMaxPositions>([&](auto p) {
        if constexpr (kMaxChannelVectors * p.value <= ACSCONV_ACCUMULATORS) {
          entry[v.value][p.value] = multiply_channels<T, v.value, p.value, 1>;
        }
        if constexpr (kMaxChannelVectors * 2 * p.value <= ACSCONV_ACCUMULATORS) {
          two_rows[v.value][p.value] = multiply_channels<T, v.value, p.value, 2>;
        }
      });
    });
  }
};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
