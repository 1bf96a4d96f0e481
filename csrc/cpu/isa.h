// Which instruction set the CPU kernels use: the best that was compiled and that the processor has.
#pragma once

#include "convert.h"
#include "depthwise_walk.h"
#include "pointwise_walk.h"
#include "tile_walk.h"
#include "walk.h"
#include "weight_walk.h"

namespace acsconv {

// The arrays are indexed by ScalarType.
struct Isa {
  const char* name;  // "amx", "avx512bf16", "avx512", "avx2" or "portable"
  const Conversion* conversion[4];
  const WalkKernel* walk[4];
  const WeightKernel *outer[4], *dots[4];
  const DepthwiseKernel* depthwise[4];
  const PointwiseKernel* pointwise[4];
  // bfloat16 only: on tiles, or of pairs; null where the processor has neither
  const TileKernel* tiles;
  const WalkKernel* pairs;
  const TileWeightKernel* tile_weight;
};

// The environment variable ACSCONV_CPU_ISA names a lesser one to use instead; it is read at every call.
const Isa& cpu_isa();

}  // namespace acsconv
