// Barriers and warp collectives. A barrier collects the fibers of a block; a collective, the lanes of its
// mask: each lane leaves a pointer to its registers and waits, and the last one does the operation for all.
// Both join the vector clocks of those that met. Barriers are strict: all threads of the block must come to
// the same line, and a thread that has exited never comes.
#include "banks.h"
#include "runtime.h"

namespace emulator {
namespace {

void join(VectorClock& into, const VectorClock& from) {
  for (size_t i = 0; i < into.size(); ++i) {
    if (from[i] > into[i]) into[i] = from[i];
  }
}

void release_barrier() {
  block.arrived = 0;
  if (options.count_banks) finish_lanes();
  VectorClock joined(block.threads, 0);
  for (const Fiber& f : block.fibers) join(joined, f.clock);
  for (Fiber& f : block.fibers) {
    f.clock = joined;
    ++f.clock[f.index];
    make_ready(f);
  }
}

void join_lanes(Fiber* lanes, uint32_t mask) {
  VectorClock joined(block.threads, 0);
  for (uint32_t left = mask; left != 0; left &= left - 1) join(joined, lanes[__builtin_ctz(left)].clock);
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    Fiber& f = lanes[__builtin_ctz(left)];
    f.clock = joined;
    ++f.clock[f.index];
  }
}

bool same_place(Location a, Location b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

// `aligned`: the lanes must stand at the same instruction, not only at the same operation.
void warp_collective(uint32_t mask, const char* name, void* argument, Collective operation,
                     bool orders_memory, bool aligned, Location location) {
  Warp& warp = block.warps[fiber->warp];
  Fiber* lanes = &block.fibers[fiber->warp * kWarpSize];
  if (!(mask >> fiber->lane & 1)) fail("%s: lane %u is not in its own mask %08x", name, fiber->lane, mask);
  fiber->argument = argument;
  fiber->mask = mask;
  fiber->operation = name;
  fiber->location = location;
  warp.waiting |= 1u << fiber->lane;
  if ((warp.waiting & mask) != mask) {
    wait_as(State::AtWarpCollective, name, location);
    return;
  }
  void* arguments[kWarpSize] = {};
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    const Fiber& other = lanes[lane];
    if (std::strcmp(other.operation, name) != 0 || other.mask != mask ||
        (aligned && !same_place(other.location, location))) {
      fail("divergent warp: this lane is at %s with mask %08x (%s:%d), lane %d at %s with mask %08x (%s:%d)",
           name, mask, location.file, location.line, lane, other.operation, other.mask, other.location.file,
           other.location.line);
    }
    arguments[lane] = other.argument;
  }
  warp.waiting &= ~mask;
  if (operation != nullptr) operation(arguments, mask);
  if (orders_memory) join_lanes(lanes, mask);
  for (uint32_t left = mask; left != 0; left &= left - 1) make_ready(lanes[__builtin_ctz(left)]);
  let_others_run();
}

struct ShuffleRegisters {
  uint32_t value, result;
  Shuffle kind;
  int operand, width;
};

// The lane that `lane` reads; its own where the source lies outside its segment of `width` lanes.
int shuffle_source(int lane, const ShuffleRegisters& r) {
  const int base = lane & ~(r.width - 1), end = base + r.width;
  int source = lane;
  switch (r.kind) {
    case Shuffle::Index:
      source = base + (r.operand & (r.width - 1));
      break;
    case Shuffle::Xor:
      source = lane ^ r.operand;
      return source < end ? source : lane;
    case Shuffle::Down:
      source = lane + r.operand;
      break;
    case Shuffle::Up:
      source = lane - r.operand;
      break;
  }
  return source >= base && source < end ? source : lane;
}

void shuffle_lanes(void** arguments, uint32_t mask) {
  constexpr uint32_t kUndefined = 0xffffffffu;  // NaN: what a lane outside the mask holds is undefined
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    auto& registers = *static_cast<ShuffleRegisters*>(arguments[lane]);
    const int source = shuffle_source(lane, registers);
    registers.result =
        mask >> source & 1 ? static_cast<ShuffleRegisters*>(arguments[source])->value : kUndefined;
  }
}

struct BallotRegisters {
  bool predicate;
  uint32_t result;
};

void ballot_lanes(void** arguments, uint32_t mask) {
  uint32_t result = 0;
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (static_cast<BallotRegisters*>(arguments[lane])->predicate) result |= 1u << lane;
  }
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    static_cast<BallotRegisters*>(arguments[__builtin_ctz(left)])->result = result;
  }
}

}  // namespace

void block_barrier(Location location) {
  if (block.arrived == 0) {
    block.barrier = location;
  } else if (!same_place(block.barrier, location)) {
    fail("divergent barrier: this thread is at %s:%d, others wait at %s:%d", location.file, location.line,
         block.barrier.file, block.barrier.line);
  }
  if (++block.arrived < block.threads) {
    wait_as(State::AtBarrier, "__syncthreads", location);
    return;
  }
  release_barrier();
  let_others_run();
}

void warp_barrier(uint32_t mask, Location location) {
  warp_collective(mask, "__syncwarp", nullptr, nullptr, /*orders_memory=*/true, /*aligned=*/false, location);
}

void aligned_collective(const char* name, void* argument, Collective operation, Location location) {
  warp_collective(0xffffffffu, name, argument, operation, /*orders_memory=*/false, /*aligned=*/true,
                  location);
}

uint32_t shuffle(uint32_t mask, uint32_t value, Shuffle kind, int operand, int width, Location location) {
  ShuffleRegisters registers{value, 0, kind, operand, width};
  warp_collective(mask, "__shfl_sync", &registers, shuffle_lanes, /*orders_memory=*/false, /*aligned=*/false,
                  location);
  return registers.result;
}

uint32_t ballot(uint32_t mask, bool predicate, Location location) {
  BallotRegisters registers{predicate, 0};
  warp_collective(mask, "__ballot_sync", &registers, ballot_lanes, /*orders_memory=*/false, /*aligned=*/false,
                  location);
  return registers.result;
}

}  // namespace emulator
