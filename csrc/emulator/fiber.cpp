// Fibers: stacks with a guard page below them, and the switch from one to another (x86-64, System V calling
// convention). The switch saves the callee-saved registers on the old stack and takes those of the new one; a
// new fiber's stack is laid out so that the first switch to it "returns" into its entry function.
#include <sys/mman.h>

#include <new>

#include "runtime.h"

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 * 1024, kPage = 4096;
constexpr size_t kSavedRegisters = 6;

}  // namespace

#if !defined(__x86_64__)
#error "the emulator switches fibers with x86-64 instructions"
#endif

asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

unsigned char* allocate_stack() {
  void* memory = mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  if (mprotect(memory, kPage, PROT_NONE) != 0) {
    munmap(memory, kStackBytes + kPage);
    throw std::bad_alloc();
  }
  return static_cast<unsigned char*>(memory) + kPage;
}

void release_stack(unsigned char* stack) { munmap(stack - kPage, kStackBytes + kPage); }

void prepare_fiber(Fiber& fiber, unsigned char* stack, void (*entry)()) {
  // Stacks of equal alignment would compete for the same cache sets.
  const size_t colour = 64 * (fiber.index % 61);
  void** top = reinterpret_cast<void**>(stack + kStackBytes - 16 - colour);
  *--top = nullptr;  // where entry would return to; it never does. Also aligns the stack at entry.
  *--top = reinterpret_cast<void*>(entry);
  for (size_t i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

}  // namespace emulator
