// Packs a layer's weights in the order of the tensor-core kernels' fragments.
#pragma once

#include "mma_work.cuh"

namespace acsconv {

// `weight` as csrc/ops.cpp has it, in dtype `weight_type`, becomes, in the problem's dtype (float32: rounded
// to TF32),
//
//   [group][block of channels][step][view, in one view per warp][outer tap][inner tap] of
//   [pair of tiles of 8 channels][lane][tile of the pair][2 registers]
//
// so that a lane loads 16 bytes; a last tile without a neighbour is [lane][2 registers]. One row per step, at
// stride 2: odd inner taps come before even ones. One view per step, Soft ACS: the taps that are read come
// first, then zeros. `bias` becomes float32. Called by mma_convolve.cu; returns as the launchers do. `group`:
// the problem of one of the plan's groups.
const char* pack_weights(const Problem& group, const MmaPlan& plan, const MmaWork& work, Pass pass,
                         const void* weight, const void* bias, ScalarType weight_type, void* packed,
                         float* packed_bias, void* stream);

}  // namespace acsconv
