// Between tensors and the arrays of the tile kernel (tile_walk.cpp), as pack.h for the others. Numbers of the
// source keep their 16 bits.
#pragma once

#include "pack.h"
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

// Packs the channels of one panel, see TileWalk.
inline void pack_tile_panel(const Packing& packing, const uint16_t* plane, int64_t channels,
                            int64_t row_begin, int64_t rows, int64_t positions, uint16_t* to) {
  pack_positions(packing, plane, row_begin, rows, channels, positions, to,
                 [&](uint16_t* row, const uint16_t* from, int64_t voxel_stride, int64_t count, int64_t) {
                   pack_tile_row(row, channels, from, packing.source.channel, voxel_stride, count);
                 });
  fill_zero(to + packing.phase_count * positions * channels, kTileDepth);
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
