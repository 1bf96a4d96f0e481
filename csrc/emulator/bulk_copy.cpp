// Barriers in shared memory that count arrivals and bytes (mbarrier), and the TMA's copies, of boxes and of
// contiguous bytes, which are what the bytes come from. See ptx_sm90.h.
#include <deque>
#include <map>

#include "ptx.h"
#include "ptx_sm90.h"
#include "runtime.h"

bool emulator_refuses_tensor_maps = false;

namespace emulator {
namespace {

constexpr uint32_t kBarrierBytes = 8, kBoxAlignment = 128, kBytesAlignment = 16;

struct Barrier {
  int arrivals = 0, pending = 0;  // of a phase; still to come
  int64_t bytes = 0;              // expected and not yet come
  int phase = 0;
  uint32_t initialiser = 0, initialised = 0;  // the thread, and its clock then
  VectorClock arriving, ended;  // clocks of those that arrived in this phase, and in the one before
};
std::map<uint32_t, Barrier> barriers;  // of the block, by shared address

struct PendingCopy {
  BoxCopy copy;
  uint32_t shared, barrier, thread;
  VectorClock clock;  // of the thread, when it started the copy
  const void* program_counter;
};
std::deque<PendingCopy> pending;

Barrier& find(uint32_t address, const char* operation, const void* counter) {
  const auto found = barriers.find(address);
  if (found == barriers.end()) {
    fail("%s: no barrier has been initialised at shared byte %d, at %s", operation,
         static_cast<int>(address - kSharedBase), source_line(counter).c_str());
  }
  const Barrier& barrier = found->second;
  if (races_are_checked() && fiber->index != barrier.initialiser &&
      fiber->clock[barrier.initialiser] < barrier.initialised) {
    fail("RACE: %s is not ordered after the initialisation of the barrier by thread %u, at %s", operation,
         barrier.initialiser, source_line(counter).c_str());
  }
  return found->second;
}

void end_phase_if_complete(uint32_t address, Barrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.arrivals;
  barrier.ended = barrier.arriving;
  barrier.arriving.assign(block.threads, 0);
  for (const Fiber& f : block.fibers) {
    if (f.state == State::AtSharedBarrier && f.barrier == address) make_ready(f);
  }
}

int64_t box_bytes(const BoxCopy& copy) {
  int64_t bytes = copy.element_bytes;
  for (const int extent : copy.box) bytes *= extent;
  return bytes;
}

// Calls function(row, inside, address of the row's first element) for the rows of the box, along dimension 0.
template <class Function>
void for_each_row(const BoxCopy& copy, Function&& function) {
  int64_t rows = 1;
  for (int i = 1; i < 5; ++i) rows *= copy.box[i];
  for (int64_t row = 0; row < rows; ++row) {
    const unsigned char* at = copy.base + copy.at[0] * int64_t{copy.element_bytes};
    bool inside = true;
    int64_t rest = row;
    for (int i = 1; i < 5; ++i) {
      const int64_t position = copy.at[i] + rest % copy.box[i];
      rest /= copy.box[i];
      inside = inside && position >= 0 && position < copy.size[i];
      at += position * copy.stride_bytes[i];
    }
    function(row, inside, at);
  }
}

// The part [first, last) of a row's elements that lies in the tensor.
std::pair<int64_t, int64_t> inside_row(const BoxCopy& copy) {
  const int64_t first = copy.at[0] < 0 ? -int64_t{copy.at[0]} : 0;
  const int64_t last = copy.size[0] - copy.at[0] < copy.box[0] ? copy.size[0] - copy.at[0] : copy.box[0];
  return {first, last < first ? first : last};
}

void complete(const PendingCopy& done) {
  const BoxCopy& copy = done.copy;
  const int64_t row_bytes = copy.box[0] * int64_t{copy.element_bytes};
  const auto [first, last] = inside_row(copy);
  unsigned char* to = shared_pointer(done.shared);
  for_each_row(copy, [&, first = first, last = last](int64_t row, bool inside, const unsigned char* from) {
    std::memset(to + row * row_bytes, 0, static_cast<size_t>(row_bytes));
    if (!inside || first == last) return;
    std::memcpy(to + row * row_bytes + first * copy.element_bytes, from + first * copy.element_bytes,
                static_cast<size_t>((last - first) * copy.element_bytes));
  });
  const int64_t bytes = box_bytes(copy);
  if (races_are_checked()) {
    const Accessor by{launches, block.linear_index, done.thread, &done.clock, done.program_counter};
    block.shared_shadow.end_async_write(done.shared - kSharedBase, static_cast<size_t>(bytes), by);
  }
  Barrier& barrier = barriers.at(done.barrier);
  for (size_t i = 0; i < done.clock.size(); ++i) {
    if (done.clock[i] > barrier.arriving[i]) barrier.arriving[i] = done.clock[i];
  }
  barrier.bytes -= bytes;
  end_phase_if_complete(done.barrier, barrier);
}

// Whether the writer, or the running thread after it, has fenced what `writer` wrote at its clock `when`.
bool is_fenced(uint32_t writer, uint32_t when) {
  const VectorClock &theirs = block.fibers[writer].fenced, &own = fiber->fenced;
  return (!theirs.empty() && theirs[writer] >= when) || (!own.empty() && own[writer] >= when);
}

void start(uint32_t shared, const BoxCopy& copy, uint32_t barrier, const void* counter) {
  find(barrier, "TMA", counter);
  begin_async_write(ptrdiff_t{shared} - kSharedBase, static_cast<size_t>(box_bytes(copy)), counter,
                    is_fenced);
  const auto [first, last] = inside_row(copy);
  for_each_row(copy, [&, first = first, last = last](int64_t, bool inside, const unsigned char* from) {
    if (!inside || first == last) return;
    check_access(from + first * copy.element_bytes, static_cast<size_t>((last - first) * copy.element_bytes),
                 Access::Read, counter);
  });
  pending.push_back({copy, shared, barrier, fiber->index, fiber->clock, counter});
  ++fiber->clock[fiber->index];
  if (async_moves_now()) complete_bulk_copy();
}

}  // namespace

void barrier_init(uint32_t address, int arrivals) {
  const void* counter = __builtin_return_address(0);
  if (address % kBarrierBytes != 0 || arrivals < 1) {
    fail("mbarrier.init of %d arrivals at shared byte %d, at %s", arrivals,
         static_cast<int>(address - kSharedBase), source_line(counter).c_str());
  }
  check_shared(ptrdiff_t{address} - kSharedBase, kBarrierBytes, Access::Write, counter);
  Barrier barrier;
  barrier.arrivals = barrier.pending = arrivals;
  barrier.arriving.assign(block.threads, 0);
  barrier.ended.assign(block.threads, 0);
  barrier.initialiser = fiber->index;
  barrier.initialised = fiber->clock[fiber->index];
  barriers[address] = barrier;
}

void barrier_arrive(uint32_t address, int bytes, Location) {
  const void* counter = __builtin_return_address(0);
  Barrier& barrier = find(address, "mbarrier.arrive", counter);
  check_shared(ptrdiff_t{address} - kSharedBase, kBarrierBytes, Access::Atomic, counter);
  if (barrier.pending == 0) {
    fail("more arrivals than the barrier's %d, at %s", barrier.arrivals, source_line(counter).c_str());
  }
  for (size_t i = 0; i < fiber->clock.size(); ++i) {
    if (fiber->clock[i] > barrier.arriving[i]) barrier.arriving[i] = fiber->clock[i];
  }
  ++fiber->clock[fiber->index];
  barrier.bytes += bytes;
  --barrier.pending;
  end_phase_if_complete(address, barrier);
  let_others_run();
}

void barrier_wait(uint32_t address, int parity, Location location) {
  const void* counter = __builtin_return_address(0);
  Barrier& barrier = find(address, "mbarrier.try_wait", counter);
  check_shared(ptrdiff_t{address} - kSharedBase, kBarrierBytes, Access::Atomic, counter);
  while (barrier.phase == parity) {
    fiber->barrier = address;
    wait_as(State::AtSharedBarrier, "mbarrier.try_wait", location);
  }
  for (size_t i = 0; i < fiber->clock.size(); ++i) {
    if (barrier.ended[i] > fiber->clock[i]) fiber->clock[i] = barrier.ended[i];
  }
}

void proxy_fence() {
  fiber->fenced = fiber->clock;
  ++fiber->clock[fiber->index];
}

void copy_box(uint32_t shared, const BoxCopy& copy, uint32_t barrier) {
  const void* counter = __builtin_return_address(0);
  if (shared % kBoxAlignment != 0) {
    fail("misaligned TMA copy to shared byte %d, at %s", static_cast<int>(shared - kSharedBase),
         source_line(counter).c_str());
  }
  start(shared, copy, barrier, counter);
}

void copy_bytes(uint32_t shared, const void* global, int bytes, uint32_t barrier) {
  const void* counter = __builtin_return_address(0);
  if (shared % kBytesAlignment != 0 || reinterpret_cast<uintptr_t>(global) % kBytesAlignment != 0 ||
      bytes % static_cast<int>(kBytesAlignment) != 0) {
    fail("misaligned cp.async.bulk of %d bytes from %p to shared byte %d, at %s", bytes, global,
         static_cast<int>(shared - kSharedBase), source_line(counter).c_str());
  }
  const BoxCopy copy{
      static_cast<const unsigned char*>(global), 1, {bytes, 1, 1, 1, 1}, {1}, {bytes, 1, 1, 1, 1}, {}};
  start(shared, copy, barrier, counter);
}

bool complete_bulk_copy() {
  if (pending.empty()) return false;
  const size_t which =
      options.async_copies == AsyncCopies::Late ? 0 : random_below(static_cast<uint32_t>(pending.size()));
  const PendingCopy done = pending[which];
  pending.erase(pending.begin() + static_cast<ptrdiff_t>(which));
  complete(done);
  return true;
}

bool end_bulk_copies() {
  const bool clean = pending.empty();
  pending.clear();
  barriers.clear();
  return clean;
}

}  // namespace emulator
