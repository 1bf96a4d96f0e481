// The PTX instructions of csrc/common/ptx.cuh as the emulator executes them; see there for what they do and
// for the fragments. Every call checks bounds and alignment.
//
// Asynchronous copies move their bytes when the setting AsyncCopies says: as late as allowed, so that a wait
// that is missing or too weak shows as NaN; at once; or at random in between. The race detector takes the
// bytes for untouchable from the start of a copy until its thread has waited for it.
#pragma once

#include <cstdint>

#include "cuda.h"

namespace emulator {

inline constexpr uint32_t kSharedBase =
    1024;  // shared address of the first byte, as on compute capability 8.0

uint32_t shared_address(const void* pointer);
void copy_async(uint32_t shared, const void* global, uint32_t bytes, int source_bytes);
void commit_copies();
void wait_copies(uint32_t groups_left);
void load_matrices(uint32_t* registers, uint32_t count, bool transposed, uint32_t address, Location);

enum class Operand { BFloat16, Float16, TF32 };
inline constexpr int kMostColumns = 32;
// d[rows][columns][4] += a[rows][4] b[columns][2]: fragments of one lane.
struct Product {
  Operand operand;
  int rows, columns;
  float* d;
  const uint32_t *a, *b;
};
void multiply(const Product& product, Location);
uint32_t round_to_tf32(float value);

}  // namespace emulator
