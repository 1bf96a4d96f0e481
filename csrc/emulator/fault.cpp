// Turns a memory fault inside a kernel (a wild pointer that the access checks could not place, a stack
// overflow) into an error of that launch instead of the end of the process: the signal handler makes the
// faulting fiber continue in report_fault(), which records the error and leaves the fiber for good. Faults
// outside kernels go to whoever handled them before.
#include <signal.h>
#include <ucontext.h>

#include "runtime.h"

namespace emulator {
namespace {

struct sigaction previous_handler;
const void* fault_address = nullptr;
const void* fault_counter = nullptr;

void report_fault() {
  fail("memory fault at address %p, at %s", fault_address, source_line(fault_counter).c_str());
}

void handle_fault(int, siginfo_t* info, void* context) {
  if (fiber == nullptr) {
    sigaction(SIGSEGV, &previous_handler, nullptr);
    return;  // the instruction faults again, under the previous handler
  }
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  fault_address = info->si_addr;
  fault_counter = reinterpret_cast<const void*>(registers[REG_RIP] + 1);
  constexpr size_t kStackTop = 16 * 1024;  // room for report_fault, whatever the state of the fiber's stack
  unsigned char* stack = block.stacks[fiber->index];
  registers[REG_RSP] = static_cast<greg_t>((reinterpret_cast<uintptr_t>(stack) + kStackTop) / 16 * 16 - 8);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&report_fault);
}

}  // namespace

void install_fault_handler() {
  static bool installed = false;
  if (installed) return;
  installed = true;
  constexpr size_t kHandlerStack = 64 * 1024;
  static unsigned char memory[kHandlerStack];  // the faulting fiber's own stack may be full
  stack_t stack{};
  stack.ss_sp = memory;
  stack.ss_size = kHandlerStack;
  sigaltstack(&stack, nullptr);
  struct sigaction action{};
  action.sa_sigaction = handle_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous_handler);
}

}  // namespace emulator
