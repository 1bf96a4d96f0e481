// From a Problem to the Walk that the CPU kernel follows: which taps, which blocks of output channels, which
// strips, and which piece of the output is whose task. Depends on the problem and the machine only, never on
// the data.
#pragma once

#include <vector>

#include "../problem.h"
#include "walk.h"

namespace acsconv {

struct CpuMachine {
  int lanes, accumulators;  // of the kernel that will run, see WalkKernels
  int number_size;          // bytes
  int threads;
  int64_t cache_size;  // bytes of a core's own second-level cache
};

class CpuPlan {
 public:
  CpuPlan(const Problem& problem, const CpuMachine& machine);
  CpuPlan(const CpuPlan&) = delete;  // walk() points into its arrays

  const Walk& walk() const { return walk_; }
  const std::vector<Task>& tasks() const { return tasks_; }
  const std::vector<Block>& blocks() const { return blocks_; }

  // Sizes of what a caller has to provide, in numbers; the last in segments.
  int64_t weights_size() const { return weights_size_; }
  int64_t ring_size() const { return ring_size_; }
  int64_t stage_size() const { return stage_size_; }
  int64_t segment_count() const { return segment_count_; }

 private:
  void find_taps(const Problem& p);
  void cut_blocks(const Problem& p, const CpuMachine& machine);
  void lay_out_rows(const Problem& p);
  void choose_strip(const CpuMachine& machine);
  void cut_tasks(const Problem& p, const CpuMachine& machine);
  int64_t row_numbers(int64_t rows, const CpuMachine& machine) const;

  // A kernel position of a view, before the layout of packed rows is known.
  struct Position {
    int view;
    int64_t plane, row, column;  // row and column in units of the phase
    int phase, kernel_index;
  };

  Walk walk_{};
  std::vector<Position> positions_;
  std::vector<Tap> taps_;
  std::vector<Phase> phases_;
  std::vector<Block> blocks_;
  std::vector<Chunk> chunks_;
  std::vector<uint8_t> plane_read_;
  std::vector<Task> tasks_;
  int64_t weights_size_ = 0, ring_size_ = 0, stage_size_ = 0, segment_count_ = 0;
  int64_t widest_chunk_ = 0, most_outputs_ = 0;  // input channels of a chunk, output channels of a chunk
};

}  // namespace acsconv
