// Integers: division that rounds to a side, and the voxels of a size.
#pragma once

#include <cstdint>

namespace acsconv {

inline int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t volume(const int64_t (&size)[3]) { return size[0] * size[1] * size[2]; }

}  // namespace acsconv
