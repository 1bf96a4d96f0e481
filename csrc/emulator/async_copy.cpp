// Asynchronous copies of a thread (cp.async) and addresses of shared memory. See ptx.h for when the bytes
// move.
#include <algorithm>

#include "banks.h"
#include "ptx.h"
#include "runtime.h"

namespace emulator {
namespace {

void move_bytes(const AsyncCopy& copy) {
  unsigned char* to = block.shared + copy.shared_offset;
  std::memcpy(to, copy.global, copy.source_bytes);
  std::memset(to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace

bool async_moves_now() {
  return options.async_copies == AsyncCopies::Early ||
         (options.async_copies == AsyncCopies::Random && random_below(2) == 0);
}

uint32_t shared_address(const void* pointer) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(pointer) - block.shared;
  if (offset < 0 || offset > static_cast<ptrdiff_t>(kMaxSharedBytes)) {
    fail("shared address of something that is not in shared memory, at %s",
         source_line(__builtin_return_address(0)).c_str());
  }
  return kSharedBase + static_cast<uint32_t>(offset);
}

unsigned char* shared_pointer(uint32_t address) { return block.shared + (ptrdiff_t{address} - kSharedBase); }

void copy_async(uint32_t shared, const void* global, uint32_t bytes, int source_bytes) {
  const void* counter = __builtin_return_address(0);
  if (source_bytes != 0 && source_bytes != static_cast<int>(bytes)) {
    fail("cp.async of %u bytes reads %d, at %s", bytes, source_bytes, source_line(counter).c_str());
  }
  if (shared % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fail("misaligned cp.async of %u bytes from %p to shared byte %d, at %s", bytes, global,
         static_cast<int>(shared) - static_cast<int>(kSharedBase), source_line(counter).c_str());
  }
  if (source_bytes > 0) check_access(global, bytes, Access::Read, counter);
  const auto offset = static_cast<ptrdiff_t>(shared) - kSharedBase;
  begin_async_write(offset, bytes, counter);
  if (options.count_banks) count_lane("cp.async", shared, bytes, counter);
  const AsyncCopy copy{static_cast<uint32_t>(offset),
                       bytes,
                       static_cast<uint32_t>(source_bytes),
                       fiber->copy_group,
                       global,
                       counter,
                       async_moves_now()};
  if (copy.moved) move_bytes(copy);
  fiber->copies.push_back(copy);
}

void commit_copies() { ++fiber->copy_group; }

void wait_copies(uint32_t groups_left) {
  std::vector<AsyncCopy> pending;
  for (AsyncCopy& copy : fiber->copies) {
    const bool done = copy.group + groups_left < fiber->copy_group;
    if (!copy.moved && (done || async_moves_now())) {
      move_bytes(copy);
      copy.moved = true;
    }
    if (done) {
      end_async_write(copy.shared_offset, copy.bytes, copy.program_counter);
    } else {
      pending.push_back(copy);
    }
  }
  fiber->copies = std::move(pending);
}

void check_nothing_under_way() {
  if (fiber->copies.empty()) return;
  fail("exits with %zu asynchronous copies under way, the first from %s", fiber->copies.size(),
       source_line(fiber->copies[0].program_counter).c_str());
}

}  // namespace emulator
