// Cuts a layer's groups of channels into runs for the tensor-core kernels, whose blocks take groups as a
// dimension of the grid: the groups of a launch must have the same channels of every view. View and group
// are both read off the output channel, so neighbouring groups either lie in one view, or a single one is
// cut by it: at most 3 runs of whole views and 2 single groups. Read by kernels/dispatch.cu.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "problem.h"

namespace acsconv {

// Whether groups are too small to be worth it: of 8 x 8 channels tensor cores use an eighth of their
// products.
inline bool groups_are_small(const Problem& p) {
  constexpr int64_t kLeastChannels = 8;
  return p.groups > 1 && std::min(p.in_channels, p.out_channels) < p.groups * kLeastChannels;
}

// `problem` has the run's groups alone: several only where all their channels belong to one view, or where
// every view computes all channels (Soft ACS).
struct GroupRun {
  int64_t first_input, first_output;  // channels of the layer
  Problem problem;
};

inline std::vector<GroupRun> group_runs(const Problem& p, bool soft) {
  if (p.groups == 1 || soft || groups_are_small(p)) return {{0, 0, p}};
  const int64_t in_group = p.in_channels / p.groups, out_group = p.out_channels / p.groups;
  std::vector<GroupRun> runs;
  for (int64_t group = 0; group < p.groups;) {
    const int64_t begin = group * out_group, view_end = [&] {
      const int view = view_of_channel(p, begin);
      return view_channels_begin(p.split, view) + p.split[view];
    }();
    const int64_t count = std::max<int64_t>(1, (view_end - begin) / out_group),
                  end = begin + count * out_group;
    GroupRun run{group * in_group, begin, p};
    run.problem.groups = count;
    run.problem.in_channels = count * in_group;
    run.problem.out_channels = count * out_group;
    for (int view = 0; view < kViews; ++view) {
      const int64_t first = view_channels_begin(p.split, view), last = first + p.split[view];
      run.problem.split[view] = std::max<int64_t>(0, std::min(last, end) - std::max(first, begin));
    }
    runs.push_back(run);
    group += count;
  }
  return runs;
}

// One of the groups of a run.
inline Problem one_group(const Problem& run) {
  Problem group = run;
  group.groups = 1;
  group.in_channels /= run.groups;
  group.out_channels /= run.groups;
  for (int64_t& channels : group.split) channels /= run.groups;
  return group;
}

// Why tensor cores do not compute a run's groups; empty: they may.
inline std::string groups_rejection(const Problem& run, bool soft) {
  if (run.groups == 1) return {};
  if (groups_are_small(run)) return "groups of fewer than 8 channels";
  int views = 0;
  for (const int64_t channels : run.split) views += channels > 0;
  return views > 1 && !soft ? "groups of several views" : "";
}

}  // namespace acsconv
