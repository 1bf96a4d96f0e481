// ACS and Soft ACS convolution on the CPU: one function for each pass, all three views in one walk over the
// volume. Knows nothing of torch; ops.cpp calls it.
//
// Tensors are those that `problem` describes, all of its type. With `soft` every output channel is computed
// in all three views, with weights [3, C_out, C_in / groups, K_h, K_w]. Results are equal to the bit for any
// number of threads. No tensor that a function writes may be empty.
#pragma once

#include "../problem.h"
#include "threads.h"

namespace acsconv {

// `bias` [C_out] may be null.
void cpu_forward(const Problem& problem, bool soft, const void* input, const void* weight, const void* bias,
                 void* output, const Threads& threads);

void cpu_backward_input(const Problem& problem, bool soft, const void* grad_output, const void* weight,
                        void* grad_input, const Threads& threads);

// `grad_bias` [C_out] may be null. The gradients are of `gradient_type`: the problem's, or float32 beside 16
// bits, whose sums are then not rounded.
void cpu_backward_weight(const Problem& problem, bool soft, const void* grad_output, const void* input,
                         void* grad_weight, void* grad_bias, ScalarType gradient_type,
                         const Threads& threads);

}  // namespace acsconv
