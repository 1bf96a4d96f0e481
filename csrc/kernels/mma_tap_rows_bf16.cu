// Instances of the kernel of one row of taps per step (mma_tap_rows.cuh) in bfloat16.
#include "mma_tap_rows.cuh"

namespace acsconv {

template MmaLauncher tap_rows_instance<BFloat16>(int);

}  // namespace acsconv
