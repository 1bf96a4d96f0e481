// The gather kernel (walk_kernel.h) for bfloat16 tensors whose source channels are taken in pairs (pair.h),
// for processors that multiply pairs and add both products to a sum in one instruction. Compiled once for
// these, see walk.cpp; gather_pass.cpp calls it.
#include "walk_kernel.h"

namespace acsconv {
namespace ACSCONV_ISA {

void run_pairs(const Walk& walk, const Task& task, const void* source, const void* weight, void* packed,
               const void* bias, void* target, const Scratch& scratch) {
  if (walk.packing.pair_distance == 0) {
    run_task<Pair, BFloat16>(walk, task, static_cast<const AdjacentPair*>(source), weight, packed, bias,
                             target, scratch);
  } else {
    const PairsApart pairs{static_cast<const uint16_t*>(source), walk.packing.pair_distance};
    run_task<Pair, BFloat16>(walk, task, pairs, weight, packed, bias, target, scratch);
  }
}

extern const WalkKernel kWalkPairs;
const WalkKernel kWalkPairs = {kLanes<Pair>, ACSCONV_ACCUMULATORS, sizeof(Segment<Pair>), run_pairs,
                               pack_weights<Pair>};

}  // namespace ACSCONV_ISA
}  // namespace acsconv
