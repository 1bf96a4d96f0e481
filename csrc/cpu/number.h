// Numbers as tensors store them and as kernels compute with them: float and double are both; 16-bit numbers
// are widened to float where a plane is packed, and rounded to nearest even where a result is written.
//
// Conversions are made of integer operations, so that they need neither a processor nor a compiler that knows
// the types, and vectors convert as single numbers do. Like vec.h for sources compiled once per instruction
// set.
#pragma once

#include <cstdint>

#include "vec.h"

namespace acsconv {
namespace ACSCONV_ISA {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// What numbers of type S are computed in.
template <class S>
struct ComputedIn {
  using Type = float;
};
template <>
struct ComputedIn<double> {
  using Type = double;
};
template <class S>
using Computed = typename ComputedIn<S>::Type;

typedef uint32_t Words __attribute__((vector_size(ACSCONV_VECTOR_BYTES)));
typedef uint16_t ShortWords __attribute__((vector_size(ACSCONV_VECTOR_BYTES / 2)));
typedef uint16_t UnalignedShortWords
    __attribute__((vector_size(ACSCONV_VECTOR_BYTES / 2), aligned(2), may_alias));

template <class To, class From>
[[gnu::always_inline]] inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// All bits where the condition holds, as comparisons of vectors have it.
[[gnu::always_inline]] inline uint32_t mask_of(bool condition) { return condition ? ~uint32_t{0} : 0; }
template <class Comparison>
[[gnu::always_inline]] inline Words mask_of(Comparison condition) {
  return bits_as<Words>(condition);
}

// W is uint32_t and F float, or W is Words and F Vec<float>.
template <class F, class W>
[[gnu::always_inline]] inline F widen_bits(W bits, BFloat16) {
  return bits_as<F>(bits << 16);
}

template <class F, class W>
[[gnu::always_inline]] inline F widen_bits(W bits, Half) {
  const W magnitude = bits & 0x7fff;
  // As the bits of a float the exponent is 112 too small; subnormal numbers come right by the same product.
  const W finite = bits_as<W>(bits_as<F>(magnitude << 13) * 0x1p112f);
  const W infinite = mask_of(magnitude >= 0x7c00) & 0x7f800000;
  return bits_as<F>(finite | infinite | (bits & 0x8000) << 16);
}

template <class W, class F>
[[gnu::always_inline]] inline W narrow_bits(F value, BFloat16) {
  const W bits = bits_as<W>(value);
  const W nan = mask_of((bits & 0x7fffffff) > 0x7f800000);
  const W rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (rounded & ~nan) | (nan & 0x7fc0);
}

template <class W, class F>
[[gnu::always_inline]] inline W narrow_bits(F value, Half) {
  const W bits = bits_as<W>(value);
  const W magnitude = bits & 0x7fffffff;
  const W normal = (magnitude - (uint32_t{112} << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Adding a half makes the addition itself round a subnormal result.
  const W subnormal = bits_as<W>(bits_as<F>(magnitude) + 0.5f) - 0x3f000000;
  const W is_subnormal = mask_of(magnitude < 0x38800000);
  const W is_large = mask_of(magnitude >= 0x477ff000);  // 65520 and more round to infinity
  const W large = 0x7c00 | (mask_of(magnitude > 0x7f800000) & 0x0200);
  const W finite = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  return (finite & ~is_large) | (large & is_large) | (bits >> 16 & 0x8000);
}

// One number.
[[gnu::always_inline]] inline float widen(float value) { return value; }
[[gnu::always_inline]] inline double widen(double value) { return value; }
template <class S>
[[gnu::always_inline]] inline float widen(S value) {
  return widen_bits<float, uint32_t>(value.bits, S{});
}

template <class S, class T>
[[gnu::always_inline]] inline S narrow(T value) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return value;
  } else {
    return S{static_cast<uint16_t>(narrow_bits<uint32_t, float>(value, S{}))};
  }
}

// A vector of kLanes<Computed<S>> numbers.
template <class S>
[[gnu::always_inline]] inline Vec<Computed<S>> load_wide(const S* from) {
  if constexpr (sizeof(S) == sizeof(Computed<S>)) {
    return load<S>(from);
  } else {
    const ShortWords bits = *reinterpret_cast<const UnalignedShortWords*>(from);
    return widen_bits<Vec<float>, Words>(__builtin_convertvector(bits, Words), S{});
  }
}

template <class S>
[[gnu::always_inline]] inline void store_narrow(S* to, Vec<Computed<S>> value) {
  if constexpr (sizeof(S) == sizeof(Computed<S>)) {
    store<S>(to, value);
  } else {
    const Words bits = narrow_bits<Words, Vec<float>>(value, S{});
    *reinterpret_cast<UnalignedShortWords*>(to) = __builtin_convertvector(bits, ShortWords);
  }
}

// to[i] = from[2 * i] for i < n, where `from` has `available` numbers.
template <class T, class From>
[[gnu::always_inline]] inline void copy_every_other(T* to, From from, int64_t n, int64_t available) {
  constexpr int lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + lanes <= n && 2 * (i + lanes) <= available; i += lanes) {
    store<T>(to + i, every_other<T, 0>(load_wide(from + 2 * i), load_wide(from + 2 * i + lanes),
                                       typename MakeIndices<lanes>::Type{}));
  }
  if (i + lanes / 2 <= n && 2 * i + lanes <= available) {
    const Vec<T> half =
        every_other<T, 0>(load_wide(from + 2 * i), Vec<T>{}, typename MakeIndices<lanes>::Type{});
    __builtin_memcpy(to + i, &half, sizeof(half) / 2);
    i += lanes / 2;
  }
  for (; i < n; ++i) to[i] = widen(from[2 * i]);
}

// Copies n numbers, n often small: no call.
template <class S>
[[gnu::always_inline]] inline void copy_wide(Computed<S>* to, const S* from, int64_t n) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  if (n < lanes) {
    for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
    return;
  }
  for (int64_t i = 0; i + lanes <= n; i += lanes) store<T>(to + i, load_wide(from + i));
  if (n % lanes != 0) store<T>(to + n - lanes, load_wide(from + n - lanes));
}

template <class S>
[[gnu::always_inline]] inline void copy_narrow(S* to, const Computed<S>* from, int64_t n) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  if (n < lanes) {
    for (int64_t i = 0; i < n; ++i) to[i] = narrow<S>(from[i]);
    return;
  }
  for (int64_t i = 0; i + lanes <= n; i += lanes) store_narrow(to + i, load<T>(from + i));
  if (n % lanes != 0) store_narrow(to + n - lanes, load<T>(from + n - lanes));
}

// to[2 * i] = even[i], to[2 * i + 1] = odd[i], `n` numbers in all.
template <class S>
[[gnu::always_inline]] inline void interleave_narrow(S* to, const Computed<S>* even, const Computed<S>* odd,
                                                     int64_t n) {
  using T = Computed<S>;
  constexpr int lanes = kLanes<T>;
  int64_t i = 0;
  for (; 2 * (i + lanes) <= n; i += lanes) {
    const Vec<T> a = load<T>(even + i), b = load<T>(odd + i);
    store_narrow(to + 2 * i, interleaved<T, 0>(a, b, typename MakeIndices<lanes>::Type{}));
    store_narrow(to + 2 * i + lanes, interleaved<T, lanes / 2>(a, b, typename MakeIndices<lanes>::Type{}));
  }
  for (; 2 * i < n; ++i) {
    to[2 * i] = narrow<S>(even[i]);
    if (2 * i + 1 < n) to[2 * i + 1] = narrow<S>(odd[i]);
  }
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
