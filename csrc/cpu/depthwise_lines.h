// The tiles of the depthwise kernels: outputs that follow one another along a view's row axis, a vector each,
// for all taps. Like vec.h for sources compiled once per instruction set.
//
//   sum[output] += weight[row tap] * source[output + row tap]      for every column tap
//
// A vector is 16 voxels of one channel or 16 channels of one voxel: here they differ in strides alone.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "depthwise_walk.h"
#include "number.h"
#include "vec.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Outputs of a line in registers, beside up to 7 weights and a source.
constexpr int kLine = ACSCONV_ACCUMULATORS < 24 ? 6 : kMostOutputs;

// What a tile reads: vectors at source + place * line + column tap * other, place = output + row tap.
template <class T>
struct LineSource {
  const T* source;
  int64_t line, other;
  const int32_t* inside;       // of masked tiles: -1 for every lane that lies inside the volume, else 0
  int64_t inside_other;        // from one column tap to the next
  int columns;                 // column taps that are read
  int place_begin, place_end;  // the others lie outside the volume and are not read
};

// The lanes of a vector that are read, where a tile is masked; what lies outside may be anything.
#ifdef __AVX512F__
template <class T>
using Inside = uint32_t;

template <class T>
[[gnu::always_inline]] inline Inside<T> load_inside(const int32_t* lanes) {
  if constexpr (sizeof(T) == 8) {
    return _mm256_movepi32_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
  } else {
    return _mm512_movepi32_mask(_mm512_loadu_si512(lanes));
  }
}

template <class T, bool Masked>
[[gnu::always_inline]] inline Vec<T> load_if(Inside<T> inside, const T* from) {
  if constexpr (!Masked) return load<T>(from);
  if constexpr (sizeof(T) == 8) return bits_as<Vec<T>>(_mm512_maskz_loadu_pd(inside, from));
  if constexpr (sizeof(T) == 4) return bits_as<Vec<T>>(_mm512_maskz_loadu_ps(inside, from));
}
#else
template <class T>
using Inside = decltype(Vec<T>{} < Vec<T>{});

template <class T>
[[gnu::always_inline]] inline Inside<T> load_inside(const int32_t* lanes) {
  Inside<T> inside;
  for (int i = 0; i < kLanes<T>; ++i) inside[i] = lanes[i];
  return inside;
}

template <class T, bool Masked>
[[gnu::always_inline]] inline Vec<T> load_if(const Inside<T>& inside, const T* from) {
  if constexpr (!Masked) return load<T>(from);
  return bits_as<Vec<T>>(bits_as<Inside<T>>(load<T>(from)) & inside);
}
#endif

// weights: a vector for each tap, [column tap][row tap].
template <class T, int Kernel, bool Masked, int Outputs>
[[gnu::noinline]] void line_outputs(const LineSource<T>& from, const T* weights, const T* bias, T* out,
                                    int64_t out_line) {
  constexpr int lanes = kLanes<T>;
  const T* source = from.source;
  const int64_t line = from.line;
  const int32_t* lanes_inside = from.inside;
  const int begin = from.place_begin, end = from.place_end;
  Vec<T> sum[Outputs];
  unrolled<0, Outputs>([&](auto o) { sum[o.value] = broadcast(T(0)); });
  for (int column = 0; column < from.columns; ++column, source += from.other, weights += Kernel * lanes) {
    Inside<T> inside{};
    if constexpr (Masked) inside = load_inside<T>(lanes_inside);
    lanes_inside += from.inside_other;
    Vec<T> weight[Kernel];
    unrolled<0, Kernel>([&](auto i) { weight[i.value] = load<T>(weights + i.value * lanes); });
    unrolled<0, Outputs + Kernel - 1>([&](auto place) {
      if (place.value < begin || place.value >= end) return;
      const Vec<T> x = load_if<T, Masked>(inside, source + place.value * line);
      unrolled<0, Kernel>([&](auto i) {
        constexpr int o = place.value - i.value;
        if constexpr (o >= 0 && o < Outputs) sum[o] += weight[i.value] * x;
      });
    });
  }
  const Vec<T> added = load<T>(bias);
  unrolled<0, Outputs>([&](auto o) { store<T>(out + o.value * out_line, sum[o.value] + added); });
}

