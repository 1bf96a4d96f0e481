// Race detection on shadow cells; see shadow.h. Called for every access of an instrumented kernel.
#include "shadow.h"

#include "runtime.h"

namespace emulator {
namespace {

const char* name(Access access) {
  return access == Access::Read ? "read" : access == Access::Write ? "write" : "atomic";
}

std::string conflict(const char* kind, Access access, const char* other, uint64_t block_index,
                     uint32_t thread, const void* counter, bool other_block) {
  std::string text = std::string(kind) + ": " + name(access) + " is not ordered after the " + other + " by ";
  if (other_block) {
    text += "block " + std::to_string(block_index);
  } else {
    text += "thread " + std::to_string(thread);
  }
  return text + " at " + source_line(counter);
}

}  // namespace

void Shadow::reset(size_t bytes) {
  cells_.assign((bytes + kGranule - 1) / kGranule, Cell{});
  readers_.clear();
  free_readers_.clear();
}

std::string Shadow::record(size_t offset, size_t bytes, Access access, const Accessor& by, bool needs_value) {
  const size_t last = (offset + bytes - 1) / kGranule;
  for (size_t i = offset / kGranule; i <= last; ++i) {
    std::string problem = record_cell(cells_[i], access, by, needs_value);
    if (!problem.empty()) return problem;
  }
  return {};
}

std::string Shadow::begin_async_write(size_t offset, size_t bytes, const Accessor& by, Fenced fenced) {
  for (size_t i = offset / kGranule; fenced != nullptr && i <= (offset + bytes - 1) / kGranule; ++i) {
    const Cell& cell = cells_[i];
    const bool stored = cell.launch == by.launch && cell.block == by.block && cell.writer != kNobody;
    if (stored && !cell.copied && !fenced(cell.writer, cell.write_clock)) {
      return "no proxy fence between the TMA copy and the write by thread " + std::to_string(cell.writer) +
             " at " + source_line(cell.write_counter);
    }
  }
  std::string problem = record(offset, bytes, Access::Write, by, /*needs_value=*/false);
  if (!problem.empty()) return problem;
  for (size_t i = offset / kGranule; i <= (offset + bytes - 1) / kGranule; ++i) {
    cells_[i].under_way = true;
    cells_[i].copied = fenced != nullptr;
  }
  return {};
}

void Shadow::end_async_write(size_t offset, size_t bytes, const Accessor& by) {
  for (size_t i = offset / kGranule; i <= (offset + bytes - 1) / kGranule; ++i) {
    cells_[i].under_way = false;
    cells_[i].write_clock = (*by.clock)[by.thread];
  }
}

std::string Shadow::record_cell(Cell& cell, Access access, const Accessor& by, bool needs_value) {
  if (cell.launch != by.launch) {
    const bool written = cell.written;
    forget_readers(cell);
    cell = Cell{};
    cell.launch = by.launch;
    cell.block = by.block;
    cell.written = written;
  }
  const VectorClock& clock = *by.clock;
  const bool writes = access != Access::Read;
  if (needs_value && access != Access::Write && !cell.written)
    return "uninitialised memory: nobody wrote these bytes";

  if (cell.block != by.block) {  // blocks are not ordered; two atomics, or two reads, do not conflict
    const bool harmless_write = cell.writer == kNobody || (cell.atomic && access == Access::Atomic);
    if (!harmless_write) {
      return conflict("RACE between blocks", access, "write", cell.block, 0, cell.write_counter, true);
    }
    if (writes && (cell.reader != kNobody || cell.foreign_readers)) {
      return conflict("RACE between blocks", access, "read", cell.block, 0, cell.read_counter, true);
    }
    cell.foreign_readers |= cell.reader != kNobody;
    cell.block = by.block;
    forget_readers(cell);
    if (cell.writer != kNobody) cell.writer = static_cast<uint16_t>(by.thread), cell.write_clock = 0;
  } else if (cell.foreign_readers && writes) {
    return conflict("RACE between blocks", access, "read", cell.block, 0, cell.read_counter, true);
  }

  if (cell.under_way) {
    return conflict("RACE", access, "asynchronous copy", cell.block, cell.writer, cell.write_counter, false);
  }
  const bool atomics_only = cell.atomic && access == Access::Atomic;
  if (cell.writer != kNobody && cell.writer != by.thread && !atomics_only &&
      cell.write_clock > clock[cell.writer]) {
    return conflict("RACE", access, "write", cell.block, cell.writer, cell.write_counter, false);
  }
  if (!writes) {
    remember_reader(cell, by);
    return {};
  }
  if (cell.readers >= 0) {
    const VectorClock& readers = readers_[cell.readers];
    for (uint32_t thread = 0; thread < clock.size(); ++thread) {
      if (thread != by.thread && readers[thread] > clock[thread]) {
        return conflict("RACE", access, "read", cell.block, thread, cell.read_counter, false);
      }
    }
  } else if (cell.reader < kMany && cell.reader != by.thread && cell.read_clock > clock[cell.reader]) {
    return conflict("RACE", access, "read", cell.block, cell.reader, cell.read_counter, false);
  }
  cell.writer = static_cast<uint16_t>(by.thread);
  cell.write_clock = clock[by.thread];
  cell.write_counter = by.program_counter;
  cell.atomic = access == Access::Atomic;
  cell.written = true;
  cell.copied = false;
  forget_readers(cell);
  return {};
}

void Shadow::remember_reader(Cell& cell, const Accessor& by) {
  const VectorClock& clock = *by.clock;
  cell.read_counter = by.program_counter;
  if (cell.readers >= 0) {
    readers_[cell.readers][by.thread] = clock[by.thread];
    return;
  }
  const bool replaces = cell.reader == kNobody || cell.reader == by.thread ||
                        (cell.reader != kMany && cell.read_clock <= clock[cell.reader]);
  if (replaces) {
    cell.reader = static_cast<uint16_t>(by.thread);
    cell.read_clock = clock[by.thread];
    return;
  }
  if (!tracks_all_readers_) {
    cell.reader = kMany;
    return;
  }
  if (free_readers_.empty()) {
    free_readers_.push_back(static_cast<int32_t>(readers_.size()));
    readers_.emplace_back();
  }
  cell.readers = free_readers_.back();
  free_readers_.pop_back();
  VectorClock& readers = readers_[cell.readers];
  readers.assign(clock.size(), 0);
  readers[cell.reader] = cell.read_clock;
  readers[by.thread] = clock[by.thread];
}

void Shadow::forget_readers(Cell& cell) {
  if (cell.readers >= 0) free_readers_.push_back(cell.readers);
  cell.readers = -1;
  cell.reader = kNobody;
}

}  // namespace emulator
