// Which instruction set the CPU kernels use: the best that was compiled and that the processor has.
#pragma once

#include "walk.h"

namespace acsconv {

struct Isa {
  const char* name;  // "avx512", "avx2" or "portable"
  const WalkKernels* float32;
  const WalkKernels* float64;
};

// The environment variable ACSCONV_CPU_ISA names a lesser one to use instead; it is read at every call.
const Isa& cpu_isa();

}  // namespace acsconv
