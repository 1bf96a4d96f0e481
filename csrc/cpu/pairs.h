// A gather of bfloat16 tensors in pairs of source channels, for the processors that multiply pairs and add
// both products to a sum (walk_pairs.cpp): half as many source channels, each of which stands for channels
// 2 i and 2 i + 1 of the tensor. A part that begins or ends within a pair has zeros among its weights. Taps
// whose weights would be added first, in Soft ACS, are one tap for each: their sum would have to be rounded.
#pragma once

#include <cstdint>
#include <vector>

#include "gather.h"

namespace acsconv {

class PairedGather {
 public:
  explicit PairedGather(const Gather& gather);

  // Whether the source lies so that its channels can be taken in pairs, and that is fewer products.
  bool pays() const { return pays_; }

  const Gather& gather() const { return pairs_; }

  // The weights that gather() names are made of the tensor's in rows, each by itself.
  int64_t weight_numbers() const { return weight_numbers_; }
  int64_t weight_rows() const { return weight_rows_; }
  void pack_weights(const uint16_t* weight, int64_t row, uint32_t* pairs) const;

 private:
  struct PartWeights {
    int64_t row_begin;        // of the rows of all parts
    int64_t weight, packed;   // where its first weights are, in the tensor and in pairs
    int64_t channels, pairs;  // of the source
    int64_t targets;
    bool second_half;  // begins with the second number of a pair
  };

  bool pair_source(const Gather& gather);
  void pair_taps(const Gather& gather);
  void pair_parts(const Gather& gather);

  Gather pairs_;
  bool pays_ = false;
  bool rows_of_targets_;  // a row of weights is a target's, or else a pair's
  int64_t weight_in_, weight_out_;
  std::vector<int64_t> places_;  // of the weights that taps read, among those of one pair of channels
  std::vector<PartWeights> parts_;
  int64_t weight_numbers_ = 0, weight_rows_ = 0;
};

}  // namespace acsconv
