// Lays out the packed planes of a gather.
#include "lattice.h"

#include <algorithm>

#include "integers.h"

namespace acsconv {

Lattice::Lattice(const Gather& gather) {
  packing_.source = {gather.source.batch, gather.source.channel, gather.source.axis[0], gather.source.axis[1],
                     gather.source.axis[2]};
  packing_.source_numbers = tensor_numbers(gather.source, gather.batch, gather.in_channels, gather.in_size);
  packing_.pair_distance = gather.pair_distance;
  packing_.in_rows = gather.in_size[1], packing_.in_columns = gather.in_size[2];
  packing_.row_stride = gather.in_stride[1], packing_.column_stride = gather.in_stride[2];

  struct Position {
    int64_t plane, row, column;  // row and column in units of the phase
    int32_t phase;
  };
  std::vector<Position> positions;
  int64_t row_max = 0, column_max = 0;
  for (const GatherTap& tap : gather.taps) {
    int64_t whole[3], rest[3];
    for (int axis = 1; axis < 3; ++axis) {
      whole[axis] = floor_div(tap.displacement[axis], gather.in_stride[axis]);
      rest[axis] = tap.displacement[axis] - whole[axis] * gather.in_stride[axis];
    }
    const Phase phase{static_cast<int32_t>(rest[1]), static_cast<int32_t>(rest[2])};
    const auto found = std::find_if(phases_.begin(), phases_.end(), [&](const Phase& other) {
      return other.row == phase.row && other.column == phase.column;
    });
    const bool first = positions.empty();
    positions.push_back(
        {tap.displacement[0], whole[1], whole[2], static_cast<int32_t>(found - phases_.begin())});
    if (found == phases_.end()) phases_.push_back(phase);
    const Position& p = positions.back();
    plane_min_ = first ? p.plane : std::min(plane_min_, p.plane);
    plane_max_ = first ? p.plane : std::max(plane_max_, p.plane);
    packing_.row_min = first ? p.row : std::min(packing_.row_min, p.row);
    packing_.column_min = first ? p.column : std::min(packing_.column_min, p.column);
    row_max = first ? p.row : std::max(row_max, p.row);
    column_max = first ? p.column : std::max(column_max, p.column);
  }
  if (phases_.empty()) phases_.push_back({0, 0});
  packing_.phases = phases_.data();
  packing_.phase_count = static_cast<int32_t>(phases_.size());
  packing_.halo_rows = row_max - packing_.row_min;

  // Zeros to the left of every row's data, and to the right of it in every phase, are stored once for two
  // rows.
  const int64_t columns = gather.class_size(2);
  const int64_t width = columns + column_max - packing_.column_min;
  int64_t shared = std::clamp<int64_t>(-packing_.column_min, 0, width);
  for (const Phase& phase : phases_) {
    const int64_t valid = ceil_div(gather.in_size[2] - phase.column, gather.in_stride[2]);
    shared = std::min(shared, std::clamp<int64_t>(columns + column_max - valid, 0, width));
  }
  packing_.pitch = std::max(width - shared, columns);

  plane_read_.assign(gather.in_stride[0], false);
  for (const Position& p : positions) {
    plane_read_[(p.plane - plane_min_) % gather.in_stride[0]] = true;
    taps_.push_back({p.plane - plane_min_,
                     (p.row - packing_.row_min) * packing_.pitch + p.column - packing_.column_min, p.phase});
  }
}

int64_t Lattice::row_numbers(int64_t rows, int64_t beyond) const {
  return (rows + packing_.halo_rows + 1) * packing_.pitch + beyond;
}

}  // namespace acsconv
