// The weights of a block of the gather kernel, in the order in which it reads them. Like vec.h for sources
// compiled once per instruction set; walk.cpp hands it to gather_pass.cpp.
//
// A slice of a part is packed as [tap][channel][width]. Squares of target channels and adjacent weights are
// transposed in registers: of all source channels in the forward pass, where the weights of the next one
// follow, and of one source channel after the other in the gradient of the input.
#pragma once

#include "vec.h"
#include "walk.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Where the weights of a tap lie, see Part, and where they are packed.
template <class T>
struct Slice {
  const T* from;  // the first source and target channel's
  int64_t channels;
  T* to;

  T* row(const Block& block, int64_t tap, int64_t channel) const {
    return to + (tap * channels + channel) * block.width;
  }
};

// Loads the weights from `from` on of target channels `first` and following, and transposes them: a vector of
// target channels for each weight.
template <class T>
[[gnu::always_inline]] inline void load_square(const Walk& walk, const Block& block, int64_t first,
                                               const T* from, Vec<T> (&square)[kLanes<T>]) {
  const int64_t rows = block.out_count - first;
  const T* p = from + first * walk.weight_out;
  unrolled<0, kLanes<T>>(
      [&](auto i) { square[i.value] = i.value < rows ? load<T>(p + i.value * walk.weight_out) : Vec<T>{}; });
  transpose<T>(square);
}

template <class T>
[[gnu::always_inline]] inline void store_row(const Block& block, const Slice<T>& slice, int64_t tap,
                                             int64_t channel, int64_t first, const Vec<T>& row) {
  constexpr int lanes = kLanes<T>;
  T* q = slice.row(block, tap, channel) + first;
  // A store may reach into the numbers of the tap's next channels, which are written later.
  const bool fits = first == 0 && (slice.channels - channel) * block.width >= lanes;
  if (fits || block.width - first >= lanes) {
    store<T>(q, row);
  } else {
    for (int64_t o = 0; o < block.width - first; ++o) q[o] = row[o];
  }
}

// The weights of all taps, then those of the next source channel, are adjacent; at least a vector of them.
template <class T>
void pack_channels_in_order(const Walk& walk, const Block& block, const Slice<T>& slice) {
  constexpr int lanes = kLanes<T>;
  const int64_t taps = walk.weight_in, numbers = slice.channels * taps;
  for (int64_t first = 0; first < block.width; first += lanes) {
    for (int64_t next = 0; next < numbers; next += lanes) {
      // The last square overlaps the one before it rather than read past the numbers.
      const int64_t begin = next + lanes <= numbers ? next : numbers - lanes;
      Vec<T> square[lanes];
      load_square(walk, block, first, slice.from + begin, square);
      int64_t channel = begin / taps, tap = begin % taps;
      for (const Vec<T>& row : square) {
        store_row(block, slice, tap, channel, first, row);
        if (++tap == taps) tap = 0, ++channel;
      }
    }
  }
}

// All source channels but the last, beyond which loads could leave the tensor.
template <class T>
void pack_channels_but_last(const Walk& walk, const Block& block, const TapWeights* tap,
                            const TapWeights* tap_end, const Slice<T>& slice) {
  constexpr int lanes = kLanes<T>;
  for (int64_t first = 0; first < block.width; first += lanes) {
    for (int64_t channel = 0; channel + 1 < slice.channels; ++channel) {
      for (int64_t begin = 0; begin < walk.weight_out; begin += lanes) {
        Vec<T> square[lanes];
        load_square(walk, block, first, slice.from + channel * walk.weight_in + begin, square);
        for (const TapWeights* t = tap; t != tap_end; ++t) {
          const int64_t place = t->place[0] - begin;
          if (place >= 0 && place < lanes) store_row(block, slice, t - tap, channel, first, square[place]);
        }
      }
    }
  }
}

template <class T>
void pack_channel(const Walk& walk, const Block& block, const TapWeights* tap, const TapWeights* tap_end,
                  const Slice<T>& slice, int64_t channel) {
  for (const TapWeights* t = tap; t != tap_end; ++t) {
    const T* from = slice.from + channel * walk.weight_in;
    T* to = slice.row(block, t - tap, channel);
    for (int32_t o = 0; o < block.out_count; ++o, from += walk.weight_out) {
      T sum = from[t->place[0]];
      for (int32_t i = 1; i < t->count; ++i) sum += from[t->place[i]];
      to[o] = sum;
    }
    for (int32_t o = block.out_count; o < block.width; ++o) to[o] = 0;
  }
}

// Where less than a quarter of their rows are needed, squares cost more than they save.
template <class T>
void pack_weights(const Walk& walk, const Block& block, const void* weight, void* packed) {
  constexpr int lanes = kLanes<T>;
  T* to = static_cast<T*>(packed);
  for (int32_t index = block.part_begin; index < block.part_end; ++index) {
    const Part& part = walk.parts[index];
    const TapWeights *tap = walk.tap_weights + part.tap_begin, *tap_end = walk.tap_weights + part.tap_end;
    bool single = true, in_order = tap_end - tap == walk.weight_in;
    for (const TapWeights* t = tap; t != tap_end; ++t) {
      single &= t->count == 1 && t->place[0] < walk.weight_out;
      in_order &= single && t->place[0] == t - tap;
    }
    for (int64_t begin = 0; begin < part.in_count; begin += walk.channel_slice) {
      const int64_t left = part.in_count - begin;
      const Slice<T> slice{static_cast<const T*>(weight) + walk.part_weights[index] + begin * walk.weight_in,
                           left < walk.channel_slice ? left : walk.channel_slice, to};
      int64_t packed_channels = 0;
      if (in_order && slice.channels * walk.weight_in >= lanes) {
        pack_channels_in_order(walk, block, slice);
        packed_channels = slice.channels;
      } else if (single && walk.weight_out < walk.weight_in && walk.weight_in >= lanes &&
                 (walk.weight_out + lanes - 1) / lanes * lanes <= 4 * (tap_end - tap)) {
        pack_channels_but_last(walk, block, tap, tap_end, slice);
        packed_channels = slice.channels - 1;
      }
      for (; packed_channels < slice.channels; ++packed_channels) {
        pack_channel(walk, block, tap, tap_end, slice, packed_channels);
      }
      to += (tap_end - tap) * slice.channels * block.width;
    }
  }
}

}  // namespace ACSCONV_ISA
}  // namespace acsconv
