// Memory as the kernels see it: device buffers that end at an inaccessible page, the check of every access
// (bounds, then shadow memory), atomics, and the source line of an instruction for the messages. hooks.cpp
// calls check_access() for the plain loads and stores of instrumented code.
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>

#include "banks.h"
#include "runtime.h"

namespace emulator {
namespace {

constexpr size_t kPage = 4096, kAlignment = 16;
// All buffers lie in one reserved range, so that a wild pointer into the gaps between them is recognised.
constexpr size_t kArenaBytes = size_t{1} << 39, kGap = size_t{1} << 20;

struct Buffer {
  uintptr_t begin;
  size_t bytes;
  unsigned char* mapping;
  size_t mapping_bytes;
  Shadow shadow{/*tracks_all_readers=*/false};
};

struct Arena {
  uintptr_t begin, next;
  std::map<uintptr_t, std::unique_ptr<Buffer>> buffers;  // by first byte
  Buffer* last = nullptr;                                // the one accessed last

  Arena() {
    void* range = mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) throw std::bad_alloc();
    begin = next = reinterpret_cast<uintptr_t>(range);
  }
  Arena(const Arena&) = delete;
  ~Arena() { munmap(reinterpret_cast<void*>(begin), kArenaBytes); }
  bool contains(uintptr_t address) const { return address - begin < kArenaBytes; }

  Buffer* find(uintptr_t address) {
    if (last != nullptr && address - last->begin < last->bytes) return last;
    auto after = buffers.upper_bound(address);
    if (after == buffers.begin()) return nullptr;
    return last = std::prev(after)->second.get();
  }
};

std::unique_ptr<Arena> reserved;

Arena& arena() {
  if (reserved == nullptr) reserved = std::make_unique<Arena>();
  return *reserved;
}

const char* name(Access access) {
  return access == Access::Read ? "read" : access == Access::Write ? "write" : "atomic";
}

Accessor this_thread(const void* counter) {
  return {launches, block.linear_index, fiber->index, &fiber->clock, counter};
}

void fail_in_shared(const std::string& problem, ptrdiff_t offset, const void* counter) {
  fail("%s; shared byte %td, at %s", problem.c_str(), offset, source_line(counter).c_str());
}

void check_device(uintptr_t address, size_t bytes, Access access, const void* counter) {
  Buffer* buffer = arena().find(address);
  if (buffer == nullptr) {
    fail("device %s outside any buffer at %s", name(access), source_line(counter).c_str());
  }
  const uintptr_t offset = address - buffer->begin;
  if (offset + bytes > buffer->bytes) {
    fail("device %s out of bounds: bytes %zu to %zu of a buffer of %zu, at %s", name(access),
         static_cast<size_t>(offset), static_cast<size_t>(offset + bytes), buffer->bytes,
         source_line(counter).c_str());
  }
  if (!races_are_checked()) return;
  const std::string problem =
      buffer->shadow.record(offset, bytes, access, this_thread(counter), /*needs_value=*/false);
  if (!problem.empty()) {
    fail("%s; device buffer of %zu bytes, byte %zu, at %s", problem.c_str(), buffer->bytes,
         static_cast<size_t>(offset), source_line(counter).c_str());
  }
}

void check_shared_bounds(ptrdiff_t offset, size_t bytes, Access access, const void* counter) {
  const ptrdiff_t end = offset + static_cast<ptrdiff_t>(bytes);
  if (offset >= 0 && end <= static_cast<ptrdiff_t>(block.shared_bytes)) return;
  fail("shared %s out of bounds: bytes %td to %td of %zu, at %s", name(access), offset, end,
       block.shared_bytes, source_line(counter).c_str());
}

template <class T>
T add(T* address, T value, const void* counter) {
  check_access(address, sizeof(T), Access::Atomic, counter);
  const T before = *address;  // fibers share one OS thread: nothing comes in between
  *address = before + value;
  return before;
}

}  // namespace

