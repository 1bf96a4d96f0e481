// Folds the kernels of Soft ACS, whose three views share voxels: for 3x3 the centre is one voxel of all
// views, and every step along an axis one of two. Of 27 products per pair of channels 19 are left.
#pragma once

#include "../problem.h"

namespace acsconv {

// `kernels` [3, C_out, C_in / groups, 3, 3] -> `folded`, of the same shape, in the type that products are
// summed in: axial kernels take what the others read in the axial plane, coronal ones what sagittal ones read
// in theirs, as long as the tap is not of the middle row. Taps that lie in an earlier view's plane are not
// read again (the segments in gather_walk.cuh). Called by simt_gather.cu where plan_gather() asks for it.
const char* fold_soft_kernels(const Problem& problem, const void* kernels, void* folded, void* stream);

}  // namespace acsconv
