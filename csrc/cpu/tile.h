// Tiles: eight registers of 16 rows of 64 bytes, two of which are multiplied into a third.
//
//   sum[16 rows][16 columns] += left[16 rows][32] * right[32][16 columns]
//
// in bfloat16, with sums in float; `right` lies in memory as [16][16 columns][2], pairs of its rows
// interleaved. With ACSCONV_AMX_TILES they are the processor's (AMX); otherwise loops over memory compute the
// same, for the sanitizers, which do not see what the processor's tiles load. Like vec.h for sources compiled
// once per instruction set.
#pragma once

#if defined(__AVX512BW__) && ACSCONV_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

#include "number.h"
#include "tile_walk.h"

namespace acsconv {
namespace ACSCONV_ISA {

#if defined(__AVX512BW__) && ACSCONV_VECTOR_BYTES == 64

// The first `count` <= 16 numbers, one in the low half of each lane, or every other number of twice as many;
// zeros in the other lanes.
template <int Step>
[[gnu::always_inline]] inline Words load_first(const uint16_t* from, int64_t count) {
  if constexpr (Step == 1) {
    const __m256i numbers = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), from);
    return __builtin_convertvector(bits_as<ShortWords>(numbers), Words);
  } else {
    const auto numbers = static_cast<__mmask32>((uint64_t{1} << (2 * count - 1)) - 1);
    return bits_as<Words>(_mm512_maskz_loadu_epi16(numbers, from)) & 0xffff;
  }
}

// Rounds the first `count` <= 16 lanes and stores them.
[[gnu::always_inline]] inline void store_first(BFloat16* to, Vec<float> value, int64_t count) {
  const Words bits = narrow_bits<Words, Vec<float>>(value, BFloat16{});
  const __m256i numbers = bits_as<__m256i>(__builtin_convertvector(bits, ShortWords));
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), numbers);
}

#else

template <int Step>
Words load_first(const uint16_t* from, int64_t count) {
  Words numbers{};
  for (int64_t i = 0; i < count; ++i) numbers[i] = from[i * Step];
  return numbers;
}

inline void store_first(BFloat16* to, Vec<float> value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = narrow<BFloat16>(value[i]);
}

#endif

#ifdef ACSCONV_AMX_TILES

// The tiles of the running thread; as long as it exists.
class Tiles {
 public:
  Tiles() {
    Configuration all{};
    all.palette = 1;
    for (int i = 0; i < 8; ++i) all.row_bytes[i] = 4 * kTileColumns, all.rows[i] = kTileRows;
    asm volatile("ldtilecfg %0" ::"m"(all));
  }
  Tiles(const Tiles&) = delete;
  ~Tiles() { asm volatile("tilerelease"); }

  template <int Tile>
  [[gnu::always_inline]] void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
  }

  // `stride` in bytes from row to row.
  template <int Tile>
  [[gnu::always_inline]] void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
  }

  template <int Tile>
  [[gnu::always_inline]] void store(float* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
  }

  template <int Sum, int Left, int Right>
  [[gnu::always_inline]] void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Left), "i"(Right));
  }

 private:
  struct Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
};

#else

class Tiles {
 public:
  template <int Tile>
  void zero() {
    __builtin_memset(sums_[Tile], 0, sizeof(sums_[Tile]));
  }

  template <int Tile>
  void load(const void* from, int64_t stride) {
    for (int r = 0; r < kTileRows; ++r) {
      __builtin_memcpy(factors_[Tile][r], static_cast<const char*>(from) + r * stride, 4 * kTileColumns);
    }
  }

  template <int Tile>
  void store(float* to, int64_t stride) {
    for (int r = 0; r < kTileRows; ++r) {
      __builtin_memcpy(reinterpret_cast<char*>(to) + r * stride, sums_[Tile][r], 4 * kTileColumns);
    }
  }

  template <int Sum, int Left, int Right>
  void multiply() {
    for (int r = 0; r < kTileRows; ++r) {
      for (int k = 0; k < kTileDepth; ++k) {
        const float left = widen(BFloat16{factors_[Left][r][k]});
        for (int c = 0; c < kTileColumns; ++c) {
          sums_[Sum][r][c] += left * widen(BFloat16{factors_[Right][k / 2][2 * c + k % 2]});
        }
      }
    }
  }

 private:
  float sums_[8][kTileRows][kTileColumns];
  uint16_t factors_[8][kTileRows][kTileDepth];
};

#endif

}  // namespace ACSCONV_ISA
}  // namespace acsconv