void check_access(const void* pointer, size_t bytes, Access access, const void* counter) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t in_array = address - reinterpret_cast<uintptr_t>(block.shared) + kSharedMargin;
  if (in_array < kMaxSharedBytes + 2 * kSharedMargin) {
    const auto offset = static_cast<ptrdiff_t>(in_array - kSharedMargin);
    check_shared(offset, bytes, access, counter);
    if (options.count_banks) {
      count_lane(access == Access::Read ? "load" : "store", static_cast<uint32_t>(offset),
                 static_cast<uint32_t>(bytes), counter, /*plain=*/true);
    }
  } else if (arena().contains(address)) {
    check_device(address, bytes, access, counter);
  } else if (address < kPage) {
    fail("%s through a null pointer at %s", name(access), source_line(counter).c_str());
  }
  // Anything else is the fiber's own stack, the kernel's parameters or a constant.
}

void check_shared(ptrdiff_t offset, size_t bytes, Access access, const void* counter) {
  check_shared_bounds(offset, bytes, access, counter);
  if (!races_are_checked()) return;
  const std::string problem =
      block.shared_shadow.record(offset, bytes, access, this_thread(counter), /*needs_value=*/true);
  if (!problem.empty()) fail_in_shared(problem, offset, counter);
}

void begin_async_write(ptrdiff_t offset, size_t bytes, const void* counter, Shadow::Fenced fenced) {
  check_shared_bounds(offset, bytes, Access::Write, counter);
  if (!races_are_checked()) return;
  const std::string problem =
      block.shared_shadow.begin_async_write(offset, bytes, this_thread(counter), fenced);
  if (!problem.empty()) fail_in_shared(problem, offset, counter);
}

void end_async_write(ptrdiff_t offset, size_t bytes, const void* counter) {
  if (races_are_checked()) block.shared_shadow.end_async_write(offset, bytes, this_thread(counter));
}

void* allocate_device(size_t bytes) {
  Arena& a = arena();
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const size_t usable = (rounded + kPage - 1) / kPage * kPage, mapping_bytes = usable + 2 * kPage;
  auto* mapping = reinterpret_cast<unsigned char*>(a.next);
  if (a.next + mapping_bytes > a.begin + kArenaBytes ||
      mprotect(mapping + kPage, usable, PROT_READ | PROT_WRITE) != 0) {
    throw std::bad_alloc();
  }
  a.next += mapping_bytes + kGap;
  unsigned char* begin = mapping + kPage + usable - rounded;
  auto buffer = std::make_unique<Buffer>();
  buffer->begin = reinterpret_cast<uintptr_t>(begin);
  buffer->bytes = bytes;
  buffer->mapping = mapping;
  buffer->mapping_bytes = mapping_bytes;
  buffer->shadow.reset(bytes);
  std::memset(begin, 0xff, rounded);
  a.buffers[buffer->begin] = std::move(buffer);
  return begin;
}

void release_device(void* pointer) {
  Arena& a = arena();
  const auto found = a.buffers.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == a.buffers.end()) return;
  // Back to inaccessible address space, never handed out again: use after release is caught.
  mmap(found->second->mapping, found->second->mapping_bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  a.last = nullptr;
  a.buffers.erase(found);
}

void release_device_range() { reserved.reset(); }

std::string source_line(const void* counter) {
  Dl_info object;
  if (counter == nullptr || dladdr(counter, &object) == 0) return "an unknown line";
  char command[1200];
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx", object.dli_fname,
                reinterpret_cast<size_t>(counter) - reinterpret_cast<size_t>(object.dli_fbase) - 1);
  std::string line = "an unknown line";
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return line;
  char text[1000];
  while (std::fgets(text, sizeof text, pipe) != nullptr) {  // from the innermost inlined function outwards
    line = text;
    line.resize(line.find_first_of(" \n"));
    if (line.find("emulator/cuda.h:") == std::string::npos && line.find("common/ptx") == std::string::npos)
      break;
  }
  pclose(pipe);
  return line;
}

float atomic_add(float* address, float value) { return add(address, value, __builtin_return_address(0)); }
int atomic_add(int* address, int value) { return add(address, value, __builtin_return_address(0)); }
unsigned atomic_add(unsigned* address, unsigned value) {
  return add(address, value, __builtin_return_address(0));
}

}  // namespace emulator
