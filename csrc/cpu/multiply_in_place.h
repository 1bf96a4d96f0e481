// The innermost loop of 1x1 layers between channels-last tensors: as multiply_channels in multiply.h, but the
// sources are not packed. One function for every shape of block; pointwise.cpp calls it. Like vec.h for
// sources compiled once per instruction set.
#pragma once

#include <cstdint>

#include "multiply.h"

namespace acsconv {
namespace ACSCONV_ISA {

// What is fetched meanwhile for each of `count` voxels: vectors that will be written, and numbers that will
// be read. One voxel with every source channel, because a burst of fetches makes the processor wait.
template <class T>
struct Fetched {
  const T *written, *read;
  int64_t written_stride, read_numbers, count;
};

// As multiply_channels, one row and one chain, where sources are read from a channels-last tensor: voxels are
// voxel_stride apart there and channels adjacent.
template <class T, int Vectors, int Positions>
[[gnu::noinline]] void multiply_in_place(const T* x, int64_t voxel_stride, const T* w, int64_t count,
                                         const T* bias, T* out, int64_t out_stride, const Fetched<T>* ahead) {
  constexpr int lanes = kLanes<T>;
  constexpr int kShared = 3;  // voxels of one pointer: there are too few registers for a pointer to each
  constexpr int pointers = (Positions + kShared - 1) / kShared;
  constexpr int64_t line = 64 / sizeof(T);
  const T* from[pointers];
  unrolled<0, pointers>([&](auto i) { from[i.value] = x + i.value * kShared * voxel_stride; });
  Vec<T> sum[Positions][Vectors];
  unrolled<0, Positions>(
      [&](auto p) { unrolled<0, Vectors>([&](auto v) { sum[p.value][v.value] = broadcast(T(0)); }); });
  const T *written = ahead->written, *read = ahead->read;
  for (int64_t to_fetch = ahead->count; count > 0; --count, w += Vectors * lanes) {
    if (to_fetch > 0) {
      unrolled<0, Vectors>([&](auto v) { __builtin_prefetch(written + v.value * lanes, 1, 2); });
      for (int64_t c = 0; c < ahead->read_numbers; c += line) __builtin_prefetch(read + c, 0, 2);
      written += ahead->written_stride, read += voxel_stride, --to_fetch;
    }
    Vec<T> weights[Vectors];
    unrolled<0, Vectors>([&](auto v) { weights[v.value] = load<T>(w + v.value * lanes); });
    unrolled<0, Positions>([&](auto p) {
      const Vec<T> source = broadcast(from[p.value / kShared][p.value % kShared * voxel_stride]);
      unrolled<0, Vectors>([&](auto v) { sum[p.value][v.value] += weights[v.value] * source; });
    });
    unrolled<0, pointers>([&](auto i) {
      ++from[i.value];
      asm volatile("" : "+r"(from[i.value]));
    });
  }
  unrolled<0, Positions>([&](auto p) {
    unrolled<0, Vectors>([&](auto v) {
      T* to = out + v.value * lanes;
      store<T>(to, sum[p.value][v.value] + load<T>(bias != nullptr ? bias + v.value * lanes : to));
    });
    out += out_stride;
    asm volatile("" : "+r"(out));
  });
}

template <class T>
struct MultiplyInPlaceTable {
  void (*entry[kMaxChannelVectors + 1][kMaxPositions + 1])(const T*, int64_t, const T*, int64_t, const T*, T*,
                                                           int64_t, const Fetched<T>*) = {};

  constexpr MultiplyInPlaceTable() {
    unrolled<1, kMaxChannelVectors>([&](auto v) {
      unrolled<1, kMaxPositions>([&](auto p) {
        if constexpr (kMaxChannelVectors * p.value <= ACSCONV_ACCUMULATORS) {
          entry[v.value][p.value] = multiply_in_place<T, v.value, p.value>;
        }
      });
    });
  }
};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
