// Instances of the kernel of one row of taps per step (mma_tap_rows.cuh) in TF32.
#include "mma_tap_rows.cuh"

namespace acsconv {

template MmaLauncher tap_rows_instance<float>(int);

}  // namespace acsconv
