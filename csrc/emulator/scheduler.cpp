// Runs grids: hands the processor from fiber to fiber as the schedule says, ends a launch at the first error,
// and reports a deadlock when fibers remain and none can run. See runtime.h.
#include <cstdarg>
#include <cstdio>
#include <map>

#include "banks.h"
#include "runtime.h"

namespace emulator {

namespace {

// A margin on both sides is part of the array, so that indices a little out of range are known for what they
// are. The alignment is that of a GPU's shared memory, so that swizzled layouts see the address bits they
// would there.
alignas(1024) unsigned char shared_memory[kSharedMargin + kMaxSharedBytes + kSharedMargin];

}  // namespace

Block block;
Fiber* fiber = nullptr;
uint64_t launches = 0;
Options options;

uint32_t random_below(uint32_t bound) {
  block.random ^= block.random << 13;
  block.random ^= block.random >> 7;
  block.random ^= block.random << 17;
  return static_cast<uint32_t>((block.random >> 11) % bound);
}

namespace {

uint32_t random_bit(uint32_t mask) {
  for (uint32_t skip = random_below(__builtin_popcount(mask)); skip > 0; --skip) mask &= mask - 1;
  return __builtin_ctz(mask);
}

Fiber* pick() {
  while (block.ready_warps == 0 && block.exited < block.threads && block.error.empty()) {
    if (!complete_bulk_copy()) break;
  }
  const uint32_t warps = block.ready_warps;
  if (warps == 0 || !block.error.empty()) return nullptr;
  uint32_t warp = block.last_run / kWarpSize, lane = 0;
  switch (options.schedule) {
    case Schedule::WarpFirst:
      if (!(warps >> warp & 1)) warp = __builtin_ctz(warps);
      lane = __builtin_ctz(block.warps[warp].ready);
      break;
    case Schedule::RoundRobin: {
      const uint32_t later = warp + 1 < kMaxWarps ? warps >> (warp + 1) << (warp + 1) : 0;
      warp = __builtin_ctz(later ? later : warps);
      lane = __builtin_ctz(block.warps[warp].ready);
      break;
    }
    case Schedule::Reverse:
      warp = 31 - __builtin_clz(warps);
      lane = 31 - __builtin_clz(block.warps[warp].ready);
      break;
    case Schedule::Random:
      warp = random_bit(warps);
      lane = random_bit(block.warps[warp].ready);
      break;
  }
  return &block.fibers[warp * kWarpSize + lane];
}

void clear_ready(const Fiber& f) {
  Warp& warp = block.warps[f.warp];
  warp.ready &= ~(1u << f.lane);
  if (warp.ready == 0) block.ready_warps &= ~(1u << f.warp);
}

// Leaves the running context for the next ready fiber, or for launch() when there is none.
void switch_away(void** save) {
  Fiber* next = pick();
  if (next != nullptr && save == &next->stack_pointer) return;
  if (next != nullptr) block.last_run = next->index;
  fiber = next;
  emulator_switch(save, next != nullptr ? next->stack_pointer : block.host_stack_pointer);
}

[[noreturn]] void abandon_fiber() {
  void* never_resumed;
  switch_away(&never_resumed);
  __builtin_unreachable();
}

void run_fiber() {
  (*block.kernel)();
  check_nothing_under_way();
  fiber->state = State::Exited;
  ++block.exited;
  clear_ready(*fiber);
  abandon_fiber();
}

std::string block_name() {
  char text[80];
  std::snprintf(text, sizeof text, "block (%u, %u, %u)", block.index.x, block.index.y, block.index.z);
  return text;
}

std::string ranges(const std::vector<uint32_t>& threads) {
  std::string text;
  for (size_t i = 0; i < threads.size(); ++i) {
    size_t j = i;
    while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) ++j;
    if (!text.empty()) text += ", ";
    text += std::to_string(threads[i]);
    if (j > i) text += "-" + std::to_string(threads[j]);
    i = j;
  }
  return text;
}

std::string deadlock_report() {
  std::map<std::string, std::vector<uint32_t>> by_place;
  for (const Fiber& f : block.fibers) {
    const std::string place = f.state == State::Exited
                                  ? "exited"
                                  : "wait at " + std::string(f.operation) + " (" + f.location.file + ":" +
                                        std::to_string(f.location.line) + ")";
    by_place[place].push_back(f.index);
  }
  std::string text = "DEADLOCK in " + block_name() + ":";
  for (const auto& [place, threads] : by_place) text += " threads " + ranges(threads) + " " + place + ";";
  return text;
}

void run_block(uint64_t linear_index) {
  const dim3 grid = block.grid_dim, size = block.block_dim;
  block.linear_index = linear_index;
  block.index = {static_cast<unsigned>(linear_index % grid.x),
                 static_cast<unsigned>(linear_index / grid.x % grid.y),
                 static_cast<unsigned>(linear_index / grid.x / grid.y)};
  block.exited = block.ready_warps = block.last_run = block.arrived = 0;
  block.random = (options.seed * 0x9E3779B97F4A7C15u ^ (linear_index + 1) * 0xBF58476D1CE4E5B9u) | 1;
  for (Warp& warp : block.warps) warp = Warp{};
  std::memset(block.shared, 0xff, block.shared_bytes);
  if (races_are_checked()) block.shared_shadow.reset(block.shared_bytes);
  for (uint32_t i = 0; i < block.threads; ++i) {
    Fiber& f = block.fibers[i];
    f = Fiber{};
    f.index = i;
    f.lane = i % kWarpSize;
    f.warp = i / kWarpSize;
    f.thread = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    f.clock.assign(block.threads, 0);
    f.clock[i] = 1;
    prepare_fiber(f, block.stacks[i], run_fiber);
    make_ready(f);
  }
  switch_away(&block.host_stack_pointer);
  fiber = nullptr;
  if (options.count_banks) finish_lanes();
  if (block.error.empty() && block.exited != block.threads) block.error = deadlock_report();
  if (!end_bulk_copies() && block.error.empty())
    block.error = block_name() + " ends with a TMA copy under way";
}

}  // namespace

