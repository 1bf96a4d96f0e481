// Memory that the CPU kernels work in.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define ACSCONV_ADDRESS_SANITIZER
#elif defined(__has_feature)  // clang
#if __has_feature(address_sanitizer)
#define ACSCONV_ADDRESS_SANITIZER
#endif
#endif

namespace acsconv {

inline constexpr size_t kHugePage = size_t{2} << 20;
inline constexpr int64_t kTypicalCache = 1 << 20;

// Asks for huge pages in what lies wholly inside [begin, begin + size): a first touch of a small page costs
// about as much as computing its contents.
inline void advise_huge_pages(void* begin, size_t size) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (address + size) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

// Memory that a thread keeps from call to call because fresh pages are slow.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // At least `size` bytes, with anything in them, but zeros when new.
  void* get(size_t size) {
#ifdef ACSCONV_ADDRESS_SANITIZER
    // Exactly as many, and not a number: what is read beside them, or before it is written, shows.
    std::free(data_);
    data_ = std::malloc(size);
    std::memset(data_, 0xff, size);
#else
    if (size > size_) {
      std::free(data_);
      size_ = (size + kHugePage - 1) / kHugePage * kHugePage;
      data_ = std::aligned_alloc(kHugePage, size_);
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
      advise_huge_pages(data_, size_);
      std::memset(data_, 0, size_);
    }
#endif
    return data_;
  }

 private:
  void* data_ = nullptr;
  [[maybe_unused]] size_t size_ = 0;
};

// Bytes of a core's own second-level cache.
inline int64_t cache_size() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else  // a C library other than glibc
  static const int64_t size = 0;
#endif
  return size > 0 ? size : kTypicalCache;
}

}  // namespace acsconv
