// Shadow memory: remembers who last wrote and read every two bytes of a buffer, and tells whether a new
// access is ordered after them (FastTrack-like vector clocks; Flanagan and Freund, PLDI 2009).
//
// Every fiber has a vector clock with an entry per thread of the block; barriers and warp collectives join
// clocks. An access races if a conflicting one by another thread is not in the past of the current thread's
// clock. Blocks of a grid are never ordered: two blocks that touch the same bytes, one of them writing, race.
// Used for shared memory, where reading bytes that nobody wrote is an error too, and for each device buffer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

using VectorClock = std::vector<uint32_t>;

enum class Access : uint8_t { Read, Write, Atomic };

// The thread that makes an access.
struct Accessor {
  uint64_t launch, block;  // numbers that are never reused within a launch
  uint32_t thread;
  const VectorClock* clock;
  const void* program_counter;
};

class Shadow {
 public:
  // With tracks_all_readers every concurrent reader is remembered, else a write after several readers of one
  // block is let through; that is right for read-mostly device buffers, whose readers would take much memory.
  explicit Shadow(bool tracks_all_readers) : tracks_all_readers_(tracks_all_readers) {}

  void reset(size_t bytes);

  // Records an access to [offset, offset + bytes). Returns an empty string, or what it conflicts with.
  // `needs_value`: reading bytes that were never written is a fault.
  std::string record(size_t offset, size_t bytes, Access access, const Accessor& by, bool needs_value);

  // A write that is under way from the first call to the second one, when the accessor has waited for it: any
  // access in between conflicts. Whoever is ordered after the second call sees the bytes.
  // `fenced` is asked of what threads wrote there by plain stores: whether a proxy fence came after thread
  // `writer`'s write at its clock `when`. Null: the copy needs none (cp.async).
  using Fenced = bool (*)(uint32_t writer, uint32_t when);
  std::string begin_async_write(size_t offset, size_t bytes, const Accessor& by, Fenced fenced);
  void end_async_write(size_t offset, size_t bytes, const Accessor& by);

 private:
  static constexpr size_t kGranule = 2;  // bytes; the kernels keep nothing smaller in shared or device memory
  static constexpr uint16_t kNobody = 0xffff, kMany = 0xfffe;

  struct Cell {
    uint64_t launch = 0, block = 0;
    uint32_t write_clock = 0, read_clock = 0;
    uint16_t writer = kNobody, reader = kNobody;
    bool atomic = false, foreign_readers = false, written = false, under_way = false, copied = false;
    int32_t readers = -1;  // index into readers_ where several threads read
    const void *write_counter = nullptr, *read_counter = nullptr;
  };

  std::string record_cell(Cell& cell, Access access, const Accessor& by, bool needs_value);
  void remember_reader(Cell& cell, const Accessor& by);
  void forget_readers(Cell& cell);

  bool tracks_all_readers_;
  std::vector<Cell> cells_;
  std::vector<VectorClock> readers_;
  std::vector<int32_t> free_readers_;
};

}  // namespace emulator
