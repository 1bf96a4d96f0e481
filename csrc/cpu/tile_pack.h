// Between tensors and the arrays of the tile kernel (tile_walk.cpp), as pack.h for the others. Numbers of the
// source keep their 16 bits.
#pragma once

#include "places.h"
#include "tile.h"
#include "tile_walk.h"

namespace acsconv {
namespace ACSCONV_ISA {

// Copies n numbers, n often small: no call.
[[gnu::always_inline]] inline void copy_short(uint16_t* to, const uint16_t* from, int64_t n) {
  constexpr int lanes = kLanes<uint16_t>;
  auto ends = [&](auto size) {  // two copies that may overlap
    __builtin_memcpy(to, from, 2 * size.value);
    __builtin_memcpy(to + n - size.value, from + n - size.value, 2 * size.value);
  };
  if (n >= lanes) {
    for (int64_t i = 0; i + lanes <= n; i += lanes) store<uint16_t>(to + i, load<uint16_t>(from + i));
    if (n % lanes != 0) store<uint16_t>(to + n - lanes, load<uint16_t>(from + n - lanes));
  } else if (n >= 16) {
    ends(Constant<16>{});
  } else if (n >= 8) {
    ends(Constant<8>{});
  } else if (n >= 4) {
    ends(Constant<4>{});
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  }
}

// Numbers of one row, `voxel_stride` apart in memory, one in the low half of each lane.
[[gnu::always_inline]] inline Words load_short(const uint16_t* from, int64_t voxel_stride, int64_t voxels) {
  if (voxel_stride == 1) return load_first<1>(from, voxels);
  if (voxel_stride == 2) return load_first<2>(from, voxels);
  Words numbers{};
  for (int64_t i = 0; i < voxels; ++i) numbers[i] = from[i * voxel_stride];
  return numbers;
}

// One row of a panel as [position][channel]. Squares of pairs of channels are transposed; the last vector of
// a position reaches into the next one, which is written after it.
inline void pack_tile_row(uint16_t* to, int64_t channels, const uint16_t* from, int64_t channel_stride,
                          int64_t voxel_stride, int64_t count) {
  if (channel_stride == 1 && voxel_stride == channels) return copy_short(to, from, count * channels);
  if (channel_stride == 1) {
    for (int64_t w = 0; w < count; ++w) copy_short(to + w * channels, from + w * voxel_stride, channels);
    return;
  }
  constexpr int lanes = kLanes<uint32_t>;
  for (int64_t w = 0; w < count; w += lanes) {
    const int64_t voxels = count - w < lanes ? count - w : lanes;
    for (int64_t c = (channels - 1) / (2 * lanes) * (2 * lanes); c >= 0; c -= 2 * lanes) {
      auto load_channel = [&](int64_t channel) {
        return channel < channels
                   ? load_short(from + w * voxel_stride + channel * channel_stride, voxel_stride, voxels)
                   : Words{};
      };
      Words square[lanes];
      unrolled<0, lanes>([&](auto i) {
        square[i.value] = load_channel(c + 2 * i.value) | load_channel(c + 2 * i.value + 1) << 16;
      });
      transpose<uint32_t>(square);
      unrolled<0, lanes>([&](auto i) {
        if (i.value < voxels) {
          __builtin_memcpy(to + (w + i.value) * channels + c, &square[i.value], sizeof(Words));
        }
      });
    }
  }
}

// The numbers of two vectors in turns, within each 16 bytes: those of their low halves, or of the high ones.
template <int First, int... Lane>
[[gnu::always_inline]] inline Words pairs_of_halves(Vec<uint16_t> a, Vec<uint16_t> b, Indices<Lane...>) {
  constexpr int lanes = sizeof...(Lane);
#if defined(__clang__) || __GNUC__ >= 12
  return bits_as<Words>(
      __builtin_shufflevector(a, b, (Lane / 8 * 8 + First + Lane % 8 / 2 + Lane % 2 * lanes)...));
#else
  return bits_as<Words>(
      __builtin_shuffle(a, b, Vec<uint16_t>{(Lane / 8 * 8 + First + Lane % 8 / 2 + Lane % 2 * lanes)...}));
#endif
}

// All rows of a panel, to the places of their voxels, in two squares of pairs of channels: one has the first
// four voxels of every eight, the other the last four. What lies behind a position is written after it, or is
// zero.
inline void pack_tile_plane(const PlanePlaces& places, const uint16_t* plane, int64_t channel_stride,
                            int64_t channels, uint16_t* to) {
  constexpr int lanes = kLanes<uint32_t>, voxels = 2 * lanes;
  using All = typename MakeIndices<voxels>::Type;
  for (int64_t next = 0; next < places.count; next += voxels) {
    // The last squares overlap those before them rather than read past the plane.
    const int64_t v = next + voxels <= places.count ? next : places.count - voxels;
    const int32_t* place = places.place + v;
    for (int64_t c = (channels - 1) / voxels * voxels; c >= 0; c -= voxels) {
      const uint16_t* from = plane + places.first + v + c * channel_stride;
      auto load_channel = [&](int64_t channel) {
        return c + channel < channels ? load<uint16_t>(from + channel * channel_stride) : Vec<uint16_t>{};
      };
      Words low[lanes], high[lanes];
      unrolled<0, lanes>([&](auto i) {
        const Vec<uint16_t> even = load_channel(2 * i.value), odd = load_channel(2 * i.value + 1);
        low[i.value] = pairs_of_halves<0>(even, odd, All{});
        high[i.value] = pairs_of_halves<4>(even, odd, All{});
      });
      transpose<uint32_t>(low);
      transpose<uint32_t>(high);
      unrolled<0, voxels>([&](auto i) {
        constexpr int in_square = i.value / 8 * 4 + i.value % 4;
        const Words& pairs = i.value % 8 < 4 ? low[in_square] : high[in_square];
        if (place[i.value] >= 0) __builtin_memcpy(to + place[i.value] * channels + c, &pairs, sizeof(Words));
      });
    }
  }
}

// Packs the channels of one panel, see TileWalk; `places` where find_places found them, else null.
inline void pack_tile_panel(const Packing& packing, const PlanePlaces* places, const uint16_t* plane,
                            int64_t channels, int64_t row_begin, int64_t rows, int64_t positions,
                            uint16_t* to) {
  const int64_t channel_stride = packing.source.channel;
  if (places != nullptr) {
    pack_tile_plane(*places, plane, channel_stride, channels, to);
    pack_zeros(packing, plane, row_begin, rows, channels, positions, to);
  } else {
    pack_positions(packing, plane, row_begin, rows, channels, positions, to,
                   [&](uint16_t* row, const uint16_t* from, int64_t voxel_stride, int64_t count, int64_t) {
                     pack_tile_row(row, channels, from, channel_stride, voxel_stride, count);
                   });
  }
  fill_zero(to + packing.phase_count * positions * channels, kTileDepth);
}

// See TileKernel::transpose.
inline void transpose_weights(const uint16_t* from, int64_t stride, int64_t channels, int64_t numbers,
                              uint16_t* to) {
  constexpr int lanes = kLanes<uint32_t>;
  for (int64_t next = 0; next < numbers; next += 2 * lanes) {
    const int64_t k = next + 2 * lanes <= numbers ? next : numbers - 2 * lanes;
    for (int64_t o = 0; o < kTileColumns; o += lanes) {
      Words square[lanes];
      unrolled<0, lanes>([&](auto i) {
        square[i.value] = Words{};
        if (o + i.value < channels)
          __builtin_memcpy(&square[i.value], from + (o + i.value) * stride + k, sizeof(Words));
      });
      transpose<uint32_t>(square);
      unrolled<0, 2 * lanes>([&](auto i) {
        const Words numbers_of_pair = square[i.value / 2] >> (i.value % 2 * 16) & 0xffff;
        *reinterpret_cast<UnalignedShortWords*>(to + (k + i.value) * kTileColumns + o) =
            __builtin_convertvector(numbers_of_pair, ShortWords);
      });
    }
  }
}

// Adds the bias to sums[voxels][width] and stages them as [channel][voxel].
inline void stage_tiles(const float* sums, int64_t width, int64_t channels, int64_t voxels, const float* bias,
                        float* stage, int64_t stage_channel) {
  constexpr int lanes = kLanes<float>;
  for (int64_t c = 0; c < channels; c += lanes) {
    const int64_t count = channels - c < lanes ? channels - c : lanes;
    for (int64_t v = 0; v < voxels; v += lanes) {
      Vec<float> square[lanes];
      unrolled<0, lanes>([&](auto i) { square[i.value] = load<float>(sums + (v + i.value) * width + c); });
      transpose<float>(square);
      unrolled<0, lanes>([&](auto i) {
        if (i.value < count) {
          store<float>(stage + (c + i.value) * stage_channel + v,
                       square[i.value] + broadcast(bias[c + i.value]));
        }
      });
    }
  }
}

// Whether sums go to the target without being staged: where its channels are adjacent.
inline bool writes_tiles_directly(const TileWalk& walk) {
  return walk.target.channel == 1 && walk.target.column != 1;
}

// Writes the sums of one plane of a strip, in the flat order of its voxels, into a target whose channels are
// adjacent.
class TileTarget {
 public:
  // `target` points to the first channel that is written, in the sample's first voxel.
  TileTarget(const TileWalk& walk, const Task& task, int64_t residue, int64_t column_class, int64_t plane,
             BFloat16* target)
      : pitch_(walk.packing.pitch),
        column_stride_(walk.out_stride[2] * walk.target.column),
        row_stride_(walk.out_stride[1] * walk.target.row) {
    const int64_t plane_class = residue / walk.classes[1], row_class = residue % walk.classes[1];
    const int64_t position = plane * walk.out_stride[0] + plane_class;
    const int64_t row = task.row_begin * walk.out_stride[1] + row_class;
    columns_ = (walk.out_size[2] - column_class + walk.out_stride[2] - 1) / walk.out_stride[2];
    const int64_t rows_left = (walk.out_size[1] - row + walk.out_stride[1] - 1) / walk.out_stride[1];
    const int64_t rows = task.row_end - task.row_begin;
    rows_ = position >= walk.out_size[0] ? 0 : rows < rows_left ? rows : rows_left;
    to_ = target + position * walk.target.plane + row * walk.target.row + column_class * walk.target.column;
  }

