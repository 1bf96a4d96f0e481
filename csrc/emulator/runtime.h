// Internals of the emulator, shared by its sources: what a CUDA thread, a block and the settings of a run
// are.
//
// A CUDA thread is a fiber with a stack of its own; a block is a set of fibers, and the blocks of a grid run
// one after another on the calling OS thread. A fiber runs until it has to wait (barrier, warp collective) or
// ends; then it switches straight to the next ready one. Which one that is, the schedule decides. An error
// ends the launch: the fiber records it and switches away for good, since the instrumentation hooks it may
// come from must not throw. cuda.h is the kernels' side of this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda.h"
#include "shadow.h"

namespace emulator {

inline constexpr uint32_t kWarpSize = 32, kMaxThreads = 1024, kMaxWarps = kMaxThreads / kWarpSize;
inline constexpr size_t kMaxSharedBytes = 227 * 1024;  // of a block, on compute capability 9.0
inline constexpr size_t kSharedMargin = 4096;          // bytes before and after it that no kernel may touch
inline constexpr uint32_t kMaxGridYZ = 65535;

enum class State : uint8_t { Ready, AtWarpCollective, AtBarrier, AtSharedBarrier, Exited };

// A cp.async of a thread that has not waited for it yet.
struct AsyncCopy {
  uint32_t shared_offset, bytes, source_bytes, group;
  const void *global, *program_counter;
  bool moved;
};

struct Fiber {
  void* stack_pointer = nullptr;
  uint32_t index = 0, lane = 0, warp = 0;  // within the block
  State state = State::Ready;
  const char* operation = "start";  // what the fiber waits for, or did last
  Location location{};
  uint32_t mask = 0;          // lanes of the collective it waits for
  void* argument = nullptr;   // its registers in that collective
  VectorClock clock, fenced;  // fenced: the clock at its last proxy fence
  uint3 thread{};
  std::vector<AsyncCopy> copies;
  uint32_t copy_group = 0;  // of the copies that are started now
  uint32_t barrier = 0;     // shared address of the mbarrier it waits for
};

struct Warp {
  uint32_t ready = 0;    // lanes that can run
  uint32_t waiting = 0;  // lanes that wait in a collective
};

struct Block {
  uint3 index{};
  uint64_t linear_index = 0;
  dim3 block_dim, grid_dim;
  uint32_t threads = 0, exited = 0, ready_warps = 0, last_run = 0;
  std::vector<Fiber> fibers;
  Warp warps[kMaxWarps];
  uint32_t arrived = 0;  // fibers at the block's barrier
  Location barrier{};
  std::vector<unsigned char*> stacks;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  Shadow shared_shadow{/*tracks_all_readers=*/true};
  void* host_stack_pointer = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::string error;
  uint64_t random = 1;
};

extern Block block;   // the one being run
extern Fiber* fiber;  // the running one; null outside kernels
extern uint64_t launches;
extern bool instrumented;  // the kernels' plain loads and stores are reported; without them no race is seen

// fiber.cpp
unsigned char* allocate_stack();
void release_stack(unsigned char* stack);
void prepare_fiber(Fiber& fiber, unsigned char* stack, void (*entry)());
extern "C" void emulator_switch(void** save, void* resume);

// fault.cpp
void install_fault_handler();

// scheduler.cpp
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void wait_as(State state, const char* operation, Location location);
void make_ready(const Fiber& fiber);
void let_others_run();  // at a point where the schedule may prefer another fiber
uint32_t random_below(uint32_t bound);

// sync.cpp
using Collective = void (*)(void** arguments, uint32_t mask);
// An instruction that all 32 lanes execute together: the last one to come runs the operation for all.
void aligned_collective(const char* name, void* argument, Collective operation, Location location);

// memory.cpp
std::string source_line(const void* program_counter);
void release_device_range();  // with every buffer in it
inline bool races_are_checked() { return options.detect_races && instrumented; }
void check_access(const void* address, size_t bytes, Access access, const void* program_counter);
void check_shared(ptrdiff_t offset, size_t bytes, Access access, const void* program_counter);
void begin_async_write(ptrdiff_t shared_offset, size_t bytes, const void* program_counter,
                       Shadow::Fenced fenced = nullptr);
void end_async_write(ptrdiff_t shared_offset, size_t bytes, const void* program_counter);

// async_copy.cpp
unsigned char* shared_pointer(uint32_t address);
void check_nothing_under_way();  // when a thread exits
bool async_moves_now();          // what the setting says of a copy that could wait

// bulk_copy.cpp
bool complete_bulk_copy();  // one that is under way; false if none is
bool end_bulk_copies();     // when a block ends; false if one was under way

}  // namespace emulator
