// Pairs of bfloat16 numbers, of neighbouring source channels, as single numbers of packed arrays: an
// instruction multiplies two of them, number by number, and adds both products to a sum. Where the compiler
// is not told of the instruction, plain products take its place, for the sanitizers. Like vec.h for sources
// compiled once per instruction set.
#pragma once

#include <cstdint>

#include "number.h"

namespace acsconv {
namespace ACSCONV_ISA {

using Pair = uint32_t;  // the first number in the low half

// What products of packed numbers N are added in.
template <class N>
struct SummedIn {
  using Type = N;
  static constexpr bool kPairs = false;
};
template <>
struct SummedIn<Pair> {
  using Type = float;
  static constexpr bool kPairs = true;
};
template <class N>
using SumOf = typename SummedIn<N>::Type;

// Not by the compiler's own function for it: through that one's types g++ 12 keeps arrays of sums in memory.
[[gnu::always_inline]] inline Vec<float> add_pairs(Vec<float> sum, Words left, Words right) {
#if defined(__AVX512BF16__) && ACSCONV_VECTOR_BYTES == 64
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(left), "v"(right));
  return sum;
#else
  sum += bits_as<Vec<float>>(left & 0xffff0000) * bits_as<Vec<float>>(right & 0xffff0000);
  return sum + bits_as<Vec<float>>(left << 16) * bits_as<Vec<float>>(right << 16);
#endif
}

// sum + left * right
template <class N>
[[gnu::always_inline]] inline Vec<SumOf<N>> add_product(Vec<SumOf<N>> sum, Vec<N> left, Vec<N> right) {
  if constexpr (SummedIn<N>::kPairs) {
    return add_pairs(sum, left, right);
  } else {
    return sum + left * right;
  }
}

// A pair as it lies in a tensor whose channels are adjacent.
struct AdjacentPair {
  uint16_t first, second;
};

[[gnu::always_inline]] inline Pair widen(AdjacentPair pair) {
  return pair.first | static_cast<Pair>(pair.second) << 16;
}

[[gnu::always_inline]] inline Words load_wide(const AdjacentPair* from) {
  Words pairs;
  __builtin_memcpy(&pairs, from, sizeof(pairs));
  return pairs;
}

// Points to pairs of numbers that lie `distance` apart, as an ordinary pointer does to the first of them.
struct PairsApart {
  const uint16_t* first;
  int64_t distance;

  PairsApart operator+(int64_t numbers) const { return {first + numbers, distance}; }
  PairsApart& operator+=(int64_t numbers) { return first += numbers, *this; }
  int64_t operator-(const PairsApart& other) const { return first - other.first; }
  AdjacentPair operator[](int64_t i) const { return {first[i], first[i + distance]}; }
};

[[gnu::always_inline]] inline Words load_wide(const PairsApart& from) {
  const auto half = [](const uint16_t* numbers) __attribute__((always_inline)) {
    return __builtin_convertvector(*reinterpret_cast<const UnalignedShortWords*>(numbers), Words);
  };
  return half(from.first) | half(from.first + from.distance) << 16;
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
