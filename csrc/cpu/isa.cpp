// The table of compiled instruction sets, best first, and the choice among them.
#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace acsconv {

#define ACSCONV_OF_TYPES(name) &name##Float64, &name##Float32, &name##Float16, &name##BFloat16
#define ACSCONV_DECLARE(isa)                                                                                \
  namespace isa {                                                                                           \
  extern const Conversion kConvertFloat64, kConvertFloat32, kConvertFloat16, kConvertBFloat16;              \
  extern const WalkKernel kWalkFloat64, kWalkFloat32, kWalkFloat16, kWalkBFloat16;                          \
  extern const WeightKernel kOuterFloat64, kOuterFloat32, kOuterFloat16, kOuterBFloat16;                    \
  extern const DepthwiseKernel kDepthwiseFloat64, kDepthwiseFloat32, kDepthwiseFloat16, kDepthwiseBFloat16; \
  extern const WeightKernel kDotsFloat64, kDotsFloat32, kDotsFloat16, kDotsBFloat16;                        \
  static constexpr Isa kIsa = {#isa,                                                                        \
                               {ACSCONV_OF_TYPES(kConvert)},                                                \
                               {ACSCONV_OF_TYPES(kWalk)},                                                   \
                               {ACSCONV_OF_TYPES(kOuter)},                                                  \
                               {ACSCONV_OF_TYPES(kDots)},                                                   \
                               {ACSCONV_OF_TYPES(kDepthwise)}};                                             \
  }
ACSCONV_DECLARE(portable)
#ifdef ACSCONV_X86
ACSCONV_DECLARE(avx2)
ACSCONV_DECLARE(avx512)
#endif
#undef ACSCONV_DECLARE
#undef ACSCONV_OF_TYPES

namespace {

struct Candidate {
  const Isa& isa;
  bool (*available)();
};

// Each tests for every feature that its compile options name (CMakeLists.txt).
const Candidate kCandidates[] = {
#ifdef ACSCONV_X86
    {avx512::kIsa,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("fma");
     }},
    {avx2::kIsa, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {portable::kIsa, [] { return true; }},
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
