// What the launchers share: the size of a grid, and telling the user which plan was chosen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace acsconv {

// Blocks for `tiles` tiles; kernels take further tiles in turn when a grid cannot be that large.
inline unsigned grid_size(int64_t tiles) {
  constexpr int64_t kLargestGrid = 2147483647;
  return static_cast<unsigned>(std::min(tiles, kLargestGrid));
}

// Prints the plan if ACSCONV_PRINT_PLAN is set. Returns the rejection as text that lives until the thread's
// next call, or nullptr.
inline const char* report_plan(const std::string& rejection, const std::string& description) {
  static const bool print = std::getenv("ACSCONV_PRINT_PLAN") != nullptr;
  if (print) std::fprintf(stderr, "acsconv: %s\n", description.c_str());
  if (rejection.empty()) return nullptr;
  static thread_local std::string reason;
  reason = rejection;
  return reason.c_str();
}

}  // namespace acsconv
