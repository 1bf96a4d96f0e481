// The gather kernel (walk_kernel.h) for each type of tensor; 16-bit numbers are widened where a plane is
// packed. Compiled once per instruction set, with ACSCONV_ISA as its namespace; gather_pass.cpp calls it.
#include "walk_kernel.h"

namespace acsconv {
namespace ACSCONV_ISA {

template <class S>
void run(const Walk& walk, const Task& task, const void* source, const void* weight, void* packed,
         const void* bias, void* target, const Scratch& scratch) {
  run_task<Computed<S>, S>(walk, task, static_cast<const S*>(source), weight, packed, bias, target, scratch);
}

template <class S>
constexpr WalkKernel kernel_of() {
  return {kLanes<Computed<S>>, ACSCONV_ACCUMULATORS, sizeof(Segment<Computed<S>>), run<S>,
          pack_weights<Computed<S>>};
}

extern const WalkKernel kWalkFloat64, kWalkFloat32, kWalkFloat16, kWalkBFloat16;
const WalkKernel kWalkFloat64 = kernel_of<double>();
const WalkKernel kWalkFloat32 = kernel_of<float>();
const WalkKernel kWalkFloat16 = kernel_of<Half>();
const WalkKernel kWalkBFloat16 = kernel_of<BFloat16>();

}  // namespace ACSCONV_ISA
}  // namespace acsconv
