// Conversion of arrays, for each type of tensor. Compiled once per instruction set, as walk.cpp is; the
// drivers of the passes call it for weights and biases, and for gradients of them.
#include "convert.h"

#include "number.h"

namespace acsconv {
namespace ACSCONV_ISA {

template <class S>
void widen_array(const void* from, void* to, int64_t count) {
  copy_wide(static_cast<Computed<S>*>(to), static_cast<const S*>(from), count);
}

template <class S>
void narrow_array(const void* from, void* to, int64_t count) {
  copy_narrow(static_cast<S*>(to), static_cast<const Computed<S>*>(from), count);
}

template <class S>
constexpr Conversion conversion_of() {
  return {sizeof(S), widen_array<S>, narrow_array<S>};
}

extern const Conversion kConvertFloat64, kConvertFloat32, kConvertFloat16, kConvertBFloat16;
const Conversion kConvertFloat64 = conversion_of<double>();
const Conversion kConvertFloat32 = conversion_of<float>();
const Conversion kConvertFloat16 = conversion_of<Half>();
const Conversion kConvertBFloat16 = conversion_of<BFloat16>();

}  // namespace ACSCONV_ISA
}  // namespace acsconv