  // Fetches what the next voxels will be written to, while their sums are made.
  void prefetch(int64_t voxels) const {
    const BFloat16* to = to_ + row_ * row_stride_ + column_ * column_stride_;
    for (int64_t i = 0; i < voxels; ++i) __builtin_prefetch(to + i * column_stride_, 1);
  }

  // Adds the bias to the sums of the next voxels.
  void write(const float* sums, int64_t width, int64_t channels, int64_t voxels, const float* bias) {
    for (int64_t v = 0; v < voxels && row_ < rows_;) {
      const int64_t left = columns_ - column_ < voxels - v ? columns_ - column_ : voxels - v;
      BFloat16* to = to_ + row_ * row_stride_ + column_ * column_stride_;
      for (int64_t i = 0; i < left; ++i) {
        write_voxel(to + i * column_stride_, sums + (v + i) * width, channels, bias);
      }
      // The rest of the row are positions between it and the next one.
      const int64_t to_next = pitch_ - column_ < voxels - v ? pitch_ - column_ : voxels - v;
      v += to_next, column_ += to_next;
      if (column_ == pitch_) column_ = 0, ++row_;
    }
  }

 private:
  [[gnu::always_inline]] static void write_voxel(BFloat16* to, const float* sums, int64_t channels,
                                                 const float* bias) {
    constexpr int lanes = kLanes<float>;
    for (int64_t c = 0; c < channels; c += lanes) {
      const int64_t left = channels - c;
      store_first(to + c, load<float>(sums + c) + load<float>(bias + c), left < lanes ? left : lanes);
    }
  }

  int64_t pitch_, column_stride_, row_stride_, columns_, rows_;
  BFloat16* to_;
  int64_t row_ = 0, column_ = 0;
};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
