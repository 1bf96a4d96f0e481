// Vectors of numbers in the compiler's own extension, so that one source serves every instruction set.
// Included only by sources that are compiled once per instruction set, each time in a namespace of their own.
//
// ACSCONV_VECTOR_BYTES and ACSCONV_ACCUMULATORS come from the build and say what a register holds and how
// many there are to accumulate in.
#pragma once

namespace acsconv {
namespace ACSCONV_ISA {

template <class T>
struct Vector {
  static constexpr int kLanes = ACSCONV_VECTOR_BYTES / sizeof(T);
  typedef T Type __attribute__((vector_size(ACSCONV_VECTOR_BYTES)));
  typedef T Unaligned __attribute__((vector_size(ACSCONV_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};

template <class T>
using Vec = typename Vector<T>::Type;

template <class T>
inline constexpr int kLanes = Vector<T>::kLanes;

template <class T>
[[gnu::always_inline]] inline Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::Unaligned*>(from);
}

template <class T>
[[gnu::always_inline]] inline void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename Vector<T>::Unaligned*>(to) = value;
}

template <class T>
[[gnu::always_inline]] inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

// Calls body(0) to body(Count - 1) with constants, so that arrays of vectors stay in registers.
template <int Value>
struct Constant {
  static constexpr int value = Value;
  constexpr operator int() const { return Value; }
};

template <int Begin, int Count, class Body>
[[gnu::always_inline]] constexpr void unrolled(Body&& body) {
  if constexpr (Count == 1) {
    body(Constant<Begin>{});
  } else if constexpr (Count > 1) {
    unrolled<Begin, Count / 2>(body);
    unrolled<Begin + Count / 2, Count - Count / 2>(body);
  }
}

template <int... Index>
struct Indices {};

template <int Count, int... Index>
struct MakeIndices : MakeIndices<Count - 1, Count - 1, Index...> {};

template <int... Index>
struct MakeIndices<0, Index...> {
  using Type = Indices<Index...>;
};

// One exchange of a transposition: the odd blocks of `step` lanes of `a` trade places with the even ones of
// `b`.
template <int Step, class T, int... Lane>
[[gnu::always_inline]] inline void exchange(Vec<T>& a, Vec<T>& b, Indices<Lane...>) {
  constexpr int lanes = sizeof...(Lane);
#if defined(__clang__) || __GNUC__ >= 12
  const Vec<T> low = __builtin_shufflevector(a, b, ((Lane & Step) ? lanes + Lane - Step : Lane)...);
  const Vec<T> high = __builtin_shufflevector(a, b, ((Lane & Step) ? lanes + Lane : Lane + Step)...);
#else
  using Integer = decltype(a < b);
  const Vec<T> low = __builtin_shuffle(a, b, Integer{((Lane & Step) ? lanes + Lane - Step : Lane)...});
  const Vec<T> high = __builtin_shuffle(a, b, Integer{((Lane & Step) ? lanes + Lane : Lane + Step)...});
#endif
  a = low;
  b = high;
}

// Transposes a square of numbers in registers.
template <class T, int Step = kLanes<T> / 2>
[[gnu::always_inline]] inline void transpose(Vec<T> (&rows)[kLanes<T>]) {
  unrolled<0, kLanes<T>>([&](auto i) {
    if constexpr ((i.value & Step) == 0) {
      exchange<Step, T>(rows[i.value], rows[i.value + Step], typename MakeIndices<kLanes<T>>::Type{});
    }
  });
  if constexpr (Step > 1) transpose<T, Step / 2>(rows);
}

// The even lanes of two vectors that lie behind one another in memory, or the odd ones.
template <class T, int First, int... Lane>
[[gnu::always_inline]] inline Vec<T> every_other(Vec<T> a, Vec<T> b, Indices<Lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (2 * Lane + First)...);
#else
  using Integer = decltype(a < b);
  return __builtin_shuffle(a, b, Integer{(2 * Lane + First)...});
#endif
}

// The lanes of two vectors in turns, from lane First of both on, as many as fit into one.
template <class T, int First, int... Lane>
[[gnu::always_inline]] inline Vec<T> interleaved(Vec<T> a, Vec<T> b, Indices<Lane...>) {
  constexpr int lanes = sizeof...(Lane);
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (Lane / 2 + First + (Lane % 2) * lanes)...);
#else
  using Integer = decltype(a < b);
  return __builtin_shuffle(a, b, Integer{(Lane / 2 + First + (Lane % 2) * lanes)...});
#endif
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