void fail(const char* format, ...) {
  char text[1600];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (block.error.empty()) {
    block.error = block_name() + " thread " + std::to_string(fiber->index) + ": " + text;
  }
  abandon_fiber();
}

void wait_as(State state, const char* operation, Location location) {
  fiber->state = state;
  fiber->operation = operation;
  fiber->location = location;
  clear_ready(*fiber);
  switch_away(&fiber->stack_pointer);
  fiber->state = State::Ready;
}

void make_ready(const Fiber& f) {
  block.warps[f.warp].ready |= 1u << f.lane;
  block.ready_warps |= 1u << f.warp;
}

void let_others_run() {
  if (options.schedule != Schedule::WarpFirst) switch_away(&fiber->stack_pointer);
}

const char* launch(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& kernel) {
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > kMaxThreads || blocks == 0 || grid.x > 2147483647u || grid.y > kMaxGridYZ ||
      grid.z > kMaxGridYZ || shared_bytes > kMaxSharedBytes) {
    return "invalid configuration argument";
  }
  install_fault_handler();
  ++launches;
  block.error.clear();
  block.shared = shared_memory + kSharedMargin;
  block.block_dim = size;
  block.grid_dim = grid;
  block.threads = static_cast<uint32_t>(threads);
  block.kernel = &kernel;
  block.fibers.resize(threads);
  while (block.stacks.size() < threads) block.stacks.push_back(allocate_stack());
  block.shared_bytes = shared_bytes;
  for (uint64_t i = 0; i < blocks && block.error.empty(); ++i) run_block(i);
  return block.error.empty() ? nullptr : block.error.c_str();
}

void release_memory() {
  for (unsigned char* stack : block.stacks) release_stack(stack);
  block.stacks.clear();
  release_device_range();
}

unsigned char* dynamic_shared() { return block.shared; }
uint3 thread_index() { return fiber->thread; }
uint3 block_index() { return block.index; }
dim3 block_dimensions() { return block.block_dim; }
dim3 grid_dimensions() { return block.grid_dim; }

}  // namespace emulator
