// How a gather's source planes lie packed: which phases its taps read, how rows follow one another, and with
// that the taps' constant offsets. Used by the plans of both kernels.
#pragma once

#include <vector>

#include "gather.h"
#include "walk.h"

namespace acsconv {

class Lattice {
 public:
  explicit Lattice(const Gather& gather);
  Lattice(const Lattice&) = delete;  // packing() points into its arrays

  const std::vector<Tap>& taps() const { return taps_; }  // in the order of Gather::taps
  const Packing& packing() const { return packing_; }     // channel_stride is the plan's to fill in
  int64_t plane_min() const { return plane_min_; }
  int64_t plane_max() const { return plane_max_; }
  int64_t span() const { return plane_max_ - plane_min_ + 1; }
  const std::vector<uint8_t>& plane_read() const { return plane_read_; }  // see Walk

  // Numbers of a packed channel row for a strip of `rows` target rows; its end can be read `beyond` further.
  int64_t row_numbers(int64_t rows, int64_t beyond) const;

 private:
  std::vector<Tap> taps_;
  std::vector<Phase> phases_;
  std::vector<uint8_t> plane_read_;
  Packing packing_{};
  int64_t plane_min_ = 0, plane_max_ = 0;
};

}  // namespace acsconv
