// The symbols that code compiled with g++ -fsanitize=thread calls for every load and store. The kernels are
// compiled so and linked to these in place of libtsan: the compiler's instrumentation feeds the emulator's
// own checks. Host code that happens to be instrumented too is let through. The compiler leaves out one kind
// of store, a struct that a function returns straight into memory: kernels fill structs in shared memory
// through references. -fsanitize=alignment adds a call for every access through a misaligned pointer.
#include "runtime.h"

namespace emulator {

bool instrumented = false;

}  // namespace emulator

namespace {

// What the compiler passes to the handler of misaligned accesses (and of other mismatches, not asked for).
struct TypeMismatch {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};

inline void hook(const void* address, size_t bytes, emulator::Access access, const void* program_counter) {
  if (emulator::fiber != nullptr) emulator::check_access(address, bytes, access, program_counter);
}

}  // namespace

#define EMULATOR_HOOK(name, bytes, access) \
  void name(void* address) { hook(address, bytes, emulator::Access::access, __builtin_return_address(0)); }
#define EMULATOR_HOOKS(bytes)                              \
  EMULATOR_HOOK(__tsan_read##bytes, bytes, Read)           \
  EMULATOR_HOOK(__tsan_write##bytes, bytes, Write)         \
  EMULATOR_HOOK(__tsan_unaligned_read##bytes, bytes, Read) \
  EMULATOR_HOOK(__tsan_unaligned_write##bytes, bytes, Write)

extern "C" {

EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)

void __tsan_read_range(void* address, size_t bytes) {
  hook(address, bytes, emulator::Access::Read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  hook(address, bytes, emulator::Access::Write, __builtin_return_address(0));
}
void __tsan_init() { emulator::instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
// Guards of function-local statics in launchers.
uint8_t __tsan_atomic8_load(const volatile uint8_t* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}

void __ubsan_handle_type_mismatch_v1(const TypeMismatch* access, const void* address) {
  if (emulator::fiber == nullptr) return;
  emulator::fail("misaligned access to %p through a pointer to a type of alignment %d, at %s:%u", address,
                 1 << access->log_alignment, access->file, access->line);
}

}  // extern "C"