// Adds to sums, a vector for each tap as above.
template <class T, int Kernel, bool Masked, int Outputs>
[[gnu::noinline]] void line_products(const LineSource<T>& from, const T* grad, int64_t grad_line, T* sums) {
  constexpr int lanes = kLanes<T>;
  const T* source = from.source;
  const int64_t line = from.line;
  const int32_t* lanes_inside = from.inside;
  const int begin = from.place_begin, end = from.place_end;
  Vec<T> g[Outputs];
  unrolled<0, Outputs>([&](auto o) { g[o.value] = load<T>(grad + o.value * grad_line); });
  for (int column = 0; column < from.columns; ++column, source += from.other, sums += Kernel * lanes) {
    Inside<T> inside{};
    if constexpr (Masked) inside = load_inside<T>(lanes_inside);
    lanes_inside += from.inside_other;
    Vec<T> sum[Kernel];
    unrolled<0, Kernel>([&](auto i) { sum[i.value] = load<T>(sums + i.value * lanes); });
    unrolled<0, Outputs + Kernel - 1>([&](auto place) {
      if (place.value < begin || place.value >= end) return;
      const Vec<T> x = load_if<T, Masked>(inside, source + place.value * line);
      unrolled<0, Kernel>([&](auto i) {
        constexpr int o = place.value - i.value;
        if constexpr (o >= 0 && o < Outputs) sum[i.value] += g[o] * x;
      });
    });
    unrolled<0, Kernel>([&](auto i) { store<T>(sums + i.value * lanes, sum[i.value]); });
  }
}

template <class T>
struct Lines {
  void (*outputs[kLine + 1])(const LineSource<T>&, const T*, const T*, T*, int64_t) = {};
  void (*products[kLine + 1])(const LineSource<T>&, const T*, int64_t, T*) = {};
};

template <class T, int Kernel, bool Masked>
constexpr Lines<T> lines_of() {
  Lines<T> lines;
  unrolled<1, kLine>([&](auto o) {
    lines.outputs[o.value] = line_outputs<T, Kernel, Masked, o.value>;
    lines.products[o.value] = line_products<T, Kernel, Masked, o.value>;
  });
  return lines;
}

template <class T, bool Masked>
const Lines<T>& lines_for(int64_t kernel) {
  static constexpr Lines<T> three = lines_of<T, 3, Masked>(), five = lines_of<T, 5, Masked>(),
                            seven = lines_of<T, 7, Masked>();
  return kernel == 3 ? three : kernel == 5 ? five : seven;
}

// Calls body(first, count) for pieces of at most kLine, as equal as can be.
template <class Body>
[[gnu::always_inline]] inline void for_each_piece(int64_t size, const Body& body) {
  const int64_t pieces = (size + kLine - 1) / kLine;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t begin = i * size / pieces;
    body(begin, (i + 1) * size / pieces - begin);
  }
}

[[gnu::always_inline]] inline int64_t clamped(int64_t value, int64_t least, int64_t most) {
  return value < least ? least : value > most ? most : value;
}

// The gradient of the weight of a vector: sums of some tiles, which are added to sums[1 + taps] before they
// become long chains of additions. The first of these is the sum of grad.
template <class T>
class TileSums {
 public:
  TileSums(T* sums, int64_t taps) : all_(sums), numbers_((1 + taps) * kLanes<T>) { clear(); }

  void add_grad(const T* grad, int64_t grad_line, int64_t outputs) {
    Vec<T> sum{};
    for (int64_t o = 0; o < outputs; ++o) sum += load<T>(grad + o * grad_line);
    store<T>(sums_, load<T>(sums_) + sum);
  }

  // Where to add the products of one more tile.
  T* next() {
    if (tiles_ == kTilesPerSum) add_up();
    ++tiles_;
    return sums_ + kLanes<T>;
  }

  // Once more at the end. Not the destructor's work: with one, an exception's handler comes into the object.
  void add_up() {
    for (int64_t i = 0; i < numbers_; i += kLanes<T>)
      store<T>(all_ + i, load<T>(all_ + i) + load<T>(sums_ + i));
    clear();
  }

 private:
  static constexpr int64_t kTilesPerSum = 64;

  void clear() {
    for (int64_t i = 0; i < numbers_; i += kLanes<T>) store<T>(sums_ + i, Vec<T>{});
    tiles_ = 0;
  }

  T* all_;
  int64_t numbers_, tiles_ = 0;
  T sums_[(1 + kMostTaps) * kLanes<T>];
};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
