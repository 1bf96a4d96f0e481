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

inline bool plans_are_printed() {
  static const bool print = [] {
    const char* const set = std::getenv("ACSCONV_PRINT_PLAN");
    return set != nullptr && set[0] != '\0' && std::string(set) != "0";
  }();
  return print;
}
inline void print_line(const std::string& text) {
  if (plans_are_printed()) std::fprintf(stderr, "acsconv: %s\n", text.c_str());
}
// A plan describes itself only if ACSCONV_PRINT_PLAN is set: that takes longer than to make it.
template <class Plan>
void print_plan(const Plan& plan) {
  if (plans_are_printed()) print_line(plan.describe());
}

// Prints the plan likewise. Returns its rejection as text that lives until the thread's next call, or
// nullptr.
template <class Plan>
const char* report_plan(const Plan& plan) {
  print_plan(plan);
  if (plan.rejection.empty()) return nullptr;
  static thread_local std::string reason;
  reason = plan.rejection;
  return reason.c_str();
}

}  // namespace acsconv
