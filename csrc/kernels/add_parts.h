// The second pass of the gradients of the weight: adds what the parts of the voxels gave, in order, so that
// the result does not depend on which part was ready first.
#pragma once

#include "../problem.h"

namespace acsconv {

// Sums in the accumulator's type: [parts][rows][weights + bias]. A row is an output channel (of a view, in
// Soft ACS); its last column, with `bias`, is the gradient of the bias.
struct PartSums {
  const void* sums;
  int64_t parts, rows, weights;
  bool bias;
};

// Writes grad_weight [rows][weights] and, from the first `out_channels` rows, grad_bias [out_channels], in
// dtype `type`. Called by the launchers of the gradients of the weight; returns as they do.
const char* add_parts(ScalarType type, const PartSums& from, int64_t out_channels, void* grad_weight,
                      void* grad_bias, void* stream);

}  // namespace acsconv
