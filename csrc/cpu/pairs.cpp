// Turns a gather into one over pairs of source channels.
#include "pairs.h"

#include <algorithm>

#include "integers.h"

namespace acsconv {
namespace {

// Pairs are taken where they are at most this share of the products: their weights are packed twice.
constexpr double kMostProducts = 0.9;

// to[i] = {first[i], second[i]} for i < count; a null pointer stands for zeros.
void interleave(const uint16_t* first, const uint16_t* second, int64_t count, uint32_t* to) {
  if (first != nullptr && second != nullptr) {
    for (int64_t i = 0; i < count; ++i) to[i] = first[i] | static_cast<uint32_t>(second[i]) << 16;
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    to[i] = first != nullptr ? first[i] : static_cast<uint32_t>(second[i]) << 16;
  }
}

}  // namespace

PairedGather::PairedGather(const Gather& gather)
    : pairs_(gather),
      rows_of_targets_(gather.weight_out >= gather.weight_in),
      weight_in_(gather.weight_in),
      weight_out_(gather.weight_out) {
  if (!pair_source(gather)) return;
  pair_taps(gather);
  pair_parts(gather);
}

// Strides of pairs, if all of the tensor's channels are in one. Those of an expanded tensor may all be the
// same number, at a distance that says something else.
bool PairedGather::pair_source(const Gather& gather) {
  if (gather.in_channels % 2 != 0 || gather.source.channel == 0) return false;
  VolumeStrides& strides = pairs_.source;
  pairs_.in_channels = gather.in_channels / 2;
  if (strides.channel != 1) {
    pairs_.pair_distance = strides.channel;
    strides.channel *= 2;
    return true;
  }
  // Of an axis with one position the stride may be anything.
  strides.batch *= gather.batch > 1;
  bool even = strides.batch % 2 == 0;
  strides.batch /= 2;
  for (int axis = 0; axis < 3; ++axis) {
    strides.axis[axis] *= gather.in_size[axis] > 1;
    even &= strides.axis[axis] % 2 == 0;
    strides.axis[axis] /= 2;
  }
  return even;
}

// One tap for each weight, whose places are counted among those that any tap reads.
void PairedGather::pair_taps(const Gather& gather) {
  pairs_.taps.clear();
  for (const GatherTap& tap : gather.taps) {
    for (int i = 0; i < tap.weight_count; ++i) {
      GatherTap single = tap;
      single.weight_count = 1, single.weights[0] = tap.weights[i];
      pairs_.taps.push_back(single);
      places_.push_back(tap.weights[i]);
    }
  }
  std::sort(places_.begin(), places_.end());
  places_.erase(std::unique(places_.begin(), places_.end()), places_.end());
  for (GatherTap& tap : pairs_.taps) {
    tap.weights[0] = std::lower_bound(places_.begin(), places_.end(), tap.weights[0]) - places_.begin();
  }
}

void PairedGather::pair_parts(const Gather& gather) {
  int64_t most_pairs = 0, most_targets = 0;
  double products = 0, pair_products = 0;
  for (GatherRange& range : pairs_.ranges) {
    const int64_t targets = range.out_end - range.out_begin;
    most_targets = std::max(most_targets, targets);
    for (GatherPart& part : range.parts) {
      const int64_t begin = part.in_begin / 2, end = ceil_div(part.in_begin + part.in_count, 2);
      parts_.push_back({0, part.weight, 0, part.in_count, end - begin, targets, part.in_begin % 2 != 0});
      const auto taps = [&](const Gather& g) {
        return std::count_if(g.taps.begin(), g.taps.end(),
                             [&](const GatherTap& tap) { return tap.set == part.set; });
      };
      products += static_cast<double>(taps(gather) * part.in_count * targets);
      pair_products += static_cast<double>(taps(pairs_) * (end - begin) * targets);
      part.in_begin = begin, part.in_count = end - begin;
      most_pairs = std::max(most_pairs, part.in_count);
    }
  }
  pays_ = pair_products > 0 && pair_products <= kMostProducts * products;

  const auto places = static_cast<int64_t>(places_.size());
  pairs_.weight_in = rows_of_targets_ ? places : most_targets * places;
  pairs_.weight_out = rows_of_targets_ ? most_pairs * places : places;
  size_t index = 0;
  for (GatherRange& range : pairs_.ranges) {
    for (GatherPart& part : range.parts) {
      PartWeights& weights = parts_[index++];
      const int64_t rows = rows_of_targets_ ? weights.targets : weights.pairs;
      weights.row_begin = weight_rows_, weights.packed = part.weight = weight_numbers_;
      weight_rows_ += rows;
      weight_numbers_ += rows * std::max(pairs_.weight_in, pairs_.weight_out);
    }
  }
}

void PairedGather::pack_weights(const uint16_t* weight, int64_t row, uint32_t* pairs) const {
  const auto next = std::upper_bound(parts_.begin(), parts_.end(), row,
                                     [](int64_t r, const PartWeights& part) { return r < part.row_begin; });
  const PartWeights& part = next[-1];
  row -= part.row_begin;
  const uint16_t* const from = weight + part.weight;
  uint32_t* to = pairs + part.packed + row * std::max(pairs_.weight_in, pairs_.weight_out);
  const auto places = static_cast<int64_t>(places_.size());
  const bool adjacent = places_.back() - places_.front() + 1 == places;

  // `count` pairs of adjacent numbers from a place of the pair's channels on.
  auto pack = [&](int64_t target, int64_t pair, int64_t place, int64_t count) {
    const int64_t channel = 2 * pair - (part.second_half ? 1 : 0);
    const uint16_t* first = from + target * weight_out_ + channel * weight_in_ + place;
    const uint16_t* second = first + weight_in_;
    interleave(channel >= 0 ? first : nullptr, channel + 1 < part.channels ? second : nullptr, count, to);
    to += count;
  };
  auto pack_places = [&](int64_t target, int64_t pair) {
    if (adjacent) return pack(target, pair, places_.front(), places);
    for (int64_t place : places_) pack(target, pair, place, 1);
  };
  if (rows_of_targets_) {
    for (int64_t pair = 0; pair < part.pairs; ++pair) pack_places(row, pair);
  } else if (adjacent && places == weight_out_) {
    pack(0, row, 0, part.targets * places);
  } else {
    for (int64_t target = 0; target < part.targets; ++target) pack_places(target, row);
  }
}

}  // namespace acsconv
