// The table of compiled instruction sets, best first, and the choice among them.
#include "isa.h"

#include <cstdlib>
#include <cstring>

#ifdef ACSCONV_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace acsconv {

#define ACSCONV_OF_TYPES(name) &name##Float64, &name##Float32, &name##Float16, &name##BFloat16
#define ACSCONV_DECLARE(isa)                                                                                \
  namespace isa {                                                                                           \
  extern const Conversion kConvertFloat64, kConvertFloat32, kConvertFloat16, kConvertBFloat16;              \
  extern const WalkKernel kWalkFloat64, kWalkFloat32, kWalkFloat16, kWalkBFloat16;                          \
  extern const WeightKernel kOuterFloat64, kOuterFloat32, kOuterFloat16, kOuterBFloat16;                    \
  extern const DepthwiseKernel kDepthwiseFloat64, kDepthwiseFloat32, kDepthwiseFloat16, kDepthwiseBFloat16; \
  extern const WeightKernel kDotsFloat64, kDotsFloat32, kDotsFloat16, kDotsBFloat16;                        \
  extern const PointwiseKernel kPointwiseFloat64, kPointwiseFloat32, kPointwiseFloat16, kPointwiseBFloat16; \
  static constexpr Isa kIsa = {#isa,                                                                        \
                               {ACSCONV_OF_TYPES(kConvert)},                                                \
                               {ACSCONV_OF_TYPES(kWalk)},                                                   \
                               {ACSCONV_OF_TYPES(kOuter)},                                                  \
                               {ACSCONV_OF_TYPES(kDots)},                                                   \
                               {ACSCONV_OF_TYPES(kDepthwise)},                                              \
                               {ACSCONV_OF_TYPES(kPointwise)},                                              \
                               nullptr,                                                                     \
                               nullptr,                                                                     \
                               nullptr};                                                                    \
  }
ACSCONV_DECLARE(portable)
#ifdef ACSCONV_X86
ACSCONV_DECLARE(avx2)
ACSCONV_DECLARE(avx512)
#endif
#undef ACSCONV_DECLARE
#undef ACSCONV_OF_TYPES

// The kernels of another instruction set, with those for bfloat16 in namespace `isa` beside them.
constexpr Isa with_bfloat16(Isa isa, const char* name, const TileKernel* tiles, const WalkKernel* pairs,
                            const TileWeightKernel* tile_weight) {
  isa.name = name, isa.tiles = tiles, isa.pairs = pairs, isa.tile_weight = tile_weight;
  return isa;
}
#define ACSCONV_DECLARE_TILES(isa)           \
  namespace isa {                            \
  extern const TileKernel kTiles;            \
  extern const TileWeightKernel kTileWeight; \
  }
#define ACSCONV_DECLARE_PAIRS(isa)           \
  namespace isa {                            \
  extern const WalkKernel kWalkPairs;        \
  extern const TileWeightKernel kPairWeight; \
  }
#ifdef ACSCONV_AMX
ACSCONV_DECLARE_TILES(amx)
static constexpr Isa kAmx = with_bfloat16(avx512::kIsa, "amx", &amx::kTiles, nullptr, &amx::kTileWeight);
#endif
#ifdef ACSCONV_AVX512BF16
ACSCONV_DECLARE_PAIRS(avx512bf16)
static constexpr Isa kAvx512bf16 =
    with_bfloat16(avx512::kIsa, "avx512bf16", nullptr, &avx512bf16::kWalkPairs, &avx512bf16::kPairWeight);
#endif
#ifdef ACSCONV_TILES_EVERYWHERE  // the sanitizers' build, where tiles are loops and pairs plain products
ACSCONV_DECLARE_TILES(portable)
ACSCONV_DECLARE_PAIRS(portable)
static constexpr Isa kPortableTiles =
    with_bfloat16(portable::kIsa, "portable_tiles", &portable::kTiles, nullptr, &portable::kTileWeight);
static constexpr Isa kPortablePairs =
    with_bfloat16(portable::kIsa, "portable_pairs", nullptr, &portable::kWalkPairs, &portable::kPairWeight);
#endif
#undef ACSCONV_DECLARE_TILES
#undef ACSCONV_DECLARE_PAIRS

namespace {

#ifdef ACSCONV_X86
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma");
}
#endif

#ifdef ACSCONV_AMX
// Whether the processor multiplies tiles of bfloat16, and Linux lets this process use them: their registers
// are so large that it wants to be asked.
bool has_amx() {
  static const bool has = [] {
    constexpr unsigned kBFloat16Tiles = 1u << 22, kTileRegisters = 1u << 24;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBFloat16Tiles) != 0 &&
           (d & kTileRegisters) != 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
}
#endif

struct Candidate {
  const Isa& isa;
  bool (*available)();
};

// Each tests for every feature that its compile options name (CMakeLists.txt).
const Candidate kCandidates[] = {
#ifdef ACSCONV_AMX
    {kAmx, has_amx},
#endif
#ifdef ACSCONV_AVX512BF16
    {kAvx512bf16, [] { return has_avx512() && __builtin_cpu_supports("avx512bf16") != 0; }},
#endif
#ifdef ACSCONV_X86
    {avx512::kIsa, has_avx512},
    {avx2::kIsa, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {portable::kIsa, [] { return true; }},
#ifdef ACSCONV_TILES_EVERYWHERE
    {kPortableTiles, [] { return true; }},
    {kPortablePairs, [] { return true; }},
#endif
};

}  // namespace

const Isa& cpu_isa() {
  const char* wanted = std::getenv("ACSCONV_CPU_ISA");
  const Candidate* best = nullptr;
  for (const Candidate& candidate : kCandidates) {
    if (!candidate.available()) continue;
    if (best == nullptr) best = &candidate;
    if (wanted != nullptr && std::strcmp(wanted, candidate.isa.name) == 0) return candidate.isa;
  }
  return best->isa;
}

}  // namespace acsconv
